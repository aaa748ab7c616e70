"""Where the data path's programs are attached, and for whom.

A place is a function of a file: (st_dev, inode, offset). It is attached once, however many processes and
mount namespaces show it, because a uprobe belongs to the inode; and detached when the last process that maps
the file has gone, because it keeps the file, and so its container's file system, from being given back. While
it is attached the file's descriptor is held: a name may lead to another file by then.

What was read from a process's memory is attached for that process only (:class:`File` with ``pid``).

A process that is not to be counted for a while (:mod:`duty`) must not be stopped by the breakpoint of its
neighbours either: a file that it shares with them is *divided*, each of the others getting probes of its own,
which the kernel puts into that process's memory only. It stays so until nobody uses it.

On overlayfs, the same file of an image has a device of its own in each container, while a uprobe always goes
to the file beneath: attached for two of them, it would count twice. Whether two descriptors are one file
beneath is seen from their page cache (:func:`same_pages`).
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Collection, Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fabrictap.ext.bpf import BpfError, Link
from fabrictap.sources.verbs import maps
from fabrictap.sources.verbs.detach import Detaching
from fabrictap.sources.verbs.missed import Missed
from fabrictap.sources.verbs.probes import Attachment, Probes, attach_function, detach, forget_threads
from fabrictap.sources.verbs.providers import DATA_PATH, entry
from fabrictap.sources.verbs.samefile import same_pages

_log = logging.getLogger(__name__)
#: For one look at all processes whether they map what is about to be detached.
_SEARCH_SECONDS = 0.25
_CLOSE_SECONDS = 2.0
#: Processes that have probes of their own in one file: each probe looks at each hit whose it is.
_MOST_DIVIDED = 32

#: st_dev and inode; of what was found in a process's memory also its pid, else 0.
Key = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Probed:
    """One place. ``refused`` by the kernel; ``since_ns`` counts from the epoch."""

    attachments: list[Attachment]
    since_ns: int
    refused: bool = False


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
    #: Attached for some of its users, each by itself; and since when those that came later are.
    divided: bool = False
    later: dict[int, int | None] = field(default_factory=dict)

    def since(self, functions: Container[str], pid: int = 0) -> int | None:
        """Since when those of ``functions`` that it has are counted, for ``pid``; None where one, or all, are
        not."""
        found = [probed for (name, _), probed in self.places.items() if name in functions]
        if not found or any(probed.refused for probed in found):
            return None
        if self.divided and pid in self.later:
            return self.later[pid]
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
        #: Over what the thread of the budget changes too; held for some milliseconds at the most.
        self._lock = threading.RLock()
        #: Processes that are not counted now, and how much of each was not.
        self._paused: set[int] = set()
        self._letting_go: list[Detaching] = []
        #: Files of which each user is to get probes of his own as soon as those for all have gone.
        self._dividing: list[tuple[File, Detaching]] = []
        self.missed = Missed()
        #: Whether this kernel's probes for one process are for all its threads (:mod:`calibration`).
        self.by_process = True
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
            wanted -= {place for place, probed in shared.places.items() if not probed.refused}
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
            file = File(key, path, descriptor, mapped)
            with self._lock:
                self._files[key] = self._known[key] = file
        file.kept |= kept
        self._attach(file, wanted)
        return file

    def since(self, device: int, inode: int, pid: int, places: set[tuple[str, int]]) -> int | None:
        """Since when all of ``places``, (function, offset), are counted for ``pid``; None: one is not."""
        files = [file for of in (0, pid) if (file := self.find(device, inode, of)) is not None]
        moments = []
        for place in places:
            found = [
                f.places[place].since_ns for f in files if place in f.places and not f.places[place].refused
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
        if started is None or file.users.get(pid) == started:
            return
        with self._lock:
            file.users[pid] = started
            if file.divided and not any(file is one for one, _ in self._dividing):
                file.later[pid] = time.time_ns() if self._attach_for(file, pid) else None
        if pid in self._paused and not file.divided and not file.key[2]:
            self.pause(pid)

    # --- a process that is not counted for a while ------------------------------------------------

    def pause(self, pid: int) -> Detaching:
        """Stop counting a process, now: what is being detached. Where it shared a file, the others are not
        counted either until :meth:`divide` has gone on."""
        with self._lock:
            self._paused.add(pid)
            now_ns = time.time_ns()
            links: list[Link] = []
            divided: list[File] = []
            for file in self._of(pid):
                if file.key[2] or file.divided:
                    links += self._take(file, pid)
                else:
                    file.divided = True
                    divided.append(file)
                    links += self._take(file)
            for user in {pid, *(user for file in divided for user in file.users)}:
                self.missed.begin(user, now_ns)
            detaching = Detaching(links)
            self._letting_go.append(detaching)
            self._dividing += [(file, detaching) for file in divided]
            self.detached += len(links)
        return detaching

    def divide(self, *, wait: bool = False) -> bool:
        """Attach for the others of a file that one of its users left; True while there is more to be done.

        Not before all is detached: what both probes saw would be counted twice.
        """
        with self._lock:
            dividing, self._dividing = self._dividing, []
            for file, detaching in dividing:
                if not detaching.done() and not (wait and detaching.wait()):
                    self._dividing.append((file, detaching))
                    continue
                for user in file.users.keys() - self._paused:
                    if self._attach_for(file, user) and user not in self._waiting():
                        self.missed.end(user, time.time_ns())
            return bool(self._dividing)

    def _waiting(self) -> set[int]:
        return {user for file, _ in self._dividing for user in file.users}

    def exclude(self, pid: int) -> None:
        """A process is not to be counted at all."""
        with self._lock:
            self._paused.add(pid)

    def stepped(self, pid: int) -> bool:
        """Whether the kernel single-steps an instruction each time that the process posts."""
        with self._lock:
            return any(
                not entry(file.descriptor, offset).cheap
                for file in self
                if file.key[2] == pid or pid in file.users
                for name, offset in file.places
                if name in DATA_PATH
            )

    def resume(self, pid: int) -> bool:
        """Count a process again; False where that is refused."""
        with self._lock:
            self._paused.discard(pid)
            divided = [file for file in self._of(pid) if file.divided or file.key[2]]
            done = [self._attach_for(file, pid) for file in divided]
            if all(done):
                self.missed.end(pid, time.time_ns())
            return all(done)

    def forget(self, pid: int) -> None:
        """A process has ended."""
        with self._lock:
            self._paused.discard(pid)
            self.missed.forget(pid)

    def _of(self, pid: int) -> list[File]:
        """The files that a process uses; where that is not known, all that it may use."""
        found = [file for file in self if file.key[2] == pid or (pid in file.users and not file.key[2])]
        if not found and (started := maps.start_time(pid)) is not None:
            found = [file for file in self if not file.key[2]]
            for file in found:
                file.users[pid] = started
        return found

    def _attach_for(self, file: File, pid: int) -> bool:
        """Attach for one user of a divided file, or for the one that a file is attached for alone."""
        if pid in self._paused:
            return False
        if not self.by_process:
            self._refuse("uprobe_of_one_thread")
            return False
        if pid in self._attached(file):
            return True
        if len(self._attached(file)) >= _MOST_DIVIDED:
            for user in [user for user, started in file.users.items() if maps.start_time(user) != started]:
                self._leave(file, user)
            if len(self._attached(file)) >= _MOST_DIVIDED:
                self._refuse("too_many_processes")
                return False
        done = [
            self._attach_place(file, place, probed.attachments, pid) for place, probed in file.places.items()
        ]
        return all(done)

    @staticmethod
    def _attached(file: File) -> set[int]:
        return {one.pid for probed in file.places.values() for one in probed.attachments}

    def _take(self, file: File, pid: int | None = None) -> list[Link]:
        """The links of ``pid``, or all of a file, to be closed; those that are hit most first."""
        links: list[Link] = []
        for (name, _), probed in file.places.items():
            taken = [one for one in probed.attachments if pid in {None, one.pid}]
            probed.attachments[:] = [one for one in probed.attachments if one not in taken]
            found = detach(self._probes, taken)
            links = found + links if name in DATA_PATH else links + found
        return links

    def _rejoin(self, file: File) -> None:
        """Nobody uses it: attach for whoever comes."""
        with self._lock:
            if file.users:
                return
            file.divided = False
            file.later.clear()
            places = list(file.places)
            file.places.clear()
        self._attach(file, places)

    # --- what is no longer used -------------------------------------------------------------------

    def sweep(self) -> list[int]:
        """Detach what nobody maps any more; the pids that turned out to map something after all."""
        for file, closed in list(self._closing.values()):
            if closed.done():
                self._finish(file)
        idle = []
        for file in self:
            for pid, started in list(file.users.items()):
                if maps.start_time(pid) != started:
                    self._leave(file, pid)
            if file.kept and not self._in_place(file):
                file.kept = False  # replaced on disk: no new process will map it
            if not file.users and not file.kept:
                idle.append(file)
            elif not file.users and file.divided:
                self._rejoin(file)
        self._letting_go = [one for one in self._letting_go if not one.done()]
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

    def _leave(self, file: File, pid: int) -> None:
        with self._lock:
            del file.users[pid]
            file.later.pop(pid, None)
            if file.divided and (links := self._take(file, pid)):
                self._letting_go.append(Detaching(links))
                self.detached += len(links)

    def forget_threads(self) -> int:
        """Delete from the BPF maps what threads left there that have ended; how much that was."""
        return forget_threads(self._probes)

    def close(self) -> None:
        """Let go of everything; what takes longer than a moment goes on by itself."""
        for file in list(self._files.values()):
            self._detach(file)
        deadline = time.monotonic() + _CLOSE_SECONDS
        for detaching in self._letting_go:
            detaching.wait(max(0.0, deadline - time.monotonic()))
        for file, detaching in self._closing.values():
            detaching.wait(max(0.0, deadline - time.monotonic()))
            os.close(file.descriptor)
        self._closing.clear()

    def _attach(self, file: File, wanted: Collection[tuple[str, int]]) -> None:
        for place in sorted(set(wanted) - file.places.keys()):
            with self._lock:
                made: list[Attachment] = []
                users = [file.key[2]] if not file.divided else list(file.users)
                done = [
                    self._attach_place(file, place, made, pid) for pid in users if pid not in self._paused
                ]
                file.places[place] = Probed(made, time.time_ns(), refused=not all(done))

    def _attach_place(self, file: File, place: tuple[str, int], made: list[Attachment], pid: int) -> bool:
        name, offset = place
        try:
            attached = attach_function(self._probes, name, file.descriptor, offset, pid)
        except (BpfError, OSError) as error:
            if pid and error.errno == errno.ESRCH:
                return True  # it has ended meanwhile
            self._refuse("attach")
            _log.warning("cannot count %s in %s: %s", name, file.path, error)
            return False
        made += attached
        self.attached += len(attached)
        return True

    def _detach(self, file: File) -> None:
        with self._lock:
            links = self._take(file)
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
        for detaching in self._letting_go:
            detaching.wait()
        self._letting_go.clear()
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
