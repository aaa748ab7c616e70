"""Memory regions that are registered, and device contexts that are open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from fabrictap import catalog
from fabrictap.ext.regions import RegionTable
from fabrictap.ext.ring import Ring

# Access flags of a memory region: enum ibv_access_flags, libibverbs/verbs.h.
REMOTE_WRITE = 1 << 1
REMOTE_READ = 1 << 2
REMOTE_ATOMIC = 1 << 3


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """One memory region. ``length`` in bytes; ``access`` is None where it was not seen.

    ``serial`` is given by the table and tells two registrations with one key apart.
    """

    device: str
    lkey: int
    rkey: int
    pid: int | None
    address: int | None
    length: int
    access: int | None
    serial: int = field(default=0, compare=False)

    @property
    def remote_access(self) -> str:
        """What a peer may do, in the catalog's words."""
        if self.access is None:
            return "unknown"
        read, write = bool(self.access & REMOTE_READ), bool(self.access & REMOTE_WRITE)
        return "read_write" if read and write else "read" if read else "write" if write else "none"

    @property
    def remote_atomic(self) -> bool | None:
        return None if self.access is None else bool(self.access & REMOTE_ATOMIC)


@dataclass(frozen=True, slots=True)
class RegionSum:
    """The regions of one process on one device with which a peer may do the same. ``bytes``: together."""

    pid: int | None
    device: str
    remote_access: str
    remote_atomic: bool | None
    count: int
    bytes: int


class MemoryRegions:
    """(device, lkey) -> MemoryRegion; the newest is refused when full. Kept in C (ext/regions.pyx).

    ``wanted`` says which devices' records are folded; ``memory`` is the ring that gets the events of them.
    """

    def __init__(
        self, capacity: int, wanted: Callable[[str], bool] = bool, memory: Ring | None = None
    ) -> None:
        self.capacity = capacity
        kinds = {event: number for number, event in enumerate(catalog.events())}
        self._table = RegionTable(
            capacity, wanted, memory, kinds[catalog.MR_REGISTERED], kinds[catalog.MR_DEREGISTERED]
        )

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[MemoryRegion]:
        return (MemoryRegion(*found) for found in self._table.regions())

    @property
    def dropped(self) -> int:
        return self._table.dropped

    def keys(self) -> list[tuple[str, int]]:
        """(device, lkey) of every region."""
        return self._table.keys()

    def sums(self) -> list[RegionSum]:
        """All regions, by who may do what with them; costs what there are of such kinds, not of regions."""
        return [RegionSum(*found) for found in self._table.sums()]

    def fold(self, records: bytes, offset_ns: int) -> None:
        """Fold records of the probes of registrations and their ends. See RegionTable.fold."""
        self._table.fold(records, offset_ns)

    def get(self, device: str, lkey: int) -> MemoryRegion | None:
        found = self._table.find(device, lkey)
        return None if found is None else MemoryRegion(*found)

    def put(self, region: MemoryRegion) -> None:
        self._table.put(
            region.device,
            region.lkey,
            region.rkey,
            region.pid,
            region.address,
            region.length,
            region.access,
        )

    def remove(self, device: str, lkey: int) -> None:
        self._table.remove(device, lkey)

    def remove_device(self, device: str) -> None:
        self._table.remove_device(device)

    def remove_process(self, pid: int) -> None:
        self._table.remove_process(pid)


@dataclass(slots=True, eq=False)
class Context:
    """A device held open by a process, ``count`` times."""

    device: str
    pid: int
    origin: str
    count: int


class Contexts:
    """(device, pid) -> Context; the newest is refused when full."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.dropped = 0
        self._contexts: dict[tuple[str, int], Context] = {}

    def __len__(self) -> int:
        return len(self._contexts)

    def __iter__(self) -> Iterator[Context]:
        return iter(self._contexts.values())

    def get(self, device: str, pid: int) -> Context | None:
        return self._contexts.get((device, pid))

    def opened(self, device: str, pid: int, origin: str) -> None:
        context = self._contexts.get((device, pid))
        if context is not None:
            context.count += 1
        elif len(self._contexts) >= self.capacity:
            self.dropped += 1
        else:
            self._contexts[(device, pid)] = Context(device, pid, origin, 1)

    def closed(self, device: str, pid: int) -> None:
        context = self._contexts.get((device, pid))
        if context is not None:
            context.count -= 1
            if context.count <= 0:
                del self._contexts[(device, pid)]

    def remove_device(self, device: str) -> None:
        for key in [key for key in self._contexts if key[0] == device]:
            del self._contexts[key]

    def remove_process(self, pid: int) -> None:
        for key in [key for key in self._contexts if key[1] == pid]:
            del self._contexts[key]
