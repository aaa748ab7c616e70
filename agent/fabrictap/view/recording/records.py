"""What a recording consists of, as a reader sees it. Times are nanoseconds since the Unix epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from fabrictap.ext.ring import Histogram
from fabrictap.view.recording.about import MetricName


class Row(NamedTuple):
    """One tick. Rows are numbered from 1."""

    number: int
    start_ns: int
    end_ns: int

    @property
    def seconds(self) -> float:
        """0 where the clock was set back meanwhile."""
        return max(0, self.end_ns - self.start_ns) / 1e9


class CounterCell(NamedTuple):
    """``delta``: what came to the sum in the tick; ``peak``: the largest rate per second in it."""

    delta: int | float
    peak: float


class GaugeCell(NamedTuple):
    """Of an up-down counter all three are the same: it keeps its last value only."""

    last: int | float
    low: float
    high: float


class HistogramCell(NamedTuple):
    """What the tick added: how many values, and their sum."""

    values: int
    sum: float


Cell = CounterCell | GaugeCell | HistogramCell


@dataclass(frozen=True, slots=True)
class SeriesEntry:
    """One series as its directory entry says it. ``value`` is None before there is one.

    ``row_delta`` is the part of a counter's or histogram's value that no row has yet. Cells of rows before
    ``first_row`` and, where it has ended, after ``last_row`` are not this series'. ``average`` and ``peak``
    are rates of the last export interval, None where the metric has none.
    """

    slot: int
    sequence: int
    metric: MetricName
    kind: int
    attributes: dict[str, str | int | bool]
    ended: bool
    overflow: bool
    real: bool
    value: int | float | Histogram | None
    row_delta: int | float | HistogramCell | None
    average: float | None
    peak: float | None
    first_row: int
    last_row: int
    start_ns: int
    time_ns: int


@dataclass(frozen=True, slots=True)
class Posted:
    operations: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Connection:
    """One queue pair. None is what is not known.

    ``posted`` has the operations that were seen; ``in_bytes``, ``out_bytes`` and the rates (bytes per second
    over the last tick) are None where posted work is not seen at all: coverage control_only, or estimated
    with a ``fraction`` of 0: the share of its time in which it was seen. ``pid`` is None for the kernel.
    """

    row: int
    ended: bool
    device: str
    port: int | None
    qpn: int
    type: str
    state: str
    pid: int | None
    process: str
    gid: str | None
    peer_gid: str | None
    peer_qpn: int | None
    mtu: int | None
    coverage: str
    since_ns: int | None
    fraction: float | None
    origin: str
    created_ns: int
    ended_ns: int | None
    posted: dict[str, Posted]
    in_bytes: int | None
    out_bytes: int | None
    in_rate: float | None
    out_rate: float | None


@dataclass(frozen=True, slots=True)
class Event:
    number: int
    time_ns: int
    name: str
    severity: int
    pid: int | None
    qpn: int
    peer_qpn: int
    value: int
    device: str
    process: str
    gid: str | None
    peer_gid: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Life:
    """Whether the writer of a recording is there.

    ``state``: running; stalled (it is there and has not ticked for a while); ended (in order); died.
    ``age`` is the seconds since the last tick, None before the first.
    """

    state: str
    pid: int
    created_ns: int
    last_tick_ns: int | None
    ended_ns: int | None
    age: float | None

    @property
    def alive(self) -> bool:
        return self.state in ("running", "stalled")
