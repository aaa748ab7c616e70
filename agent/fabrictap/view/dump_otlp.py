"""Histories as OTLP/JSON lines, as the Collector's otlpjsonfile receiver reads them.

Sums are cumulative as those that the agent exported are: what a series stands at now, less what came in later
ticks. Histograms have count and sum only, as a tick keeps no more. A counter with rates gives its two gauges
for every tick.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fabrictap.ext import ring
from fabrictap.ext.ring import Histogram
from fabrictap.version import VERSION
from fabrictap.view.recording import About, Cell, CounterCell, GaugeCell, HistogramCell, Row, SeriesEntry

if TYPE_CHECKING:
    from fabrictap.view.dump import History

#: Points of a line: some megabytes at most, as a receiver takes.
_POINTS = 10_000
_CUMULATIVE = 2

Points = list[dict[str, Any]]
Amount = int | float | HistogramCell


def lines(about: About, group: Sequence[History]) -> Iterator[str]:
    """One metric's series as export requests, a line each."""
    metric = group[0].series.metric
    shapes: list[tuple[str, str, str, list[Points]]] = [
        (metric.name, metric.unit, metric.description, [list(_points(history)) for history in group])
    ]
    if metric.rates:
        for what in ("average", "peak"):
            name = f"{metric.name}.rate.{what}"
            rates = [list(_rates(history, what)) for history in group]
            shapes.append((name, f"{metric.unit}/s", f"Rate of {metric.name} in each tick: {what}", rates))
    for name, unit, description, every in shapes:
        kind = "Gauge" if name != metric.name else metric.kind
        for points in _pieces(every):
            body = {"name": name, "unit": unit, "description": description, **_data(kind, points)}
            yield json.dumps(
                {
                    "resourceMetrics": [
                        {
                            "resource": {"attributes": _attributes(about.resource)},
                            "scopeMetrics": [
                                {"scope": {"name": "fabrictap", "version": VERSION}, "metrics": [body]}
                            ],
                        }
                    ]
                },
                separators=(",", ":"),
            )


def _data(kind: str, points: Points) -> dict[str, Any]:
    if kind == "Gauge":
        return {"gauge": {"dataPoints": points}}
    if kind == "Histogram":
        return {"histogram": {"dataPoints": points, "aggregationTemporality": _CUMULATIVE}}
    return {
        "sum": {
            "dataPoints": points,
            "aggregationTemporality": _CUMULATIVE,
            "isMonotonic": kind == "Counter",
        }
    }


def _pieces(every: Iterable[Points]) -> Iterator[Points]:
    piece: Points = []
    for points in every:
        if piece and len(piece) + len(points) > _POINTS:
            yield piece
            piece = []
        piece += points
    if piece:
        yield piece


def _points(history: History) -> Iterator[dict[str, Any]]:
    series = history.series
    attributes = _attributes(series.attributes)
    if series.kind in (ring.COUNTER, ring.HISTOGRAM):
        for row, start_ns, value in _cumulative(history):
            point = {
                "attributes": attributes,
                "startTimeUnixNano": str(start_ns),
                "timeUnixNano": str(row.end_ns),
            }
            if isinstance(value, HistogramCell):
                yield point | {"count": str(value.values), "sum": value.sum}
            else:
                yield point | _number(value)
        return
    for row, cell in history:
        if isinstance(cell, GaugeCell):
            point = {"attributes": attributes, "timeUnixNano": str(row.end_ns), **_number(cell.last)}
            if series.kind == ring.UPDOWNCOUNTER:
                point["startTimeUnixNano"] = str(min(series.start_ns, row.end_ns))
            yield point


def _rates(history: History, what: str) -> Iterator[dict[str, Any]]:
    attributes = _attributes(history.series.attributes)
    for row, cell in history:
        if isinstance(cell, CounterCell) and row.seconds:
            value = float(cell.peak if what == "peak" else cell.delta / row.seconds)
            yield {"attributes": attributes, "timeUnixNano": str(row.end_ns), **_number(value)}


def _cumulative(history: History) -> Iterator[tuple[Row, int, Amount]]:
    """(row, start of the sum, the sum when the row ended), in order.

    Before a reset, which moved the series' start, it is not known where the sum stood: it counts from the
    first row there.
    """
    series = history.series
    total = _at_the_last_row(series)
    if total is None:
        return
    known = [(row, _part(cell)) for row, cell in history]
    after: list[tuple[Row, int, Amount]] = []
    while known and known[-1][0].end_ns > series.start_ns:
        row, part = known.pop()
        after.append((row, min(series.start_ns, row.end_ns), total))
        total = _sum(total, part, -1)
    if known:
        start_ns = known[0][0].start_ns
        total = _sum(total, total, -1)
        for row, part in known:
            total = _sum(total, part, 1)
            yield row, min(start_ns, row.end_ns), total
    yield from reversed(after)


def _at_the_last_row(series: SeriesEntry) -> Amount | None:
    value, rest = series.value, series.row_delta
    if isinstance(value, Histogram) and isinstance(rest, HistogramCell):
        return HistogramCell(value.count - rest.values, value.sum - rest.sum)
    if isinstance(value, (int, float)) and isinstance(rest, (int, float)):
        return value - rest
    return None


def _part(cell: Cell) -> Amount:
    if isinstance(cell, GaugeCell):
        raise TypeError("a gauge has no sum")
    return cell.delta if isinstance(cell, CounterCell) else cell


def _sum(one: Amount, other: Amount, sign: int) -> Amount:
    """``one`` plus or minus ``other``, which is of the same kind."""
    if isinstance(one, HistogramCell) and isinstance(other, HistogramCell):
        return HistogramCell(one.values + sign * other.values, one.sum + sign * other.sum)
    if isinstance(one, HistogramCell) or isinstance(other, HistogramCell):
        raise TypeError("a histogram and a number")
    return one + sign * other


def _number(value: int | float) -> dict[str, Any]:
    if isinstance(value, int):
        return {"asInt": str(value)}
    # JSON has no word for these; protobuf's are strings.
    special = {math.inf: "Infinity", -math.inf: "-Infinity"}
    return {"asDouble": "NaN" if math.isnan(value) else special.get(value, value)}


def _attributes(attributes: Any) -> list[dict[str, Any]]:
    made = []
    for name, value in attributes.items():
        if isinstance(value, bool):
            encoded: dict[str, Any] = {"boolValue": value}
        elif isinstance(value, int):
            encoded = {"intValue": str(value)}
        elif isinstance(value, float):
            encoded = {"doubleValue": value}
        else:
            encoded = {"stringValue": value}
        made.append({"key": name, "value": encoded})
    return made
