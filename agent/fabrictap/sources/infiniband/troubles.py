"""Files that cannot be read: each is said once, counted, and tried again more and more rarely."""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass

from fabrictap.ext import counters

_log = logging.getLogger(__name__)

#: Seconds: some virtual functions fill the kernel log with one line per failing read.
_FIRST_DELAY = 1.0
_LAST_DELAY = 300.0
_WORDS = {counters.NOT_A_NUMBER: "not_a_number", counters.OVERFLOW: "overflow"}


@dataclass(slots=True)
class Backoff:
    """When a file that fails is tried again: after 1 s, doubling to 5 min."""

    failures: int = 0
    retry_at: float = 0.0

    def due(self, now: float) -> bool:
        return not self.failures or now >= self.retry_at

    def fail(self, now: float) -> float:
        """Count a failure. Returns the seconds to wait."""
        delay = min(_FIRST_DELAY * 2.0 ** min(self.failures, 16), _LAST_DELAY)
        self.failures += 1
        self.retry_at = now + delay
        return delay


class Troubles:
    """Counts failures into ``errors``, by errno name or by a short word where the content is at fault."""

    def __init__(self, errors: dict[str, int]) -> None:
        self._errors = errors

    def failed(self, backoff: Backoff, path: str, problem: str, now: float) -> None:
        """A file could not be read."""
        self.count(problem)
        delay = backoff.fail(now)
        if backoff.failures == 1:
            _log.warning(
                "%s: cannot be read: %s; tried again in %g s, then more rarely", path, problem, delay
            )

    def succeeded(self, backoff: Backoff, path: str) -> None:
        """A file could be read."""
        if backoff.failures:
            backoff.failures = 0
            _log.info("%s: can be read again", path)

    def count(self, problem: str) -> None:
        self._errors[problem] = self._errors.get(problem, 0) + 1


def word(status: int) -> str:
    """What is said of an errno value or of a status of :mod:`fabrictap.ext.counters`."""
    return _WORDS.get(status) or errno.errorcode.get(status, f"errno_{status}")
