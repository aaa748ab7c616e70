"""Panels: the JSON of Grafana's visualizations, with what all panels of this house have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fabrictap.catalog import Metric

Json = dict[str, Any]

PROMETHEUS: Json = {"type": "prometheus", "uid": "${datasource}"}
LOKI: Json = {"type": "loki", "uid": "${logs}"}
GREEN, YELLOW, ORANGE, RED, BLUE, GREY = "green", "yellow", "orange", "red", "blue", "#6e7681"
#: Grafana's names of units.
BYTES, BYTES_PER_SECOND, SHARE, NUMBER, SECONDS = "bytes", "Bps", "percentunit", "short", "s"
WATTS, CELSIUS, PER_SECOND = "watt", "celsius", "cps"

#: Text shown for a value, and its colour.
Mapped = Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Query:
    """``expr`` in PromQL; ``legend`` as Grafana's {{label}} template."""

    expr: str
    legend: str = ""


def about(*metrics: Metric, says: str = "") -> str:
    """A panel's description: ``says``, then what the catalog says of the metrics in it."""
    lines = [f"`{metric.name}`: {metric.description}." for metric in metrics]
    return "\n\n".join([says, *lines] if says else lines)


def thresholds(levels: Sequence[tuple[float | None, str]]) -> Json:
    return {"mode": "absolute", "steps": [{"color": color, "value": value} for value, color in levels]}


def asked(queries: Sequence[Query], *, instant: bool, table: bool = False) -> list[Json]:
    return [
        {
            "datasource": PROMETHEUS,
            "editorMode": "code",
            "expr": query.expr,
            "format": "table" if table else "time_series",
            "instant": instant,
            "range": not instant,
            "legendFormat": query.legend or "__auto",
            "refId": chr(ord("A") + number),
        }
        for number, query in enumerate(queries)
    ]


def mappings(mapped: Mapped) -> list[Json]:
    if not mapped:
        return []
    options = {
        value: {"text": text, "color": color, "index": index}
        for index, (value, (text, color)) in enumerate(mapped.items())
    }
    return [{"type": "value", "options": options}]


def base_panel(kind: str, title: str, description: str, targets: list[Json], size: tuple[int, int]) -> Json:
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": PROMETHEUS,
        "targets": targets,
        "gridPos": {"w": size[0], "h": size[1]},
        "fieldConfig": {"defaults": {}, "overrides": []},
        "options": {},
    }


