"""The tree below SYSFS/class/infiniband, read into plain objects.

What the kernel says is trusted only so far: reads and directories are bounded, names with odd characters
are left out and reported, a file that cannot be read costs its own value. Layout:
Documentation/ABI/stable/sysfs-class-infiniband.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from fabrictap.ext.traces import Traces
from fabrictap.sources.infiniband.counters import COUNTERS, COUNTERS_EXT, HW_COUNTERS, File

#: The kernel's show functions write at most a page; nothing read here is longer than a line.
MAX_TEXT = 256
MAX_DEVICES = 1024
MAX_PORTS = 1024
MAX_FILES = 1024
MAX_GIDS = 1024
#: The kernel puts a new GID into the first free entry (ib_cache_gid_add), and all but the first few of
#: the up to 1024 entries are free: after so many free ones in a row no more are sought.
MAX_EMPTY_GIDS = 16

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,63}")
_RATE = re.compile(r"(\d{1,7}(?:\.\d{1,3})?) Gb/sec")
_STATE = re.compile(r"\d+: ([A-Za-z_ ]+)")
#: SIW_NODE_DESC_COMMON, drivers/infiniband/sw/siw/siw_main.c.
_SIW = "Software iWARP stack"
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENODEV})

#: (device, inode) of a directory: a device that was removed and made again has another one.
Identity = tuple[int, int]


@dataclass(frozen=True, slots=True)
class PortTree:
    """One port. ``statistics`` is the directory of the netdev's counters where they stand for the port's."""

    number: int
    path: str
    identity: Identity
    link_layer: str | None
    netdev: str | None
    gids: dict[int, str]
    files: tuple[File, ...]
    statistics: str | None


@dataclass(frozen=True, slots=True)
class DeviceTree:
    """One device. ``files`` are its own hw_counters, where the driver has some for the whole device."""

    name: str
    path: str
    identity: Identity
    driver: str | None
    model: str | None
    firmware: str | None
    node_guid: str | None
    ports: tuple[PortTree, ...]
    files: tuple[File, ...]


@dataclass(slots=True)
class Scan:
    """What a scan found. ``problems``: (path, errno name or short word); ``denied``: devices filtered out."""

    devices: list[DeviceTree] = field(default_factory=list)
    problems: set[tuple[str, str]] = field(default_factory=set)
    denied: int = 0
    #: What the walk over each device went by, of those without problems: identities, lists of names, GIDs and
    #: the first free entries of their tables. While all of it is the same, so is the device's tree, save for
    #: what hardly changes while a device stays.
    traces: dict[str, Traces] = field(default_factory=dict)


def scan(sysfs: str, wanted: Callable[[str], bool], before: Scan | None = None) -> Scan:
    """Walk every device that ``wanted`` lets through. Raises FileNotFoundError without an RDMA class.

    A device whose traces of ``before`` still hold is not walked again: its tree is the same object.
    """
    return _Walk(sysfs, wanted, before or Scan()).run()


def read_text(path: str) -> str:
    """The stripped content of a small file; bytes past MAX_TEXT are not read. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return clean(os.read(fd, MAX_TEXT))
    finally:
        os.close(fd)


def clean(content: bytes) -> str:
    """What a small file says, without what stands around it."""
    return content.decode("ascii", "replace").strip("\0\t\n\r ")


def parse_rate(text: str) -> int | None:
    """``100 Gb/sec (4X EDR)`` -> bytes per second."""
    match = _RATE.match(text)
    return round(float(match[1]) * 1e9 / 8) if match else None


def parse_state(text: str) -> str | None:
    """``4: ACTIVE`` -> ``active``."""
    match = _STATE.fullmatch(text)
    return match[1].lower() if match else None


