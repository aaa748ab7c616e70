"""The ledger as series: live queue pairs, open contexts, registered memory, and the fill of its tables."""

from __future__ import annotations

from fabrictap import catalog
from fabrictap.catalog import Metric
from fabrictap.ext.ring import NO_SERIES
from fabrictap.ledger import Ledger
from fabrictap.ledger.connections import Connection
from fabrictap.series import Attributes, AttributeValue, Series, SeriesTable


class Inventory:
    """Brings the series up to date before each export; a series whose object has gone is ended."""

    def __init__(self, series: SeriesTable, ledger: Ledger) -> None:
        self._series = series
        self._ledger = ledger
        #: Of contexts and memory, by identity.
        self._live: dict[int, Series] = {}
        #: Connections that the full table of series has refused: tried again when it has room.
        self._refused: set[Connection] = set()

    def fold(self, now_ns: int) -> None:
        """Bring everything up to date. Queue pairs cost what has changed of them."""
        self._connections(now_ns)
        live: dict[int, Series] = {}

        def put(metric: Metric, attributes: Attributes, value: int) -> None:
            made = self._series.series(metric, attributes, now_ns)
            made.set(value, now_ns)
            live[id(made)] = made

        for context in self._ledger.contexts:
            attributes = {
                **self._process(context.pid),
                "rdma.device": context.device,
                "fabrictap.origin": context.origin,
            }
            put(catalog.CONTEXT_COUNT, attributes, context.count)
        for regions in self._ledger.memory.sums():
            attributes = {
                **self._process(regions.pid),
                "rdma.device": regions.device,
                "rdma.memory_region.remote_access": regions.remote_access,
            }
            if regions.remote_atomic is not None:
                attributes["rdma.memory_region.remote_atomic"] = regions.remote_atomic
            put(catalog.MR_COUNT, attributes, regions.count)
            put(catalog.MR_SIZE, attributes, regions.bytes)
        for key, series in self._live.items():
            if key not in live:
                self._end(series, now_ns)
        self._live = live
        self._tables(now_ns)

    def _connections(self, now_ns: int) -> None:
        changed = set(self._ledger.connections.take_changed())
        if len(self._series) < self._series.capacity:
            changed |= self._refused
            self._refused.clear()
        # What has ended first: a number that came again may have the same attributes.
        for connection in sorted(changed, key=_lives):
            before, now = connection.status, None
            if not connection.ended:
                now = self._series.series(catalog.QP_STATUS, _qp(connection), now_ns)
                if now is before:
                    continue
                now.set(1, now_ns)
                if now.slot == NO_SERIES:
                    self._refused.add(connection)
            if before is not None:
                self._end(before, now_ns)
            connection.status = now
            if connection.ended:
                self._refused.discard(connection)

    def _end(self, series: Series, now_ns: int) -> None:
        """What is no more is 0 once: a queue pair that changed its state is not counted twice."""
        series.set(0, now_ns)
        self._series.end(series)

    def _process(self, pid: int | None) -> dict[str, AttributeValue]:
        if pid is None:
            return {"process.executable.name": "[kernel]"}
        process = self._ledger.processes.get(pid)
        return {"process.pid": pid} | ({"process.executable.name": process.name} if process else {})

    def _tables(self, now_ns: int) -> None:
        ledger = self._ledger
        for name, entries, dropped in (
            ("devices", len(ledger.devices), ledger.devices.dropped),
            ("connections", len(ledger.connections), ledger.connections.dropped),
            ("memory_regions", len(ledger.memory), ledger.memory.dropped),
            ("contexts", len(ledger.contexts), ledger.contexts.dropped),
            ("processes", len(ledger.processes), ledger.processes.dropped),
            ("flows", len(ledger.flows), 0),
            ("spans", ledger.flows.waiting, ledger.flows.dropped),
        ):
            attributes = {"fabrictap.table": name}
            self._series.series(catalog.TABLE_ENTRIES, attributes, now_ns).set(entries, now_ns)
            self._series.series(catalog.TABLE_EVICTED, attributes, now_ns).observe(dropped, now_ns)


def _lives(connection: Connection) -> bool:
    return not connection.ended


def _qp(connection: Connection) -> dict[str, AttributeValue]:
    known: dict[str, AttributeValue | None] = {
        "process.pid": connection.pid,
        "process.executable.name": connection.process,
        "rdma.device": connection.device,
        "rdma.port": connection.port,
        "rdma.qp.number": connection.qpn,
        "rdma.qp.type": connection.type,
        "rdma.qp.state": connection.state,
        "rdma.gid": connection.gid,
        "rdma.peer.gid": connection.peer_gid,
        "rdma.peer.qp.number": connection.peer_qpn,
        "fabrictap.origin": connection.origin,
        "fabrictap.coverage": connection.coverage.kind,
        "fabrictap.coverage.since": connection.coverage.since,
    }
    return {name: value for name, value in known.items() if value is not None}
