"""How long a call may take, and how another thread ends it."""

from __future__ import annotations

import math
import os
import select
import threading
import time
from collections.abc import Callable

#: Milliseconds that fit into poll(2)'s int: 24 days.
_LONGEST_POLL = (1 << 31) - 1


class TimedOutError(Exception):
    """The call's deadline has passed."""


class InterruptedCallError(Exception):
    """The channel was closed while the call was under way."""


class Deadline:
    """A moment. ``seconds`` from now, and never earlier or later whatever the wall clock does."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds, more than zero. Raises TimedOutError."""
        left = self._at - time.monotonic()
        if left <= 0:
            raise TimedOutError
        return left

    def share(self, parts: int) -> Deadline:
        """The first of ``parts`` equal parts of what is left."""
        return Deadline(self.left() / parts)


class Interrupt:
    """Ends every wait of one channel, now and from now on, once ``set`` was called (from any thread).

    A wait for a socket is ended through the descriptor of an eventfd, one for a thread through ``changed``.
    Call ``release`` when nobody waits any more.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._is_set = False
        self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def set(self) -> None:
        with self.changed:
            if not self._is_set:
                self._is_set = True
                os.eventfd_write(self._eventfd, 1)
                self.changed.notify_all()

    def check(self) -> None:
        """Raises InterruptedCallError after ``set``."""
        if self._is_set:
            raise InterruptedCallError

    def release(self) -> None:
        os.close(self._eventfd)

    def wait_for(self, condition: Callable[[], bool], deadline: Deadline) -> None:
        """Until ``condition``, whose change is told by ``changed``.

        Raises TimedOutError and InterruptedCallError.
        """
        with self.changed:
            ready = self.changed.wait_for(lambda: self._is_set or condition(), deadline.left())
        self.check()
        if not ready:
            raise TimedOutError

    def poll(self, descriptor: int, events: int, deadline: Deadline) -> None:
        """Until one of poll(2)'s ``events`` on ``descriptor``, or an error there. Raises as ``wait_for``."""
        poll = select.poll()
        poll.register(self._eventfd, select.POLLIN)
        poll.register(descriptor, events)
        ready = poll.poll(min(math.ceil(deadline.left() * 1000), _LONGEST_POLL))
        self.check()
        if not ready:
            raise TimedOutError
