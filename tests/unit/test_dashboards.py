"""The committed dashboards: made from the code as it is, and as an operator wants them."""

from __future__ import annotations

import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml

from fabrictap import catalog
from fabrictap.export import prometheus

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "packaging" / "grafana"
FILES = sorted((GRAFANA / "dashboards").glob("*.json"))
DASHBOARDS = {file.name: json.loads(file.read_text()) for file in FILES}
METRICS = {prometheus.name(metric): metric for metric in catalog.exported()}
#: Labels of the resource, and of Prometheus.
ELSEWHERE = {"host_name", "k8s_cluster_name", "le"}
LABELS = {attribute.name.replace(".", "_") for attribute in catalog.attributes()} | ELSEWHERE


@pytest.fixture(params=DASHBOARDS)
def board(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = DASHBOARDS[request.param]
    return found


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def expressions(board: dict[str, Any]) -> list[str]:
    found = [target["expr"] for panel in panels(board) for target in panel["targets"]]
    return [one for one in found if not one.startswith("{service_name")]


def test_the_files_are_what_the_code_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(GRAFANA))
    made = __import__("dashboards_as_code.__main__", fromlist=["texts"]).texts()
    assert set(made) == set(DASHBOARDS), "run `make dashboards`"
    for name, text in made.items():
        assert text == (GRAFANA / "dashboards" / name).read_text(), f"{name}: run `make dashboards`"
    for name in [one for one in sys.modules if one.startswith("dashboards_as_code")]:
        del sys.modules[name]


def test_uids_and_titles_are_one_of_a_kind() -> None:
    for key in ("uid", "title"):
        values = [board[key] for board in DASHBOARDS.values()]
        assert len(set(values)) == len(values) == 7
    # Longer ones are refused by Grafana.
    assert all(len(board["uid"]) <= 40 for board in DASHBOARDS.values())


def test_panels_have_numbers_of_their_own_and_do_not_overlap(board: dict[str, Any]) -> None:
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)
    places = [panel["gridPos"] for panel in board["panels"]]
    for place in places:
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
    for one, other in itertools.combinations(places, 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)


def test_every_panel_says_what_it_is_with_a_unit_and_a_data_source_that_can_be_chosen(
    board: dict[str, Any],
) -> None:
    sources = {f"${{{one['name']}}}" for one in board["templating"]["list"] if one["type"] == "datasource"}
    titles = [panel["title"] for panel in panels(board)]
    assert len(set(titles)) == len(titles)
    for panel in panels(board):
        assert panel["title"]
        assert panel["description"]
        assert panel["datasource"]["uid"] in sources
        assert panel["targets"]
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
        defaults = panel["fieldConfig"]["defaults"]
        if panel["type"] in ("timeseries", "stat", "bargauge", "state-timeline"):
            assert defaults["unit"], panel["title"]
        if panel["type"] == "timeseries":
            assert panel["options"]["legend"]["showLegend"]
            assert panel["options"]["tooltip"]["mode"] == "multi"
            assert all(target["legendFormat"] != "__auto" for target in panel["targets"]), panel["title"]
        if panel["type"] == "stat":
            assert panel["options"]["reduceOptions"]["calcs"] == ["lastNotNull"]


def test_every_metric_and_label_is_the_catalogs(board: dict[str, Any]) -> None:
    for expr in expressions(board):
        names = set(re.findall(r"([a-zA-Z_:][\w:]*)\{", expr))
        assert names
        for name in names:
            histogram = name.removesuffix("_bucket")
            known = METRICS.get(name) or METRICS.get(histogram)
            assert known is not None, (name, expr)
            assert name in METRICS or known.kind is catalog.Kind.HISTOGRAM
        used = set(re.findall(r"[{,]\s*([a-z_0-9]+)\s*(?:=~|!=|!~|=)\"", expr))
        for group in re.findall(r"\b(?:by|on|group_left)\s*\(([^)]*)\)", expr):
            used |= {one.strip() for one in group.split(",") if one.strip()}
        assert used - {"$by", "gpu", "workload"} <= LABELS, expr


