"""The cells of a segment: a tick of 64 series of one kind, as ring.h lays them out (ft_stride)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from struct import Struct
from typing import Any

from fabrictap.ext import ring
from fabrictap.ext.ring import SEGMENT
from fabrictap.view.recording.decode import finite, number
from fabrictap.view.recording.records import Cell, CounterCell, GaugeCell, HistogramCell, Row, SeriesEntry

_FORMS = {
    ring.COUNTER: Struct(f"={SEGMENT}q{SEGMENT}f"),
    ring.UPDOWNCOUNTER: Struct(f"={SEGMENT}q"),
    ring.GAUGE: Struct(f"={SEGMENT}q{SEGMENT}f{SEGMENT}f"),
    ring.HISTOGRAM: Struct(f"={SEGMENT}Q{SEGMENT}d"),
}
_NONE_YET = -(1 << 63)


@dataclass(frozen=True, slots=True)
class Block:
    """``ticks``: number of a row that was whole after it was read -> its bytes."""

    segment: int
    kind: int
    rows: Sequence[Row]
    ticks: dict[int, memoryview]
    #: The same as numbers: those of the 64 series one after the other; see _FORMS.
    numbers: dict[int, tuple[Any, ...]] = field(default_factory=dict)

    def tick(self, row: int) -> tuple[Any, ...] | None:
        found = self.numbers.get(row)
        if found is None and (raw := self.ticks.get(row)) is not None:
            form = _FORMS[self.kind]
            found = self.numbers[row] = form.unpack_from(raw)
        return found


def cells_of(block: Block, series: SeriesEntry) -> list[Cell | None]:
    """The cells of one series, None where a row is not there or not its own."""
    decode = _DECODERS[series.kind]
    place = series.slot % SEGMENT
    found: list[Cell | None] = []
    for row in block.rows:
        tick = block.tick(row.number)
        mine = series.first_row <= row.number and not 0 < series.last_row < row.number
        found.append(decode(tick, place, series.real) if tick is not None and mine else None)
    return found


def _counter(tick: tuple[Any, ...], place: int, real: bool) -> Cell | None:
    peak = tick[SEGMENT + place]
    return CounterCell(number(tick[place], real), peak if isfinite(peak) else 0.0)


def _updown(tick: tuple[Any, ...], place: int, real: bool) -> Cell | None:
    if tick[place] == _NONE_YET:
        return None
    last = number(tick[place], real)
    return GaugeCell(last, last, last)


def _gauge(tick: tuple[Any, ...], place: int, real: bool) -> Cell | None:
    low, high = tick[SEGMENT + place], tick[2 * SEGMENT + place]
    if low != low or high != high:  # noqa: PLR0124 - NaN: no value yet
        return None
    return GaugeCell(number(tick[place], real), low, high)


def _histogram(tick: tuple[Any, ...], place: int, real: bool) -> Cell | None:  # noqa: ARG001 - as the others
    return HistogramCell(tick[place], finite(tick[SEGMENT + place]) or 0.0)


_DECODERS: dict[int, Callable[[tuple[Any, ...], int, bool], Cell | None]] = {
    ring.COUNTER: _counter,
    ring.UPDOWNCOUNTER: _updown,
    ring.GAUGE: _gauge,
    ring.HISTOGRAM: _histogram,
}
