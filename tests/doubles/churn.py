"""Queue pairs that are made, connected, posted to and destroyed, and what the agent should have counted.

Records and counters are packed as the probes write them; everything from there on is the agent's own: folds,
ledger, inventory, ring and the serialization of exports.
"""

from __future__ import annotations

from dataclasses import dataclass

from doubles import raw_records as raw
from doubles.verbs_node import DEVICE, INIT, RTR, RTS, created, destroyed, modified, read, sampled
from fabrictap import catalog
from fabrictap.config import Config, Limits
from fabrictap.export.metrics import MetricsTree
from fabrictap.ext.records import PostKey
from fabrictap.insight.inventory import Inventory
from fabrictap.ledger import Ledger
from fabrictap.ledger.processes import Process
from fabrictap.series import Series, SeriesTable, in_memory
from fabrictap.sources.verbs.source import Verbs

SECOND = 10**9
SIZE = 100
_PIDS = 40
_NUMBERS = 1 << 20


@dataclass
class Sums:
    """Over all queue pairs. ``flows``: what their senders' spans say."""

    operations: int = 0
    bytes: int = 0
    messages: int = 0
    flow_operations: int = 0
    flow_bytes: int = 0


class Churn:
    """One agent; :meth:`live` is one generation of ``width`` queue pairs, of two seconds."""

    def __init__(self, limits: Limits) -> None:
        config = Config(limits=limits)
        self.table = SeriesTable(limits.series, in_memory(limits.series, connections=limits.connections))
        self.ledger = Ledger(config, self.table.ring)
        self.verbs = Verbs(config.sources.verbs, self.table, self.ledger)
        self.inventory = Inventory(self.table, self.ledger)
        self.tree = MetricsTree(self.table, {"service.name": "churn"})
        self.now = 1_700_000_000 * SECOND
        self.seen = Sums()
        self.posted = Sums()
        self._next = 1
        self._ended: set[Series] = set()
        pids = range(1, _PIDS + 1)
        self.verbs.fold(
            sampled(
                (),
                processes=[Process(pid, f"app{pid}", 1.0) for pid in pids],
                instrumented=dict.fromkeys(pids, 0),
            ),
            self.now,
        )

    def live(self, width: int) -> None:
        qpns = [1 + (self._next + index) % _NUMBERS for index in range(width)]
        self._next += width
        for qpn in qpns:
            life = [created(qpn, pid=1 + qpn % _PIDS)]
            life += [modified(state, qpn, pid=1 + qpn % _PIDS) for state in (INIT, RTR, RTS)]
            self._fold(life)
        self._fold([], [self._post(qpn, 3) for qpn in qpns])
        self._export()
        gone = [destroyed(qpn, pid=1 + qpn % _PIDS) for qpn in qpns]
        self._fold(gone, [self._post(qpn, 5) for qpn in qpns])
        retired: list[bytes] = []
        self.verbs._post_fold.delete_retired(retired.append)
        for key in retired:
            assert self.verbs._posts.forget(key)
        self._export()
        posted = 5 * width
        self.posted.operations += posted
        self.posted.bytes += posted * SIZE
        self.posted.messages += posted
        self.posted.flow_operations += posted
        self.posted.flow_bytes += posted * SIZE

    def overflow(self, metric: catalog.Metric) -> int:
        """What counts in the series that stands for all that the full table refused."""
        slot = self.table._overflow.get(metric.name)
        return 0 if slot is None else _number(Series(self.table.ring, slot, metric, b"").value)

    @staticmethod
    def _post(qpn: int, operations: int) -> tuple[PostKey, bytes]:
        return raw.post(qpn, operations=operations, size=SIZE, pid=1 + qpn % _PIDS)

    def _fold(self, records: list[raw.Record], posts: list[tuple[PostKey, bytes]] | None = None) -> None:
        self.now += SECOND // 100
        read(self.verbs, [(post, DEVICE) for post in posts or ()])
        self.verbs.fold(sampled(records, posts=posts is not None), self.now)

    def _export(self) -> None:
        """As the node does it; what ends is added up before the exporter takes it away."""
        self.now += SECOND
        self.inventory.fold(self.now)
        ended = {series for series in self.table if series.ended}
        for series in ended - self._ended:
            if series.metric is catalog.VERBS_OPERATIONS:
                self.seen.operations += _number(series.value)
            elif series.metric is catalog.VERBS_IO:
                self.seen.bytes += _number(series.value)
            elif series.metric is catalog.VERBS_MESSAGE_SIZE and series.value is not None:
                self.seen.messages += series.value.count  # type: ignore[union-attr]
        self._ended = ended
        self.table.ring.tick(self.now)
        self.tree.update(self.now)
        for _ in self.tree.requests():
            pass
        for span in self.ledger.flows.take_finished():
            if span.name == "rdma.flow" and span.sender:
                self.seen.flow_operations += _number(span.attributes["rdma.flow.operations"])
                self.seen.flow_bytes += _number(span.attributes["rdma.flow.io"])


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value
