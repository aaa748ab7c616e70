"""The fast tier: the counters of NVLink and PCIe of every GPU, many times a second.

For each GPU there is one call, preallocated, with exactly the fields that somebody wants and the driver has
(:class:`fabrictap.ext.nvml.Fields`), and where GPM is there one more, once a second (batch.py). A thread that
can be left behind makes them at fixed times and adds up what they say, all without Python (ext/calls.h);
``fold`` puts into the ring, once a tick, what has come together.
"""

from __future__ import annotations

import errno
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fabrictap.ext.calls import Calls
from fabrictap.ext.nvml import NO_ANSWER, Counters, fold
from fabrictap.ext.ring import Ring
from fabrictap.sources.nvml.batch import Batch

_log = logging.getLogger(__name__)

#: Seconds between two GPM samples; they must be more than 0.1 apart.
GPM_INTERVAL = 1.0
#: Share of a core that the reads may take; they come more rarely where they would take more.
_CPU_SHARE = 0.01


class Fast:
    """All batches, under the node's lock but where it is said.

    ``limit``: seconds that one GPU's call may take before it is left behind. ``wall``: nanoseconds since the
    epoch. ``interval``: seconds between two reads; 0 where they are made by ``sample`` only. ``longest``:
    what that becomes at most where they cost too much.
    """

    def __init__(
        self,
        ring: Ring,
        calls: Calls,
        errors: dict[str, int],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], int] = time.time_ns,
        *,
        interval: float = 0.0,
        longest: float = 0.0,
        limit: float = 1.0,
    ) -> None:
        self.limit = limit
        #: Share of the time that reads may take: they hold the driver's lock meanwhile.
        self.share = 0.1
        #: Seconds between two reads, as their cost lets it be.
        self.interval = interval
        self._least, self._longest = interval, max(interval, longest)
        self._errors = errors
        self._clock = clock
        self._wall = wall
        self._ring = ring
        self._calls = calls
        self._batches: tuple[Batch, ...] = ()
        #: What the thread makes by itself, and how often.
        self._kept: list[Counters] = []
        self._kept_interval = 0.0
        self._left_out: frozenset[str] = frozenset()
        #: Of the clock: nobody has to look before that, while everything has answers.
        self._quiet_until = 0.0
        self._costs: deque[float] = deque(maxlen=5)
        self._spent = (0, 0.0)
        self._failed = 0

    @property
    def stuck(self) -> int:
        """Threads left behind in a call."""
        return self._calls.stuck

    def hung(self) -> set[str]:
        """The GPUs that have a call that does not return."""
        return {batch.gpu for batch in self._batches if batch.stuck}

    def replace(self, gpu: str, batches: Sequence[Batch]) -> None:
        """Ask a GPU for these from now on; none: it has gone."""
        for batch in self._batches:
            if batch.gpu == gpu:
                batch.withdraw()
        self._quiet_until = 0.0
        self._batches = (*(batch for batch in self._batches if batch.gpu != gpu), *batches)

    def renew(self, gpu: str, makes: Mapping[tuple[str, int | None], Any], now_ns: int) -> bool:
        """Go on with other addresses. False where the GPU is asked otherwise than these say, or hangs."""
        batches = [batch for batch in self._batches if batch.gpu == gpu]
        if {batch.key for batch in batches} != makes.keys() or any(batch.stuck for batch in batches):
            return False
        self._quiet_until = 0.0
        for batch in batches:
            batch.renew(makes[batch.key], now_ns)
        return True

    def recheck(self, now_ns: int) -> None:
        """Deliver what has become ours to deliver, and look again where there was nothing."""
        self._quiet_until = 0.0
        for batch in self._batches:
            if not batch.stuck:
                batch.recheck(now_ns)
                batch.wake(now_ns)

    def sample(self, leave_out: frozenset[str] = frozenset()) -> None:
        """Read once and wait for it, all but the GPUs in ``leave_out``. Beside nothing that is kept."""
        now = self._clock()
        due = [batch for batch in self._due(now, leave_out) if now >= batch.sample_at]
        self._said(self._calls.round([batch.call for batch in due], self.limit, self._wall))
        for batch in due:
            batch.sample_at = now + batch.interval

    def fold(self, now_ns: int) -> None:
        """Put into the ring what was read since the last time, and look where something has changed."""
        self._look(dict(fold(self._calls_of(self._batches), self._ring)), now_ns, self._clock())

    def tick(self, now_ns: int, leave_out: frozenset[str] = frozenset()) -> None:
        """Fold, see to what hangs, and have all but the GPUs in ``leave_out`` read until the next tick."""
        error, ticks, seconds, cpu = self._calls.look()
        self._said(error)
        self._pace(ticks, seconds, cpu)
        now = self._clock()
        quiet = now < self._quiet_until and leave_out == self._left_out
        found = fold(self._kept if quiet else self._calls_of(self._batches), self._ring)
        if (
            quiet
            and self.interval == self._kept_interval
            and all(failed == NO_ANSWER and not call.stuck for call, failed in found)
        ):
            return
        self._look(dict(found), now_ns, now)
        kept = self._calls_of(self._due(now, leave_out))
        if kept != self._kept or self.interval != self._kept_interval:
            self._kept, self._kept_interval = kept, self.interval
            self._said(self._calls.keep(kept, self.limit, self.interval))
        self._left_out = leave_out
        # where not all that there is is read, somebody has to look when its time has come
        everything = bool(kept) and len(kept) == len(self._batches)
        self._quiet_until = min(one.quiet_until() for one in self._batches) if everything else 0.0

    def pause(self) -> None:
        """Read nothing more until the next tick, and wait until nothing is in the library but what hangs.

        From the thread that opens and closes the library, while no tick is.
        """
        self._calls.settle()
        self._kept = []
        self._quiet_until = 0.0

    def trouble(self, gpu: str) -> str | None:
        """Why a GPU's last call failed as a whole; None where it did not."""
        return next((one.trouble for one in self._batches if one.gpu == gpu and one.trouble), None)

    def close(self) -> None:
        """End all series, and the thread. Not while ``sample`` runs."""
        for batch in self._batches:
            batch.withdraw()
        self._batches = ()
        self._kept = []
        self._calls.close()

    def _look(self, failed: dict[Counters, int], now_ns: int, now: float) -> None:
        for batch in self._batches:
            if (call := batch.call) is not None:
                trouble = batch.trouble
                batch.look(failed.get(call, 0), now_ns, now)
                if batch.trouble != trouble:
                    self._tell(batch)

    @staticmethod
    def _calls_of(batches: Iterable[Batch]) -> list[Counters]:
        return [batch.call for batch in batches if batch.call is not None]

    def _due(self, now: float, leave_out: frozenset[str]) -> list[Batch]:
        if self._calls.stuck:
            leave_out |= self.hung()
        return [
            batch
            for batch in self._batches
            if batch.call is not None and now >= batch.due_at and batch.gpu not in leave_out
        ]

    def _pace(self, ticks: int, seconds: float, cpu: float) -> None:
        """Make reads as rare as their cost asks for: of CPU, and of time for which the driver is held."""
        (ticks_before, seconds_before), self._spent = self._spent, (ticks, seconds)
        if ticks <= ticks_before or not self._least:
            return
        took = (seconds - seconds_before) / (ticks - ticks_before)
        # One that costs more, as when a GPU came, says nothing of the next, and is not the last one taken.
        self._costs.append(max(took / self.share, cpu / _CPU_SHARE))
        wanted = min(max(self._least, min(self._costs)), self._longest)
        # not moved about by every microsecond
        if not 0.9 * self.interval <= wanted <= 1.1 * self.interval or wanted == self._least:
            self.interval = wanted

    def _said(self, error: int) -> None:
        if error and error != self._failed:
            word = errno.errorcode.get(error, f"errno_{error}")
            self._errors[word] = self._errors.get(word, 0) + 1
        self._failed = error

    def _tell(self, batch: Batch) -> None:
        if batch.trouble is None:
            _log.warning("%s: %s answers again", batch.gpu, batch.provider)
            return
        self._errors[batch.trouble] = self._errors.get(batch.trouble, 0) + 1
        _log.warning("%s: %s calls: %s; its counters are gone", batch.gpu, batch.provider, batch.trouble)
