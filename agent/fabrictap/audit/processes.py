"""All processes of the node, within limits: who holds a device, who is in a container, what is not seen."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from itertools import islice

from fabrictap.audit import process
from fabrictap.audit.patience import HungError, each
from fabrictap.audit.process import Process, link

#: More than these are not looked at, and that is said.
MOST_PROCESSES = 10_000
#: The kernel's own numbers of the first namespaces, the same on every boot (include/linux/proc_ns.h).
_FIRST_PID_NS = "pid:[4026531836]"


@dataclass
class Processes:
    """``holders`` have something open that matters; ``namespaces`` has one process for each foreign mount
    namespace; ``names`` counts processes by name. ``doubts`` is why this may not be all."""

    holders: list[Process] = field(default_factory=list)
    namespaces: dict[str, Process] = field(default_factory=dict)
    names: dict[str, list[int]] = field(default_factory=dict)
    looked_at: int = 0
    #: Whether these are not the node's, but those of some pid namespace.
    outside: bool = False
    doubts: list[str] = field(default_factory=list)

    @staticmethod
    def scan(proc: str, seconds: float = 2.0) -> Processes:
        """All processes below ``proc``, within limits of number, size and time."""
        found = Processes()
        try:
            with os.scandir(proc) as entries:
                numbers = (int(e.name) for e in entries if e.name.isascii() and e.name.isdigit())
                pids = list(islice(numbers, MOST_PROCESSES + 1))
        except OSError as error:
            found.doubts.append(f"{proc}: {error.strerror}")
            return found
        if len(pids) > MOST_PROCESSES:
            found.doubts.append(f"only {MOST_PROCESSES} processes were looked at")
        elif 1 not in pids:
            found.doubts.append(f"{proc} hides processes of others (hidepid), or is no /proc")
        pids = sorted(pids[:MOST_PROCESSES])
        if (link(f"{proc}/self/ns/pid") or link(f"{proc}/1/ns/pid")) != _FIRST_PID_NS:
            found.outside = True
            found.doubts.append("not in the node's pid namespace: processes of others are not seen")
        found._look_at(proc, pids, seconds)
        return found

    def _look_at(self, proc: str, pids: list[int], seconds: float) -> None:
        first = link(f"{proc}/1/ns/mnt")
        if first is None:
            # kthreadd has the node's mounts too.
            first = link(f"{proc}/2/ns/mnt")
        if first is None:
            self.doubts.append("who is in a container is not known: the first process hides its mounts")
        denied = hung = cut = 0
        for _, one in each(pids, lambda pid: process.look(proc, pid, first), seconds):
            if isinstance(one, (ProcessLookupError, FileNotFoundError)):
                continue  # has ended
            if isinstance(one, HungError):
                hung += 1
                continue
            if isinstance(one, OSError):
                self.looked_at += 1
                denied += 1
                continue
            if isinstance(one, Exception):
                raise one
            self.looked_at += 1
            self._put(one)
            denied += one.incomplete == "denied"
            cut += one.incomplete == "cut"
        if denied:
            self.doubts.append(
                f"{denied} of {self.looked_at} processes hide what they have open (root may look)"
            )
        if cut:
            self.doubts.append(
                f"{cut} processes have more open than the {process.MOST_DESCRIPTORS} that were looked at"
            )
        if hung:
            self.doubts.append(f"{hung} processes could not be looked at: they hang in the kernel")

    def _put(self, one: Process) -> None:
        self.names.setdefault(one.name, []).append(one.pid)
        if one.devices:
            self.holders.append(one)
        if one.foreign and one.mounts is not None:
            self.namespaces.setdefault(one.mounts, one)

    @property
    def rdma(self) -> list[Process]:
        return [one for one in self.holders if one.rdma]

    @property
    def gpu(self) -> list[Process]:
        return [one for one in self.holders if one.gpus]

    def holding(self, device: str) -> list[Process]:
        """Those with a device open whose name begins so."""
        return [one for one in self.holders if any(name.startswith(device) for name in one.devices)]

    def named(self, name: str) -> list[int]:
        """Process ids by name, of which the kernel keeps 15 characters."""
        return self.names.get(name[:15], [])
