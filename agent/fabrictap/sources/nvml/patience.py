"""Calls that may hang, made from Python: in the thread of ext/calls.h, which can be left behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fabrictap.ext.calls import Calls, Task

T = TypeVar("T")


class Hung(Exception):  # noqa: N818 - a state of the device, not a fault of the program
    """The call did not return in time. ``call.returned`` says when it has."""

    def __init__(self, call: Task[Any] | None) -> None:
        super().__init__("a call does not return")
        self.call = call


class Patience:
    """Makes Python's calls one at a time, in the thread of ``calls`` and beside what that makes by itself."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    @property
    def stuck(self) -> int:
        """Calls that were left behind and have not returned, whoever wanted them."""
        return self._calls.stuck

    def run(self, function: Callable[[], T], seconds: float) -> T:
        """What ``function`` returns or raises; Hung where it takes longer, or where too many hang already."""
        call = Task(function)
        self._calls.round([call], seconds)
        if call.stuck:
            raise Hung(call)
        if not call.answered:
            raise Hung(None)
        return call.result()
