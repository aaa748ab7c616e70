"""Every alert fires when it should and is quiet when it should be; every name in it is the catalog's."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from fabrictap import catalog
from fabrictap.export import prometheus
from support import require

ROOT = Path(__file__).parents[2]
RULES = ROOT / "packaging" / "prometheus" / "rules"
FILES = sorted(RULES.glob("*.yaml"))
GROUPS = [group for file in FILES for group in yaml.safe_load(file.read_text())["groups"]]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule}
RECORDED = {rule["record"]: rule for group in GROUPS for rule in group["rules"] if "record" in rule}
#: A node, and a part of it.
N = 'host_name="n1"'
P = f'{N},hw_id="mlx5_0/1"'
G = f'{N},hw_id="GPU-1",hw_type="gpu"'


@dataclass(frozen=True)
class Case:
    """Series with values a minute, in promtool's notation, that make the alert fire, and that do not.

    ``labels``: of the firing alert, but its name and severity. ``at``: when it has to fire, or must not.
    """

    fires: dict[str, str]
    quiet: dict[str, str]
    labels: dict[str, str]
    at: str = "15m"


def finding(kind: str, value: str, severity: str = "warn") -> dict[str, str]:
    labels = f'{N},fabrictap_finding_kind="{kind}",fabrictap_finding_severity="{severity}"'
    return {f"fabrictap_finding_open{{{labels}}}": value}


def counter(metric: str, labels: str, a_minute: float) -> dict[str, str]:
    return {f"{metric}{{{labels}}}": f"0+{a_minute}x60"}


def about_finding(kind: str, *, named: bool = False) -> Case:
    """Open, and open no more."""
    labels = {"host_name": "n1"} | ({"fabrictap_finding_kind": kind} if named else {})
    return Case(finding(kind, "1x60"), finding(kind, "0 1 1 0x60"), labels)


NODE = {"host_name": "n1"}
PORT = NODE | {"hw_id": "mlx5_0/1"}
GPU = NODE | {"hw_id": "GPU-1"}
OUT = f'{P},network_io_direction="transmit"'


def egress(sent: float, dark: float) -> dict[str, str]:
    return counter("hw_network_io_bytes_total", OUT, sent) | counter(
        "rdma_port_dark_io_bytes_total", OUT, dark
    )


def port_errors(name: str, a_minute: float) -> dict[str, str]:
    return counter("hw_errors_total", f'{P},hw_type="network",error_type="{name}"', a_minute)


CASES = {
    "FabrictapRemoteReadEgress": about_finding("remote_read_egress"),
    "FabrictapDarkEgress": Case(
        egress(60e9, 6e9), egress(60e9, 0.5e9), PORT | {"network_io_direction": "transmit"}
    ),
    "FabrictapForbiddenPeer": about_finding("cross_tenant", named=True),
    "FabrictapNewPeer": Case(
        {f'fabrictap_finding_count_total{{{N},fabrictap_finding_kind="new_peer"}}': "_x50 1x60"},
        {f'fabrictap_finding_count_total{{{N},fabrictap_finding_kind="new_peer"}}': "3x120"},
        NODE,
        "70m",
    ),
    "FabrictapExposedMemory": about_finding("exposed_memory"),
    "FabrictapSlowEgress": about_finding("slow_egress"),
    "FabrictapTampering": about_finding("probes_blind", named=True),
    "FabrictapIsolation": Case(
        finding("gpu_shared", "1x60"),
        finding("gpu_shared", "1x60", "info"),
        NODE | {"fabrictap_finding_kind": "gpu_shared"},
    ),
    "FabrictapResourceExhaustion": about_finding("resource_exhaustion"),
    "FabrictapPortDown": Case(
        {
            f'hw_network_up{{{P},rdma_port_state="active"}}': "1x5 stale",
            f'hw_network_up{{{P},rdma_port_state="down"}}': "_x6 0x60",
        },
        # Never plugged in.
        {f'hw_network_up{{{P},rdma_port_state="down"}}': "0x60"},
        PORT,
    ),
    "FabrictapPortFlapping": Case(
        {f'hw_errors_total{{{P},hw_type="network",error_type="link_downed"}}': "0x3 1x3 2x60"},
        {f'hw_errors_total{{{P},hw_type="network",error_type="link_downed"}}': "0x3 1x60"},
        PORT,
    ),
    "FabrictapPortDegraded": Case(
        {f"hw_network_bandwidth_limit_bytes_per_second{{{P}}}": "50e9x3 25e9x60"},
        {f"hw_network_bandwidth_limit_bytes_per_second{{{P}}}": "25e9x3 50e9x60"},
        PORT,
    ),
    "FabrictapPortErrors": Case(
        port_errors("symbol_error", 120),
        port_errors("symbol_error", 6),
        PORT | {"error_type": "symbol_error"},
    ),
    "FabrictapRetransmissions": Case(
        # Half of it among the errors, half elsewhere.
        port_errors("packet_seq_err", 3600)
        | counter("rdma_port_counter_total", f'{P},rdma_counter_name="out_of_sequence"', 3600),
        port_errors("packet_seq_err", 3600),
        PORT,
    ),
    "FabrictapCongestion": Case(
        counter("rdma_port_counter_total", f'{P},rdma_counter_name="rp_cnp_handled"', 1e6),
        counter("rdma_port_counter_total", f'{P},rdma_counter_name="rp_cnp_handled"', 1e5),
        PORT,
    ),
    "FabrictapDrops": Case(
        port_errors("port_xmit_discards", 1200),
        port_errors("port_xmit_discards", 60),
        PORT | {"error_type": "port_xmit_discards"},
    ),
    "FabrictapNvlinkDown": Case(
        {f'gpu_nvlink_up{{{G},gpu_nvlink_link="7"}}': "1x5 0x60"},
        {f'gpu_nvlink_up{{{G},gpu_nvlink_link="7"}}': "0x60"},
        GPU | {"gpu_nvlink_link": "7"},
    ),
    "FabrictapNvlinkErrors": Case(
        counter("hw_errors_total", f'{G},error_type="nvlink_replay",gpu_nvlink_link="7"', 5),
        counter("hw_errors_total", f'{G},error_type="nvlink_replay",gpu_nvlink_link="7"', 0.5),
        GPU | {"gpu_nvlink_link": "7"},
    ),
    "FabrictapXid": Case(
        {f'hw_errors_total{{{G},error_type="xid_79"}}': "_x12 1x60"},
        {f'hw_errors_total{{{G},error_type="xid_79"}}': "1x60"},
        GPU | {"error_type": "xid_79"},
    ),
    "FabrictapGpuFailed": Case(
        {f'hw_status{{{G},hw_state="failed"}}': "0x5 1x60"},
        {f'hw_status{{{G},hw_state="failed"}}': "0x60"},
        GPU,
    ),
    "FabrictapGpuDegraded": Case(
        {f'hw_status{{{G},hw_state="degraded"}}': "0x5 1x60"},
        {f'hw_status{{{G},hw_state="degraded"}}': "0x60"},
        GPU,
    ),
    "FabrictapGpuFabricNotReady": Case(
        {f'gpu_fabric{{{G},gpu_fabric_state="in_progress"}}': "1x60"},
        {
            f'gpu_fabric{{{G},gpu_fabric_state="in_progress"}}': "1x2 stale",
            f'gpu_fabric{{{G},gpu_fabric_state="completed"}}': "_x3 1x60",
        },
        GPU,
    ),
    "FabrictapAgentDown": Case(
        {f"fabrictap_series_count{{{N}}}": "100x3 stale"}, {f"fabrictap_series_count{{{N}}}": "100x60"}, NODE
    ),
    "FabrictapAgentLagging": Case(
        {f"fabrictap_series_count{{{N}}}": "100x11"},
        {f"fabrictap_series_count{{{N}}}": "100x60"},
        NODE,
        "14m",
    ),
    "FabrictapExportFailing": Case(
        counter(
            "otel_sdk_exporter_span_exported_total",
            f'{N},otel_component_type="otlp_grpc_span_exporter",error_type="queue_full"',
            3,
        ),
        counter(
            "otel_sdk_exporter_span_exported_total", f'{N},otel_component_type="otlp_grpc_span_exporter"', 3
        ),
        NODE | {"otel_component_type": "otlp_grpc_span_exporter", "error_type": "queue_full"},
    ),
    "FabrictapSourceDown": Case(
        {f'fabrictap_source_up{{{N},fabrictap_source="verbs"}}': "0x60"},
        {f'fabrictap_source_up{{{N},fabrictap_source="verbs"}}': "0 0 1x60"},
        NODE | {"fabrictap_source": "verbs"},
    ),
    "FabrictapRecordsLost": Case(
        counter("fabrictap_record_lost_total", f'{N},fabrictap_loss_reason="table_full"', 6),
        counter("fabrictap_record_lost_total", f'{N},fabrictap_loss_reason="table_full"', 0),
        NODE | {"fabrictap_loss_reason": "table_full"},
    ),
    "FabrictapLimitReached": Case(
        counter("fabrictap_series_refused_total", N, 1),
        counter("fabrictap_series_refused_total", N, 0)
        | counter("fabrictap_table_dropped_total", f'{N},fabrictap_table="spans"', 0),
        NODE,
    ),
    "FabrictapCoverageLow": Case(
        {
            f'rdma_qp_status{{{N},fabrictap_coverage="control_only",rdma_qp_number="1"}}': "1x60",
            f'rdma_qp_status{{{N},fabrictap_coverage="exact",rdma_qp_number="2"}}': "1x60",
        },
        {
            f'rdma_qp_status{{{N},fabrictap_coverage="control_only",rdma_qp_number="1"}}': "1x2 stale",
            f'rdma_qp_status{{{N},fabrictap_coverage="exact",rdma_qp_number="2"}}': "1x60",
        },
        NODE,
    ),
    "FabrictapProbeMissing": Case(
        {f'fabrictap_probe_attached{{{N},fabrictap_probe="post_send"}}': "0x60"},
        {f'fabrictap_probe_attached{{{N},fabrictap_probe="post_send"}}': "4x60"},
        NODE | {"fabrictap_probe": "post_send"},
    ),
    "FabrictapDetectorErrors": Case(
        counter("fabrictap_detector_errors_total", f'{N},fabrictap_detector="dark"', 1),
        counter("fabrictap_detector_errors_total", f'{N},fabrictap_detector="dark"', 0),
        NODE | {"fabrictap_detector": "dark"},
    ),
    "FabrictapUnnamedNodes": Case(
        {'fabrictap_series_count{job="fabrictap",instance="a"}': "5x60"},
        {f'fabrictap_series_count{{job="fabrictap",instance="a",{N}}}': "5x60"},
        {"job": "fabrictap", "instance": "a"},
        "20m",
    ),
}


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    found = shutil.which("promtool")
    require("promtool", found is not None, "apt-get install prometheus")
    assert found is not None
    return subprocess.run(
        [found, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )


def test_promtool_accepts_the_rules() -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", *FILES)
    assert done.returncode == 0, done.stderr


def test_every_alert_has_a_case() -> None:
    assert set(CASES) == set(ALERTS)


@pytest.mark.parametrize("alert", CASES)
def test_the_alert_fires_and_is_quiet(alert: str, tmp_path: Path) -> None:
    case = CASES[alert]
    labels = {"alertname": alert, "alertstate": "firing", **ALERTS[alert]["labels"], **case.labels}
    firing = "ALERTS{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"
    query = f'ALERTS{{alertname="{alert}",alertstate="firing"}}'
    tests = [
        {
            "interval": "1m",
            "name": name,
            "input_series": [{"series": one, "values": values} for one, values in series.items()],
            "promql_expr_test": [{"expr": query, "eval_time": case.at, "exp_samples": expected}],
        }
        for name, series, expected in (
            ("fires", case.fires, [{"labels": firing, "value": 1}]),
            ("quiet", case.quiet, []),
        )
    ]
    file = tmp_path / "tests.yaml"
    file.write_text(
        yaml.safe_dump(
            {"rule_files": [str(one) for one in FILES], "evaluation_interval": "1m", "tests": tests}
        )
    )
    done = promtool("test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


def names_in(expr: str) -> set[str]:
    """Names of metrics in an expression: what is neither a function, a label, a keyword nor a string."""
    bare = re.sub(r'"[^"]*"', "", re.sub(r"#.*", "", expr))
    bare = re.sub(r"\b(by|on|without|group_left|ignoring)\s*\([^)]*\)", " ", bare)
    bare = re.sub(r"\{[^}]*\}", " ", bare)
    words = re.findall(r"[a-zA-Z_:][\w:]*(?!\w)(?!\s*\()", re.sub(r"\[[^]]*\]", "", bare))
    return {word for word in words if "_" in word or ":" in word} - {"group_left"}


def test_every_metric_label_and_kind_is_the_catalogs() -> None:
    metrics = {prometheus.name(metric) for metric in catalog.exported()} | set(RECORDED)
    labels = {attribute.name.replace(".", "_") for attribute in catalog.attributes()}
    # Of the resource, and of Prometheus.
    labels |= {"host_name", "k8s_cluster_name", "job", "instance", "__name__"}
    kinds = {kind.name for kind in catalog.findings()}
    for rule in (*ALERTS.values(), *RECORDED.values()):
        expr = rule["expr"]
        assert names_in(expr) <= metrics, rule
        matched = set(re.findall(r"([a-z_0-9]+)\s*(?:=~|!=|!~|=)\"", expr))
        for group in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expr):
            matched |= {one.strip() for one in group.split(",") if one.strip()}
        assert matched <= labels, rule
        for text in re.findall(r'fabrictap_finding_kind=~?"([^"]+)"', expr):
            assert set(text.split("|")) <= kinds, rule


def test_every_kind_of_finding_has_an_alert_that_tells_of_it() -> None:
    told = {
        kind
        for rule in ALERTS.values()
        for text in re.findall(r'fabrictap_finding_kind=~?"([^"]+)"', rule["expr"])
        for kind in text.split("|")
    }
    # Dark egress and links have alerts on the figures themselves, from which the findings are made as well.
    assert {kind.name for kind in catalog.findings()} - told == {
        "dark_egress", "link_errors", "link_degraded", "retransmissions",
    }  # fmt: skip


def test_every_alert_has_a_severity_a_summary_and_a_section_in_the_runbooks() -> None:
    page = (ROOT / "docs" / "runbooks.md").read_text()
    anchors = {title.lower() for title in re.findall(r"^#+ (\w+)$", page, re.MULTILINE)}
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
        assert rule["annotations"]["runbook_url"].endswith(f"/docs/runbooks.md#{name.lower()}")
        assert name.lower() in anchors
    assert {kind.name for kind in catalog.findings()} <= anchors
