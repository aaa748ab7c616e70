"""The table of series between the sources that write and the exporters that read.

A series is one metric of the catalog with one set of attributes. The table has a fixed capacity:
when it is full the newest series is refused and counted. It is guarded by the node's lock; nothing
here locks by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from fabrictap.catalog import Metric

AttributeValue = str | int | bool
Attributes = Mapping[str, AttributeValue]
Key = tuple[str, frozenset[tuple[str, AttributeValue]]]


@dataclass(slots=True)
class Histogram:
    """A cumulative exponential histogram of scale 0.

    ``buckets[i]`` counts values in ``(2**(offset+i), 2**(offset+i+1)]``; ``zeros`` counts the value 0.
    """

    count: int = 0
    sum: int = 0
    zeros: int = 0
    offset: int = 0
    buckets: list[int] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Series:
    """One series. ``value`` is None until something is known, and such a series is not exported.

    ``start_ns`` and ``time_ns`` are nanoseconds since the Unix epoch. ``start_ns`` is when the
    cumulative count began as far as the agent knows; it moves when a counter was reset. An ended
    series is exported once more with its last value, then once as "no recorded value", then it goes.
    """

    metric: Metric
    attributes: dict[str, AttributeValue]
    start_ns: int
    time_ns: int
    value: int | float | Histogram | None = None
    ended: bool = False

    def set(self, value: int | float | Histogram, now_ns: int) -> None:
        """Set the current value."""
        self.value = value
        self.time_ns = now_ns

    def add(self, delta: int | float, now_ns: int) -> None:
        """Add to a sum."""
        assert not isinstance(self.value, Histogram)
        self.value = delta if self.value is None else self.value + delta
        self.time_ns = now_ns

    def observe(self, cumulative: int, now_ns: int) -> None:
        """Set a counter that something else accumulates; a smaller value than before is a reset."""
        assert not isinstance(self.value, Histogram)
        if self.value is not None and cumulative < self.value:
            self.start_ns = self.time_ns
        self.value = cumulative
        self.time_ns = now_ns


class SeriesTable:
    """All series of the node. ``version`` changes whenever a series comes or goes."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.refused = 0
        self.version = 0
        self._series: dict[Key, Series] = {}

    def __len__(self) -> int:
        return len(self._series)

    def __iter__(self) -> Iterator[Series]:
        return iter(self._series.values())

    def series(
        self, metric: Metric, attributes: Attributes, now_ns: int, start_ns: int | None = None
    ) -> Series:
        """The series of ``metric`` with ``attributes``, made if need be.

        Attributes whose value is not known are left out by the caller. A series that the full table
        refuses is returned all the same, counted in ``refused`` and seen by no exporter, so that
        writers need no special case. An ended series that comes back starts anew.
        """
        key = (metric.name, frozenset(attributes.items()))
        found = self._series.get(key)
        if found is not None and not found.ended:
            return found
        made = Series(metric, dict(attributes), start_ns if start_ns is not None else now_ns, now_ns)
        if found is None and len(self._series) >= self.capacity:
            self.refused += 1
            return made
        self._series[key] = made
        self.version += 1
        return made

    def end(self, series: Series) -> None:
        """Say that nothing will be written to ``series`` any more."""
        series.ended = True

    def remove(self, series: Series) -> None:
        """Take an ended series out, once the exporters have said that it ended."""
        key = (series.metric.name, frozenset(series.attributes.items()))
        if self._series.get(key) is series:
            del self._series[key]
            self.version += 1
