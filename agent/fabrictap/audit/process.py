"""One process: the devices that it has open through which data passes by the CPU, and whose it is."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from fabrictap.ledger.workloads import cgroup
from fabrictap.ledger.workloads.text import clean

MOST_DESCRIPTORS = 65536
_MAPS = 8 << 20
_SMALL = 16 << 10
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


def look(proc: str, pid: int, first: str | None) -> Process:
    path = f"{proc}/{pid}"
    name = clean(_text(f"{path}/comm", 64).rstrip(b"\n"), 32)
    status = _text(f"{path}/status", _SMALL)
    place, group = _place(_text(f"{path}/cgroup", 4 * _SMALL))
    mounts = link(f"{path}/ns/mnt")
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
        link(f"{path}/ns/ipc"),
        link(f"{path}/ns/user"),
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
            if number >= MOST_DESCRIPTORS:
                return frozenset(found), False
            target = link(entry.path)
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


def link(path: str) -> str | None:
    try:
        return os.readlink(path)  # noqa: PTH115 - for every descriptor of every process
    except OSError:
        return None
