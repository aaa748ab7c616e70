"""The source ``verbs`` without a kernel: its folds, fed with records and counters packed by hand."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from doubles import raw_records as raw
from fabrictap import catalog
from fabrictap.config import Config
from fabrictap.ext import records
from fabrictap.ext.records import PostKey, Record, divide
from fabrictap.ledger import Ledger
from fabrictap.ledger.processes import Process
from fabrictap.series import Series, SeriesTable
from fabrictap.sources.verbs.source import Sample, Verbs

DEVICE = "mlx5_0"
SECOND = 10**9
RESET, INIT, RTR, RTS, ERR = 0, 1, 2, 3, 6
RECV = 128
HERE, THERE = "fe80::1", "fe80::2"


def read(verbs: Verbs, posts: Iterable[tuple[tuple[PostKey, bytes], str | None]]) -> None:
    """What the source does with its map of posted work; with each counter the device of its context."""
    found = list(posts)
    keys = b"".join(key.raw for (key, _), _ in found)
    verbs._posts.take(keys, b"".join(value for (_, value), _ in found), len(found), 1)
    devices = {key.raw: device for (key, _), device in found}
    for number in verbs._posts.strangers():
        if (device := devices.get(verbs._posts.raw(number))) is not None:
            verbs._posts.place(number, device)


def sampled(happened: Iterable[Record], **sample: Any) -> Sample:
    """A sample with these records, divided as the source does it."""
    found, regions = divide(b"".join(record.raw for record in happened))
    return Sample(records=found, regions=regions, received=len(found), **sample)


class Node:
    """The source with what it folds into; time goes by one second a fold."""

    def __init__(self, **devices: list[str]) -> None:
        config = Config()
        for name, patterns in devices.items():
            setattr(config.devices, name, patterns)
        self.table = SeriesTable(1000)
        self.ledger = Ledger(config, self.table.ring)
        self.verbs = Verbs(config.sources.verbs, self.table, self.ledger)
        self.now = time.time_ns()
        self.deleted: list[bytes] = []
        self.instrumented(1)

    def instrumented(self, *pids: int) -> None:
        self.fold(
            processes=[Process(pid, f"app{pid}", 1.0) for pid in pids],
            instrumented=dict.fromkeys(pids, self.now - 10 * SECOND),
        )

    def fold(self, *happened: Record, posts: Any = None, **sample: Any) -> None:
        self.now += SECOND
        read(self.verbs, posts or [])
        self.verbs.fold(sampled(happened, posts=posts is not None, **sample), self.now)

    def tick(self, *posts: tuple[PostKey, bytes], device: str | None = DEVICE, **sample: Any) -> None:
        """A tick without records."""
        self.fold(posts=[(post, device) for post in posts], **sample)

    def sweep(self) -> list[bytes]:
        """What the source would delete from the kernel's map now."""
        swept: list[bytes] = []
        self.verbs._post_fold.delete_retired(swept.append)
        for key in swept:
            assert self.verbs._posts.forget(key)
        return swept

    def find(self, metric: catalog.Metric, **attributes: Any) -> list[Series]:
        wanted = {name.replace("_", "."): value for name, value in attributes.items()}
        return [
            series
            for series in self.table
            if series.metric is metric and wanted.items() <= series.attributes.items()
        ]

    def one(self, metric: catalog.Metric, **attributes: Any) -> Series:
        (series,) = self.find(metric, **attributes)
        return series

    def connection(self, qpn: int = 17):
        return self.ledger.connections.get(DEVICE, qpn)

    def spans(self) -> dict[str, Any]:
        return {span.attributes["rdma.flow.role"]: span for span in self.ledger.flows.take_finished()}


def created(qpn: int = 17, **more: Any) -> Record:
    return raw.qp(records.QP_CREATED, DEVICE, qpn, **more)


def modified(state: int, qpn: int = 17, **more: Any) -> Record:
    mask, values = raw.STATE, {}
    if state == RTR:
        mask |= raw.AV | raw.DEST_QPN | raw.RQ_PSN | raw.PATH_MTU
        values = {"gid": HERE, "peer_gid": THERE, "peer_qpn": 99, "rq_psn": 1000, "mtu": 5}
    if state == RTS:
        mask |= raw.SQ_PSN
        values = {"sq_psn": 2000}
    return raw.qp(records.QP_MODIFIED, DEVICE, qpn, mask=mask, state=state, **{**values, **more})


def destroyed(qpn: int = 17, **more: Any) -> Record:
    return raw.qp(records.QP_DESTROYED, DEVICE, qpn, **more)
