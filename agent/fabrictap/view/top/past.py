"""What series did tick by tick, taken from the recording once and then only the ticks that are new."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from fabrictap.view.recording import Cell, CounterCell, GaugeCell, Recording, Row, SeriesEntry

#: Ticks that are kept of each series: more than the widest sparkline has places.
TICKS = 120
#: Ticks in which a peak is looked for.
_PEAK_NS = 60 * 10**9


@dataclass(slots=True)
class Past:
    """Of one series, a place for each of the last ticks: rate per second (or value of a gauge), and peak."""

    sequence: int
    upto: int = 0
    rates: deque[float | None] = field(default_factory=lambda: deque(maxlen=TICKS))
    peaks: deque[float | None] = field(default_factory=lambda: deque(maxlen=TICKS))

    @property
    def rate(self) -> float | None:
        return self.rates[-1] if self.rates else None

    def peak(self, ticks: int) -> float | None:
        """The largest of the last ``ticks``."""
        newest = islice(reversed(self.peaks), ticks)
        return max(filter(None, newest), default=0.0 if self.rate is not None else None)


class Pasts:
    """The pasts of the series that are looked at, by slot. What is not looked at any more is forgotten."""

    def __init__(self) -> None:
        self._pasts: dict[int, Past] = {}
        #: Ticks in a minute.
        self.minute = 60

    def update(self, recording: Recording, entries: Iterable[SeriesEntry], rows: Sequence[Row]) -> None:
        """Take what is new. ``rows``: those of the recording, oldest first."""
        rows = rows[-TICKS:]
        if rows:
            self.minute = sum(row.end_ns > rows[-1].end_ns - _PEAK_NS for row in rows)
        kept: dict[int, Past] = {}
        # By what is missing, and in the order of the file, so that what lies together is read together.
        behind: dict[int, list[SeriesEntry]] = {}
        for entry in entries:
            past = self._pasts.get(entry.slot)
            if past is None or past.sequence != entry.sequence:
                past = Past(entry.sequence)
            kept[entry.slot] = past
            behind.setdefault(past.upto, []).append(entry)
        for upto, group in sorted(behind.items()):
            fresh = [row for row in rows if row.number > upto]
            if fresh:
                for entry in sorted(group, key=lambda entry: entry.slot):
                    _add(kept[entry.slot], recording.cells(entry, fresh), fresh)
        self._pasts = kept

    def of(self, entry: SeriesEntry) -> Past:
        """The past of a series; empty where it has none."""
        past = self._pasts.get(entry.slot)
        return past if past is not None and past.sequence == entry.sequence else Past(entry.sequence)


def _add(past: Past, cells: Iterable[Cell | None], rows: Sequence[Row]) -> None:
    for cell, row in zip(cells, rows, strict=True):
        rate = peak = None
        if isinstance(cell, CounterCell) and row.seconds:
            rate, peak = cell.delta / row.seconds, cell.peak
        elif isinstance(cell, GaugeCell):
            rate, peak = float(cell.last), float(cell.high)
        past.rates.append(rate)
        past.peaks.append(peak)
    past.upto = rows[-1].number
