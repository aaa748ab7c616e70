"""The processes that hold devices open through which data passes by the CPU, and whose they are."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from fabrictap.audit.patience import HungError, each
from fabrictap.ledger.workloads import cgroup
from fabrictap.ledger.workloads.text import clean

#: More than these are not looked at, and that is said.
MOST_PROCESSES = 10_000
_MOST_DESCRIPTORS = 65536
_MAPS = 8 << 20
_SMALL = 16 << 10
#: The kernel's own numbers of the first namespaces, the same on every boot (include/linux/proc_ns.h).
_FIRST_PID_NS = "pid:[4026531836]"
#: /dev/NAME as an open file's link shows it. A process that renames its device node is still found by the
#: event file that every verbs context has (ib_uverbs_alloc_async_event_file).
_DEVICE = re.compile(
    r"/dev/(infiniband/(?:uverbs|umad|issm)\d+|infiniband/rdma_cm|nvidia\d+|nvidia-uvm|gdrdrv|kfd|"
    r"nvidia-fs\d*|nvidia-nvswitch\d+|nvidia-caps-imex-channels/channel\d+|vfio/\d+)"
)
_EVENTS = "anon_inode:[infinibandevent]"
#: Named by what they are called: (part of the file's name, what it is).
LIBRARIES = (
    ("libuct_ib", "UCX"),
    ("nvshmem_transport_ibgda", "NVSHMEM IBGDA"),
    ("nvshmem_transport_gpunetio", "NVSHMEM GPUNetIO"),
    ("libdoca_", "DOCA"),
    ("librte_net_mlx5", "DPDK"),
    ("librte_common_mlx5", "DPDK"),
)
_PROVIDER = re.compile(r"lib([a-z0-9_]{1,32})(?:-rdmav\d+)?\.so[.\d]*")
_PROVIDERS = frozenset(
    [
        "mlx4",
        "mlx5",
        "rxe",
        "siw",
        "efa",
        "bnxt_re",
        "irdma",
        "hns",
        "erdma",
        "mana",
        "qedr",
        "cxgb4",
        "hfi1verbs",
        "ipathverbs",
        "mthca",
        "ocrdma",
        "vmw_pvrdma",
        "ionic",
        "bng_re",
    ]
)


@dataclass(frozen=True, slots=True)
class Process:
    """One that holds a device. ``libraries``: name -> path of verbs providers and of what posts without them.

    ``place`` is the container, pod, job or unit, a name for people; ``foreign`` says that its root is not the
    node's. Namespaces are as their links name them, None where they cannot be read. ``incomplete`` says what
    could not be read.
    """

    pid: int
    name: str
    uid: int | None
    place: str
    group: str
    foreign: bool | None
    mounts: str | None
    ipc: str | None
    user: str | None
    root_outside: int | None
    devices: frozenset[str]
    libraries: dict[str, str] = field(default_factory=dict)
    incomplete: str | None = None

    @property
    def rdma(self) -> bool:
        return any(name == "events" or name.startswith("infiniband/uverbs") for name in self.devices)

    @property
    def gpus(self) -> frozenset[str]:
        return frozenset(name for name in self.devices if re.fullmatch(r"nvidia\d+|kfd", name))

    def __str__(self) -> str:
        return f"{self.pid}/{self.name}" + (f" ({self.place})" if self.place else "")


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
        if (_link(f"{proc}/self/ns/pid") or _link(f"{proc}/1/ns/pid")) != _FIRST_PID_NS:
            found.outside = True
            found.doubts.append("not in the node's pid namespace: processes of others are not seen")
        found._look_at(proc, pids, seconds)
        return found

    def _look_at(self, proc: str, pids: list[int], seconds: float) -> None:
        first = _link(f"{proc}/1/ns/mnt")
        if first is None:
            # Of every process, but not who is in a container: kthreadd has the node's mounts too.
            first = _link(f"{proc}/2/ns/mnt")
        denied = hung = cut = 0
        for _, one in each(pids, lambda pid: _look(proc, pid, first), seconds):
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
                f"{cut} processes have more open than the {_MOST_DESCRIPTORS} that were looked at"
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


def open_below(proc: str, pid: int, *parts: str) -> int:
    """A descriptor of a directory below a process's root, reached through no link that could lead out.

    Raises OSError; may hang where the process has mounted something that does (see patience).
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    fd = os.open(f"{proc}/{pid}/root", flags)
    for part in parts:
        try:
            inner = os.open(part, flags | os.O_NOFOLLOW, dir_fd=fd)
        finally:
            os.close(fd)
        fd = inner
    return fd


