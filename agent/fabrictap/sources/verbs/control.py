"""Control-path records into the ledger: queue pairs, memory regions, contexts, connection manager."""

from __future__ import annotations

import logging

from fabrictap import catalog
from fabrictap.ext import records
from fabrictap.ext.records import Record
from fabrictap.ledger import Ledger
from fabrictap.ledger.connections import Connection, Coverage
from fabrictap.ledger.memory import MemoryRegion
from fabrictap.ledger.processes import KERNEL
from fabrictap.series import SeriesTable

_log = logging.getLogger(__name__)
#: enum ib_qp_type, include/rdma/ib_verbs.h. SMI and GSI queue pairs carry management traffic only.
QP_TYPES = {2: "rc", 3: "uc", 4: "ud", 8: "raw_packet", 9: "xrc_ini", 10: "xrc_tgt", 0xFF: "driver"}
_MANAGEMENT = (0, 1)
#: enum ib_qp_state.
QP_STATES = ("reset", "init", "rtr", "rts", "sqd", "sqe", "err")
#: enum ib_mtu -> bytes.
_MTU = {1: 256, 2: 512, 3: 1024, 4: 2048, 5: 4096}
#: enum rdma_cm_event_type, include/rdma/rdma_cm.h.
_CM_EVENTS = (
    "addr_resolved", "addr_error", "route_resolved", "route_error", "connect_request", "connect_response",
    "connect_error", "unreachable", "rejected", "established", "disconnected", "device_removal",
    "multicast_join", "multicast_error", "addr_change", "timewait_exit",
)  # fmt: skip
_CM_SENT = ("req_sent", "rep_sent")

# enum ib_qp_attr_mask
_MASK_STATE = 1 << 0
_MASK_AV = 1 << 7
_MASK_MTU = 1 << 8
_MASK_RQ_PSN = 1 << 12
_MASK_SQ_PSN = 1 << 16
_MASK_DEST_QPN = 1 << 20


