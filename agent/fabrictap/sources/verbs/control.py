"""Control-path records into the ledger: queue pairs and contexts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from fabrictap import catalog
from fabrictap.catalog import Event
from fabrictap.ext import records
from fabrictap.ext.records import Record
from fabrictap.journal import Journal
from fabrictap.ledger import Ledger
from fabrictap.ledger.connections import Connection, Coverage
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

#: What the journal says of a queue pair that gets into a state.
_EVENTS = {"rtr": catalog.QP_READY, "rts": catalog.QP_READY, "err": catalog.QP_ERROR}

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
        self._journal = Journal(series.ring)
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
        elif kind == records.CONTEXT_OPENED:
            self._leaving.discard(record.device)
            self._ledger.contexts.opened(record.device, record.pid, "probe")
            self._write(catalog.CONTEXT_OPENED, record, time_ns)
        elif kind == records.CONTEXT_CLOSED:
            self._ledger.contexts.closed(record.device, record.pid)
            self._write(catalog.CONTEXT_CLOSED, record, time_ns)
        elif kind == records.DEVICE_REMOVED:
            _log.info("RDMA device %s is leaving", record.device)
            self._leaving.add(record.device)

    def learn(self, instrumented: Mapping[int, int | None]) -> None:
        """Processes were looked at: pid -> since when (epoch ns) its posts are seen, None if they are not."""
        self.instrumented.update(instrumented)
        for pid, since in instrumented.items():
            if since is not None:
                for connection in self._ledger.connections.of_process(pid):
                    self._cover(connection, since)

    def complete(self, arrived: Iterable[Connection]) -> set[int]:
        """Give connections that netlink listed their peer and coverage; returns the pids to be looked at.

        ``arrived``: those that are new since the last call. What is not known of them yet comes by a record
        or by :meth:`learn`.
        """
        unresolved = set()
        for connection in arrived:
            if connection.origin != "netlink":
                continue
            if (record := self._snapshots.pop((connection.device, connection.qpn), None)) is not None:
                self._complete(connection, record)
            if connection.pid is None:
                continue
            if connection.pid not in self.instrumented:
                unresolved.add(connection.pid)
            elif (since := self.instrumented[connection.pid]) is not None:
                self._cover(connection, since)
        return unresolved

    @staticmethod
    def _cover(connection: Connection, since: int) -> None:
        hidden = connection.coverage_kind == "control_only" and not connection.extended
        if connection.origin == "netlink" and hidden:
            connection.coverage = Coverage("since", max(since, connection.created_ns))

    def process_gone(self, pid: int, now_ns: int) -> None:
        """A process ended; what the kernel told of its objects has been folded before."""
        process = self._ledger.processes.get(pid)
        self._journal.write(catalog.PROCESS_EXITED, now_ns, pid=pid, process=process.name if process else "")
        self.instrumented.pop(pid, None)
        self._ledger.processes.remove(pid)

    def _qp_created(self, record: Record, time_ns: int) -> None:
        if record.qp_type in _MANAGEMENT:
            return
        self._leaving.discard(record.device)
        stale = self._ledger.connections.get(record.device, record.qpn)
        if stale is not None:
            self._ledger.connections.remove(stale, "vanished", time_ns)
            self._write_of(catalog.QP_DESTROYED, stale, time_ns, "vanished")
        # A kernel user posts past every library, whichever process it runs in.
        since = None if record.kernel else self.instrumented.get(record.pid)
        if since is None:
            coverage = Coverage("control_only")
        elif since <= time_ns:
            coverage = Coverage("exact")
        else:
            coverage = Coverage("since", since)
        connection = self._connection(record, "reset", time_ns, coverage)
        self._ledger.connections.put(connection)
        self._write_of(catalog.QP_CREATED, connection, time_ns, connection.type)

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
            if (event := _EVENTS.get(state)) is not None:
                self._write_of(event, connection, time_ns, state)
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
        self._write_of(catalog.QP_DESTROYED, connection, time_ns, reason)

    def _process_exited(self, record: Record, time_ns: int) -> None:
        """What the process left behind goes with it; where each end is told too, nothing is left by then."""
        for connection in self._ledger.connections.of_process(record.pid):
            self._ledger.connections.remove(connection, "process_exited", time_ns)
            self._write_of(catalog.QP_DESTROYED, connection, time_ns, "process_exited")
        self._ledger.memory.remove_process(record.pid)
        self._ledger.contexts.remove_process(record.pid)

    def _write(self, event: Event, record: Record, time_ns: int) -> None:
        self._journal.write(event, time_ns, pid=record.pid, process=record.comm, device=record.device)

    def _write_of(self, event: Event, connection: Connection, time_ns: int, text: str) -> None:
        self._journal.write(
            event,
            time_ns,
            pid=connection.pid,
            process=connection.process,
            device=connection.device,
            qpn=connection.qpn,
            gid=connection.gid,
            peer_gid=connection.peer_gid,
            peer_qpn=connection.peer_qpn,
            text=text,
        )


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
