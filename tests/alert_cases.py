"""Series with which each alert fires, and with which it must not."""

from __future__ import annotations

from dataclasses import dataclass

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
    "FabrictapBudgetReduced": Case(
        {f'fabrictap_budget_processes{{{N},fabrictap_budget_state="reduced"}}': "2x60"},
        {f'fabrictap_budget_processes{{{N},fabrictap_budget_state="full"}}': "2x60"},
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
