"""Every query of dashboards and rules gives data; alerts fire in the theft; a browser draws all of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e import dashboards, draw
from metrics_world import RECORDED, RECORDING, RULES, SIMULATED, World
from support import eventually

pytest_plugins = ["metrics_world"]
BOARDS = [file.stem for file in dashboards.FILES]
#: Panels and rules that have nothing to show in this world, and why.
EMPTY = {
    "NVLink bit errors": "told by NVLink 5 GPUs only, and not simulated",
    "Figures that GPUs do not deliver": "the simulated driver delivers all of them, and the VM has no GPU",
    "Taken from processes by probes": "agents in the emulated VM count all posts, without a budget",
    "Processes by how their posts are counted": "likewise",
    "Decisions": "likewise",
    "node:rdma_qp_unseen:ratio": "all posts are seen; test_alert_rules.py has queue pairs whose are not",
}
#: What only the recording has.
if not RECORDED:
    EMPTY |= dict.fromkeys(
        (
            "Probes",
            "Reads that failed",
            "Records of probes, received and lost",
            "Handed over",
            "Not handed over, in five minutes",
            "Connection manager",
            "Told",
        ),
        f"there is no {RECORDING.name}",
    )
#: Alerts whose condition does not come about in this world; test_alert_rules.py makes each of them fire.
QUIET = {
    "FabrictapSlowEgress": "takes days",
    "FabrictapTampering": "nobody does",
    "FabrictapIsolation": "no tenants",
    "FabrictapResourceExhaustion": "nobody does",
    "FabrictapNewPeer": "takes days of learning",
    "FabrictapPortFlapping": "a port is lost once in that time",
    "FabrictapPortDegraded": "no link is slower than it was",
    "FabrictapPortErrors": "links are lost, and have no errors before",
    "FabrictapRetransmissions": "few packets are lost",
    "FabrictapCongestion": "little is marked",
    "FabrictapDrops": "nothing is dropped",
    "FabrictapGpuFailed": "none does",
    "FabrictapGpuFabricNotReady": "all are ready",
    "FabrictapAgentDown": "none is, in this hour",
    "FabrictapAgentLagging": "figures are not late while they come",
    "FabrictapSourceDown": "all sources deliver",
    "FabrictapRecordsLost": "none are",
    "FabrictapLimitReached": "none is",
    "FabrictapCoverageLow": "all posts are seen",
    "FabrictapProbeMissing": "all are attached",
    "FabrictapBudgetReduced": "nobody posts that often",
    "FabrictapDetectorErrors": "none fails",
    "FabrictapUnnamedNodes": "all have names",
}
if RECORDED:
    # A source that the VM cannot have does not deliver.
    del QUIET["FabrictapSourceDown"]
else:
    QUIET |= dict.fromkeys(
        ("FabrictapForbiddenPeer", "FabrictapExposedMemory", "FabrictapExportFailing"),
        f"there is no {RECORDING.name}",
    )


def board(name: str) -> dict[str, Any]:
    return dashboards.load(dashboards.FOLDER / f"{name}.json")


@pytest.mark.parametrize("name", BOARDS)
def test_every_query_of_the_dashboard_gives_data(world: World, name: str) -> None:
    dashboard = board(name)
    values = dashboards.chosen(dashboard)
    empty = set()
    for panel in dashboards.panels(dashboard):
        if panel["type"] == "logs":  # Loki is not here
            continue
        for answer in dashboards.ask(world, values, panel):
            if not answer.samples:
                empty.add((panel["title"], answer.expr))
    assert {one for one in empty if one[0] not in EMPTY} == set()


@pytest.mark.parametrize("name", BOARDS)
def test_every_variable_has_values(world: World, name: str) -> None:
    dashboard = board(name)
    values = dashboards.chosen(dashboard)
    hosts = {host for host, _, _ in SIMULATED} | set(RECORDED)
    for variable in dashboard["templating"]["list"]:
        if variable["type"] != "query":
            continue
        query = dashboards.substitute(variable["definition"], values, 0)
        match = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
        assert match, query
        found = world.prometheus.now(f"count by ({match[2]}) ({match[1]})", world.end)
        offered = {one["metric"].get(match[2]) for one in found}
        assert offered - {None}, query
        if variable["name"] == "node":
            assert offered == hosts


@pytest.mark.parametrize("name", BOARDS)
def test_findings_are_marked_on_the_dashboard(world: World, name: str) -> None:
    dashboard = board(name)
    (marks,) = dashboard["annotations"]["list"]
    expr = dashboards.substitute(marks["expr"], dashboards.chosen(dashboard), 0)
    assert world.prometheus.over(expr, world.start, world.end, 60)


def _rules() -> list[dict[str, Any]]:
    return [
        rule
        for file in RULES
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
    ]


@pytest.mark.parametrize(
    "rule", [rule for rule in _rules() if "record" in rule], ids=lambda rule: rule["record"]
)
def test_every_recording_rule_gives_data(world: World, rule: dict[str, Any]) -> None:
    found = world.prometheus.over(_spelled_out(rule["expr"]), world.start, world.end, 30)
    assert bool(found) == (rule["record"] not in EMPTY)


def _spelled_out(expr: str) -> str:
    """An alert's condition with the expressions of recorded series in their place, so that it can be asked of
    times at which nothing was recorded yet."""
    recorded = {rule["record"]: rule["expr"] for rule in _rules() if "record" in rule}
    for _ in range(2):
        for name, text in recorded.items():
            expr = re.sub(rf"{re.escape(name)}(?:\{{[^}}]*\}})?", lambda _, text=text: f"({text})", expr)
    return expr


@pytest.mark.parametrize(
    "rule", [rule for rule in _rules() if "alert" in rule], ids=lambda rule: rule["alert"]
)
def test_the_alerts_condition_comes_about_or_is_known_not_to(world: World, rule: dict[str, Any]) -> None:
    found = world.prometheus.over(_spelled_out(rule["expr"]), world.start, world.end, 10)
    assert bool(found) == (rule["alert"] not in QUIET)


def test_alerts_fire_in_the_theft_and_say_whom_it_concerns(world: World) -> None:
    def firing() -> dict[str, dict[str, Any]]:
        alerts = world.prometheus.get("alerts")["alerts"]
        return {one["labels"]["alertname"]: one for one in alerts}

    eventually(lambda: "FabrictapRemoteReadEgress" in firing(), "the theft is alerted on", 60)
    alert = firing()["FabrictapRemoteReadEgress"]
    assert alert["state"] == "firing"
    assert alert["labels"]["severity"] == "critical"
    hosts = {one["labels"]["host_name"] for one in world.prometheus.get("alerts")["alerts"]
             if one["labels"]["alertname"] == "FabrictapRemoteReadEgress"}  # fmt: skip
    assert hosts == {"sim-hgx-1", *RECORDED[:1]}
    for one in firing().values():
        for text in one["annotations"].values():
            assert "<no value>" not in text
            assert "%!" not in text


@pytest.mark.parametrize("name", BOARDS)
def test_a_browser_draws_every_panel(world: World, name: str, tmp_path: Path) -> None:
    html, _ = draw.page(world, board(name))
    drawn = draw.marks(html, tmp_path)
    assert set(drawn) == {panel["title"] for panel in dashboards.panels(board(name))}
    assert {title for title, marks in drawn.items() if not marks} <= set(EMPTY)


def test_every_dashboard_has_its_picture_and_none_is_large() -> None:
    made = {file.stem: file.stat().st_size for file in draw.PICTURES.glob("*.png")}
    assert set(made) >= {name.removeprefix("fabrictap-") for name in BOARDS}
    assert max(made.values()) < 200_000
