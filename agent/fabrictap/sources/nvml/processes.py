"""Who uses the GPUs: processes, their memory, their containers, MPS servers.

The driver takes milliseconds and a lock of the whole node to list the processes of one GPU, so this is asked
for more rarely than anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fabrictap import catalog
from fabrictap.catalog import Metric
from fabrictap.ledger import processes as ledger
from fabrictap.ledger.processes import Process
from fabrictap.ledger.workloads import Resolver
from fabrictap.series import AttributeValue
from fabrictap.sources.nvml.devices import Device
from fabrictap.sources.nvml.library import Library, NvmlFailed

MPS_SERVER = "nvidia-cuda-mps-server"
#: The most processes of one list that are told one by one.
_MAX_PROCESSES = 1024
Value = tuple[Metric, dict[str, AttributeValue], int]


@dataclass(frozen=True, slots=True)
class Use:
    """One process on a GPU or MIG device. ``memory``: bytes, None where the driver does not tell."""

    hw_id: str
    parent: str | None
    pid: int
    kind: str
    memory: int | None


@dataclass(slots=True)
class Usage:
    """Who uses one GPU. ``where``: its hw.id or those of its MIG devices, each with its parent."""

    where: list[tuple[str, str | None]] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    processes: dict[int, Process] = field(default_factory=dict)


def read(library: Library, device: Device, resolver: Resolver) -> Usage:
    """Lists the processes of a GPU, or of its MIG devices, and what /proc says of them. Raises NvmlFailed."""
    usage = Usage()
    places: list[tuple[Any, str, str | None]] = [(device.handle, device.id, None)]
    if device.mig_mode:
        places = [(mig.handle, mig.device.id, device.id) for mig in device.migs]
    for handle, hw_id, parent in places:
        usage.where.append((hw_id, parent))
        for kind, function in _functions(library):
            for process in _list(library, function, handle)[:_MAX_PROCESSES]:
                memory = process.usedGpuMemory
                known = None if memory is None else int(memory)
                usage.uses.append(Use(hw_id, parent, int(process.pid), kind, known))
    for pid in {use.pid for use in usage.uses}:
        usage.processes[pid] = ledger.read(pid, "", resolver)
    return usage


def values(usage: Usage, identity: Callable[[int], Mapping[str, AttributeValue]]) -> Iterator[Value]:
    """The series of one GPU's users. ``identity``: the attributes of a process, as the ledger admits them."""
    for hw_id, parent in usage.where:
        uses = [use for use in usage.uses if use.hw_id == hw_id]
        place: dict[str, AttributeValue] = {"hw.id": hw_id}
        if parent is not None:
            place["hw.parent"] = parent
        found = {use.pid: usage.processes[use.pid] for use in uses}
        containers = {process.workload.container_id for process in found.values()} - {None}
        yield catalog.GPU_PROCESSES, place, len(found)
        yield catalog.GPU_CONTAINERS, place, len(containers)
        yield catalog.GPU_MPS, place, sum(process.name == MPS_SERVER for process in found.values())
        # processes whose detail is left out, because there are too many of them, count together
        memory: dict[frozenset[tuple[str, AttributeValue]], int] = {}
        for use in uses:
            if use.memory is not None:
                labels = {**place, **identity(use.pid), "gpu.process.type": use.kind}
                key = frozenset(labels.items())
                memory[key] = memory.get(key, 0) + use.memory
        for key, size in memory.items():
            yield catalog.GPU_PROCESS_MEMORY, dict(key), size


def _functions(library: Library) -> list[tuple[str, Callable[..., Any]]]:
    nvml = library.nvml
    found = []
    for kind, name in (("compute", "Compute"), ("graphics", "Graphics"), ("mps", "MPSCompute")):
        # nvidia-ml-py has one for each version of the structure; drivers before R510 have the second only
        stem = f"nvmlDeviceGet{name}RunningProcesses"
        version = "_v3" if library.address(f"{stem}_v3") else "_v2"
        found.append((kind, getattr(nvml, stem + version)))
    return found


def _list(library: Library, function: Callable[..., Any], handle: Any) -> list[Any]:
    try:
        return list(library.call(function, handle))
    except NvmlFailed as error:
        if error.reason in ("not_supported", "function_not_found", "no_permission"):
            return []
        raise
