"""Looking at many things of which any may hang, as where a process hangs in the kernel or a mount is dead."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

_Item = TypeVar("_Item")
_Found = TypeVar("_Found")


class HungError(Exception):
    """One look did not return in time, or too many before it did not."""


class _Worker(Generic[_Item, _Found]):
    """Looks at items from ``first`` on in a thread of its own, until it is told to stop."""

    def __init__(self, items: Sequence[_Item], look: Callable[[_Item], _Found], first: int) -> None:
        self._items, self._look, self._next = items, look, first
        self._news = threading.Condition()
        self._found: dict[int, _Found | Exception] = {}
        self._stopped = False
        threading.Thread(target=self._run, name="audit", daemon=True).start()

    def _run(self) -> None:
        for index in range(self._next, len(self._items)):
            if self._stopped:
                return
            try:
                found: _Found | Exception = self._look(self._items[index])
            except Exception as error:  # noqa: BLE001 - handed to the caller, which knows what to make of it
                found = error
            with self._news:
                self._found[index] = found
                self._news.notify()

    def take(self, index: int, seconds: float) -> _Found | Exception:
        with self._news:
            if not self._news.wait_for(lambda: index in self._found, seconds):
                self._stopped = True
                return HungError(f"no answer within {seconds:g} s")
            return self._found.pop(index)


def each(
    items: Sequence[_Item], look: Callable[[_Item], _Found], seconds: float = 2.0, most_hung: int = 4
) -> Iterator[tuple[_Item, _Found | Exception]]:
    """(item, what ``look`` returned or raised) for each. A hung look is left behind in its thread, and after
    ``most_hung`` of them the rest is not looked at: each is a HungError."""
    worker: _Worker[_Item, _Found] | None = None
    hung = 0
    for index, item in enumerate(items):
        if hung >= most_hung:
            yield item, HungError(f"not looked at after {hung} others did not answer")
            continue
        worker = worker or _Worker(items, look, index)
        found = worker.take(index, seconds)
        if isinstance(found, HungError):
            hung += 1
            worker = None
        yield item, found
