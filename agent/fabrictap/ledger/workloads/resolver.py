"""pid -> start time and workload, with what was read kept for a while. From any thread; blocks."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from fabrictap.ledger.workloads.model import Workload, named
from fabrictap.ledger.workloads.podlogs import PodLogs
from fabrictap.ledger.workloads.procfs import Reader

#: Seconds after which a process is read again: sshd, for one, is moved into a job's cgroup after it started.
_FRESH_SECONDS = 60.0
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Resolved:
    """``start_ticks``: clock ticks since boot, with the pid a process's identity; None where gone."""

    start_ticks: int | None
    workload: Workload


class Resolver:
    """Keeps at most ``capacity`` processes, each by (pid, start time); the least recently used goes."""

    def __init__(
        self,
        capacity: int,
        logs: PodLogs | None = None,
        reader: Reader | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.capacity = capacity
        self.logs = logs
        #: What could not be read, by reason (catalog: fabrictap.workload.loss.reason), cumulative.
        self.losses: Counter[str] = Counter()
        self._reader = reader if reader is not None else Reader()
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int], tuple[float, Workload]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def count(self, loss: str) -> None:
        """One more of a reason."""
        with self._lock:
            self.losses[loss] += 1

    def start_ticks(self, pid: int) -> int | None:
        """When ``pid`` started; None if there is no such process."""
        return self._reader.start_ticks(pid)

    def resolve(self, pid: int) -> Resolved:
        """What ``pid`` belongs to now. Raises nothing."""
        ticks = self._reader.start_ticks(pid)
        now = self._clock()
        with self._lock:
            kept = self._kept.get((pid, ticks)) if ticks is not None else None
            if kept is not None and now - kept[0] < _FRESH_SECONDS:
                self._kept.move_to_end((pid, ticks or 0))
                return Resolved(ticks, kept[1])
        before = clock_ticks()
        reading = self._reader.read(pid)
        workload = self._name(reading.workload)
        with self._lock:
            self.losses.update(reading.losses)
            # One that is younger than a tick may have a successor with the same pid and start.
            if reading.start_ticks is not None and reading.start_ticks < before:
                self._kept[(pid, reading.start_ticks)] = (now, workload)
                self._kept.move_to_end((pid, reading.start_ticks))
                while len(self._kept) > self.capacity:
                    self._kept.popitem(last=False)
        return Resolved(reading.start_ticks, workload)

    def _name(self, workload: Workload) -> Workload:
        if self.logs is None or workload.pod_uid is None:
            return workload
        return named(workload, *self.logs.find(workload.pod_uid, workload.container_id))


def clock_ticks() -> int:
    """Now, in the clock ticks since boot of field 22 of /proc/PID/stat (10 ms)."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) * _TICKS_PER_SECOND // 10**9
