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
        self._names = 0

    def fold(self, now_ns: int) -> None:
        """Bring everything up to date. Queue pairs cost what has changed of them."""
        self._connections(now_ns)
        live: dict[int, Series] = {}
        totals: dict[int, int] = {}

        def put(metric: Metric, attributes: Attributes, value: int) -> None:
            made = self._series.series(metric, attributes, now_ns)
            # Processes whose identity is short of detail share a series.
            totals[id(made)] = totals.get(id(made), 0) + value
            made.set(totals[id(made)], now_ns)
            live[id(made)] = made

        for context in self._ledger.contexts:
            attributes = {
                **self._ledger.identity(context.pid),
                "rdma.device": context.device,
                "fabrictap.origin": context.origin,
            }
            put(catalog.CONTEXT_COUNT, attributes, context.count)
        for regions in self._ledger.memory.sums():
            attributes = {
                **self._ledger.identity(regions.pid),
                "rdma.device": regions.device,
                "rdma.memory_region.remote_access": regions.remote_access,
            }
            if regions.remote_atomic is not None:
                attributes["rdma.memory_region.remote_atomic"] = regions.remote_atomic
            put(catalog.MR_COUNT, attributes, regions.count)
            put(catalog.MR_SIZE, attributes, regions.bytes)
        for (provider, metric_name, reason), gpus in self._ledger.providers.availability().items():
            labels: dict[str, AttributeValue] = {
                "fabrictap.provider": provider,
                "fabrictap.metric": metric_name,
            }
            if reason is None:
                put(catalog.METRIC_AVAILABLE, labels, gpus)
            else:
                put(catalog.METRIC_UNAVAILABLE, labels | {"fabrictap.unavailable.reason": reason}, gpus)
        for key, series in self._live.items():
            if key not in live:
                self._end(series, now_ns)
        self._live = live
        self._tables(now_ns)

    def _connections(self, now_ns: int) -> None:
        ledger = self._ledger
        for pid in ledger.processes.take_changed():
            ledger.connections.touch(pid)
        changed = set(ledger.connections.take_changed())
        if self._names != ledger.workloads.version:
            # The names of pods have changed: whose is not known without asking.
            self._names = ledger.workloads.version
            changed.update(ledger.connections)
        if len(self._series) < self._series.capacity:
            changed |= self._refused
            self._refused.clear()
        # What has ended first: a number that came again may have the same attributes.
        for connection in sorted(changed, key=_lives):
            before, now = connection.status, None
            if not connection.ended:
                identity = ledger.identity(connection.pid, connection.process)
                now = self._series.series(catalog.QP_STATUS, {**identity, **_qp(connection)}, now_ns)
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

    def _tables(self, now_ns: int) -> None:
        ledger = self._ledger
        for name, entries, dropped in (
            ("devices", len(ledger.devices), ledger.devices.dropped),
            ("connections", len(ledger.connections), ledger.connections.dropped),
            # In the ring, for other processes to see.
            ("connection_rows", ledger.connections.listed, ledger.connections.unlisted),
            ("memory_regions", len(ledger.memory), ledger.memory.dropped),
            ("contexts", len(ledger.contexts), ledger.contexts.dropped),
            ("processes", len(ledger.processes), ledger.processes.dropped),
            ("flows", len(ledger.flows), 0),
            ("spans", ledger.flows.waiting, ledger.flows.dropped),
            ("gpus", len(ledger.gpus), ledger.gpus.dropped),
            ("gpu_figures", len(ledger.providers), ledger.providers.dropped),
            ("identities", len(ledger.workloads.budget), 0),
            ("device_assignments", ledger.workloads.assigned, ledger.workloads.devices_dropped),
        ):
            attributes = {"fabrictap.table": name}
            self._series.series(catalog.TABLE_ENTRIES, attributes, now_ns).set(entries, now_ns)
            self._series.series(catalog.TABLE_EVICTED, attributes, now_ns).observe(dropped, now_ns)


def _lives(connection: Connection) -> bool:
    return not connection.ended


def _qp(connection: Connection) -> dict[str, AttributeValue]:
    known: dict[str, AttributeValue | None] = {
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
