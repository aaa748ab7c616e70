"""A dashboard: its rows of panels laid out, its variables and links."""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import quote

from dashboards_as_code.panels import PROMETHEUS, Json
from dashboards_as_code.promql import CLUSTER, NODE

TAG = "fabrictap"
#: Where the variables of nodes and clusters take their values from: what every agent exports.
EVERYWHERE = "fabrictap_source_up"
#: What names a workload: labels of which Kubernetes, Slurm and bare metal have different ones.
WORKLOAD_LABELS = (
    "k8s_pod_name",
    "k8s_namespace_name",
    "slurm_job_id",
    "slurm_job_user",
    "systemd_unit_name",
    "process_executable_name",
)


def row(title: str, *panels: Json) -> tuple[str, Sequence[Json]]:
    """Panels below a heading, from left to right, in lines of 24 columns."""
    return title, panels


def to(uid: str, title: str, **variables: str) -> Json:
    """A link from a value to another dashboard, with its time range and the variables given."""
    chosen = "".join(f"&var-{name}={value}" for name, value in variables.items())
    return {
        "title": title,
        "url": f"/d/{uid}?${{__url_time_range}}&var-datasource=${{datasource}}&var-cluster=$cluster{chosen}",
    }


def to_traces(title: str, query: str) -> Json:
    """A link from a value to the traces of ``query``, in TraceQL, in Grafana's Explore."""
    panes = {
        "traces": {
            "datasource": "${traces}",
            "queries": [{"refId": "A", "queryType": "traceql", "query": query, "limit": 50}],
            "range": {"from": "${__from}", "to": "${__to}"},
        }
    }
    text = quote(json.dumps(panes, separators=(",", ":")), safe="${}[]:,._\"'= ")
    return {"title": title, "url": f"/explore?schemaVersion=1&panes={text}", "targetBlank": True}


def source(name: str, kind: str, label: str) -> Json:
    """A variable that chooses among data sources of one kind."""
    return {
        "type": "datasource",
        "name": name,
        "label": label,
        "query": kind,
        "current": {},
        "refresh": 1,
        "multi": False,
        "includeAll": False,
        "regex": "",
        "hide": 0,
    }


def values(name: str, label: str, query: str, *, multi: bool = True) -> Json:
    """A variable whose values are those of a label. With ``multi`` all of them may be chosen, and are."""
    chosen = {"text": ["All"], "value": ["$__all"]} if multi else {}
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": PROMETHEUS,
        "definition": query,
        "query": {"query": query, "refId": f"variable-{name}"},
        "refresh": 2,
        "sort": 1,
        "multi": multi,
        "includeAll": multi,
        **({"allValue": ".*"} if multi else {}),
        "current": chosen,
        "regex": "",
        "hide": 0,
    }


def choice(name: str, label: str, options: Sequence[str]) -> Json:
    """A variable with fixed values, the first of which is chosen."""
    return {
        "type": "custom",
        "name": name,
        "label": label,
        "query": ",".join(options),
        "options": [{"text": one, "value": one, "selected": one == options[0]} for one in options],
        "current": {"text": options[0], "value": options[0]},
        "multi": False,
        "includeAll": False,
        "hide": 0,
    }


def workload_of(metric: str) -> list[Json]:
    """What names a workload, and which workloads are shown."""
    return [
        choice("by", "Workload by", WORKLOAD_LABELS),
        values(
            "workload",
            "Workload",
            f'label_values({metric}{{{CLUSTER}=~"$cluster",{NODE}=~"$node"}}, $by)',
        ),
    ]


def dashboard(
    uid: str,
    title: str,
    description: str,
    rows: Sequence[tuple[str, Sequence[Json]]],
    *,
    variables: Sequence[Json] = (),
    one_node: bool = False,
    traces: bool = False,
    logs: bool = False,
) -> Json:
    """The dashboard as Grafana imports it. ``one_node``: it is about one at a time."""
    panels: list[Json] = []
    y = 0
    for heading, inside in rows:
        panels.append(
            {
                "type": "row",
                "title": heading,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": y, "w": 24, "h": 1},
            }
        )
        y += 1
        x = height = 0
        for panel in inside:
            size = panel["gridPos"]
            if x + size["w"] > 24:
                x, y, height = 0, y + height, 0
            panels.append({**panel, "gridPos": {"x": x, "y": y, **size}})
            x += size["w"]
            height = max(height, size["h"])
        y += height
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    sources = [source("datasource", "prometheus", "Metrics")]
    sources += [source("traces", "tempo", "Traces")] if traces else []
    sources += [source("logs", "loki", "Logs")] if logs else []
    places = [
        values("cluster", "Cluster", f"label_values({EVERYWHERE}, {CLUSTER})"),
        values(
            "node",
            "Node",
            f'label_values({EVERYWHERE}{{{CLUSTER}=~"$cluster"}}, {NODE})',
            multi=not one_node,
        ),
    ]
    return {
        "uid": uid,
        "title": f"fabrictap / {title}",
        "description": description,
        "tags": [TAG],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "fiscalYearStartMonth": 0,
        "annotations": {"list": [_findings()]},
        "links": [
            {
                "type": "dashboards",
                "title": "fabrictap",
                "tags": [TAG],
                "asDropdown": True,
                "includeVars": True,
                "keepTime": True,
                "icon": "external link",
                "targetBlank": False,
            }
        ],
        "templating": {"list": [*sources, *places, *variables]},
        "panels": panels,
    }


def _findings() -> Json:
    """A mark on every panel where a finding was opened."""
    return {
        "name": "Findings opened",
        "enable": True,
        "hide": False,
        "iconColor": "red",
        "datasource": PROMETHEUS,
        "expr": (
            f"sum by ({NODE}, fabrictap_finding_kind) (fabrictap_finding_open"
            f'{{{CLUSTER}=~"$cluster",{NODE}=~"$node",fabrictap_finding_severity!="info"}}) > 0'
        ),
        "titleFormat": "{{fabrictap_finding_kind}}",
        "textFormat": f"{{{{{NODE}}}}}",
        "step": "60s",
        "useValueForTime": False,
    }
