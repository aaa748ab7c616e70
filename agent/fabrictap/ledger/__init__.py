"""Who owns what right now: devices, connections (QPs) and their flows, memory regions, processes.

Built from events, started from snapshots, guarded by the node's lock. Every table has a limit; an entry
that does not fit is counted in the table's ``dropped``.
"""

from __future__ import annotations

from fabrictap.config import Config
from fabrictap.ext.ring import Ring
from fabrictap.ledger.connections import Connections
from fabrictap.ledger.devices import DeviceFilter, Devices
from fabrictap.ledger.flows import Flows
from fabrictap.ledger.memory import Contexts, MemoryRegions
from fabrictap.ledger.processes import Processes

__all__ = ["Ledger"]


class Ledger:
    """All tables of the node."""

    def __init__(self, config: Config, memory: Ring | None = None) -> None:
        """``memory`` is the ring that shows the connections to other processes."""
        limits = config.limits
        self.filter = DeviceFilter(config.devices.allow, config.devices.deny)
        self.devices = Devices(limits.devices)
        self.processes = Processes(limits.processes)
        self.flows = Flows(limits.finished_spans, int(config.flows.window * 1e9))
        self.connections = Connections(limits.connections, self.flows, memory)
        self.memory = MemoryRegions(limits.memory_regions)
        self.contexts = Contexts(limits.contexts)
