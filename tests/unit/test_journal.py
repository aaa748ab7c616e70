"""What the control path writes into the ring's journal, read from the ring's own bytes."""

from __future__ import annotations

import mmap
import os
import socket
import struct
from collections.abc import Iterator

import pytest

from doubles import raw_records as raw
from doubles.verbs_node import DEVICE, ERR, HERE, INIT, RTR, RTS, THERE, created, destroyed, modified, sampled
from fabrictap import catalog
from fabrictap.config import Config
from fabrictap.ext import records
from fabrictap.ext.records import Record
from fabrictap.ext.ring import Ring
from fabrictap.ledger import Ledger
from fabrictap.ledger.processes import Process
from fabrictap.series import SeriesTable
from fabrictap.sources.verbs.source import Verbs

NAMES = [event.name for event in catalog.events()]
#: struct ft_event of ext/ring.h.
EVENT = struct.Struct("<QQHBBiIIQ64s16s16s16s104s")
CAPACITY = 16
_EVENTS, _EVENTS_AT, _EVENTS_HEAD = 60, 136, 176  # offsets in struct ft_ring_header


class Node:
    def __init__(self) -> None:
        self.file = os.memfd_create("journal")
        ring = Ring(
            os.dup(self.file),
            series=100,
            rows=2,
            tick_ns=10**9,
            connections=10,
            events=CAPACITY,
            grace_ns=0,
            now_ns=1,
        )
        self.table = SeriesTable(100, ring)
        self.ledger = Ledger(Config(), ring)
        self.verbs = Verbs(Config().sources.verbs, self.table, self.ledger)
        self.ledger.processes.put(Process(1, "app1", 1.0))
        self.now = 10**18

    def fold(self, *happened: Record, **sample: list[int]) -> None:
        self.now += 10**9
        self.verbs.fold(sampled(happened, **sample), self.now)

    def events(self) -> Iterator[tuple[int, str, int, int, str, str, str, int]]:
        """number, name, pid, qpn, device, process, text, value; oldest first."""
        size = os.fstat(self.file).st_size
        with mmap.mmap(self.file, size, prot=mmap.PROT_READ) as view:
            (capacity,) = struct.unpack_from("<I", view, _EVENTS)
            (at,) = struct.unpack_from("<Q", view, _EVENTS_AT)
            (head,) = struct.unpack_from("<Q", view, _EVENTS_HEAD)
            assert capacity == CAPACITY
            for number in range(max(1, head - capacity + 1), head + 1):
                found = EVENT.unpack_from(view, at + number % capacity * EVENT.size)
                texts = [found[index].rstrip(b"\0").decode() for index in (9, 10, 13)]
                assert found[0] == number
                yield (number, NAMES[found[2]], found[5], found[6], texts[0], texts[1], texts[2], found[8])


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node()
    yield made
    os.close(made.file)


def test_the_life_of_a_queue_pair_is_told(node: Node) -> None:
    node.fold(created(), modified(INIT), modified(RTR), modified(RTS), modified(ERR), destroyed())
    assert [event[1:7] for event in node.events()] == [
        (name, 1, 17, DEVICE, "app1", text)
        for name, text in (
            ("rdma.qp.created", "rc"),
            ("rdma.qp.ready", "rtr"),
            ("rdma.qp.ready", "rts"),
            ("rdma.qp.error", "err"),
            ("rdma.qp.destroyed", "destroyed"),
        )
    ]


def test_the_peer_of_a_queue_pair_that_is_ready_is_told(node: Node) -> None:
    node.fold(created(), modified(RTR))
    size = os.fstat(node.file).st_size
    with mmap.mmap(node.file, size, prot=mmap.PROT_READ) as view:
        (at,) = struct.unpack_from("<Q", view, _EVENTS_AT)
        ready = EVENT.unpack_from(view, at + 2 * EVENT.size)
    assert ready[7] == 99
    assert [socket.inet_ntop(socket.AF_INET6, gid) for gid in ready[11:13]] == [HERE, THERE]


def test_memory_contexts_and_exits_are_told(node: Node) -> None:
    node.fold(
        raw.plain(records.CONTEXT_OPENED, DEVICE), raw.mr(records.MR_REGISTERED, DEVICE, 5, length=4096)
    )
    node.fold(raw.mr(records.MR_DEREGISTERED, DEVICE, 5), raw.mr(records.MR_DEREGISTERED, DEVICE, 6))
    node.fold(raw.plain(records.CONTEXT_CLOSED, DEVICE))
    node.fold(gone=[1])
    told = [
        (name, pid, device, process, value) for _, name, pid, _, device, process, _, value in node.events()
    ]
    assert told == [
        ("rdma.memory_region.registered", 1, DEVICE, "app", 4096),
        ("rdma.context.opened", 1, DEVICE, "app", 0),
        ("rdma.memory_region.deregistered", 1, DEVICE, "app", 4096),
        ("rdma.context.closed", 1, DEVICE, "app", 0),
        ("process.exited", 1, "", "app1", 0),
    ]


def test_the_oldest_events_are_overwritten(node: Node) -> None:
    for lkey in range(3 * CAPACITY):
        node.fold(raw.mr(records.MR_REGISTERED, DEVICE, lkey, length=lkey))
    assert [event[7] for event in node.events()] == list(range(2 * CAPACITY, 3 * CAPACITY))
