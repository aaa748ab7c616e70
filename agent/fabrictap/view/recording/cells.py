"""The cells of a segment: a tick of 64 series of one kind, as ring.h lays them out (ft_stride)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from struct import unpack_from

from fabrictap.ext import ring
from fabrictap.ext.ring import SEGMENT
from fabrictap.view.recording.decode import finite, number
from fabrictap.view.recording.records import Cell, CounterCell, GaugeCell, HistogramCell, Row, SeriesEntry

_FIRST = SEGMENT * 8
_SECOND = _FIRST + SEGMENT * 4
_NONE_YET = -(1 << 63)


@dataclass(frozen=True, slots=True)
class Block:
    """``ticks``: number of a row that was whole after it was read -> its bytes."""

    segment: int
    kind: int
    rows: Sequence[Row]
    ticks: dict[int, memoryview]


def cells_of(block: Block, series: SeriesEntry) -> list[Cell | None]:
    """The cells of one series, None where a row is not there or not its own."""
    decode = _DECODERS[series.kind]
    place = series.slot % SEGMENT
    found: list[Cell | None] = []
    for row in block.rows:
        tick = block.ticks.get(row.number)
        mine = series.first_row <= row.number and not 0 < series.last_row < row.number
        found.append(decode(tick, place, series.real) if tick is not None and mine else None)
    return found


def _counter(tick: memoryview, place: int, real: bool) -> Cell | None:
    (delta,) = unpack_from("=q", tick, place * 8)
    (peak,) = unpack_from("=f", tick, _FIRST + place * 4)
    return CounterCell(number(delta, real), finite(peak) or 0.0)


def _updown(tick: memoryview, place: int, real: bool) -> Cell | None:
    (value,) = unpack_from("=q", tick, place * 8)
    if value == _NONE_YET:
        return None
    last = number(value, real)
    return GaugeCell(last, last, last)


def _gauge(tick: memoryview, place: int, real: bool) -> Cell | None:
    (last,) = unpack_from("=q", tick, place * 8)
    (low,) = unpack_from("=f", tick, _FIRST + place * 4)
    (high,) = unpack_from("=f", tick, _SECOND + place * 4)
    if low != low or high != high:  # noqa: PLR0124 - NaN: no value yet
        return None
    return GaugeCell(number(last, real), low, high)


def _histogram(tick: memoryview, place: int, real: bool) -> Cell | None:  # noqa: ARG001 - as the others
    (count,) = unpack_from("=Q", tick, place * 8)
    (total,) = unpack_from("=d", tick, _FIRST + place * 8)
    return HistogramCell(count, finite(total) or 0.0)


_DECODERS: dict[int, Callable[[memoryview, int, bool], Cell | None]] = {
    ring.COUNTER: _counter,
    ring.UPDOWNCOUNTER: _updown,
    ring.GAUGE: _gauge,
    ring.HISTOGRAM: _histogram,
}
