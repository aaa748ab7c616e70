"""Figures of the slow tier as series: the best provider's alone; what is not delivered any more ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fabrictap.catalog import Kind, Metric
from fabrictap.ledger.providers import Figure, Offer, Providers
from fabrictap.series import Attributes, AttributeValue, Series, SeriesTable

Part = int | str | None


@dataclass(frozen=True, slots=True)
class Point:
    """One value. ``part``: what of the metric is delivered or not by itself; see Figure."""

    metric: Metric
    value: int | float
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    part: Part = None


@dataclass(slots=True)
class Reading:
    """What was read of one GPU or MIG device. ``failed``: why a figure has no point."""

    points: list[Point] = field(default_factory=list)
    failed: dict[tuple[Metric, Part], str] = field(default_factory=dict)


class Live:
    """Series that belong together: those that are not written again end."""

    def __init__(self, table: SeriesTable) -> None:
        self._table = table
        self._series: dict[tuple[str, frozenset[tuple[str, AttributeValue]]], Series] = {}

    def write(self, values: Iterable[tuple[Metric, Attributes, int | float]], now_ns: int) -> None:
        written = {}
        # what has gone first, and with a last 0 where it is summed up: nothing is counted twice
        fresh = {
            (metric.name, frozenset(labels.items())): (metric, labels, v) for metric, labels, v in values
        }
        for key in self._series.keys() - fresh.keys():
            self._end(self._series.pop(key), now_ns)
        for key, (metric, labels, value) in fresh.items():
            series = self._series.get(key)
            if series is None:
                series = self._table.series(metric, labels, now_ns)
            if metric.kind is Kind.COUNTER:
                series.observe(int(value), now_ns)
            else:
                series.set(value, now_ns)
            written[key] = series
        self._series = written

    def end(self, now_ns: int) -> None:
        """End them all."""
        for series in self._series.values():
            self._end(series, now_ns)
        self._series = {}

    def _end(self, series: Series, now_ns: int) -> None:
        if series.metric.kind is Kind.UPDOWNCOUNTER and series.known:
            series.set(0, now_ns)
        self._table.end(series)


@dataclass(slots=True)
class _Entry:
    offer: Offer
    live: Live
    now_ns: int = 0

    def lost(self) -> None:
        self.live.end(self.now_ns)


class Figures:
    """What one provider writes of all GPUs. Under the node's lock."""

    def __init__(self, provider: str, table: SeriesTable, providers: Providers) -> None:
        self._provider = provider
        self._table = table
        self._providers = providers
        self._entries: dict[str, dict[tuple[str, Part], _Entry]] = {}

    def write(self, gpu: str, reading: Reading, now_ns: int, missing: str = "no_data") -> None:
        """Bring the figures of a GPU or MIG device up to date; ``missing``: why those not in it are not."""
        by_figure: dict[tuple[str, Part], list[Point]] = {}
        for point in reading.points:
            by_figure.setdefault((point.metric.name, point.part), []).append(point)
        reasons = {(metric.name, part): reason for (metric, part), reason in reading.failed.items()}
        known = self._entries.setdefault(gpu, {})
        for key in (by_figure.keys() | reasons.keys()) - known.keys():
            known[key] = self._entry(Figure(gpu, *key))
        for key, entry in known.items():
            entry.now_ns = now_ns
            points = by_figure.get(key)
            if points is None:
                entry.offer.unavailable(reasons.get(key, missing))
            elif entry.offer.available():
                named = {"hw.id": gpu, "fabrictap.provider": self._provider}
                entry.live.write(
                    [(point.metric, named | dict(point.attributes), point.value) for point in points], now_ns
                )

    def fail(self, gpu: str, reason: str, now_ns: int) -> None:
        """Say that nothing can be had of it now."""
        for entry in self._entries.get(gpu, {}).values():
            entry.now_ns = now_ns
            entry.offer.unavailable(reason)

    def drop(self, gpu: str, now_ns: int) -> None:
        """It has gone."""
        for entry in self._entries.pop(gpu, {}).values():
            entry.now_ns = now_ns
            entry.offer.withdraw()

    def _entry(self, figure: Figure) -> _Entry:
        live = Live(self._table)
        entry: _Entry

        def lost() -> None:
            entry.lost()

        entry = _Entry(self._providers.offer(self._provider, figure, lost), live)
        return entry