class _Walk:
    """One walk over the tree, collecting what could not be read on the way."""

    def __init__(self, sysfs: str, wanted: Callable[[str], bool], before: Scan) -> None:
        self._sysfs = sysfs
        self._wanted = wanted
        self._known = {tree.name: tree for tree in before.devices}
        self._traces_before = before.traces
        self._found = Scan()
        #: Of the device that is walked.
        self._traces = Traces()

    def run(self) -> Scan:
        root = f"{self._sysfs}/class/infiniband"
        _identity(root)
        for name in self._names(root, MAX_DEVICES):
            if not self._wanted(name):
                self._found.denied += 1
                continue
            traces = self._traces_before.get(name)
            if traces is not None and traces.still_hold():
                self._found.devices.append(self._known[name])
                self._found.traces[name] = traces
                continue
            self._traces = Traces()
            problems = len(self._found.problems)
            try:
                self._found.devices.append(self._device(name, f"{root}/{name}"))
            except OSError as error:
                # gone while it was looked at
                self._problem(f"{root}/{name}", error)
                continue
            if len(self._found.problems) == problems:
                self._found.traces[name] = self._traces
        return self._found

    def _device(self, name: str, path: str) -> DeviceTree:
        identity = self._identity(path)
        software = self._is_software(path)
        ports = []
        for number in sorted(int(n) for n in self._names(f"{path}/ports", MAX_PORTS) if n.isdecimal()):
            try:
                ports.append(self._port(path, number, software))
            except OSError as error:
                self._problem(f"{path}/ports/{number}", error)
        return DeviceTree(
            name,
            path,
            identity,
            _link(f"{path}/device/driver"),
            self._text(f"{path}/board_id") or self._text(f"{path}/hca_type"),
            self._text(f"{path}/fw_ver"),
            self._text(f"{path}/node_guid"),
            tuple(ports),
            self._files(path, HW_COUNTERS),
        )

    def _is_software(self, path: str) -> bool:
        """Whether packets of the device pass through its network interface, as rdma_rxe's and siw's do.

        Not by name, which ``rdma link add`` chooses: rdma_rxe has a ``parent`` file (rxe_verbs.c), siw its
        node description, and no hardware device is without a bus device.
        """
        return (
            self._text(f"{path}/parent") is not None
            or not os.path.lexists(f"{path}/device")
            or self._text(f"{path}/node_desc") == _SIW
        )

    def _port(self, device: str, number: int, software: bool) -> PortTree:
        path = f"{device}/ports/{number}"
        identity = self._identity(path)
        gids = self._gids(path)
        netdev = self._netdev(device, path, number, gids)
        statistics = f"{self._sysfs}/class/net/{netdev}/statistics"
        files = tuple(
            file for group in (COUNTERS_EXT, COUNTERS, HW_COUNTERS) for file in self._files(path, group)
        )
        layer = (self._text(f"{path}/link_layer") or "").lower()
        return PortTree(
            number,
            path,
            identity,
            layer if layer in ("infiniband", "ethernet") else None,
            netdev,
            gids,
            files,
            statistics if software and netdev is not None and Path(statistics).is_dir() else None,
        )

    def _files(self, path: str, group: str) -> tuple[File, ...]:
        return tuple(File(group, name) for name in self._names(f"{path}/{group}", MAX_FILES))

    def _gids(self, port: str) -> dict[int, str]:
        gids: dict[int, str] = {}
        empty = 0
        for index in range(MAX_GIDS):
            path = f"{port}/gids/{index}"
            if not empty:
                self._traces.content(path)
            try:
                text = read_text(path)
            except OSError as error:
                if error.errno in _ABSENT:
                    break
                # some drivers say so that the entry is empty
                text = "::"
            try:
                gid = socket.inet_pton(socket.AF_INET6, text)
            except OSError:
                self._found.problems.add((path, "not_a_gid"))
                gid = bytes(16)
            if any(gid):
                # as everywhere in the ledger: ::ffff:10.0.0.1 for RoCE v2 on IPv4
                gids[index] = socket.inet_ntop(socket.AF_INET6, gid)
            empty = 0 if any(gid) else empty + 1
            if empty == MAX_EMPTY_GIDS:
                break
        return gids

    def _netdev(self, device: str, port: str, number: int, gids: dict[int, str]) -> str | None:
        # ndevs answers EINVAL where a GID has no interface, as on InfiniBand
        for index in (0, *islice(gids, 8)):
            name = _quiet(f"{port}/gid_attrs/ndevs/{index}")
            if name and _NAME.fullmatch(name):
                return name
        name = _quiet(f"{device}/parent")
        if name and _NAME.fullmatch(name):
            return name
        names = list(self._names(f"{device}/device/net", MAX_FILES))
        if len(names) > 1:
            names = [n for n in names if _quiet(f"{device}/device/net/{n}/dev_port") == str(number - 1)]
        # several that would fit, as in switchdev mode: none is better than the wrong one
        return names[0] if len(names) == 1 else None

    def _identity(self, path: str) -> Identity:
        self._traces.identity(path)
        return _identity(path)

    def _text(self, path: str) -> str | None:
        """A small file's content; None where it is absent, empty or cannot be read."""
        try:
            return read_text(path) or None
        except OSError as error:
            self._problem(path, error)
            return None

    def _names(self, path: str, limit: int) -> Iterator[str]:
        """The usable names in a directory, sorted; none where it is absent."""
        self._traces.directory(path)
        try:
            with os.scandir(path) as entries:
                names = [entry.name for entry in islice(entries, limit + 1)]
        except OSError as error:
            self._problem(path, error)
            return
        if len(names) > limit:
            self._found.problems.add((path, "too_many"))
        for name in sorted(names[:limit]):
            if _NAME.fullmatch(name):
                yield name
            else:
                self._found.problems.add((f"{path}/{name!a}", "odd_name"))

    def _problem(self, path: str, error: OSError) -> None:
        if error.errno not in _ABSENT:
            self._found.problems.add((path, errno.errorcode.get(error.errno or 0, "unknown")))


def _identity(path: str) -> Identity:
    status = os.stat(path)  # noqa: PTH116 - a Path costs more than the call
    return status.st_dev, status.st_ino


def _link(path: str) -> str | None:
    """The last part of a symbolic link's target."""
    try:
        return Path(path).readlink().name or None
    except OSError:
        return None


def _quiet(path: str) -> str | None:
    try:
        return read_text(path)
    except OSError:
        return None
