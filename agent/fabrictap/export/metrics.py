"""The series table as OTLP metrics, in messages that are kept from one export to the next.

Only values and times change between exports, and setting them in the messages of the last export is tens
of times cheaper than making new ones. The points of a metric live in blocks: a block is a message of its
own, so that a series that comes or goes costs one block, and a block that is replaced gives its memory
back (protobuf frees whole trees only). A request is joined from serialized blocks, which is also how it
is split before it becomes too large for a receiver.
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

from fabrictap.catalog import Kind, Metric
from fabrictap.export import resource, wire
from fabrictap.export.blocks import BLOCKS, Block
from fabrictap.export.outbox import Request
from fabrictap.series import Series, SeriesTable

_DATA_FIELD = {
    Kind.COUNTER: MetricMessage.SUM_FIELD_NUMBER,
    Kind.UPDOWNCOUNTER: MetricMessage.SUM_FIELD_NUMBER,
    Kind.GAUGE: MetricMessage.GAUGE_FIELD_NUMBER,
    Kind.HISTOGRAM: MetricMessage.EXPONENTIAL_HISTOGRAM_FIELD_NUMBER,
}
# The same number in Sum, Gauge, ExponentialHistogram and in every message that holds a list here.
_RESOURCE_METRICS, _SCOPE_METRICS, _METRICS = 1, 2, 2


class _MetricBlocks:
    """The blocks of one metric, and the bytes that stand around their points."""

    def __init__(self, metric: Metric) -> None:
        self._block_type = BLOCKS[metric.kind]
        self._data_field = _DATA_FIELD[metric.kind]
        self._head = MetricMessage(
            name=metric.name, unit=metric.unit, description=metric.description
        ).SerializeToString()
        self._data_head = b""
        if metric.kind is not Kind.GAUGE:
            # The temporality has the same field number in an ExponentialHistogram, which has no monotonic.
            self._data_head = Sum(
                aggregation_temporality=AGGREGATION_TEMPORALITY_CUMULATIVE,
                is_monotonic=metric.kind is Kind.COUNTER,
            ).SerializeToString()
        self.blocks: list[Block] = []
        self._room: Block | None = None

    def add(self, series: Series) -> Block:
        if self._room is None or self._room.full:
            self._room = next((block for block in self.blocks if not block.full), None)
            if self._room is None:
                self._room = self._block_type()
                self.blocks.append(self._room)
        self._room.add(series)
        return self._room

    def tidy(self) -> None:
        """Rebuild the blocks that lost series, drop those that lost all."""
        stale = [block for block in self.blocks if block.stale]
        for block in stale:
            block.rebuild()
        if stale:
            self.blocks = [block for block in self.blocks if len(block)]
            self._room = None

    def join(self, points: list[bytes]) -> bytes:
        """The serialized metric with the points of some serialized blocks."""
        data = wire.field(self._data_field, b"".join((self._data_head, *points)))
        return wire.field(_METRICS, self._head + data)


class MetricsTree:
    """Turns a series table into export requests.

    ``update`` is called under the lock that guards the table, ``requests`` after it and outside: it reads
    nothing but what ``update`` has written. One thread calls both.
    """

    def __init__(
        self, table: SeriesTable, resource_attributes: dict[str, str], limit: int = wire.REQUEST_LIMIT
    ) -> None:
        self._table = table
        self._limit = limit
        self._version = -1
        self._metrics: dict[str, _MetricBlocks] = {}
        #: Every series of the table; its block, or None while it waits for a value.
        self._known: dict[Series, Block | None] = {}
        self._waiting: dict[Series, None] = {}
        self._ending: set[Series] = set()
        self._ended: list[Series] = []
        self._head = ResourceMetrics(resource=resource.message(resource_attributes)).SerializeToString()
        self._scope = ScopeMetrics(scope=resource.scope()).SerializeToString()

    def update(self, now_ns: int) -> None:
        """Take over what the table says now.

        An ended series gets its last value, at the next update a point without value, and is then
        removed from the table.
        """
        for series in self._ended:
            self._forget(series)
        self._ended.clear()
        if self._version != self._table.version:
            self._compare()
        self._place()
        self._tidy()
        for blocks in self._metrics.values():
            for block in blocks.blocks:
                for series in block.update(now_ns):
                    self._odd(series, block, now_ns)
        self._tidy()

    def requests(self) -> Iterator[Request]:
        """The points of the last update, serialized, in as few requests as the limit allows."""
        metrics: list[bytes] = []
        items = size = 0
        for blocks in self._metrics.values():
            points: list[bytes] = []
            for block in blocks.blocks:
                body = block.message.SerializeToString()
                if size and size + len(body) > self._limit:
                    if points:
                        metrics.append(blocks.join(points))
                    yield self._join(metrics, items)
                    metrics, points, items, size = [], [], 0, 0
                points.append(body)
                items += len(block)
                size += len(body)
            if points:
                metrics.append(blocks.join(points))
        if metrics:
            yield self._join(metrics, items)

    def _join(self, metrics: list[bytes], items: int) -> Request:
        scope_metrics = wire.field(_SCOPE_METRICS, b"".join((self._scope, *metrics)))
        return Request(wire.field(_RESOURCE_METRICS, self._head + scope_metrics), items)

    def _compare(self) -> None:
        """Find the series that came, and those that another series took the place of."""
        here = dict.fromkeys(self._table)
        for series in [series for series in self._known if series not in here]:
            self._forget(series)
        for series in here:
            if series not in self._known:
                self._known[series] = self._waiting[series] = None
        self._version = self._table.version

    def _place(self) -> None:
        """Give a point to every series that has got its first value."""
        for series in list(self._waiting):
            if series.value is not None:
                del self._waiting[series]
                metric = series.metric
                blocks = self._metrics.get(metric.name)
                if blocks is None:
                    blocks = self._metrics[metric.name] = _MetricBlocks(metric)
                self._known[series] = blocks.add(series)
            elif series.ended:
                self._table.remove(series)
                self._forget(series)

    def _odd(self, series: Series, block: Block, now_ns: int) -> None:
        """A series that has ended, or lost its value."""
        if not series.ended:
            block.remove(series)
            self._known[series] = self._waiting[series] = None
        elif series not in self._ending and series.value is not None:
            self._ending.add(series)
        else:
            block.mark_ended(series, now_ns)
            self._table.remove(series)
            self._ended.append(series)

    def _forget(self, series: Series) -> None:
        block = self._known.pop(series, None)
        if block is not None:
            block.remove(series)
        self._waiting.pop(series, None)
        self._ending.discard(series)

    def _tidy(self) -> None:
        for blocks in self._metrics.values():
            blocks.tidy()
