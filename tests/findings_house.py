"""A node without sources for tests of findings: ledger, series and detectors, and a clock that they set."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from fabrictap import catalog, config
from fabrictap.config import Config
from fabrictap.insight.detection import Detectors
from fabrictap.insight.detectors import SourceState
from fabrictap.insight.findings import LogRecord
from fabrictap.journal import Journal
from fabrictap.ledger import Ledger
from fabrictap.ledger.connections import Connection, Coverage
from fabrictap.ledger.devices import Device, Port
from fabrictap.ledger.memory import REMOTE_READ, MemoryRegion
from fabrictap.ledger.processes import Process
from fabrictap.ledger.workloads import NONE, Workload
from fabrictap.series import SeriesTable

SECOND = 10**9
HOUR = 3600 * SECOND
DAY = 24 * HOUR
#: A midnight in UTC, so that days of a test are days of the detectors.
MIDNIGHT = 20000 * DAY
DEVICE = "mlx5_0"
HERE = "::ffff:10.0.0.1"
MiB, GiB = 1 << 20, 1 << 30


@dataclass
class Balance:
    """One direction of one port, as insight/reconcile.py tells it; moved by hand."""

    hw_id: str = f"{DEVICE}/1"
    device: str = DEVICE
    port: int = 1
    direction: str = "transmit"
    since_ns: int = MIDNIGHT
    attributed: int = 0
    dark: int = 0
    uncertain: int = 0


class House:
    """``look`` goes on by one interval and lets all detectors look."""

    def __init__(self, *detectors: Any, state: str | None = None, **settings: Any) -> None:
        policy = settings.pop("policy", None)
        limits = settings.pop("limits", {})
        self.config = Config()
        self.config.state.path = state
        for name, value in settings.items():
            setattr(self.config.findings, name, value)
        for name, value in limits.items():
            setattr(self.config.limits, name, value)
        if policy is not None:
            self.config.policy = policy
        self.now = MIDNIGHT
        self.table = SeriesTable(20000)
        self.ledger = Ledger(self.config, self.table.ring)
        self.journal = Journal(self.table.ring)
        self.balance = Balance()
        self.sources: list[SourceState] = []
        self.detectors = Detectors(
            self.config,
            self.table,
            self.ledger,
            self.journal,
            threading.Lock(),
            detectors=detectors or None,
        )
        self.records: list[LogRecord] = []
        port = Port(1, "ethernet", "active", "eth0", {0: HERE})
        self.ledger.devices.put(Device(DEVICE, "mlx5_core", None, None, None, {1: port}))

    @property
    def board(self):
        return self.detectors.findings

    def look(self, times: int = 1, *, step: int | None = None) -> list[LogRecord]:
        """The events that ``times`` looks have made."""
        made: list[LogRecord] = []
        for _ in range(times):
            self.now += 5 * SECOND if step is None else step
            # However much a look costs on this machine, the next one is not put off.
            self.detectors._next_ns = 0
            self.detectors.look(self.now, [self.balance], self.sources)
            self.detectors.fold(self.now)
            made += self.board.take_records()
        self.records += made
        return made

    def open(self) -> list[str]:
        """The kinds that are open now, each once."""
        return sorted({finding.kind.name for finding in self.board.open_findings()})

    def process(self, pid: int, name: str = "app", workload: Workload = NONE) -> None:
        self.ledger.processes.put(Process(pid, name, 1.0, pid, workload))

    def connect(  # noqa: PLR0917 - what a connection is
        self,
        qpn: int,
        pid: int | None = 1,
        state: str = "rts",
        peer: str | None = "::ffff:10.0.0.2",
        coverage: str = "exact",
        device: str = DEVICE,
        gid: str = HERE,
        **more: Any,
    ) -> Connection:
        made = Connection(
            device,
            qpn,
            more.pop("type", "rc"),
            "init",
            pid,
            "app",
            self.now,
            more.pop("origin", "probe"),
            Coverage(coverage),
            **{
                "port": 1,
                "gid": gid,
                "peer_gid": peer,
                "peer_qpn": 1000 + qpn,
                "sq_psn": qpn,
                "rq_psn": qpn,
                **more,
            },
        )
        assert self.ledger.connections.put(made)
        if state in ("rtr", "rts"):
            self.ledger.connections.advance(made, "rtr", self.now)
        self.ledger.connections.advance(made, state, self.now)
        return made

    def end(self, connection: Connection) -> None:
        self.ledger.connections.remove(connection, "destroyed", self.now)

    def register(self, lkey: int, pid: int | None, size: int, access: int = REMOTE_READ) -> None:
        self.ledger.memory.put(MemoryRegion(DEVICE, lkey, lkey, pid, 0, size, access))

    def count(self, metric: catalog.Metric, value: float, **attributes: Any) -> None:
        """Set a series of the port; attributes by the names of constants in the catalog."""
        named = {getattr(catalog, name).name: value for name, value in attributes.items()}
        labels = {"hw.id": f"{DEVICE}/1", "hw.parent": DEVICE, **named}
        series = self.table.series(metric, labels, self.now)
        if metric.kind is catalog.Kind.COUNTER:
            series.observe(int(value), self.now)
        else:
            series.set(value, self.now)

    def value(self, metric: catalog.Metric, **attributes: str) -> float:
        """The sum over the series of a metric that have these attributes."""
        return sum(
            series.value or 0
            for series in self.table
            if series.metric is metric and attributes.items() <= series.attributes.items()
        )


def rules(*entries: dict[str, Any], tenant_by: str | None = None) -> config.Policy:
    return config.Policy(workloads=[config.WorkloadPolicy(**entry) for entry in entries], tenant_by=tenant_by)