def _look(proc: str, pid: int, first: str | None) -> Process:
    path = f"{proc}/{pid}"
    name = clean(_text(f"{path}/comm", 64).rstrip(b"\n"), 32)
    status = _text(f"{path}/status", _SMALL)
    place, group = _place(_text(f"{path}/cgroup", 4 * _SMALL))
    mounts = _link(f"{path}/ns/mnt")
    incomplete = None
    devices: frozenset[str] = frozenset()
    try:
        devices, whole = _devices(f"{path}/fd")
        incomplete = None if whole else "cut"
    except PermissionError:
        incomplete = "denied"
    libraries: dict[str, str] = {}
    if devices:
        try:
            libraries = _libraries(f"{path}/maps")
        except OSError:
            incomplete = "denied"
    return Process(
        pid,
        name,
        _uid(status),
        place,
        group or mounts or "",
        _foreign(proc, pid, mounts, first),
        mounts,
        _link(f"{path}/ns/ipc"),
        _link(f"{path}/ns/user"),
        _root_outside(f"{path}/uid_map"),
        devices,
        libraries,
        incomplete,
    )


def _foreign(proc: str, pid: int, mounts: str | None, first: str | None) -> bool | None:
    """Whether it has a root of its own. A service of systemd may have mounts of its own on the node's "
    "root."""
    if mounts is None or first is None:
        return None
    if mounts == first:
        return False
    try:
        return not Path(f"{proc}/{pid}/root").samefile(f"{proc}/1/root")
    except OSError:
        return True


def _devices(path: str) -> tuple[frozenset[str], bool]:
    """The devices among what is open, and whether all was looked at."""
    found: set[str] = set()
    with os.scandir(path) as entries:
        for number, entry in enumerate(entries):
            if number >= _MOST_DESCRIPTORS:
                return frozenset(found), False
            target = _link(entry.path)
            if target == _EVENTS:
                found.add("events")
            elif target is not None and (match := _DEVICE.fullmatch(target.removesuffix(" (deleted)"))):
                found.add(match[1])
    return frozenset(found), True


def _libraries(path: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in _text(path, _MAPS).decode("utf-8", "replace").splitlines():
        fields = line.split(None, 5)
        if len(fields) < 6 or "x" not in fields[1]:
            continue
        file = fields[5].rpartition("/")[2]
        for part, what in LIBRARIES:
            if part in file:
                found[what] = clean(fields[5])
        if (match := _PROVIDER.fullmatch(file)) and match[1] in _PROVIDERS:
            found[f"lib{match[1]}"] = clean(fields[5])
        elif file.startswith("libibverbs.so"):
            found["libibverbs"] = clean(fields[5])
    return found


def _place(text: bytes) -> tuple[str, str]:
    """(a name for people, what tells workloads apart: the pod, else the container, else the job)."""
    of = cgroup.identify(cgroup.parse(text))
    if of.pod_uid is not None:
        container = f" container {of.container_id[:12]}" if of.container_id else ""
        return f"pod {of.pod_uid}{container}", of.pod_uid
    if of.container_id is not None:
        return f"container {of.container_id[:12]}", of.container_id
    if of.slurm_job is not None:
        return f"Slurm job {of.slurm_job}", f"slurm {of.slurm_job}"
    return clean(of.unit or "", 64), ""


def _uid(status: bytes) -> int | None:
    for line in status.split(b"\n"):
        if line.startswith(b"Uid:"):
            parts = line.split()
            return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() and len(parts[1]) <= 10 else None
    return None


def _root_outside(path: str) -> int | None:
    """What root of the process's user namespace is outside of it; None where it cannot be read."""
    try:
        lines = _text(path, _SMALL).split(b"\n")
    except OSError:
        return None
    for line in lines:
        parts = line.split()
        if len(parts) == 3 and parts[0] == b"0" and parts[1].isdigit() and len(parts[1]) <= 10:
            return int(parts[1])
    return None


def _text(path: str, limit: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        parts: list[bytes] = []
        while limit > 0 and (part := os.read(fd, min(limit, 1 << 16))):
            parts.append(part)
            limit -= len(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)  # noqa: PTH115 - for every descriptor of every process
    except OSError:
        return None
