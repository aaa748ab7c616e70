"""Who uses the GPUs: processes, their memory, their containers, MPS servers.

The driver takes milliseconds and a lock of the whole node to list the processes of one GPU, so this is asked
for more rarely than anything else.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fabrictap import catalog
from fabrictap.catalog import Metric
from fabrictap.ledger import processes as ledger
from fabrictap.ledger.processes import Process
from fabrictap.series import AttributeValue
from fabrictap.sources.nvml.devices import Device
from fabrictap.sources.nvml.library import Library, NvmlFailed

MPS_SERVER = "nvidia-cuda-mps-server"
#: The most processes of one list that are told one by one.
_MAX_PROCESSES = 1024
#: What container runtimes name a container's cgroup after.
_CONTAINER = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
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
    containers: dict[int, str] = field(default_factory=dict)


def read(library: Library, device: Device, proc: str = "/proc") -> Usage:
    """Lists the processes of a GPU, or of its MIG devices. Raises NvmlFailed."""
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
        usage.processes[pid] = ledger.read(pid, "")
        container = container_of(pid, proc)
        if container is not None:
            usage.containers[pid] = container
    return usage


def container_of(pid: int, proc: str = "/proc") -> str | None:
    """The id of the container that a process is in, by its cgroup; None where it is in none or has gone."""
    try:
        with Path(proc, str(pid), "cgroup").open(encoding="utf-8", errors="replace") as file:
            found = _CONTAINER.findall(file.read(65536))
    except OSError:
        return None
    return found[-1] if found else None


def values(usage: Usage) -> list[Value]:
    """The series of one GPU's users."""
    found: list[Value] = []
    for hw_id, parent in usage.where:
        uses = [use for use in usage.uses if use.hw_id == hw_id]
        place: dict[str, AttributeValue] = {"hw.id": hw_id}
        if parent is not None:
            place["hw.parent"] = parent
        pids = {use.pid for use in uses}
        servers = {use.pid for use in uses if usage.processes[use.pid].name == MPS_SERVER}
        containers = {usage.containers[pid] for pid in pids if pid in usage.containers}
        found += [
            (catalog.GPU_PROCESSES, place, len(pids)),
            (catalog.GPU_CONTAINERS, place, len(containers)),
            (catalog.GPU_MPS, place, len(servers)),
        ]
        for use in uses:
            if use.memory is not None:
                labels: dict[str, AttributeValue] = {
                    "process.pid": use.pid,
                    "process.executable.name": usage.processes[use.pid].name,
                    "gpu.process.type": use.kind,
                }
                found.append((catalog.GPU_PROCESS_MEMORY, place | labels, use.memory))
    return found


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
