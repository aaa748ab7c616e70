"""Finds what is to be probed for a process, and says since when its posts are counted.

In the order of trust: what the helper process found in the host's libraries, which holds for every file with
the same content; what a provider's own file tells (:mod:`static`); what stands in the process's memory
(:mod:`memory`), for that process only. Everything is cheap for a process whose libraries are known: its maps
are read, and the two or three files that matter are looked up by inode.

In the source's own thread.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fabrictap.sources.verbs import libraries, maps, memory
from fabrictap.sources.verbs.attach import Attachments, File
from fabrictap.sources.verbs.elf import Elf, Refused
from fabrictap.sources.verbs.libraries import Libraries, Library
from fabrictap.sources.verbs.maps import Identity, Mapping
from fabrictap.sources.verbs.providers import DATA_PATH, EXTENDED, Place

_log = logging.getLogger(__name__)
#: Providers that one process has mapped; rdma-core has 20, and maps all of them in every process.
_MAX_PROVIDERS = 64
#: A process whose memory told nothing is asked again when it makes queue pairs, so often and so much later.
_MEMORY_TRIES = 3
_MEMORY_PAUSE_SECONDS = 1.0
_MAX_PROCESSES = 4096
_MAX_SAID = 256
_THREADS_SECONDS = 10.0
#: Offset of the first function in struct ibv_qp_ex, wr_atomic_cmp_swp.
FIRST_EXTENDED = 184
#: For the look at all processes when the agent starts.
_START_SECONDS = 2.0


@dataclass(slots=True)
class _Tries:
    started: int
    left: int = _MEMORY_TRIES
    next: float = 0.0


class Discovery:
    """``errors`` counts by reason what could not be looked at; each is said once."""

    def __init__(
        self, attachments: Attachments, errors: dict[str, int], devices: str = "/dev/infiniband/uverbs"
    ) -> None:
        self.attachments = attachments
        self._errors = errors
        self._devices = devices
        self._libraries = Libraries()
        #: Providers that serve the devices of this node, by name; empty where the helper could not tell.
        self._wanted: set[str] = set()
        self._tries: dict[int, _Tries] = {}
        #: Processes older than the agent: queue pairs of theirs may have the extended API, untold.
        self._older: set[int] = set()
        self._next_threads = 0.0
        self._said: set[tuple[str, str]] = set()

    def close(self) -> None:
        self.attachments.close()

    # --- the host's own libraries -----------------------------------------------------------------

    def host(self, places: Iterable[Place]) -> None:
        """Probe what the helper process found, for whatever starts later."""
        functions: dict[str, dict[str, tuple[int, ...]]] = {}
        for place in places:
            of_file = functions.setdefault(place.file, {})
            of_file[place.function] = (*of_file.get(place.function, ()), place.offset)
        for path, found in functions.items():
            try:
                descriptor = libraries.host_library(path)
            except OSError as error:
                self._refuse("unreadable", path, f"{path}: {error.strerror}")
                continue
            if not libraries.is_libibverbs(path):
                if (name := libraries.provider_name(path)) is not None:
                    self._wanted.add(name)
                self._libraries.host(descriptor, found)
            self.attachments.add(descriptor, path, found, kept=True)

    def running(self) -> set[int]:
        """Processes that have a provider or an RDMA device mapped now, for the agent's start."""
        found = set()
        deadline = time.monotonic() + _START_SECONDS
        for name in os.listdir("/proc"):  # noqa: PTH208 - hot
            if not name.isdigit() or int(name) == os.getpid():
                continue
            if time.monotonic() > deadline:
                self._refuse(
                    "too_many_processes", "/proc", f"not all processes looked at in {_START_SECONDS:g} s"
                )
                break
            try:
                with open(f"/proc/{name}/maps", "rb") as file:  # noqa: PTH123 - hot
                    text = file.read()
            except OSError:
                continue
            marked = any(mark in text for mark in (b"-rdmav", b"libibverbs.so", self._devices.encode()))
            if marked and maps.descriptors_on(int(name), self._devices):
                found.add(int(name))
        self._older = set(found)
        return found

    def older(self, pids: Iterable[int]) -> None:
        """These processes may have queue pairs already: :meth:`look` looks for them in their memory too."""
        self._older |= set(pids)

    # --- a process --------------------------------------------------------------------------------

    def look(self, pid: int) -> int | None:
        """Probe the libraries of a process. Since when (epoch ns) its posts are counted; None: not."""
        try:
            mapped = maps.mappings(pid)
        except Refused as refusal:
            if refusal.reason != "process_gone":
                self._refuse(refusal.reason, str(pid), str(refusal))
            return None
        files = self._files(pid, mapped)
        if files is None or pid in self._older:
            self._older.discard(pid)
            file = self._from_memory(pid)
            if files is None:
                files = [] if file is None else [file]
        since = [file.since(DATA_PATH, pid) for file in files]
        if not since or None in since:
            return None
        return max(moment for moment in since if moment is not None)

    def sweep(self) -> None:
        """Let go of what no process maps any more, and of what threads left behind that have ended."""
        self.attachments.sweep()
        if time.monotonic() >= self._next_threads:
            self._next_threads = time.monotonic() + _THREADS_SECONDS
            self.attachments.forget_threads()
        for pid, tries in list(self._tries.items()):
            if maps.start_time(pid) != tries.started:
                del self._tries[pid]

    def _files(self, pid: int, mapped: list[Mapping]) -> list[File] | None:
        """The probed providers of a process; None where one that matters is not known."""
        by_file = {mapping.file: mapping for mapping in mapped if mapping.executable_file}
        slots = self._libibverbs(pid, by_file.values())
        providers = [m for m in by_file.values() if libraries.provider_name(m.path) is not None]
        wanted = [m for m in providers if libraries.provider_name(m.path) in self._wanted]
        found = []
        known = bool(providers) and slots is not None
        for mapping in (wanted or providers)[:_MAX_PROVIDERS]:
            file = self._probe(pid, mapping, slots or {})
            if file is None or file.since(DATA_PATH) is None:
                known = False
            if file is not None:
                found.append(file)
        return found if known and found else None

    def _libibverbs(self, pid: int, mapped: Iterable[Mapping]) -> dict[str, int] | None:
        """Probe the process's libibverbs; how it orders a provider's functions, None where unknown."""
        for mapping in mapped:
            if libraries.is_libibverbs(mapping.path):
                try:
                    library = self._libraries.of(pid, mapping, None)
                except Refused as refusal:
                    self._refuse(refusal.reason, mapping.path, str(refusal))
                    return None
                self._attach(pid, mapping, library)
                return library.slots or None
        return None

    def _probe(self, pid: int, mapping: Mapping, slots: dict[str, int]) -> File | None:
        identity = maps.mapped_identity(pid, mapping)
        if identity is not None:
            file = self.attachments.find(identity.device, identity.inode)
            if file is not None and file.since(DATA_PATH) is not None:
                self.attachments.use(file, pid, mapping.file)
                return file
        try:
            library = self._libraries.of(pid, mapping, slots)
        except Refused as refusal:
            self._refuse(refusal.reason, mapping.path, str(refusal))
            return None
        return self._attach(pid, mapping, library)

    def _attach(self, pid: int, mapping: Mapping, library: Library) -> File | None:
        identity = maps.mapped_identity(pid, mapping)
        known = self.attachments.find(identity.device, identity.inode) if identity is not None else None
        if known is not None and known.since(library.functions) is not None:
            self.attachments.use(known, pid, mapping.file)
            return known
        if library.refusal is not None:
            self._refuse(library.refusal[0], mapping.path, f"{mapping.path}: {library.refusal[1]}")
            if not library.functions:
                return None
        try:
            descriptor = maps.open_mapped(pid, mapping)
        except Refused as refusal:
            self._refuse(refusal.reason, mapping.path, str(refusal))
            return None
        file = self.attachments.add(descriptor, mapping.path, library.functions, mapped=mapping.file)
        if file is not None:
            self.attachments.use(file, pid, mapping.file)
        return file

    # --- a process's memory -----------------------------------------------------------------------

    def _from_memory(self, pid: int) -> File | None:
        started = maps.start_time(pid)
        if started is None:
            return None
        tries = self._tries.get(pid)
        if tries is None or tries.started != started:
            if len(self._tries) >= _MAX_PROCESSES:
                del self._tries[next(iter(self._tries))]
            tries = self._tries[pid] = _Tries(started)
        if tries.left <= 0 or time.monotonic() < tries.next:
            return None
        descriptors = maps.descriptors_on(pid, self._devices)
        if not descriptors:
            return None
        tries.left -= 1
        tries.next = time.monotonic() + _MEMORY_PAUSE_SECONDS
        try:
            return self._search(pid, descriptors)
        except Refused as refusal:
            self._refuse(refusal.reason, str(pid), f"process {pid}: {refusal}")
        return None

    def _search(self, pid: int, descriptors: set[int]) -> File | None:
        """Probe what the open devices in a process's memory, and their extended queue pairs, point to."""
        mapped = maps.mappings(pid, writable=True)
        program = str(Path(f"/proc/{pid}/exe").readlink())
        code = [
            m for m in mapped
            if m.executable_file and (libraries.provider_name(m.path) is not None or m.path == program)
        ]  # fmt: skip
        with memory.Memory(pid, mapped) as searched:
            found = memory.contexts(searched, code, descriptors)
            pairs = memory.extended(searched, found) if found else []
        if searched.incomplete:
            self._refuse("memory_limit", str(pid), f"process {pid}: its memory was searched in part only")
        if not found:
            raise Refused("no_context", "no open device in its memory")
        addresses: dict[Mapping, dict[str, set[int]]] = {}
        told: list[memory.Context | memory.ExtendedQueuePair] = [*found, *pairs]
        for of in told:
            for name, address in of.functions.items():
                addresses.setdefault(of.code, {}).setdefault(name, set()).add(address)
        files = [self._attach_private(pid, mapping, functions) for mapping, functions in addresses.items()]
        return next((file for file in files if file is not None), None)

    def extended(self, pid: int, addresses: Sequence[int | None]) -> int | None:
        """Probe the functions of a queue pair of the extended API, as its ``Record.qp_ex_functions`` tells.

        Since when (epoch ns) they are counted; None: they are not.
        """
        named = {
            name: address
            for name, offset in EXTENDED.items()
            if (address := addresses[(offset - FIRST_EXTENDED) // 8]) is not None
        }
        try:
            mapped = [m for m in maps.mappings(pid) if m.executable_file]
            (mapping,) = {
                next((m for m in mapped if m.start <= address < m.end), None) for address in named.values()
            }
            if mapping is None:
                raise ValueError
            self._attach_private(pid, mapping, {name: {address} for name, address in named.items()})
            identity = self._identity(pid, mapping)
        except ValueError:
            self._refuse(
                "no_function", str(pid), f"process {pid}: ibv_wr_* of a queue pair lies in no one file"
            )
            return None
        except Refused as refusal:
            if refusal.reason != "process_gone":
                self._refuse(refusal.reason, str(pid), f"process {pid}: {refusal}")
            return None
        places = {(name, address - mapping.start + mapping.offset) for name, address in named.items()}
        return self.attachments.since(identity.device, identity.inode, pid, places)

    @staticmethod
    def _identity(pid: int, mapping: Mapping) -> Identity:
        descriptor = maps.open_mapped(pid, mapping)
        try:
            return maps.identity(descriptor)
        finally:
            os.close(descriptor)

    def _attach_private(self, pid: int, mapping: Mapping, functions: dict[str, set[int]]) -> File | None:
        """Probe addresses that the process itself named: only where functions begin, and only for itself."""
        offsets = {
            name: tuple(sorted(address - mapping.start + mapping.offset for address in addresses))
            for name, addresses in functions.items()
        }
        descriptor = maps.open_mapped(pid, mapping)
        try:
            elf = Elf(descriptor)
            starts = {elf.offset(address) for address in elf.function_starts()}
            for name, places in offsets.items():
                if not starts.issuperset(places):
                    raise Refused(
                        "no_function", f"{name} does not point to where a function of {mapping.path} begins"
                    )
        except Refused:
            os.close(descriptor)
            raise
        file = self.attachments.add(descriptor, mapping.path, offsets, mapped=mapping.file, pid=pid)
        if file is not None:
            self.attachments.use(file, pid, mapping.file)
        return file

    def _refuse(self, reason: str, what: str, message: str) -> None:
        """Count it, and say it once for each file name (which are many where containers come and go)."""
        self._errors[reason] = self._errors.get(reason, 0) + 1
        said = (reason, what.rpartition("/")[2])
        if said not in self._said and len(self._said) < _MAX_SAID:
            self._said.add(said)
            _log.warning("posts may not be counted: %s", message)
