"""The series of the node: one metric of the catalog with one set of attributes each, kept in the ring.

The table has a fixed capacity. When it is full the newest series is refused and counted, and what is added
to it counts in one series of its metric that stands for all that were refused, with the attribute
``otel.metric.overflow`` (OpenTelemetry metrics SDK, "Cardinality limits"): totals stay right. It is guarded
by the node's lock; nothing here locks by itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping

from fabrictap import catalog
from fabrictap.catalog import Kind, Metric
from fabrictap.ext import ring
from fabrictap.ext.ring import NO_SERIES, Histogram, Ring, Series

__all__ = ["AttributeValue", "Attributes", "Histogram", "Series", "SeriesTable"]

AttributeValue = str | int | bool
Attributes = Mapping[str, AttributeValue]
Key = tuple[str, bytes]

_KINDS = {
    Kind.COUNTER: ring.COUNTER,
    Kind.UPDOWNCOUNTER: ring.UPDOWNCOUNTER,
    Kind.GAUGE: ring.GAUGE,
    Kind.HISTOGRAM: ring.HISTOGRAM,
}
_OVERFLOW = {catalog.METRIC_OVERFLOW.name: True}


class SeriesTable:
    """All series of the node. ``version`` changes whenever a series comes or goes."""

    def __init__(self, capacity: int, memory: Ring | None = None) -> None:
        """``memory`` is the ring that holds the values; without one they are kept where nobody else looks."""
        self.capacity = capacity
        self.refused = 0
        self.version = 0
        self.ring = memory if memory is not None else in_memory(capacity)
        self._series: dict[Key, Series] = {}
        self._overflow: dict[str, int] = {}
        self._metrics = {metric.name: index for index, metric in enumerate(catalog.metrics())}
        self._new: list[Series] = []
        self._displaced: list[Series] = []

    def __len__(self) -> int:
        return len(self._series)

    def __iter__(self) -> Iterator[Series]:
        return iter(self._series.values())

    def series(
        self, metric: Metric, attributes: Attributes, now_ns: int, start_ns: int | None = None
    ) -> Series:
        """The series of ``metric`` with ``attributes``, made if need be.

        Attributes whose value is not known are left out by the caller. A series that the full table refuses
        is returned all the same and counted in ``refused`` each time, so that writers need no special case:
        what is added to it goes to the metric's overflow series, and so does what a counter that is set or
        observed has gained since the first time with the same object; gauges are lost. An ended series that
        comes back starts anew.
        """
        encoded = ring.encode_attributes(attributes)
        key = (metric.name, encoded)
        found = self._series.get(key)
        if found is not None and not found.ended:
            return found
        start_ns = now_ns if start_ns is None else start_ns
        slot = NO_SERIES
        if found is not None or len(self._series) < self.capacity:
            slot = self._take(metric, encoded, start_ns, now_ns)
        if slot == NO_SERIES:
            self.refused += 1
            return Series(self.ring, self._overflow_slot(metric, now_ns), metric, encoded)
        if found is not None:
            self._displaced.append(found)
        made = self._series[key] = Series(self.ring, slot, metric, encoded)
        self._new.append(made)
        self.version += 1
        return made

    def end(self, series: Series) -> None:
        """Say that nothing will be written to ``series`` any more."""
        if not series.ended:
            series.end()
            if series.slot not in (NO_SERIES, self._overflow.get(series.metric.name)):
                self.ring.end(series.slot)

    def remove(self, series: Series, now_ns: int | None = None) -> None:
        """Take an ended series out, once the exporters have said that it ended."""
        if series.slot in (NO_SERIES, self._overflow.get(series.metric.name)):
            return
        key = (series.metric.name, series.encoded)
        if self._series.get(key) is series:
            del self._series[key]
            self.version += 1
        self.ring.release(series.slot, time.time_ns() if now_ns is None else now_ns)

    def take_new(self) -> list[Series]:
        """The series that came since the last call, for the one who exports them."""
        new, self._new = self._new, []
        return new

    def take_displaced(self) -> list[Series]:
        """The ended series that others with the same attributes took the place of since the last call."""
        displaced, self._displaced = self._displaced, []
        return displaced

    def _take(
        self, metric: Metric, encoded: bytes, start_ns: int, now_ns: int, *, overflow: bool = False
    ) -> int:
        number = self._metrics[metric.name]
        return self.ring.take(
            _KINDS[metric.kind], number, encoded, metric.rates, start_ns, now_ns, overflow=overflow
        )

    def _overflow_slot(self, metric: Metric, now_ns: int) -> int:
        """The slot that counts what the refused series of a counter count; NO_SERIES for other kinds."""
        if metric.kind is not Kind.COUNTER:
            return NO_SERIES
        if metric.name not in self._overflow:
            # Beyond the capacity, but at most one for each metric.
            encoded = ring.encode_attributes(_OVERFLOW)
            slot = self._take(metric, encoded, now_ns, now_ns, overflow=True)
            if slot == NO_SERIES:  # the ring has no room for it now
                return slot
            self._overflow[metric.name] = slot
            self._new.append(Series(self.ring, slot, metric, encoded))
        return self._overflow[metric.name]


def in_memory(
    capacity: int,
    *,
    rows: int = 8,
    connections: int = 64,
    events: int = 64,
    inbound: int = 0,
    outbound: int = 0,
    grace_ns: int = 0,
) -> Ring:
    """A ring that no other process can find."""
    descriptor = os.memfd_create("fabrictap-ring", os.MFD_CLOEXEC)
    return Ring(
        descriptor,
        series=capacity,
        rows=rows,
        tick_ns=10**9,
        connections=connections,
        events=events,
        grace_ns=grace_ns,
        now_ns=time.time_ns(),
        inbound=inbound,
        outbound=outbound,
    )
