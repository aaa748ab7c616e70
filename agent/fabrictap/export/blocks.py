"""Blocks: the points of up to 128 series of one metric, in a protobuf message that is kept.

``Block.update`` runs once per series and export under the node's lock: it is the agent's hottest Python.
"""

from __future__ import annotations

from typing import Any, ClassVar

from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK,
    ExponentialHistogram,
    Gauge,
    NumberDataPoint,
    Sum,
)

from fabrictap.catalog import Kind
from fabrictap.export.resource import put_attributes
from fabrictap.series import Histogram, Series


class Block:
    """Base of the blocks. ``remove`` takes effect at the next ``rebuild``, which frees the old message."""

    CAPACITY: ClassVar = 128
    message_type: ClassVar[Any]
    value_fields: ClassVar[tuple[str, ...]]

    def __init__(self) -> None:
        self.message = self.message_type()
        self._entries: dict[Series, Any] = {}
        self._removed: set[Series] = set()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def full(self) -> bool:
        return len(self._entries) >= self.CAPACITY

    @property
    def stale(self) -> bool:
        """Whether the message still has points of removed series."""
        return bool(self._removed)

    def add(self, series: Series) -> None:
        point = self.message.data_points.add()
        put_attributes(point, series.attributes)
        self._entries[series] = point

    def remove(self, series: Series) -> None:
        self._removed.add(series)

    def rebuild(self) -> None:
        """Copy what was not removed into a new message."""
        old, self._entries, self.message = self._entries, {}, self.message_type()
        for series, point in old.items():
            if series not in self._removed:
                copy = self.message.data_points.add()
                copy.CopyFrom(point)
                self._entries[series] = copy
        self._removed.clear()

    def mark_ended(self, series: Series, now_ns: int) -> None:
        """Turn the point into one that says that there is no value any more."""
        point = self._entries[series]
        point.time_unix_nano = now_ns
        point.flags = DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK
        for name in self.value_fields:
            point.ClearField(name)

    def update(self, now_ns: int) -> list[Series]:
        """Write current values and times; returns the series that have ended or have no value."""
        raise NotImplementedError


class SumBlock(Block):
    """Points of a sum. A sum holds until something is added, so its time is the export's."""

    message_type = Sum
    value_fields = ("as_int", "as_double")

    def update(self, now_ns: int) -> list[Series]:
        odd: list[Series] = []
        for series, point in self._entries.items():
            value = series.value
            if value is None or series.ended:
                odd.append(series)
                if value is None:
                    continue
            if point.start_time_unix_nano < series.start_ns:
                # After a reset the new count must not begin before the last point of the old one.
                point.start_time_unix_nano = max(series.start_ns, point.time_unix_nano)
            point.time_unix_nano = now_ns
            _set_number(point, value)
        return odd


class GaugeBlock(Block):
    """Points of a gauge. A gauge is of the moment when it was measured; it has no start."""

    message_type = Gauge
    value_fields = ("as_int", "as_double")

    def update(self, now_ns: int) -> list[Series]:  # noqa: ARG002 - the other kinds need it
        odd: list[Series] = []
        for series, point in self._entries.items():
            value = series.value
            if value is None or series.ended:
                odd.append(series)
                if value is None:
                    continue
            point.time_unix_nano = series.time_ns
            _set_number(point, value)
        return odd


class HistogramBlock(Block):
    """Points of an exponential histogram of scale 0, the zero value of the field ``scale``.

    The buckets are those of :class:`Histogram`: OTLP's ``bucket_counts[i]`` counts values in
    ``(base**(offset+i), base**(offset+i+1)]`` too, with base 2 (opentelemetry/proto/metrics/v1).
    """

    message_type = ExponentialHistogram
    value_fields = ("count", "sum", "zero_count", "positive")

    def update(self, now_ns: int) -> list[Series]:
        odd: list[Series] = []
        for series, point in self._entries.items():
            value = series.value
            if not isinstance(value, Histogram) or series.ended:
                odd.append(series)
                if not isinstance(value, Histogram):
                    continue
            if point.start_time_unix_nano < series.start_ns:
                point.start_time_unix_nano = max(series.start_ns, point.time_unix_nano)
            point.time_unix_nano = now_ns
            point.count = value.count
            point.sum = value.sum
            point.zero_count = value.zeros
            point.positive.offset = value.offset
            point.positive.bucket_counts[:] = value.buckets
        return odd


def _set_number(point: NumberDataPoint, value: object) -> None:
    """Set as_int or as_double, by the value's own type."""
    if isinstance(value, int):
        try:
            point.as_int = value
        except ValueError:
            # More than 63 bits: nearly right is better than an export that fails as a whole.
            point.as_double = float(value)
    elif isinstance(value, float):
        point.as_double = value


BLOCKS: dict[Kind, type[Block]] = {
    Kind.COUNTER: SumBlock,
    Kind.UPDOWNCOUNTER: SumBlock,
    Kind.GAUGE: GaugeBlock,
    Kind.HISTOGRAM: HistogramBlock,
}
