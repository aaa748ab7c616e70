"""Every alert fires when it should and is quiet when it should be; every name in it is the catalog's."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from alert_cases import CASES
from fabrictap import catalog, cli
from fabrictap.export import prometheus
from support import require

ROOT = Path(__file__).parents[2]
RULES = ROOT / "packaging" / "prometheus" / "rules"
FILES = sorted(RULES.glob("*.yaml"))
GROUPS = [group for file in FILES for group in yaml.safe_load(file.read_text())["groups"]]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule}
RECORDED = {rule["record"]: rule for group in GROUPS for rule in group["rules"] if "record" in rule}


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


def test_the_commands_of_the_runbooks_are_fabrictaps() -> None:
    page = (ROOT / "docs" / "runbooks.md").read_text()
    commands = set(re.findall(r"`(fabrictap [^`]+)`", page))
    assert len(commands) >= 8
    for text in commands:
        _, rest = cli._parser().parse_known_args(shlex.split(text)[1:])
        assert not rest, text
