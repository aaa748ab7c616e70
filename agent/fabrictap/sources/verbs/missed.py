"""How much of a process was not watched: the gaps that pausing it made, for the fraction that was seen."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field

#: Gaps that are kept one by one: a connection is asked about within seconds after it was made.
_KEPT = 32


@dataclass(slots=True)
class _Gaps:
    #: (start, end, nanoseconds missed before it), nanoseconds since the epoch.
    closed: deque[tuple[int, int, int]] = field(default_factory=lambda: deque(maxlen=_KEPT))
    total: int = 0
    open_ns: int | None = None


class Missed:
    """By process. From any thread."""

    def __init__(self) -> None:
        self._gaps: dict[int, _Gaps] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._gaps)

    def begin(self, pid: int, now_ns: int) -> None:
        """A process is no longer watched. Nothing new for one that was not."""
        with self._lock:
            gaps = self._gaps.setdefault(pid, _Gaps())
            if gaps.open_ns is None:
                gaps.open_ns = now_ns

    def end(self, pid: int, now_ns: int) -> None:
        """It is watched again."""
        with self._lock:
            gaps = self._gaps.get(pid)
            if gaps is None or gaps.open_ns is None:
                return
            end_ns = max(now_ns, gaps.open_ns)
            gaps.closed.append((gaps.open_ns, end_ns, gaps.total))
            gaps.total += end_ns - gaps.open_ns
            gaps.open_ns = None

    def forget(self, pid: int) -> None:
        with self._lock:
            self._gaps.pop(pid, None)

    def pids(self) -> list[int]:
        """The processes of which something was missed."""
        with self._lock:
            return list(self._gaps)

    def until(self, pid: int, moment_ns: int) -> int:
        """Nanoseconds missed of a process before a moment, which is now or lately."""
        with self._lock:
            gaps = self._gaps.get(pid)
            if gaps is None:
                return 0
            if gaps.open_ns is not None and moment_ns > gaps.open_ns:
                return gaps.total + moment_ns - gaps.open_ns
            for start_ns, end_ns, before in reversed(gaps.closed):
                if moment_ns >= start_ns:
                    return before + min(moment_ns, end_ns) - start_ns
            return gaps.closed[0][2] if gaps.closed else 0
