"""The committed dashboards, and what Prometheus answers to their panels."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metrics_world import SIMULATED, World

FOLDER = Path(__file__).parents[2] / "packaging" / "grafana" / "dashboards"
FILES = sorted(FOLDER.glob("*.json"))
#: Between two points of a range query, in seconds.
STEP = 10


def load(file: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(file.read_text())
    return read


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Those with data, in order."""
    return (panel for panel in dashboard["panels"] if panel["type"] != "row")


def chosen(dashboard: dict[str, Any], **wanted: str) -> dict[str, str]:
    """Variable -> what stands in its place: ``wanted``, everything, or the first node where one is to be."""
    values: dict[str, str] = {}
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "custom":
            values[variable["name"]] = variable["current"]["value"]
        elif variable["type"] == "query":
            values[variable["name"]] = variable.get("allValue") or SIMULATED[0][0]
    return values | wanted


def substitute(text: str, values: dict[str, str], seconds: float) -> str:
    """As Grafana fills in its variables. Raises KeyError for one that the dashboard does not have."""
    known = values | {"__rate_interval": "1m", "__range": f"{int(seconds)}s", "__interval": f"{STEP}s"}
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda match: known[match[1] or match[2]], text)


@dataclass(frozen=True)
class Answer:
    """What one query of a panel gave. ``series``: as Prometheus' API has them."""

    expr: str
    instant: bool
    legend: str
    series: list[Any]

    @property
    def samples(self) -> int:
        """How many numbers there are."""
        return sum(
            not math.isnan(float(value))
            for one in self.series
            for _, value in (one.get("values") or [one["value"]])
        )


def ask(world: World, values: dict[str, str], panel: dict[str, Any]) -> list[Answer]:
    """All queries of a panel with these variables, over the world's time."""
    answers = []
    for target in panel["targets"]:
        expr = substitute(target["expr"], values, world.end - world.start)
        if target["instant"]:
            series = world.prometheus.now(expr, world.end)
        else:
            series = world.prometheus.over(expr, world.start, world.end, STEP)
        legend = substitute(target["legendFormat"], values, 0)
        answers.append(Answer(expr, target["instant"], legend, series))
    return answers
