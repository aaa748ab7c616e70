"""Who owns what right now: devices, connections (QPs) and their flows, memory regions, GPUs, processes.

Built from events, started from snapshots, guarded by the node's lock. Every table has a limit; an entry
that does not fit is counted in the table's ``dropped``.
"""

from __future__ import annotations

from fabrictap.config import Config
from fabrictap.ledger.connections import Connections
from fabrictap.ledger.devices import DeviceFilter, Devices
from fabrictap.ledger.flows import Flows
from fabrictap.ledger.gpus import Gpus
from fabrictap.ledger.memory import Contexts, MemoryRegions
from fabrictap.ledger.processes import Processes
from fabrictap.ledger.providers import Providers

__all__ = ["Ledger"]

#: Enough for every metric of a GPU with 36 links, of which some are arbitrated link by link.
FIGURES_PER_GPU = 512


class Ledger:
    """All tables of the node."""

    def __init__(self, config: Config) -> None:
        limits = config.limits
        self.filter = DeviceFilter(config.devices.allow, config.devices.deny)
        self.devices = Devices(limits.devices)
        self.processes = Processes(limits.processes)
        self.flows = Flows(limits.finished_spans, int(config.flows.window * 1e9))
        self.connections = Connections(limits.connections, self.flows)
        self.memory = MemoryRegions(limits.memory_regions)
        self.contexts = Contexts(limits.contexts)
        self.gpus = Gpus(limits.gpus)
        self.providers = Providers(limits.gpus * FIGURES_PER_GPU)
