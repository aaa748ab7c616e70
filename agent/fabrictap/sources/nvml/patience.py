"""Calls that may hang, made from Python: in a thread that can be left behind.

The same idea as ext/calls.h, for calls that are not made often enough to need C.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Hung(Exception):  # noqa: N818 - a state of the device, not a fault of the program
    """The call did not return in time. ``call.returned`` says when it has."""

    def __init__(self, call: Task[Any] | None) -> None:
        super().__init__("a call does not return")
        self.call = call


class Task(Generic[T]):
    """One call on its way."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._finished = threading.Event()
        self._result: T | None = None
        self._error: BaseException | None = None

    @property
    def returned(self) -> bool:
        return self._finished.is_set()

    def run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            self._error = error
        finally:
            self._finished.set()

    def wait(self, seconds: float) -> bool:
        return self._finished.wait(seconds)

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]  # it has returned


class Patience:
    """Makes calls one at a time. At most ``limit`` threads are left behind with calls that hang."""

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._queue: SimpleQueue[Task[Any] | None] | None = None
        self._left: list[Task[Any]] = []

    @property
    def stuck(self) -> int:
        """Calls that were left behind and have not returned."""
        self._left = [call for call in self._left if not call.returned]
        return len(self._left)

    def run(self, function: Callable[[], T], seconds: float) -> T:
        """What ``function`` returns or raises; Hung where it takes longer, or where too many hang already."""
        if self.stuck >= self._limit:
            raise Hung(None)
        if self._queue is None:
            self._queue = SimpleQueue()
            threading.Thread(target=_work, args=(self._queue,), name=self._name, daemon=True).start()
        call = Task(function)
        self._queue.put(call)
        if not call.wait(seconds):
            self._queue.put(None)  # the thread ends when the call returns
            self._queue = None
            self._left.append(call)
            raise Hung(call)
        return call.result()

    def close(self) -> None:
        """End the idle thread. What hangs is left alone."""
        if self._queue is not None:
            self._queue.put(None)
            self._queue = None


def _work(queue: SimpleQueue[Task[Any] | None]) -> None:
    while (call := queue.get()) is not None:
        call.run()
