"""The GPUs of the node, their MIG instances, and what each NVLink of theirs leads to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Link:
    """One NVLink. What is at the other end is None where the driver does not say.

    ``remote_type``: gpu, switch, npu or unknown. ``remote_pci``: PCI address as sysfs writes it.
    ``remote_gpu``: hw.id where the other end is a GPU of this node. ``speed``: bytes per second, each way.
    """

    number: int
    up: bool
    remote_type: str | None = None
    remote_pci: str | None = None
    remote_gpu: str | None = None
    remote_link: int | None = None
    speed: int | None = None


@dataclass(frozen=True, slots=True)
class MigDevice:
    """One MIG device: a compute instance of a GPU instance. ``id``: MIG-<uuid>, ``gpu``: of its parent."""

    id: str
    gpu: str
    gpu_instance: int
    compute_instance: int


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. ``id``: GPU-<uuid>; ``pci``: PCI address as sysfs writes it, 0000:1b:00.0.

    ``rdma``: RDMA devices nearest by PCI, and ``rdma_distance`` how near: switch (below the same PCIe
    switch), host_bridge (the same root complex), numa (the same NUMA node), system; None where there is none.
    """

    id: str
    index: int
    model: str | None = None
    pci: str | None = None
    numa: int | None = None
    serial: str | None = None
    driver: str | None = None
    firmware: str | None = None
    rdma: tuple[str, ...] = ()
    rdma_distance: str | None = None
    links: tuple[Link, ...] = ()
    migs: tuple[MigDevice, ...] = field(default=())


class Gpus:
    """hw.id -> Gpu. GPUs and MIG instances together count against ``capacity``."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.dropped = 0
        self._gpus: dict[str, Gpu] = {}
        self._users: dict[str, frozenset[int]] = {}

    def __len__(self) -> int:
        return sum(1 + len(gpu.migs) for gpu in self._gpus.values())

    def __iter__(self) -> Iterator[Gpu]:
        return iter(self._gpus.values())

    def get(self, gpu: str) -> Gpu | None:
        return self._gpus.get(gpu)

    def put(self, gpu: Gpu) -> bool:
        """Add or replace. False where it does not fit."""
        known = self._gpus.get(gpu.id)
        size = len(self) - (1 + len(known.migs) if known is not None else 0)
        if size + 1 + len(gpu.migs) > self.capacity:
            self.dropped += 1
            return False
        self._gpus[gpu.id] = gpu
        return True

    def remove(self, gpu: str) -> None:
        self._gpus.pop(gpu, None)
        self._users.pop(gpu, None)

    def use(self, gpu: str, pids: Iterable[int]) -> None:
        """These processes use the GPU or one of its MIG devices now."""
        if gpu in self._gpus:
            self._users[gpu] = frozenset(pids)

    def users(self, gpu: str) -> frozenset[int]:
        """The processes that use the GPU."""
        return self._users.get(gpu, frozenset())

    def pids(self) -> set[int]:
        """The processes that use a GPU."""
        return {pid for users in self._users.values() for pid in users}