class ControlFold:
    """Folds records one by one, in the order of their times. Under the node's lock."""

    def __init__(self, series: SeriesTable, ledger: Ledger) -> None:
        self._series = series
        self._ledger = ledger
        self._leaving: set[str] = set()
        #: Answers to our netlink dump for queue pairs that are not in the ledger yet.
        self._snapshots: dict[tuple[str, int], Record] = {}
        #: pid -> since when (epoch ns) its posts are seen, None if they are not.
        self.instrumented: dict[int, int | None] = {}
        #: (device, qpn) -> since when (epoch ns) its posts by ibv_wr_* are seen, until its record is folded.
        self.extended: dict[tuple[str, int], int] = {}

    def fold(self, record: Record, time_ns: int) -> None:
        """Put one record into the ledger. ``time_ns``: when it happened, nanoseconds since the epoch."""
        kind = record.kind
        if kind in (records.CM_EVENT, records.CM_SENT):
            self._connection_manager(record, time_ns)
            return
        if kind == records.PROCESS_EXITED:
            self._process_exited(record, time_ns)
            return
        if kind == records.AH_CREATED or not self._ledger.filter(record.device):
            return
        if kind == records.QP_CREATED:
            self._qp_created(record, time_ns)
        elif kind == records.QP_MODIFIED:
            self._qp_modified(record, time_ns)
        elif kind == records.QP_SNAPSHOT:
            self._qp_snapshot(record)
        elif kind == records.QP_EXTENDED:
            self._qp_extended(record, time_ns)
        elif kind == records.QP_DESTROYED:
            self._qp_destroyed(record, time_ns)
        elif kind in (records.MR_REGISTERED, records.MR_DEREGISTERED):
            self._memory(record)
        elif kind == records.CONTEXT_OPENED:
            self._leaving.discard(record.device)
            self._ledger.contexts.opened(record.device, record.pid, "probe")
        elif kind == records.CONTEXT_CLOSED:
            self._ledger.contexts.closed(record.device, record.pid)
        elif kind == records.DEVICE_REMOVED:
            _log.info("RDMA device %s is leaving", record.device)
            self._leaving.add(record.device)

    def complete_snapshots(self) -> set[int]:
        """Give connections that netlink listed their peer and coverage; returns the pids to be looked at."""
        unresolved = set()
        for connection in self._ledger.connections:
            if connection.origin != "netlink":
                continue
            if (record := self._snapshots.pop((connection.device, connection.qpn), None)) is not None:
                self._complete(connection, record)
            if connection.coverage.kind != "control_only" or connection.extended or connection.pid is None:
                continue
            if connection.pid not in self.instrumented:
                unresolved.add(connection.pid)
            elif (since := self.instrumented[connection.pid]) is not None:
                connection.coverage = Coverage("since", max(since, connection.created_ns))
        return unresolved

    def process_gone(self, pid: int) -> None:
        """A process ended; what the kernel told of its objects has been folded before."""
        self.instrumented.pop(pid, None)
        self._ledger.processes.remove(pid)

    def _qp_created(self, record: Record, time_ns: int) -> None:
        if record.qp_type in _MANAGEMENT:
            return
        self._leaving.discard(record.device)
        stale = self._ledger.connections.get(record.device, record.qpn)
        if stale is not None:
            self._ledger.connections.remove(stale, "vanished", time_ns)
        # A kernel user posts past every library, whichever process it runs in.
        since = None if record.kernel else self.instrumented.get(record.pid)
        if since is None:
            coverage = Coverage("control_only")
        elif since <= time_ns:
            coverage = Coverage("exact")
        else:
            coverage = Coverage("since", since)
        self._ledger.connections.put(self._connection(record, "reset", time_ns, coverage))

    def _connection(self, record: Record, state: str, time_ns: int, coverage: Coverage) -> Connection:
        process = None if record.kernel else self._ledger.processes.get(record.pid)
        return Connection(
            device=record.device,
            qpn=record.qpn,
            type=QP_TYPES.get(record.qp_type, "unknown"),
            state=state,
            pid=None if record.kernel else record.pid,
            process=KERNEL if record.kernel else process.name if process else record.comm,
            created_ns=time_ns,
            origin="probe",
            coverage=coverage,
        )

    def _qp_modified(self, record: Record, time_ns: int) -> None:
        if record.qp_type in _MANAGEMENT or record.qp_result != 0:
            return
        connection = self._ledger.connections.get(record.device, record.qpn)
        if connection is None:
            since = None if record.kernel else self.instrumented.get(record.pid)
            coverage = Coverage("control_only") if since is None else Coverage("since", max(since, time_ns))
            connection = self._connection(record, "unknown", time_ns, coverage)
            if not self._ledger.connections.put(connection):
                return
        mask = record.qp_mask
        if mask & _MASK_AV:
            connection.peer_gid = record.qp_peer_gid
            connection.gid = record.qp_gid
            connection.port = record.qp_port or None
        if mask & _MASK_DEST_QPN:
            connection.peer_qpn = record.qp_peer_qpn
        if mask & _MASK_RQ_PSN:
            connection.rq_psn = record.qp_rq_psn
        if mask & _MASK_SQ_PSN:
            connection.sq_psn = record.qp_sq_psn
        if mask & _MASK_MTU:
            connection.mtu = _MTU.get(record.qp_path_mtu)
        if mask & _MASK_STATE:
            state = _state(record.qp_state)
            self._ledger.connections.advance(connection, state, time_ns)
            if state == "reset":
                # It may be connected anew, to another peer.
                connection.gid = connection.peer_gid = connection.peer_qpn = None
                connection.rq_psn = connection.sq_psn = connection.mtu = None

    def _qp_snapshot(self, record: Record) -> None:
        """The answer to our own netlink dump: the peer of a connection that is older than the agent."""
        if record.qp_type in _MANAGEMENT:
            return
        key = (record.device, record.qpn)
        connection = self._ledger.connections.get(*key)
        if connection is not None:
            self._complete(connection, record)
        elif len(self._snapshots) < self._ledger.connections.capacity:
            # The probe is faster than the dump that made it fire: netlink has not folded it yet.
            self._snapshots[key] = record

    @staticmethod
    def _complete(connection: Connection, record: Record) -> None:
        if connection.origin != "netlink":
            return
        if record.qp_mask & _MASK_AV:
            connection.peer_gid = record.qp_peer_gid or connection.peer_gid
            connection.peer_qpn = record.qp_peer_qpn or connection.peer_qpn
        connection.gid = record.qp_gid or connection.gid
        connection.port = record.qp_port or connection.port
        connection.mtu = _MTU.get(record.qp_path_mtu, connection.mtu)

    def _qp_extended(self, record: Record, time_ns: int) -> None:
        """Software got hold of the extended API of a queue pair: it is seen as well as that is."""
        connection = self._ledger.connections.get(record.device, record.qpn)
        since = self.extended.pop((record.device, record.qpn), None)
        if connection is None:
            return
        if since is None:
            connection.extended = True
            connection.coverage = Coverage("control_only")
        elif since > time_ns and connection.coverage.kind != "control_only":
            connection.coverage = Coverage("since", max(since, connection.coverage.since_ns or 0))

    def _qp_destroyed(self, record: Record, time_ns: int) -> None:
        self._snapshots.pop((record.device, record.qpn), None)
        connection = self._ledger.connections.get(record.device, record.qpn)
        if connection is None:
            return
        reason = "destroyed"
        if record.device in self._leaving:
            reason = "device_removed"
        elif record.exiting:
            reason = "process_exited"
        self._ledger.connections.remove(connection, reason, time_ns)

    def connections_of(self, pid: int) -> list[Connection]:
        """The connections of a process."""
        return [connection for connection in self._ledger.connections if connection.pid == pid]

    def _process_exited(self, record: Record, time_ns: int) -> None:
        """What the process left behind goes with it; where each end is told too, nothing is left by then."""
        for connection in self.connections_of(record.pid):
            self._ledger.connections.remove(connection, "process_exited", time_ns)
        self._ledger.memory.remove_process(record.pid)
        self._ledger.contexts.remove_process(record.pid)

    def _memory(self, record: Record) -> None:
        if record.kind == records.MR_DEREGISTERED:
            self._ledger.memory.remove(record.device, record.mr_lkey)
            return
        region = MemoryRegion(
            record.device,
            record.mr_lkey,
            record.mr_rkey,
            None if record.kernel else record.pid,
            record.mr_address,
            record.mr_length,
            record.mr_access,
        )
        self._ledger.memory.put(region)

    def _connection_manager(self, record: Record, time_ns: int) -> None:
        names = _CM_SENT if record.kind == records.CM_SENT else _CM_EVENTS
        event = record.cm_event
        name = names[event] if event < len(names) else f"event_{event}"
        attributes: dict[str, str | int | bool] = {catalog.RDMA_CM_EVENT.name: name}
        if record.kind == records.CM_EVENT and record.cm_status:
            attributes[catalog.ERROR_TYPE.name] = str(record.cm_status)
        self._series.series(catalog.CM_EVENTS, attributes, time_ns).add(1, time_ns)


def ends_flows(record: Record) -> bool:
    """Whether flows end with this record: a queue pair is destroyed, reset or in error, or a process ends."""
    if record.kind == records.QP_MODIFIED:
        moved = record.qp_result == 0 and record.qp_mask & _MASK_STATE
        return bool(moved) and _state(record.qp_state) in ("reset", "err")
    return record.kind in (records.QP_DESTROYED, records.PROCESS_EXITED)


def unbinds(record: Record) -> bool:
    """Whether a queue pair loses its peer with this record: it is reset."""
    return ends_flows(record) and record.kind == records.QP_MODIFIED and _state(record.qp_state) == "reset"


def _state(number: int) -> str:
    return QP_STATES[number] if number < len(QP_STATES) else "unknown"