def test_every_metric_is_chosen_by_cluster_and_node(board: dict[str, Any]) -> None:
    for expr in expressions(board):
        for braces in re.findall(r"[a-z_]\{([^}]*)\}", expr):
            assert 'k8s_cluster_name=~"$cluster",host_name=~"$node"' in braces, expr


def test_counters_are_looked_at_by_their_growth_and_others_are_not(board: dict[str, Any]) -> None:
    for expr in expressions(board):
        for found in re.finditer(r"(\w+)\{[^}]*\}", expr):
            metric = METRICS[found[1].removesuffix("_bucket")]
            counted = expr[: found.start()].endswith(("rate(", "increase("))
            assert counted <= expr[found.end() :].startswith("["), expr
            if metric.kind is catalog.Kind.COUNTER:
                # A series that begins with its first count is told apart by `unless`.
                assert counted or "unless" in expr, expr
            elif metric.kind is not catalog.Kind.HISTOGRAM:
                assert not counted, expr


def test_every_variable_is_used_and_every_one_used_is_there(board: dict[str, Any]) -> None:
    there = {one["name"] for one in board["templating"]["list"]}
    text = json.dumps({key: value for key, value in board.items() if key != "templating"})
    text += json.dumps([one.get("query") for one in board["templating"]["list"]])
    used = set(re.findall(r"\$(\w+)", text)) | set(re.findall(r"\$\{(\w+)\}", text))
    used = {name for name in used if not name.startswith("__")}
    assert used == there


def test_links_lead_to_dashboards_that_are_there(board: dict[str, Any]) -> None:
    uids = {one["uid"] for one in DASHBOARDS.values()}
    targets = set(re.findall(r"/d/([\w-]+)\?", json.dumps(board)))
    assert targets <= uids
    assert board["links"][0]["tags"] == board["tags"] == ["fabrictap"]


def test_the_flows_lead_to_their_traces() -> None:
    board = DASHBOARDS["fabrictap-flows.json"]
    links = set(re.findall(r'"(/explore\?[^\n]*?)",\n', json.dumps(board, indent=1)))
    assert len(links) == 1
    text = json.loads(f'"{links.pop()}"')
    panes = json.loads(unquote(text.partition("panes=")[2]))
    query = panes["traces"]["queries"][0]["query"]
    spans = {attribute.name for span in catalog.spans() for attribute in span.attributes}
    assert set(re.findall(r"span\.([\w.]+)\s*=", query)) <= spans
    columns = {
        override["matcher"]["options"]
        for panel in panels(board)
        for override in panel["fieldConfig"]["overrides"]
    }
    assert set(re.findall(r"\$\{__data\.fields\.(\w+)\}", query)) <= columns


def test_provisioning_and_compose_point_at_what_is_there() -> None:
    compose = yaml.safe_load((GRAFANA / "compose.yaml").read_text())
    for name, service in compose["services"].items():
        image, _, tag = service["image"].rpartition(":")
        assert image, name
        assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag), f"{name}: pinned by a whole version"
        for mount in service["volumes"]:
            source = mount.split(":")[0]
            assert (GRAFANA / source).exists() if source.startswith(".") else source in compose["volumes"]
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")
        assert set(service.get("depends_on", ())) <= set(compose["services"])
    sources = yaml.safe_load((GRAFANA / "provisioning/datasources/fabrictap.yaml").read_text())["datasources"]
    uids = {one["uid"] for one in sources}
    for one in sources:
        host, port = re.fullmatch(r"http://(\w+):(\d+)", one["url"]).groups()  # type: ignore[union-attr]
        assert host in compose["services"]
        assert set(re.findall(r"'datasourceUid': '([\w-]+)'", str(one))) <= uids
    providers = yaml.safe_load((GRAFANA / "provisioning/dashboards/fabrictap.yaml").read_text())["providers"]
    path = providers[0]["options"]["path"]
    assert f"./dashboards:{path}:ro" in compose["services"]["grafana"]["volumes"]
