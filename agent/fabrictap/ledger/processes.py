"""The processes that use RDMA. A pid alone is not an identity: it is told apart by its start time."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

from fabrictap.ledger.workloads import NONE, Resolver, Workload, Workloads
from fabrictap.ledger.workloads.text import clean

KERNEL = "[kernel]"
_MAX_NAME = 128
#: PROC_PID_INIT_INO, include/linux/proc_ns.h: the node's own pid namespace.
_INIT_PID_NAMESPACE = 0xEFFFFFFC


@dataclass(slots=True)
class Process:
    """One process. ``started`` is seconds since the epoch, None when it was gone before it could be read.

    ``start_ticks`` is the same in the kernel's clock ticks since boot, which no clock that is set moves: with
    the pid it is the identity of the process.
    """

    pid: int
    name: str
    started: float | None
    start_ticks: int | None = None
    workload: Workload = NONE


def read(pid: int, comm: str, resolver: Resolver | None = None) -> Process:
    """What /proc says of ``pid``; ``comm`` (from the kernel's event) names a process that has gone.

    With a ``resolver`` also what it belongs to. Blocks; touches no table.
    """
    process = _read(pid, comm)
    said = clean(os.fsencode(process.name), _MAX_NAME)
    if resolver is not None:
        if said != process.name:
            resolver.count("name_escaped")
        resolved = resolver.resolve(pid)
        process.start_ticks, process.workload = resolved.start_ticks, resolved.workload
    process.name = said
    return process


def _read(pid: int, comm: str) -> Process:
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            started = process.create_time()
            try:
                name = process.exe().rpartition("/")[2]
            except (psutil.AccessDenied, OSError):
                name = ""
            return Process(pid, name or comm or process.name(), started)
    except (psutil.Error, OSError):
        return Process(pid, comm or "unknown", None)


def host_pids() -> bool:
    """Whether the agent shares the node's pid namespace: else a probe's pid is another process in /proc."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino == _INIT_PID_NAMESPACE
    except OSError:
        return False


class Processes:
    """pid -> Process, newest kept: the oldest entry goes when the table is full."""

    def __init__(self, capacity: int, workloads: Workloads | None = None) -> None:
        self.capacity = capacity
        self.dropped = 0
        self._workloads = workloads
        self._processes: dict[int, Process] = {}
        self._changed: set[int] = set()

    def __len__(self) -> int:
        return len(self._processes)

    def get(self, pid: int) -> Process | None:
        return self._processes.get(pid)

    def put(self, process: Process) -> None:
        """Add or replace; a process that had gone before it could be read does not replace one that was."""
        known = self._processes.get(process.pid)
        if known is not None and process.started is None:
            return
        if known is None and len(self._processes) >= self.capacity:
            self.remove(next(iter(self._processes)))
            self.dropped += 1
        self._processes[process.pid] = process
        if known != process:
            self._changed.add(process.pid)

    def take_changed(self) -> set[int]:
        """The processes of which something has become known since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    def remove(self, pid: int) -> None:
        self._processes.pop(pid, None)
        if self._workloads is not None:
            self._workloads.forget(pid)
