"""The ledger as series: live queue pairs, open contexts, registered memory, and the fill of its tables."""

from __future__ import annotations

from collections.abc import Mapping

from fabrictap import catalog
from fabrictap.catalog import Metric
from fabrictap.ledger import Ledger
from fabrictap.ledger.connections import Connection
from fabrictap.series import Attributes, AttributeValue, Series, SeriesTable


class Inventory:
    """Brings the series up to date before each export; a series whose object has gone is ended."""

    def __init__(self, series: SeriesTable, ledger: Ledger) -> None:
        self._series = series
        self._ledger = ledger
        self._live: dict[int, Series] = {}

    def fold(self, now_ns: int) -> None:
        """Recount everything."""
        live: dict[int, Series] = {}

        def put(metric: Metric, attributes: Attributes, value: int) -> None:
            made = self._series.series(metric, attributes, now_ns)
            made.set(value, now_ns)
            live[id(made)] = made

        for connection in self._ledger.connections:
            put(catalog.QP_STATUS, _qp(connection), 1)
        for context in self._ledger.contexts:
            attributes = {
                **self._process(context.pid),
                "rdma.device": context.device,
                "fabrictap.origin": context.origin,
            }
            put(catalog.CONTEXT_COUNT, attributes, context.count)
        for (pid, device, access, atomic), (count, size) in self._memory().items():
            attributes = {
                **self._process(pid),
                "rdma.device": device,
                "rdma.memory_region.remote_access": access,
            }
            if atomic is not None:
                attributes["rdma.memory_region.remote_atomic"] = atomic
            put(catalog.MR_COUNT, attributes, count)
            put(catalog.MR_SIZE, attributes, size)
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
                # What is no more is 0 once: a queue pair that changed its state is not counted twice.
                series.set(0, now_ns)
                self._series.end(series)
        self._live = live
        self._tables(now_ns)

    def _process(self, pid: int | None) -> dict[str, AttributeValue]:
        if pid is None:
            return {"process.executable.name": "[kernel]"}
        process = self._ledger.processes.get(pid)
        return {"process.pid": pid} | ({"process.executable.name": process.name} if process else {})

    def _memory(self) -> Mapping[tuple[int | None, str, str, bool | None], tuple[int, int]]:
        sums: dict[tuple[int | None, str, str, bool | None], tuple[int, int]] = {}
        for region in self._ledger.memory:
            key = (region.pid, region.device, region.remote_access, region.remote_atomic)
            count, size = sums.get(key, (0, 0))
            sums[key] = (count + 1, size + region.length)
        return sums

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
            ("gpus", len(ledger.gpus), ledger.gpus.dropped),
            ("gpu_figures", len(ledger.providers), ledger.providers.dropped),
        ):
            attributes = {"fabrictap.table": name}
            self._series.series(catalog.TABLE_ENTRIES, attributes, now_ns).set(entries, now_ns)
            self._series.series(catalog.TABLE_EVICTED, attributes, now_ns).observe(dropped, now_ns)


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
