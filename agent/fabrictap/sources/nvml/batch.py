"""What one call of the fast tier brings of one GPU: figures wanted, the numbers that have them, their series.

Python looks at single numbers only where something changed: at first all candidates are asked for, then those
that answered, and from time to time, ever more rarely, all of them again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fabrictap.catalog import GPU_IO, Metric
from fabrictap.ext.nvml import NO_ANSWER
from fabrictap.ext.ring import NO_SERIES
from fabrictap.ledger.providers import Figure, Offer, Providers
from fabrictap.series import AttributeValue, Series, SeriesTable
from fabrictap.sources.nvml.fields import NVLINK, RECEIVE, TRANSMIT
from fabrictap.sources.nvml.library import reason_of

#: Seconds until all candidates are asked for again: after one of them failed, growing to the last.
_FIRST_PAUSE = 10.0
_LAST_PAUSE = 600.0
#: The same where the whole call failed.
_FIRST_RETRY = 1.0
_LAST_RETRY = 30.0
_SIDES = (TRANSMIT, RECEIVE)
_INVALID_ARGUMENT = 2


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to deliver a figure. ``sides``: network.io.direction (or None) and key of each number."""

    metric: Metric
    sides: tuple[tuple[str | None, Hashable], ...]
    scale: float = 1
    bits: int = 64
    gauge: bool = False
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    #: Whether there are libraries that do not know its numbers.
    newer: bool = False


@dataclass(slots=True)
class Wanted:
    """A figure to deliver: by the first candidate that answers. ``summed``: it adds to the GPU's."""

    figure: Figure
    candidates: tuple[Candidate, ...]
    attributes: Mapping[str, AttributeValue]
    rate: bool = False
    summed: bool = False


class _Delivered:
    """A wanted figure on its way: its offer, what answers now, its series by direction."""

    def __init__(self, wanted: Wanted, batch: Batch) -> None:
        self.wanted = wanted
        self.active: Candidate | None = None
        self.series: dict[str | None, Series] = {}
        self._batch = batch
        self.offer: Offer = batch.providers.offer(batch.provider, wanted.figure, self.end, rate=wanted.rate)

    def end(self) -> None:
        """Nothing is written to its series any more, not even by what has been read already."""
        for series in self.series.values():
            self._batch.table.end(series)
        if self.series:
            self.series = {}
            self._batch.unbind(self)

    def settle(self, statuses: Mapping[Hashable, int]) -> None:
        reason = "not_supported"
        for candidate in self.wanted.candidates:
            codes = [statuses.get(key, 3) for _, key in candidate.sides]
            if not any(codes):
                if candidate is not self.active:
                    self.end()
                    self.active = candidate
                self.offer.available()
                return
            if reason == "not_supported":
                reason = reason_of(next(code for code in codes if code))
        self.fail(reason)

    def fail(self, reason: str) -> None:
        self.active = None
        self.offer.unavailable(reason)

    @property
    def bound(self) -> bool:
        return self.active is not None and self.offer.chosen

    def slot(self, side: str | None, now_ns: int) -> int:
        """The series of a direction, made if need be."""
        assert self.active is not None
        series = self.series.get(side)
        if series is None:
            labels = dict(self.wanted.attributes) | dict(self.active.attributes)
            labels |= {"hw.id": self.wanted.figure.gpu, "fabrictap.provider": self._batch.provider}
            if side is not None:
                labels["network.io.direction"] = side
            series = self._batch.table.series(self.active.metric, labels, now_ns)
            self.series[side] = series
        return series.slot


@dataclass(frozen=True, slots=True)
class Desk:
    """What every batch works with."""

    table: SeriesTable
    providers: Providers
    clock: Callable[[], float]


