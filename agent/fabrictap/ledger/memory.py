"""Memory regions that are registered, and device contexts that are open."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# Access flags of a memory region: enum ibv_access_flags, libibverbs/verbs.h.
REMOTE_WRITE = 1 << 1
REMOTE_READ = 1 << 2
REMOTE_ATOMIC = 1 << 3


@dataclass(slots=True)
class MemoryRegion:
    """One memory region. ``length`` in bytes; ``access`` is None where it was not seen."""

    device: str
    lkey: int
    rkey: int
    pid: int | None
    address: int | None
    length: int
    access: int | None

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


class MemoryRegions:
    """(device, lkey) -> MemoryRegion; the newest is refused when full."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.dropped = 0
        self._regions: dict[tuple[str, int], MemoryRegion] = {}

    def __len__(self) -> int:
        return len(self._regions)

    def __iter__(self) -> Iterator[MemoryRegion]:
        return iter(self._regions.values())

    def get(self, device: str, lkey: int) -> MemoryRegion | None:
        return self._regions.get((device, lkey))

    def put(self, region: MemoryRegion) -> None:
        key = (region.device, region.lkey)
        if key not in self._regions and len(self._regions) >= self.capacity:
            self.dropped += 1
            return
        self._regions[key] = region

    def remove(self, device: str, lkey: int) -> None:
        self._regions.pop((device, lkey), None)

    def remove_device(self, device: str) -> None:
        for key in [key for key in self._regions if key[0] == device]:
            del self._regions[key]

    def remove_process(self, pid: int) -> None:
        for key in [key for key, region in self._regions.items() if region.pid == pid]:
            del self._regions[key]


@dataclass(slots=True)
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