def timeseries(
    title: str,
    description: str,
    *queries: Query,
    unit: str,
    size: tuple[int, int] = (12, 8),
    stacked: bool = False,
    mirrored: str = "",
    bars: bool = False,
    least: float | None = 0,
    most: float | None = None,
    limits: Sequence[tuple[float | None, str]] = (),
    table_legend: bool = True,
) -> Json:
    """Lines over time. ``mirrored``: queries whose name matches go below the axis (received, as a rule)."""
    panel = base_panel("timeseries", title, description, asked(queries, instant=False), size)
    custom: Json = {
        "drawStyle": "bars" if bars else "line",
        "lineWidth": 1,
        "fillOpacity": 80 if bars else 30 if stacked else 4 if mirrored else 0,
        "showPoints": "never",
        "spanNulls": False,
        "lineInterpolation": "linear",
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
    }
    defaults: Json = {"unit": unit, "custom": custom, "color": {"mode": "palette-classic"}}
    if limits:
        defaults["thresholds"] = thresholds(limits)
        custom["thresholdsStyle"] = {"mode": "dashed"}
    if least is not None and not mirrored:
        defaults["min"] = least
    if most is not None:
        defaults["max"] = most
    panel["fieldConfig"]["defaults"] = defaults
    if mirrored:
        panel["fieldConfig"]["overrides"] = [
            {
                "matcher": {"id": "byRegexp", "options": f"/{mirrored}/"},
                "properties": [{"id": "custom.transform", "value": "negative-Y"}],
            }
        ]
    panel["options"] = {
        "legend": {
            "displayMode": "table" if table_legend else "list",
            "placement": "bottom",
            "showLegend": True,
            "calcs": ["mean", "max"] if table_legend else [],
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return panel


def stat(
    title: str,
    description: str,
    *queries: Query,
    unit: str,
    size: tuple[int, int] = (4, 4),
    steps: Sequence[tuple[float | None, str]] = ((None, BLUE),),
    sparkline: bool = True,
    decimals: int | None = None,
    link: Json | None = None,
    names: bool = False,
) -> Json:
    """One number, coloured by ``steps``, over its own course."""
    panel = base_panel("stat", title, description, asked(queries, instant=False), size)
    panel["fieldConfig"]["defaults"] = {
        "unit": unit,
        "thresholds": thresholds(steps),
        "color": {"mode": "thresholds"},
        **({} if decimals is None else {"decimals": decimals}),
        **({} if link is None else {"links": [link]}),
    }
    panel["options"] = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "graphMode": "area" if sparkline else "none",
        "colorMode": "value",
        "textMode": "value_and_name" if names else "value",
        "justifyMode": "auto",
        "orientation": "auto",
    }
    return panel


def bargauge(
    title: str,
    description: str,
    *queries: Query,
    unit: str,
    size: tuple[int, int] = (8, 8),
    steps: Sequence[tuple[float | None, str]] = ((None, BLUE),),
    most: float | None = None,
) -> Json:
    """A bar for each series, its value now."""
    panel = base_panel("bargauge", title, description, asked(queries, instant=True), size)
    panel["fieldConfig"]["defaults"] = {
        "unit": unit,
        "min": 0,
        "thresholds": thresholds(steps),
        "color": {"mode": "thresholds"},
        **({} if most is None else {"max": most}),
    }
    panel["options"] = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "orientation": "horizontal",
        "displayMode": "basic",
        "showUnfilled": True,
        "valueMode": "color",
        "namePlacement": "left",
    }
    return panel


def states(
    title: str, description: str, *queries: Query, mapped: Mapped, size: tuple[int, int] = (12, 8)
) -> Json:
    """A row for each series, coloured by its value over time."""
    panel = base_panel("state-timeline", title, description, asked(queries, instant=False), size)
    panel["fieldConfig"]["defaults"] = {
        "mappings": mappings(mapped),
        "color": {"mode": "thresholds"},
        "thresholds": thresholds(((None, GREY),)),
        "custom": {"lineWidth": 0, "fillOpacity": 85},
        "unit": "none",
    }
    panel["options"] = {
        "mergeValues": True,
        "showValue": "never",
        "rowHeight": 0.85,
        "alignValue": "left",
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    return panel


def heatmap(
    title: str, description: str, query: Query, *, unit: str, size: tuple[int, int] = (12, 8)
) -> Json:
    """A row for each series, its colour by how large the value is at each time."""
    panel = base_panel("heatmap", title, description, asked([query], instant=False), size)
    panel["fieldConfig"]["defaults"] = {"custom": {"scaleDistribution": {"type": "linear"}}}
    panel["options"] = {
        "calculate": False,
        "cellGap": 1,
        "cellValues": {"unit": unit},
        "color": {"mode": "scheme", "scheme": "Turbo", "steps": 64, "reverse": False, "fill": "dark-blue"},
        "rowsFrame": {"layout": "auto"},
        "legend": {"show": True},
        "showValue": "never",
        "tooltip": {"mode": "single", "showColorScale": True},
        "yAxis": {"axisPlacement": "left"},
    }
    return panel


def logs(title: str, description: str, expr: str, *, size: tuple[int, int] = (24, 9)) -> Json:
    """Log events from Loki."""
    panel = base_panel("logs", title, description, [], size)
    panel["datasource"] = LOKI
    panel["targets"] = [
        {"datasource": LOKI, "editorMode": "code", "expr": expr, "queryType": "range", "refId": "A"}
    ]
    panel["options"] = {
        "showTime": True,
        "wrapLogMessage": True,
        "enableLogDetails": True,
        "sortOrder": "Descending",
        "dedupStrategy": "none",
    }
    return panel
