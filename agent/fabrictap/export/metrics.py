"""The series table as OTLP metrics, in serialized points that are kept from one export to the next.

Only values and times change between exports, and they are patched into the bytes of the last export
(ext/points.pyx). A request is joined from the points of all metrics and split before it becomes too large
for a receiver.
"""

from __future__ import annotations

from collections.abc import Iterator

from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AGGREGATION_TEMPORALITY_CUMULATIVE,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric as MetricMessage

from fabrictap import catalog
from fabrictap.catalog import Kind, Metric
from fabrictap.export import resource, wire
from fabrictap.export.outbox import Request
from fabrictap.ext import points
from fabrictap.ext.points import AVERAGE, PEAK, VALUE, Points
from fabrictap.series import Series, SeriesTable

_DATA_FIELD = {
    Kind.COUNTER: MetricMessage.SUM_FIELD_NUMBER,
    Kind.UPDOWNCOUNTER: MetricMessage.SUM_FIELD_NUMBER,
    Kind.GAUGE: MetricMessage.GAUGE_FIELD_NUMBER,
    Kind.HISTOGRAM: MetricMessage.EXPONENTIAL_HISTOGRAM_FIELD_NUMBER,
}
# The same number in Sum, Gauge, ExponentialHistogram and in every message that holds a list here.
_RESOURCE_METRICS, _SCOPE_METRICS, _METRICS = 1, 2, 2
#: What stands around the points of a request, at most, beside the resource.
_AROUND = 64


class _Exported:
    """One metric: its points, those that say "no value" this once, and the bytes that stand around both."""

    def __init__(self, metric: Metric, table: SeriesTable, shows: int = VALUE) -> None:
        self._field = _DATA_FIELD[metric.kind]
        self.histogram = metric.kind is Kind.HISTOGRAM
        self.gauge = metric.kind is Kind.GAUGE
        self._head = MetricMessage(
            name=metric.name, unit=metric.unit, description=metric.description
        ).SerializeToString()
        self._data_head = b""
        if not self.gauge:
            # The temporality has the same field number in an ExponentialHistogram, which has no monotonic.
            self._data_head = Sum(
                aggregation_temporality=AGGREGATION_TEMPORALITY_CUMULATIVE,
                is_monotonic=metric.kind is Kind.COUNTER,
            ).SerializeToString()
        self.points = Points(table.ring, shows, self.gauge, self.histogram)
        self.ended: list[bytes] = []
        self.overhead = len(self._head) + len(self._data_head) + _AROUND

    def end(self, series: Series, now_ns: int) -> None:
        """Have one point that says that there is no value any more."""
        start_ns = 0 if self.gauge else series.start_ns
        self.ended.append(points.no_value(series.encoded, self.histogram, start_ns, now_ns))

    def join(self, bodies: list[bytes | memoryview], size: int, parts: list[bytes | memoryview]) -> int:
        """Put the metric with ``size`` bytes of points behind ``parts``; returns what it takes."""
        data = wire.head(self._field, len(self._data_head) + size) + self._data_head
        head = wire.head(_METRICS, len(self._head) + len(data) + size) + self._head + data
        parts += (head, *bodies)
        return len(head) + size


class MetricsTree:
    """Turns a series table into export requests.

    ``update`` is called under the lock that guards the table, ``requests`` after it and outside: it reads
    nothing but what ``update`` has written. One thread calls both, and no other tree has the same table.
    """

    def __init__(
        self, table: SeriesTable, resource_attributes: dict[str, str], limit: int = wire.REQUEST_LIMIT
    ) -> None:
        self._table = table
        self._metrics: dict[str, tuple[_Exported, ...]] = {}
        #: Series that have no value yet.
        self._waiting: dict[Series, None] = {}
        #: Series whose last value was in the last export.
        self._ending: list[Series] = []
        self._head = ResourceMetrics(resource=resource.message(resource_attributes)).SerializeToString()
        self._scope = ScopeMetrics(scope=resource.scope()).SerializeToString()
        self._limit = limit - len(self._head) - len(self._scope) - _AROUND

    def update(self, now_ns: int) -> None:
        """Take over what the table says now.

        An ended series gets its last value, at the next update a point without value, and is then
        removed from the table.
        """
        for exported in self._all():
            exported.ended.clear()
        displaced = self._table.take_displaced()
        self._finish(displaced, now_ns)
        self._place(now_ns)
        self._ending = [
            series for exported in self._metrics.values() for series in exported[0].points.update(now_ns)
        ]
        for _, *rates in self._metrics.values():
            for exported in rates:
                exported.points.update(now_ns)

    def requests(self) -> Iterator[Request]:
        """The points of the last update, serialized, in as few requests as the limit allows."""
        parts: list[bytes | memoryview] = []
        items = size = 0
        for exported in self._all():
            bodies: list[bytes | memoryview] = []
            inside = 0
            for body, count in self._bodies(exported):
                if size + inside and size + inside + len(body) + exported.overhead > self._limit:
                    if bodies:
                        size += exported.join(bodies, inside, parts)
                    yield self._join(parts, size, items)
                    parts, bodies, items, size, inside = [], [], 0, 0, 0
                bodies.append(body)
                inside += len(body)
                items += count
            if bodies:
                size += exported.join(bodies, inside, parts)
        if parts:
            yield self._join(parts, size, items)

    def _all(self) -> Iterator[_Exported]:
        return (exported for group in self._metrics.values() for exported in group)

    def _bodies(self, exported: _Exported) -> Iterator[tuple[bytes | memoryview, int]]:
        """The points of a metric in pieces that fit into a request."""
        room = max(self._limit - exported.overhead, 1)
        first = 0
        while first < len(exported.points):
            body, count = exported.points.body(first, room)
            first += count
            yield body, count
        if exported.ended:
            yield b"".join(exported.ended), len(exported.ended)

    def _join(self, parts: list[bytes | memoryview], size: int, items: int) -> Request:
        scope = wire.head(_SCOPE_METRICS, len(self._scope) + size)
        inner = len(self._head) + len(scope) + len(self._scope) + size
        return Request(
            b"".join((wire.head(_RESOURCE_METRICS, inner), self._head, scope, self._scope, *parts)), items
        )

    def _finish(self, displaced: list[Series], now_ns: int) -> None:
        """Take out what ended before, and what another series with the same attributes took the place of."""
        gone: dict[str, set[Series]] = {}
        replaced = set(displaced)
        for series in (*self._ending, *displaced):
            gone.setdefault(series.metric.name, set()).add(series)
        for name, members in gone.items():
            for exported in self._metrics.get(name, ()):
                exported.points.drop(members)
                for series in members - replaced:
                    exported.end(series, now_ns)
            for series in members:
                self._waiting.pop(series, None)
                self._table.remove(series, now_ns)
        self._ending = []

    def _place(self, now_ns: int) -> None:
        """Give a point to every series that has got its first value."""
        self._waiting.update(dict.fromkeys(self._table.take_new()))
        for series in list(self._waiting):
            if series.known:
                del self._waiting[series]
                for exported in self._exported(series.metric):
                    exported.points.add(series)
            elif series.ended:
                del self._waiting[series]
                self._table.remove(series, now_ns)

    def _exported(self, metric: Metric) -> tuple[_Exported, ...]:
        found = self._metrics.get(metric.name)
        if found is None:
            made = [_Exported(metric, self._table)]
            if metric.rates:
                average, peak = catalog.rates(metric)
                made += [_Exported(average, self._table, AVERAGE), _Exported(peak, self._table, PEAK)]
            found = self._metrics[metric.name] = tuple(made)
        return found
