"""Which objects of the ledger the kernel still lists, and when their absence proves that they are gone.

An object may be missing from a dump and be alive: it was made or hidden while the dump ran; its kernel
(before rdma_is_visible_in_pid_ns was dropped) hides what belongs to a thread that has exited; the agent
looks from another pid namespace; XRC queue pairs were not tracked before Linux 5.14. So it must be
missing twice in a row, and something besides must speak for its end.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from fabrictap.sources.rdma_netlink.messages import Owner

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


@dataclass(slots=True)
class _Seen(Generic[_V]):
    value: _V
    pid: int | None
    owner: Owner | None
    misses: int = 0


class Presence(Generic[_K, _V]):
    """Objects by key, with who the kernel said they belong to. Bounded by what the ledger holds.

    Values are equal where they are the same object of the kernel.
    """

    def __init__(self) -> None:
        self._seen: dict[_K, _Seen[_V]] = {}

    def listed(self, key: _K, value: _V, pid: int | None, owner: Owner) -> bool:
        """The kernel lists ``value``. False where the key now belongs to another thread than it did."""
        before = self._seen.get(key)
        self._seen[key] = _Seen(value, pid, owner)
        known = before.owner if before is not None and before.value == value else None
        return known is None or known.tid is None or owner.tid is None or known.tid == owner.tid

    def missing(
        self, key: _K, value: _V, pid: int | None, gone: frozenset[int], *, judge_unlisted: bool
    ) -> bool:
        """The kernel does not list ``value``. True where that proves its end.

        ``gone``: those of :meth:`suspects` that do not exist any more. ``judge_unlisted``: whether
        ``pid`` can be trusted for an object that was never listed.
        """
        seen = self._seen.get(key)
        if seen is None or seen.value != value:
            seen = self._seen[key] = _Seen(value, pid, None)
        seen.misses += 1
        if seen.misses < 2:
            return False
        if seen.owner is None:
            return judge_unlisted and pid is not None and pid in gone
        if seen.owner.kernel is not None:
            return True
        # the thread lives: nothing hides the object; the process is gone: its files are closed
        return (seen.owner.tid is not None and seen.owner.tid not in gone) or (
            pid is not None and pid in gone
        )

    def keep(self, keys: Iterable[_K]) -> None:
        """Forget all but ``keys``."""
        kept = set(keys)
        for key in self._seen.keys() - kept:
            del self._seen[key]

    def suspects(self) -> Iterator[int]:
        """Threads and processes whose life decides about what was missing in the last dump."""
        for seen in self._seen.values():
            if seen.misses:
                if seen.pid is not None:
                    yield seen.pid
                if seen.owner is not None and seen.owner.tid is not None:
                    yield seen.owner.tid
