"""Who owns what right now: devices, connections (QPs) and their flows, memory regions, GPUs, processes.

Built from events, started from snapshots, guarded by the node's lock. Every table has a limit; an entry
that does not fit is counted in the table's ``dropped``.
"""

from __future__ import annotations

from fabrictap.config import Config
from fabrictap.ext.ring import Ring
from fabrictap.ledger.connections import Connection, Connections
from fabrictap.ledger.devices import DeviceFilter, Devices
from fabrictap.ledger.flows import Flows
from fabrictap.ledger.gpus import Gpus
from fabrictap.ledger.memory import Contexts, MemoryRegions
from fabrictap.ledger.processes import KERNEL, Processes
from fabrictap.ledger.providers import Providers
from fabrictap.ledger.traffic import Traffic
from fabrictap.ledger.workloads import NONE, Resolver, Workloads
from fabrictap.ledger.workloads.podlogs import PodLogs
from fabrictap.ledger.workloads.procfs import Reader
from fabrictap.series import AttributeValue

__all__ = ["Ledger"]

#: Enough for every metric of a GPU with 36 links, of which some are arbitrated link by link.
FIGURES_PER_GPU = 512


class Ledger:
    """All tables of the node."""

    def __init__(self, config: Config, memory: Ring | None = None) -> None:
        """``memory`` is the ring that shows other processes the connections, and what became of regions."""
        limits = config.limits
        self.filter = DeviceFilter(config.devices.allow, config.devices.deny)
        self.devices = Devices(limits.devices)
        kubelet = config.sources.kubelet
        logs = PodLogs(kubelet.pods_log_dir, limits.pods) if kubelet.enabled != "off" else None
        self.workloads = Workloads(
            Resolver(limits.processes, logs, Reader(environment=config.workloads.environment)),
            limits.identities,
        )
        self.processes = Processes(limits.processes, self.workloads)
        self.flows = Flows(limits.finished_spans, int(config.flows.window * 1e9), self.identity_of)
        self.connections = Connections(limits.connections, self.flows, memory, self.processes)
        self.memory = MemoryRegions(limits.memory_regions, self.filter, memory)
        self.traffic = Traffic()
        self.contexts = Contexts(limits.contexts)
        self.gpus = Gpus(limits.gpus)
        self.providers = Providers(limits.gpus * FIGURES_PER_GPU)

    def identity(self, pid: int | None, name: str | None = None) -> dict[str, AttributeValue]:
        """Who ``pid`` is, as attributes of a series: process, container, pod, job, as far as they are known
        and within ``limits.identities``. ``pid`` is None for the kernel. ``name`` is the process's where the
        ledger has none. Do not change the result: it is kept."""
        if pid is None:
            return {"process.executable.name": name or KERNEL}
        process = self.processes.get(pid)
        if process is None:
            return self.workloads.identity(pid, None, name, NONE)
        return self.workloads.identity(pid, process.start_ticks, process.name, process.workload)

    def identity_of(self, connection: Connection) -> dict[str, AttributeValue]:
        """Whose connection it is, for its spans: every detail, and of the process that made it."""
        pid, owner = connection.pid, connection.owner
        if pid is None:
            return {"process.executable.name": connection.process}
        now = self.processes.get(pid)
        if owner is not None and now is not None and now.start_ticks == owner.start_ticks:
            owner = now  # it may have moved, or been named, since
        return self.workloads.full_identity(
            pid, connection.process, owner.workload if owner is not None else NONE
        )

    def sweep(self) -> None:
        """Give back what processes hold that own nothing any more; nobody tells of the end of all of them."""
        alive: set[int | None] = set(self.connections.pids())
        alive.update(context.pid for context in self.contexts)
        alive.update(regions.pid for regions in self.memory.sums())
        alive.update(self.gpus.pids())
        self.workloads.sweep(alive)
