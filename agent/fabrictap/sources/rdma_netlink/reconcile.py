"""The ledger brought in line with what RDMA netlink lists.

What existed before the agent has no GIDs and no first PSNs here (rdma_rxe gives the current ones), save
the GIDs that a connection manager id tells.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fabrictap.ledger import Ledger
from fabrictap.ledger.connections import Connection, Coverage
from fabrictap.ledger.memory import Context, MemoryRegion
from fabrictap.ledger.processes import KERNEL, Process, host_pids
from fabrictap.sources.rdma_netlink.client import Listing
from fabrictap.sources.rdma_netlink.messages import CmId, Owner, QueuePair
from fabrictap.sources.rdma_netlink.messages import MemoryRegion as ListedRegion
from fabrictap.sources.rdma_netlink.presence import Presence

#: enum ib_qp_type; 0 and 1, the management interfaces, are the kernel's own and left out.
QP_TYPE_NAMES = {2: "rc", 3: "uc", 4: "ud", 8: "raw_packet", 9: "xrc_ini", 10: "xrc_tgt", 0xFF: "driver"}
_MANAGEMENT = frozenset({0, 1})
#: enum ib_qp_state.
_STATES = ("reset", "init", "rtr", "rts", "sqd", "sqe", "err")


@dataclass(frozen=True, slots=True)
class DeviceDump:
    """What one device lists. ``regions`` and ``contexts`` are None where they were not asked for.

    ``derived``: ``contexts`` is only who has a queue pair or memory region (before Linux 5.14).
    """

    name: str
    queue_pairs: Listing[QueuePair]
    cm_ids: dict[int, CmId]
    regions: Listing[ListedRegion] | None
    contexts: list[Owner] | None
    derived: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """One round. ``names``: every device there is; ``devices``: those that could be dumped.

    ``processes``: thread id -> process. ``gone``: threads and processes asked for that exist no more.
    """

    started_ns: int
    names: frozenset[str] = frozenset()
    devices: list[DeviceDump] = field(default_factory=list)
    processes: dict[int, Process] = field(default_factory=dict)
    gone: frozenset[int] = frozenset()


class Reconciler:
    """Folds samples into the ledger, under the node's lock. Does no I/O."""

    def __init__(self, ledger: Ledger) -> None:
        #: Threads and processes whose life the next sample should ask for.
        self.suspects: frozenset[int] = frozenset()
        self._ledger = ledger
        self._host_pids = host_pids()
        self._connections: Presence[tuple[str, int], Connection] = Presence()
        #: Memory regions by their serial.
        self._regions: Presence[tuple[str, int], int] = Presence()
        self._contexts: Presence[tuple[str, int], Context] = Presence()
        self._states: dict[tuple[str, int], tuple[Connection, str, str]] = {}
        self._unknown: set[tuple[str, int]] = set()
        self._names: frozenset[str] = frozenset()
        self._first = True

    def fold(self, sample: Sample, now_ns: int) -> None:
        """Put what is new into the ledger and take out what is gone."""
        for process in sample.processes.values():
            self._ledger.processes.put(process)
        self._fold_gone_devices(sample, now_ns)
        by_device: dict[str, list[Connection]] = {}
        for connection in self._ledger.connections:
            by_device.setdefault(connection.device, []).append(connection)
        unknown: set[tuple[str, int]] = set()
        for dump in sample.devices:
            self._fold_missing(dump, by_device.get(dump.name, ()), sample, now_ns)
            unknown |= self._fold_queue_pairs(dump, sample, now_ns)
            self._fold_contexts(dump, sample)
            self._fold_regions(dump, sample)
        self._unknown = unknown
        self._first = False
        live = {(c.device, c.qpn) for c in self._ledger.connections}
        self._connections.keep(live)
        self._states = {key: it for key, it in self._states.items() if key in live}
        if any(dump.regions is not None for dump in sample.devices):
            self._regions.keep(self._ledger.memory.keys())
        self._contexts.keep((c.device, c.pid) for c in self._ledger.contexts)
        presences = (self._connections, self._regions, self._contexts)
        self.suspects = frozenset(pid for presence in presences for pid in presence.suspects())

    def _fold_gone_devices(self, sample: Sample, now_ns: int) -> None:
        for name in self._names - sample.names:
            for connection in [c for c in self._ledger.connections if c.device == name]:
                if connection.created_ns < sample.started_ns:
                    self._ledger.connections.remove(connection, "device_removed", now_ns)
            self._ledger.memory.remove_device(name)
            self._ledger.contexts.remove_device(name)
        self._names = sample.names

    def _fold_missing(
        self, dump: DeviceDump, connections: Iterable[Connection], sample: Sample, now_ns: int
    ) -> None:
        if not dump.queue_pairs.complete:
            return
        listed = {pair.qpn for pair in dump.queue_pairs.entries}
        for connection in connections:
            if (
                connection.qpn in listed
                or connection.created_ns >= sample.started_ns
                or connection.type == "srq"
            ):
                continue
            key = (connection.device, connection.qpn)
            if self._connections.missing(
                key, connection, connection.pid, sample.gone, judge_unlisted=self._host_pids
            ):
                self._ledger.connections.remove(connection, "vanished", now_ns)

    def _fold_queue_pairs(self, dump: DeviceDump, sample: Sample, now_ns: int) -> set[tuple[str, int]]:
        """Returns what is new and must be listed once more.

        A queue pair may be destroyed between dump and fold, and the probes have said so already; only
        what existed before the agent is taken at once.
        """
        connections = self._ledger.connections
        unknown: set[tuple[str, int]] = set()
        for pair in dump.queue_pairs.entries:
            if pair.type in _MANAGEMENT:
                continue
            key = (dump.name, pair.qpn)
            connection = connections.get(*key)
            if connection is None:
                if self._first or key in self._unknown:
                    self._add(pair, dump, sample, now_ns)
                else:
                    unknown.add(key)
            elif connection.created_ns < sample.started_ns:
                if self._connections.listed(key, connection, connection.pid, pair.owner):
                    self._identify(connection, pair, dump.cm_ids.get(pair.qpn))
                    self._correct(connection, pair, now_ns)
                else:
                    connections.remove(connection, "vanished", now_ns)
                    unknown.add(key)
        return unknown

    def _add(self, pair: QueuePair, dump: DeviceDump, sample: Sample, now_ns: int) -> None:
        pid, name = _owner(pair.owner, sample)
        connection = Connection(
            dump.name,
            pair.qpn,
            QP_TYPE_NAMES.get(pair.type, "unknown"),
            _state(pair),
            pid,
            name,
            now_ns,
            "netlink",
            Coverage("control_only"),
        )
        self._identify(connection, pair, dump.cm_ids.get(pair.qpn))
        if not self._ledger.connections.put(connection):
            return
        self._connections.listed((dump.name, pair.qpn), connection, pid, pair.owner)
        if connection.state in ("sqd", "sqe"):
            # it was ready to send before, and its flows go on
            self._ledger.connections.advance(connection, "rts", now_ns)
        self._ledger.connections.advance(connection, _state(pair), now_ns)

    def _correct(self, connection: Connection, pair: QueuePair, now_ns: int) -> None:
        """Follow the kernel's state once two samples agree: a probe may be ahead of one."""
        key = (connection.device, connection.qpn)
        state = _state(pair)
        before = self._states.pop(key, None)
        if state in (connection.state, "unknown"):
            return
        if before is not None and before[0] is connection and before[1:] == (connection.state, state):
            self._ledger.connections.advance(connection, state, now_ns)
        else:
            self._states[key] = (connection, connection.state, state)

    def _identify(self, connection: Connection, pair: QueuePair, cm_id: CmId | None) -> None:
        if connection.port is None:
            connection.port = pair.port
        if connection.peer_qpn is None:
            connection.peer_qpn = pair.peer_qpn
        if cm_id is None or cm_id.source is None:
            return
        device = self._ledger.devices.get(connection.device)
        port = device.ports.get(connection.port or cm_id.port or 0) if device is not None else None
        # an IP address is a GID on RoCE alone, not over IPoIB or iWARP: there it is in the GID table
        if cm_id.source.ip and (port is None or cm_id.source.gid not in port.gids.values()):
            return
        if connection.gid is None:
            connection.gid = cm_id.source.gid
        if connection.peer_gid is None and cm_id.destination is not None:
            connection.peer_gid = cm_id.destination.gid

    def _fold_contexts(self, dump: DeviceDump, sample: Sample) -> None:
        if dump.contexts is None:
            return
        contexts = self._ledger.contexts
        counts: dict[int, int] = {}
        owners: dict[int, Owner] = {}
        for owner in dump.contexts:
            process = sample.processes.get(owner.tid or 0)
            if process is not None:
                counts[process.pid] = counts.get(process.pid, 0) + 1
                owners[process.pid] = owner
        for pid, count in counts.items():
            if contexts.get(dump.name, pid) is None:
                for _ in range(count):
                    contexts.opened(dump.name, pid, "netlink")
        for context in [context for context in contexts if context.device == dump.name]:
            key = (context.device, context.pid)
            holder = owners.get(context.pid)
            if holder is not None:
                # that a process has no queue pair does not say that it has closed the device
                self._contexts.listed(
                    key, context, context.pid, Owner(None, None) if dump.derived else holder
                )
            elif self._contexts.missing(
                key, context, context.pid, sample.gone, judge_unlisted=self._host_pids
            ):
                for _ in range(context.count):
                    contexts.closed(*key)

    def _fold_regions(self, dump: DeviceDump, sample: Sample) -> None:
        if dump.regions is None:
            return
        memory = self._ledger.memory
        listed = set()
        for entry in dump.regions.entries:
            if entry.lkey is None:
                continue
            key = (dump.name, entry.lkey)
            listed.add(key)
            region = memory.get(*key)
            if region is None:
                pid, _ = _owner(entry.owner, sample)
                memory.put(MemoryRegion(*key, entry.rkey or 0, pid, entry.address, entry.length, None))
                region = memory.get(*key)
            if region is not None:
                self._regions.listed(key, region.serial, region.pid, entry.owner)
        if not dump.regions.complete:
            return
        for region in [region for region in memory if region.device == dump.name]:
            key = (region.device, region.lkey)
            if key not in listed and self._regions.missing(
                key, region.serial, region.pid, sample.gone, judge_unlisted=self._host_pids
            ):
                memory.remove(*key)


def _owner(owner: Owner, sample: Sample) -> tuple[int | None, str]:
    """Process id and name of who an object belongs to."""
    if owner.kernel is not None:
        return None, KERNEL
    process = sample.processes.get(owner.tid or 0)
    return (process.pid, process.name) if process is not None else (None, "unknown")


def _state(pair: QueuePair) -> str:
    return _STATES[pair.state] if pair.state < len(_STATES) else "unknown"