class Batch:
    """The numbers of one GPU (or GPU instance) that one call brings."""

    def __init__(
        self,
        key: tuple[str, int | None],
        gpu: str,
        wanted: Sequence[Wanted],
        make: Callable[[Sequence[Any], int], Any],
        desk: Desk,
        *,
        interval: float = 0.0,
    ) -> None:
        """``key``: provider and GPU instance. ``make``: keys, number of totals -> the call (Fields, Gpm)."""
        self.key = key
        self.gpu = gpu
        self.provider = key[0]
        self.table = desk.table
        self.providers = desk.providers
        self.interval = interval
        #: What is made next; None while nothing is to be asked.
        self.call: Any = None
        #: Not before, after the call as a whole has failed; and where ``Fast.sample`` makes it.
        self.due_at = self.sample_at = 0.0
        #: Why the last call as a whole had no answer; None where it had.
        self.trouble: str | None = None
        self._make = make
        self._clock = desk.clock
        self._figures = [_Delivered(one, self) for one in wanted]
        self._total: _Delivered | None = None
        if any(one.summed for one in wanted):
            # Its candidate is the sum, which has no number of its own.
            total = Candidate(GPU_IO, tuple((side, None) for side in _SIDES))
            attributes = {"gpu.interconnect": NVLINK}
            self._total = _Delivered(Wanted(Figure(gpu, GPU_IO.name, NVLINK), (total,), attributes), self)
        self._full = False
        self._modest = False
        self._keys: dict[Hashable, int] = {}
        self._ask_all_at = 0.0
        self._pause = _FIRST_PAUSE
        self._retry = _FIRST_RETRY
        self.ask_all(0)

    @property
    def stuck(self) -> bool:
        return self.call is not None and bool(self.call.stuck)

    def ask_all(self, now_ns: int) -> None:
        """Ask for every candidate in the next round."""
        keys = dict.fromkeys(
            key
            for one in self._figures
            for candidate in one.wanted.candidates
            for _, key in candidate.sides
            if not (self._modest and candidate.newer)
        )
        self._full = True
        self._rebuild(list(keys), now_ns)

    def renew(self, make: Callable[[Sequence[Any], int], Any], now_ns: int) -> None:
        """Go on with other addresses: the library was started anew."""
        self._make = make
        self._rebuild(list(self._keys), now_ns)

    def recheck(self, now_ns: int) -> None:
        """Deliver what has become ours to deliver."""
        bound = {key for one in self._figures if one.bound and one.active for _, key in one.active.sides}
        if not self._full and bound != set(self._keys):
            self._ask_bound(now_ns)

    def unbind(self, figure: _Delivered) -> None:
        """See _Delivered.end."""
        if self.call is None:
            return
        if figure is self._total:
            for total in range(len(_SIDES)):
                self.call.bind_total(total, NO_SERIES)
        elif figure.active is not None:
            for _, key in figure.active.sides:
                if key in self._keys:
                    self.call.bind(self._keys[key], NO_SERIES, 1, 64)

    def quiet_until(self) -> float:
        """Until when (of the clock) nobody has to look as long as all numbers have answers; 0: not now."""
        return 0.0 if self._full or self.trouble is not None else self._ask_all_at

    def look(self, failed: int, now_ns: int, now: float) -> None:
        """Look at what ``fold`` of the call has returned; ``now`` is of the clock."""
        call = self.call
        if not failed and not self._full and self.trouble is None:
            if now >= self._ask_all_at:
                self.ask_all(now_ns)
        elif failed == NO_ANSWER:
            if call.stuck:  # asked again when it has returned, and then looked at
                call.tell = True
                self.trouble = "hung"
                self.fail(self.trouble)
        else:
            if call.status:
                self._failed(now_ns)
            elif self._compared:
                self._settle(now_ns)
            call.resume()

    def fail(self, reason: str) -> None:
        """Nothing of this can be had now."""
        for one in self._all:
            one.fail(reason)

    def withdraw(self) -> None:
        """The GPU has gone, or is asked otherwise."""
        for one in self._all:
            one.offer.withdraw()
            one.end()

    @property
    def _all(self) -> list[_Delivered]:
        return self._figures if self._total is None else [*self._figures, self._total]

    @property
    def _compared(self) -> bool:
        return bool(getattr(self.call, "compared", True))

    def _failed(self, now_ns: int) -> None:
        if self._full and self.call.status == _INVALID_ARGUMENT and not self._modest:
            self._modest = True  # a library that refuses all of a call for one number that it does not know
        else:
            self.trouble = reason_of(self.call.status)
            self.fail(self.trouble)
            self.due_at = self._clock() + self._retry
            self._retry = min(2 * self._retry, _LAST_RETRY)
        self.ask_all(now_ns)

    def _settle(self, now_ns: int) -> None:
        statuses = {key: status for key, (status, _) in zip(self._keys, self.call.results(), strict=True)}
        before = {id(one) for one in self._figures if one.active is not None}
        for one in self._figures:
            if self._full or any(key in statuses for c in one.wanted.candidates for _, key in c.sides):
                one.settle(statuses)
        if self._total is not None:
            if any(one.bound and one.wanted.summed for one in self._figures):
                self._total.settle({None: 0})
            else:
                self._total.fail(
                    next(one.offer.reason or "no_data" for one in self._figures if one.wanted.summed)
                )
        self.trouble = None
        self._retry = _FIRST_RETRY
        changed = before != {id(one) for one in self._figures if one.active is not None}
        self._pause = _FIRST_PAUSE if changed else min(2 * self._pause, _LAST_PAUSE)
        self._ask_all_at = self._clock() + self._pause
        self._ask_bound(now_ns)

    def _ask_bound(self, now_ns: int) -> None:
        self._full = False
        self._rebuild(
            [key for one in self._figures if one.bound and one.active for _, key in one.active.sides], now_ns
        )

    def _rebuild(self, keys: list[Hashable], now_ns: int) -> None:
        before = self.call
        self._keys = {key: index for index, key in enumerate(keys)}
        if not keys:
            # nothing is to be had: all candidates are asked for again later
            self.call = None
            return
        self.call = self._make(keys, len(_SIDES) if self._total is not None else 0)
        self.call.tell = self._full
        self.call.every = self.interval
        for one in self._figures:
            if one.bound and one.active is not None:
                candidate = one.active
                for side, key in candidate.sides:
                    index, slot = self._keys[key], one.slot(side, now_ns)
                    if candidate.gauge:
                        self.call.bind_gauge(index, slot, candidate.scale)
                    else:
                        total = _SIDES.index(side) if one.wanted.summed and side is not None else -1
                        self.call.bind(index, slot, int(candidate.scale), candidate.bits, total)
        if self._total is not None and self._total.bound:
            for total, side in enumerate(_SIDES):
                self.call.bind_total(total, self._total.slot(side, now_ns))
        if before is not None:
            self.call.take_over(before)

    def wake(self, now_ns: int) -> None:
        """Look again where there was nothing to ask for."""
        if self.call is None and self._clock() >= self._ask_all_at:
            self.ask_all(now_ns)
