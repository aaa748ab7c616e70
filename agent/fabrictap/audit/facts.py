"""The node that is audited: its /sys, /proc and /dev, which may be copies of another's.

Whatever is read may be hostile or broken: every read has a limit, no link is followed where it could lead out
of what is meant, and what cannot be read is a :class:`Denied` with the reason, never an empty answer.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

from fabrictap.audit.processes import Processes
from fabrictap.audit.watch import Watch

#: What a small file of sysfs or procfs may have.
SMALL = 4096
#: /proc/modules and /proc/mounts of a node with thousands of mounts.
_LARGE = 8 << 20
#: /proc/kallsyms of a kernel with all its modules has 15 MB.
_SYMBOLS = 128 << 20
#: Entries of a directory.
MOST_NAMES = 65536
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO})
#: Kernel functions whose presence says what this kernel can do.
SYMBOLS = frozenset(
    {"ib_umem_dmabuf_get", "ib_umem_odp_get", "pci_p2pdma_add_resource", "ib_register_peer_memory_client"}
)


@dataclass(frozen=True, slots=True)
class Denied:
    """Something that is there, or may be, and cannot be read."""

    path: str
    error: str

    def __str__(self) -> str:
        return f"{self.path}: {self.error}"


@dataclass(frozen=True, slots=True)
class Names:
    """What is in a directory, sorted. ``denied`` says why it could not be listed, or not as a whole."""

    names: tuple[str, ...] = ()
    exists: bool = False
    denied: Denied | None = None


@dataclass
class Node:
    """Facts are read when they are first asked for, and kept."""

    sys: str = "/sys"
    proc: str = "/proc"
    dev: str = "/dev"
    watch: Watch = field(default_factory=Watch)
    #: What RDMA netlink lists, as text for each process: pid -> (queue pairs, bytes registered); or why not.
    rdma_owners: Callable[[], dict[int, tuple[int, int]] | Denied] = lambda: Denied(
        "RDMA netlink", "not asked: this is a copy of another node"
    )

    def read(self, path: str, limit: int = SMALL) -> str | Denied | None:
        """A file's text without blanks at its ends, at most ``limit`` bytes; None where there is none."""
        raw = self.read_bytes(path, limit)
        return raw.decode("utf-8", "replace").strip() if isinstance(raw, bytes) else raw

    def read_bytes(self, path: str, limit: int = SMALL) -> bytes | Denied | None:
        try:
            # Not waiting for the other end of a pipe.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
            try:
                if stat.S_ISCHR(os.fstat(fd).st_mode):
                    return Denied(path, "is a device")
                parts, left = [], limit
                while left > 0 and (part := os.read(fd, min(left, 1 << 20))):
                    parts.append(part)
                    left -= len(part)
                return b"".join(parts)
            finally:
                os.close(fd)
        except OSError as error:
            return None if error.errno in _ABSENT else Denied(path, error.strerror or str(error))

    def number(self, path: str) -> int | None:
        """A decimal or 0x number; None where there is none to be read."""
        text = self.read(path, 64)
        try:
            return int(text, 0) if isinstance(text, str) else None
        except ValueError:
            return None

    def names(self, path: str, most: int = MOST_NAMES) -> Names:
        try:
            with os.scandir(path) as entries:
                found = [entry.name for entry in islice(entries, most + 1)]
        except OSError as error:
            if error.errno in _ABSENT:
                return Names()
            return Names((), True, Denied(path, error.strerror or str(error)))
        cut = Denied(path, f"more than {most} entries") if len(found) > most else None
        return Names(tuple(sorted(found[:most])), True, cut)

    def mode(self, path: str) -> int | Denied | None:
        """The permission bits of a file that is no link; None where there is none."""
        try:
            status = os.lstat(path)
        except OSError as error:
            return None if error.errno in _ABSENT else Denied(path, error.strerror or str(error))
        return None if stat.S_ISLNK(status.st_mode) else stat.S_IMODE(status.st_mode)

    @cached_property
    def modules(self) -> frozenset[str] | Denied:
        """Modules that are loaded or built in with parameters."""
        text = self.read(f"{self.proc}/modules", _LARGE)
        if isinstance(text, Denied):
            return text
        listed = self.names(f"{self.sys}/module")
        if text is None and not listed.exists:
            return Denied(f"{self.sys}/module", "does not exist: is sysfs mounted?")
        if listed.denied is not None:
            return listed.denied
        return frozenset(listed.names) | {
            line.split(None, 1)[0] for line in (text or "").splitlines() if line
        }

    @cached_property
    def symbols(self) -> frozenset[str] | Denied:
        """Those of SYMBOLS that this kernel has."""
        raw = self.read_bytes(f"{self.proc}/kallsyms", _SYMBOLS)
        if raw is None:
            return Denied(f"{self.proc}/kallsyms", "does not exist")
        if isinstance(raw, Denied):
            return raw
        return frozenset(
            name for name in SYMBOLS if f" {name}\n".encode() in raw or f" {name}\t".encode() in raw
        )

    @cached_property
    def mounts(self) -> list[list[str]] | Denied:
        """Fields of each mount: device, place, type, options."""
        text = self.read(f"{self.proc}/mounts", _LARGE)
        if not isinstance(text, str):
            return text or Denied(f"{self.proc}/mounts", "does not exist")
        return [fields for line in text.splitlines() if len(fields := line.split()) >= 4]

    @cached_property
    def processes(self) -> Processes:
        return Processes.scan(self.proc)

    @cached_property
    def user_namespace(self) -> str | None:
        """The node's own user namespace, as the link of its first process names it."""
        try:
            return str(Path(f"{self.proc}/1/ns/user").readlink())
        except OSError:
            return None

    @cached_property
    def rdma_devices(self) -> Names:
        return self.names(f"{self.sys}/class/infiniband", 1024)

    @cached_property
    def software_rdma(self) -> bool:
        """Whether all RDMA devices are software, as rdma_rxe and siw: on an interface, or on no device."""
        paths = [f"{self.sys}/class/infiniband/{name}" for name in self.rdma_devices.names]
        return bool(paths) and all(
            isinstance(self.read(f"{path}/parent"), str) or not os.path.lexists(f"{path}/device")
            for path in paths
        )

    @cached_property
    def release(self) -> str:
        return self._said("osrelease")

    @cached_property
    def hostname(self) -> str:
        return self._said("hostname")

    def _said(self, what: str) -> str:
        text = self.read(f"{self.proc}/sys/kernel/{what}", 256)
        return text if isinstance(text, str) and text else "unknown"

    @cached_property
    def kernel(self) -> tuple[int, int] | None:
        """Version of the kernel, (5, 12) as in 5.12.3-arch; None where it is not known."""
        major, _, rest = self.release.partition(".")
        minor = "".join(c for c in rest.partition(".")[0].partition("-")[0] if c.isdigit())
        return (int(major), int(minor or 0)) if major.isdigit() else None

    @cached_property
    def devices_listed(self) -> bool:
        """Whether ``dev`` is the /dev of a node: not empty, and not a container's."""
        return "null" in self.names(self.dev).names and not self.processes.outside
