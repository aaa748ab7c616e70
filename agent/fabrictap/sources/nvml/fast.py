"""The fast tier: the counters of NVLink and PCIe of every GPU, many times a second.

For each GPU there is one call, preallocated, with exactly the fields that somebody wants and the driver has
(:class:`fabrictap.ext.nvml.Fields`), and where GPM is there one more, once a second (batch.py). A tick is one
round of those calls in a thread that can be left behind, and a fold in C.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fabrictap.ext.nvml import Calls
from fabrictap.sources.nvml.batch import Batch

_log = logging.getLogger(__name__)

#: Seconds between two GPM samples; they must be more than 0.1 apart.
GPM_INTERVAL = 1.0
#: Rounds are never exactly on time.
_SLACK = 0.001


class Fast:
    """All batches. ``sample`` in the fast tier's thread, all else under the node's lock.

    ``limit``: seconds that one GPU's call may take before it is left behind. ``wall``: nanoseconds since the
    epoch, taken when a round has been read.
    """

    def __init__(
        self,
        errors: dict[str, int],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], int] = time.time_ns,
        limit: float = 1.0,
        threads: int = 16,
    ) -> None:
        self.limit = limit
        #: Share of the time that rounds may take; they come more rarely where they would take more.
        self.share = 0.1
        self._errors = errors
        self._clock = clock
        self._wall = wall
        self._calls = Calls(threads)
        self._batches: tuple[Batch, ...] = ()
        self._sampled: tuple[list[Batch], list[Any]] = ([], [])
        self._read_ns = 0
        #: Seconds that a round takes, smoothed.
        self.cost = 0.0
        self._not_before = 0.0

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
        self._batches = (*(batch for batch in self._batches if batch.gpu != gpu), *batches)

    def renew(self, gpu: str, makes: Mapping[tuple[str, int | None], Any]) -> bool:
        """Go on with other addresses. False where the GPU is asked otherwise than these say, or hangs."""
        batches = [batch for batch in self._batches if batch.gpu == gpu]
        if {batch.key for batch in batches} != makes.keys() or any(batch.stuck for batch in batches):
            return False
        for batch in batches:
            batch.renew(makes[batch.key], self._read_ns)
        return True

    def recheck(self, now_ns: int) -> None:
        """Deliver what has become ours to deliver, and look again where there was nothing."""
        for batch in self._batches:
            if not batch.stuck:
                batch.recheck(now_ns)
                batch.wake(now_ns)

    def sample(self, leave_out: frozenset[str] = frozenset()) -> None:
        """One round of calls, but of the GPUs in ``leave_out``."""
        now = self._clock()
        if now < self._not_before:
            self._sampled = ([], [])
            return
        if self._calls.stuck:
            leave_out |= self.hung()
        due = [
            batch
            for batch in self._batches
            if now >= batch.due_at and batch.call is not None and batch.gpu not in leave_out
        ]
        calls = [batch.call for batch in due]
        began = time.monotonic()
        error = self._calls.round(calls, self.limit)
        self._read_ns = self._wall()
        self._sampled = (due, calls)
        if not self._calls.stuck:
            self._spent(time.monotonic() - began, now)
        for batch in due:
            if batch.interval:
                batch.due_at = now + batch.interval
        if error:
            word = errno.errorcode.get(error, f"errno_{error}")
            self._errors[word] = self._errors.get(word, 0) + 1

    def fold(self) -> None:
        """Fold the last round."""
        (batches, calls), self._sampled = self._sampled, ([], [])
        now, read_ns = self._clock(), self._read_ns
        for batch, call in zip(batches, calls, strict=True):
            if batch.call is call:  # else it has been asked otherwise since
                trouble = batch.trouble
                batch.fold(read_ns, now)
                if batch.trouble != trouble:
                    self._tell(batch)

    def _tell(self, batch: Batch) -> None:
        if batch.trouble is None:
            _log.warning("%s: %s answers again", batch.gpu, batch.provider)
            return
        self._errors[batch.trouble] = self._errors.get(batch.trouble, 0) + 1
        _log.warning("%s: %s calls: %s; its counters are gone", batch.gpu, batch.provider, batch.trouble)

    def _spent(self, seconds: float, now: float) -> None:
        """Stretch the interval where rounds take too long: they hold the driver's lock meanwhile."""
        self.cost = seconds if not self.cost else 0.9 * self.cost + 0.1 * seconds
        self._not_before = now + self.cost / self.share - _SLACK

    def trouble(self, gpu: str) -> str | None:
        """Why a GPU's last call failed as a whole; None where it did not."""
        return next((one.trouble for one in self._batches if one.gpu == gpu and one.trouble), None)

    def close(self) -> None:
        """End all series and the worker. Not while ``sample`` runs."""
        for batch in self._batches:
            batch.withdraw()
        self._batches = ()
        self._sampled = ([], [])
        self._calls.close()
