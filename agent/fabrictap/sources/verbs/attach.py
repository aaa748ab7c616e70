"""Where the data path's programs are attached, and for whom.

A place is a function of a file: (st_dev, inode, offset). It is attached once, however many processes and
mount namespaces show it, because a uprobe belongs to the inode; and detached when the last process that maps
the file has gone, because it keeps the file, and so its container's file system, from being given back. While
it is attached the file's descriptor is held: a name may lead to another file by then.

What was read from a process's memory is attached for that process only (:class:`File` with ``pid``).

On overlayfs, the same file of an image has a device of its own in each container, while a uprobe always goes
to the file beneath: attached for two of them, it would count twice. Whether two descriptors are one file
beneath is seen from their page cache (:func:`same_pages`).
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import struct
import time
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fabrictap.ext.bpf import BpfError
from fabrictap.sources.verbs import maps
from fabrictap.sources.verbs.detach import Detaching
from fabrictap.sources.verbs.probes import Attachment, Probes, attach_function, detach, forget_threads
from fabrictap.sources.verbs.providers import WINDOWED

_log = logging.getLogger(__name__)
_PAGE = mmap.PAGESIZE
#: Frame number in an entry of /proc/self/pagemap; 0 without CAP_SYS_ADMIN.
_FRAME = (1 << 55) - 1
#: For one look at all processes whether they map what is about to be detached.
_SEARCH_SECONDS = 0.25
_CLOSE_SECONDS = 2.0

#: st_dev and inode; of what was found in a process's memory also its pid, else 0.
Key = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Probed:
    """One place. ``attachments`` is empty where the kernel refused; ``since_ns`` counts from the epoch."""

    attachments: list[Attachment]
    since_ns: int


@dataclass(slots=True)
class File:
    """One file with probes in it."""

    key: Key
    path: str
    descriptor: int
    #: As in /proc/PID/maps of a process that has it mapped; empty for one that nobody is known to map.
    mapped: tuple[str, int]
    #: (function, offset) -> what is attached there, and since when.
    places: dict[tuple[str, int], Probed] = field(default_factory=dict)
    #: pid -> start time of the processes that have it mapped.
    users: dict[int, int] = field(default_factory=dict)
    #: Stays attached without users: a library of the host, for what starts next.
    kept: bool = False
    #: Other keys of the same file.
    aliases: set[Key] = field(default_factory=set)

    def since(self, functions: Container[str]) -> int | None:
        """Since when those of ``functions`` that it has are counted; None where one, or all, are not."""
        found = [
            probed for (name, _), probed in self.places.items() if name in functions and name not in WINDOWED
        ]
        if not found or not all(probed.attachments for probed in found):
            return None
        return max(probed.since_ns for probed in found)


class Attachments:
    """All that is attached of one loaded data path. ``limit`` bounds files, and so descriptors; ``refused``
    counts by reason what was not attached."""

    def __init__(self, probes: Probes, refused: dict[str, int], limit: int = 512) -> None:
        self._probes = probes
        self._limit = limit
        self._files: dict[Key, File] = {}
        #: Every key, aliases too, of the files in ``_files``.
        self._known: dict[Key, File] = {}
        #: Files that are being let go, by key.
        self._closing: dict[Key, tuple[File, Detaching]] = {}
        self.refused = refused
        self.attached = 0
        self.detached = 0

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[File]:
        return iter(self._files.values())

    @property
    def links(self) -> int:
        """How many programs are attached, each place counted."""
        return sum(len(probed.attachments) for file in self for probed in file.places.values())

    @property
    def newest_ns(self) -> int | None:
        """When the last place was attached that is still attached; None where none is."""
        return max((probed.since_ns for file in self for probed in file.places.values()), default=None)

    def find(self, device: int, inode: int, pid: int = 0) -> File | None:
        return self._known.get((device, inode, pid))

    def add(
        self,
        descriptor: int,
        path: str,
        functions: dict[str, tuple[int, ...]],
        *,
        mapped: tuple[str, int] = ("", 0),
        pid: int = 0,
        kept: bool = False,
    ) -> File | None:
        """Attach what is not attached yet; None where there are too many files. Takes the descriptor over."""
        status = os.fstat(descriptor)
        key = (status.st_dev, status.st_ino, pid)
        same = self._same(descriptor, status)
        for leaving in [other for other in same if other.key in self._closing]:
            same.remove(leaving)
            self._finish(leaving)
        wanted = {(name, offset) for name, offsets in functions.items() for offset in offsets}
        # Two probes at one place would both count.
        for private in [other for other in same if not pid and other.key[2] and wanted & other.places.keys()]:
            self._detach(private)
            self._finish(private)
        shared = next((other for other in same if not other.key[2]), None)
        if pid and shared is not None:
            wanted -= {
                place for place, probed in shared.places.items() if probed.attachments or place[0] in WINDOWED
            }
            if not wanted:
                os.close(descriptor)
                return shared
        file = next((other for other in same if other.key[2] == pid and other.key in self._files), None)
        if file is not None:
            os.close(descriptor)
            if key != file.key:
                file.aliases.add(key)
                self._known[key] = file
        elif len(self._files) >= self._limit:
            os.close(descriptor)
            self._refuse("too_many_libraries")
            return None
        else:
            file = self._files[key] = self._known[key] = File(key, path, descriptor, mapped)
        file.kept |= kept
        self._attach(file, wanted)
        return file

    def since(self, device: int, inode: int, pid: int, places: set[tuple[str, int]]) -> int | None:
        """Since when all of ``places``, (function, offset), are counted for ``pid``; None: one is not."""
        files = [file for of in (0, pid) if (file := self.find(device, inode, of)) is not None]
        moments = []
        for place in places:
            found = [
                f.places[place].since_ns for f in files if place in f.places and f.places[place].attachments
            ]
            if not found:
                return None
            moments.append(min(found))
        return max(moments, default=None)

    def use(self, file: File, pid: int, mapped: tuple[str, int] = ("", 0)) -> None:
        """A process has the file mapped; ``mapped``: as which device and inode its maps tell it."""
        if mapped[1]:
            file.mapped = mapped
        started = maps.start_time(pid)
        if started is not None:
            file.users[pid] = started

    def sweep(self) -> list[int]:
        """Detach what nobody maps any more; the pids that turned out to map something after all."""
        for file, closed in list(self._closing.values()):
            if closed.done():
                self._finish(file)
        idle = []
        for file in self:
            for pid, started in list(file.users.items()):
                if maps.start_time(pid) != started:
                    del file.users[pid]
            if file.kept and not self._in_place(file):
                file.kept = False  # replaced on disk: no new process will map it
            if not file.users and not file.kept:
                idle.append(file)
        if not idle:
            return []
        found, complete = _who_maps({file.mapped for file in idle if not file.key[2] and file.mapped[1]})
        for file in idle:
            users = [] if file.key[2] else found.get(file.mapped, [])
            for pid in users:
                self.use(file, pid)
            if not file.users and (complete or file.key[2]):
                self._detach(file)
        return [pid for pids in found.values() for pid in pids]

    def forget_threads(self) -> int:
        """Delete from the BPF maps what threads left there that have ended; how much that was."""
        return forget_threads(self._probes)

    def close(self) -> None:
        """Let go of everything; what takes longer than a moment goes on by itself."""
        for file in list(self._files.values()):
            self._detach(file)
        deadline = time.monotonic() + _CLOSE_SECONDS
        for file, detaching in self._closing.values():
            detaching.wait(max(0.0, deadline - time.monotonic()))
            os.close(file.descriptor)
        self._closing.clear()

    def _attach(self, file: File, wanted: set[tuple[str, int]]) -> None:
        for name, offset in sorted(wanted - file.places.keys()):
            made: list[Attachment] = []
            try:
                made = attach_function(self._probes, name, file.descriptor, offset, file.key[2])
            except (BpfError, OSError) as error:
                self._refuse("attach")
                _log.warning("cannot count %s in %s: %s", name, file.path, error)
            file.places[name, offset] = Probed(made, time.time_ns())
            self.attached += len(made)

    def _detach(self, file: File) -> None:
        links = [link for probed in file.places.values() for link in detach(self._probes, probed.attachments)]
        self._closing[file.key] = file, Detaching(links)
        self.detached += len(links)
        del self._files[file.key]
        for key in (file.key, *file.aliases):
            del self._known[key]

    def _finish(self, file: File) -> None:
        """Wait until nothing of a file that is being let go counts any more."""
        self._closing.pop(file.key)[1].wait()
        os.close(file.descriptor)

    def settle(self) -> None:
        """Wait until all that was let go is detached."""
        for file, _ in list(self._closing.values()):
            self._finish(file)

    def _same(self, descriptor: int, status: os.stat_result) -> list[File]:
        """The files that are already attached and the same beneath, maybe under another device."""
        found = []
        for file in (*self, *(file for file, _ in self._closing.values())):
            if file.key[1] != status.st_ino:
                continue
            if file.key[0] == status.st_dev or (
                os.fstat(file.descriptor).st_size == status.st_size
                and same_pages(descriptor, file.descriptor)
            ):
                found.append(file)
        return found

    @staticmethod
    def _in_place(file: File) -> bool:
        try:
            status = Path(file.path).stat()
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == file.key[:2]

    def _refuse(self, reason: str) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + 1


def same_pages(one: int, other: int) -> bool:
    """Whether two descriptors are views of one file: their first pages are the same memory.

    Where the kernel does not tell frames (without CAP_SYS_ADMIN), equal content of the first page is taken
    for it: the callers have compared inode and size.
    """
    if min(os.fstat(one).st_size, os.fstat(other).st_size) < _PAGE:
        return False
    with (
        mmap.mmap(one, _PAGE, mmap.MAP_SHARED, mmap.PROT_READ) as first,
        mmap.mmap(other, _PAGE, mmap.MAP_SHARED, mmap.PROT_READ) as second,
    ):
        if first[:] != second[:]:  # reads both, so that they are in memory
            return False
        frames = [_frame(first), _frame(second)]
    return frames[0] == frames[1]


def _frame(page: mmap.mmap) -> int:
    # A read-only mapping gives no writable buffer, which ctypes wants for an address.
    address = _address(page)
    with open("/proc/self/pagemap", "rb", 0) as table:  # noqa: PTH123 - seeks
        table.seek(address // _PAGE * 8)
        (entry,) = struct.unpack("<Q", table.read(8))
    return int(entry) & _FRAME


def _address(page: mmap.mmap) -> int:
    view = ctypes.py_object(page)
    buffer = _Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(view, ctypes.byref(buffer), 0)
    try:
        return int(buffer.buf)
    finally:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))


class _Buffer(ctypes.Structure):
    """Py_buffer."""

    _fields_ = (
        ("buf", ctypes.c_void_p), ("obj", ctypes.py_object), ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t), ("readonly", ctypes.c_int), ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p), ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p), ("internal", ctypes.c_void_p),
    )  # fmt: skip


def _who_maps(files: set[tuple[str, int]]) -> tuple[dict[tuple[str, int], list[int]], bool]:
    """Processes that have one of ``files`` mapped, and whether there was time to look at all of them."""
    found: dict[tuple[str, int], list[int]] = {}
    if not files:
        return found, True
    marks = {file: f" {file[0]} {file[1]} ".encode() for file in files}
    deadline = time.monotonic() + _SEARCH_SECONDS
    for name in os.listdir("/proc"):  # noqa: PTH208 - hot
        if not name.isdigit():
            continue
        if time.monotonic() > deadline:
            return found, False
        try:
            with open(f"/proc/{name}/maps", "rb") as file:  # noqa: PTH123 - hot
                text = file.read()
        except OSError:
            continue
        for mapped, mark in marks.items():
            if mark in text:
                found.setdefault(mapped, []).append(int(name))
    return found, True
