"""``fabrictap recorder dump``: what every series did, tick by tick, for people and for programs."""

from __future__ import annotations

import csv
import fnmatch
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fabrictap.view import dump_otlp, simulated, text
from fabrictap.view.recording import (
    Cell,
    CounterCell,
    GaugeCell,
    HistogramCell,
    Recording,
    Row,
    SeriesEntry,
)
from fabrictap.view.text import amount, moment, plain

#: How often the directory is read again because a tick came in between.
_TRIES = 8
#: Seconds that a tick takes at most, by far.
_TICK_TAKES = 0.005
_CSV = (
    "time",
    "metric",
    "unit",
    "kind",
    "attributes",
    "delta",
    "rate",
    "peak",
    "last",
    "min",
    "max",
    "count",
    "sum",
)


@dataclass(frozen=True, slots=True)
class History:
    """One series and what it did in ``rows``."""

    series: SeriesEntry
    rows: Sequence[Row]
    cells: Sequence[Cell | None]

    def __iter__(self) -> Iterator[tuple[Row, Cell]]:
        return ((row, cell) for row, cell in zip(self.rows, self.cells, strict=True) if cell is not None)


def histories(recording: Recording, since: float | None, pattern: str | None) -> Iterator[list[History]]:
    """The series of each metric whose name matches ``pattern``, for the last ``since`` seconds of them."""
    series, rows = _quiet(
        recording, lambda metric: pattern is None or fnmatch.fnmatchcase(metric.name, pattern)
    )
    if since is not None and rows:
        after_ns = rows[-1].end_ns - int(since * 1e9)
        rows = [row for row in rows if row.end_ns > after_ns]
    by_metric: dict[str, list[SeriesEntry]] = {}
    for one in series:
        by_metric.setdefault(one.metric.name, []).append(one)
    for metric in recording.about.metrics:
        found = [History(one, rows, recording.cells(one, rows)) for one in by_metric.pop(metric.name, ())]
        if any(any(cell is not None for cell in history.cells) for history in found):
            yield found


def _quiet(recording: Recording, wanted: Callable[[Any], bool]) -> tuple[list[SeriesEntry], list[Row]]:
    """Series and rows with no tick between, so that a sum and its parts belong together."""
    for _ in range(_TRIES):
        head = recording.head
        series, rows = recording.series(wanted), recording.rows()
        if not recording.alive().alive:
            break
        time.sleep(_TICK_TAKES)  # one that had begun would be over
        if recording.head == head:
            break
    return series, rows


def write(
    recording: Recording, form: str, since: float | None, pattern: str | None, put: Callable[[str], None]
) -> None:
    """Hand the lines of a dump to ``put``, many at once. ``form``: table, json, csv or otlp."""

    def put_lines(lines: Sequence[str]) -> None:
        if lines:
            put("\n".join(lines))

    made_up = simulated.is_simulated(recording.about.resource)
    heads = {"csv": _csv_lines([_CSV]), "table": simulated.lines(recording.about.resource)}
    for line in heads.get(form, ()):
        put(line)
    silent = 0
    for group in histories(recording, since, pattern):
        if form == "otlp":
            for line in dump_otlp.lines(recording.about, group):
                put(line)
            continue
        for history in group:
            if form == "json":
                put(json.dumps({**_tree(history), "simulated": made_up}))
            elif form == "csv":
                put_lines(_csv_lines(_csv_rows(history)))
            else:
                lines = list(_table(history))
                silent += not lines
                put_lines(lines)
    if form == "table" and silent:
        put(f"{silent} series did nothing in this time")


def _table(history: History) -> Iterator[str]:
    """A head and the ticks in which something changed; nothing for a counter that stood still."""
    unit = history.series.metric.unit
    rate = f"{unit}/s"
    rows = []
    before: Cell | None = None
    for row, cell in history:
        if isinstance(cell, CounterCell):
            delta, peak = cell
            if delta:
                seconds = row.seconds
                average = delta / seconds if seconds else None
                rows.append(
                    [
                        _when(row.end_ns),
                        f"+{amount(delta, unit)}",
                        amount(average, rate),
                        f"peak {amount(peak, rate)}",
                    ]
                )
        elif isinstance(cell, HistogramCell):
            if cell.values:
                mean = amount(cell.sum / cell.values, unit)
                rows.append([_when(row.end_ns), f"count {cell.values}", f"mean {mean}", ""])
        elif cell != before:
            spread = "" if cell.low == cell.high else f"{amount(cell.low, unit)} to {amount(cell.high, unit)}"
            rows.append([_when(row.end_ns), amount(cell.last, unit), spread, ""])
        before = cell
    if rows:
        yield label(history.series)
        yield from (f"  {line}" for line in text.columns(rows, (1, 2)))


def label(series: SeriesEntry) -> str:
    """The metric and its attributes on one line."""
    attributes = ", ".join(f"{plain(name)}={plain(str(value))}" for name, value in series.attributes.items())
    return f"{plain(series.metric.name)}{{{attributes}}}{' (ended)' if series.ended else ''}"


def _values(row: Row, cell: Cell) -> dict[str, int | float | None]:
    if isinstance(cell, CounterCell):
        seconds = row.seconds
        return {"delta": cell.delta, "rate": cell.delta / seconds if seconds else None, "peak": cell.peak}
    if isinstance(cell, GaugeCell):
        return {"last": cell.last, "min": cell.low, "max": cell.high}
    return {"count": cell.values, "sum": cell.sum}


def _tree(history: History) -> dict[str, Any]:
    series = history.series
    return {
        "metric": series.metric.name,
        "unit": series.metric.unit,
        "kind": series.metric.kind,
        "attributes": series.attributes,
        "ended": series.ended,
        "rows": [{"time": _when(row.end_ns), **_values(row, cell)} for row, cell in history],
    }


def _csv_rows(history: History) -> Iterator[list[Any]]:
    metric = history.series.metric
    fixed = (metric.name, metric.unit, metric.kind, json.dumps(history.series.attributes))
    for row, cell in history:
        values = _values(row, cell)
        yield [_when(row.end_ns), *fixed, *(values.get(name) for name in _CSV[5:])]


def _csv_lines(rows: Iterable[Sequence[Any]]) -> list[str]:
    page = io.StringIO()
    csv.writer(page, lineterminator="\n").writerows(rows)
    # as one: what is quoted may have line ends of its own
    return [lines] if (lines := page.getvalue().removesuffix("\n")) else []


@lru_cache(maxsize=4096)
def _when(time_ns: int) -> str:
    """All series have the same rows."""
    return moment(time_ns, 3)
