"""Counters of posted work into series, joined to the connection, its process and its peer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fabrictap import catalog
from fabrictap.catalog import Metric
from fabrictap.ext import records
from fabrictap.ext.records import SIZE_SLOTS, Post, PostKey, Record
from fabrictap.ledger import Ledger
from fabrictap.ledger.connections import CONNECTED, Connection, Coverage, Posted
from fabrictap.ledger.flows import INBOUND, LOCAL
from fabrictap.series import AttributeValue, Histogram, Series, SeriesTable
from fabrictap.sources.verbs.control import QP_TYPES

#: enum ibv_wr_opcode, libibverbs/verbs.h; 128 is a posted receive (records.h).
OPERATIONS = {
    0: "rdma_write",
    1: "rdma_write_with_imm",
    2: "send",
    3: "send_with_imm",
    4: "rdma_read",
    5: "atomic_cmp_and_swp",
    6: "atomic_fetch_and_add",
    7: "local_inv",
    8: "bind_mw",
    9: "send_with_inv",
    10: "tso",
    11: "driver",
    128: "recv",
}
_MAX_ADDRESS_HANDLES = 65536
# Ticks for which a counter waits for its queue pair and the peer: what is older than the agent is named by
# netlink, a moment later.
_PATIENCE = 3

Moved = tuple[PostKey, Post, str]


@dataclass(slots=True)
class _Counter:
    """One counter of the map. ``totals``: operations, bytes, SGEs, inline, signaled; ``sizes`` by slot."""

    key: PostKey
    device: str
    #: Folds left to wait for the control path to tell of the queue pair.
    patience: int
    totals: tuple[int, ...] = (0,) * 5
    exported: tuple[int, ...] = (0,) * 5
    #: Operations and bytes that the connection, and so its flows, have been told of.
    attributed: tuple[int, ...] = (0, 0)
    #: As last read, modulo 2**32, and what has come since the last export.
    sizes: tuple[int, ...] = (0,) * SIZE_SLOTS
    new_sizes: list[int] = field(default_factory=lambda: [0] * SIZE_SLOTS)
    #: What is exported, in the order of ``totals``; empty until the peer is known.
    series: list[Series | None] = field(default_factory=list)
    histogram: Series | None = None
    #: When its queue pair was last reset, nanoseconds since the epoch.
    bound_ns: int | None = None


class PostFold:
    """Holds one entry for each counter of the map, which bounds it. Under the node's lock, but for
    :meth:`delete_retired`."""

    def __init__(self, series: SeriesTable, ledger: Ledger) -> None:
        self._series = series
        self._ledger = ledger
        self._counters: dict[bytes, _Counter] = {}
        self._of_qp: dict[tuple[str, int], set[bytes]] = {}
        self._of_pid: dict[int, set[bytes]] = {}
        self._retired: list[bytes] = []
        #: Counters that are not ours to export, with their device where it is known: kept to be deleted.
        self._ignored: dict[bytes, tuple[PostKey, str | None]] = {}
        #: When the last provider library was probed, nanoseconds since the epoch.
        self.probed_since_ns: int | None = None
        self._peer_gids: dict[int, str] = {}
        #: Counters that are not exported yet, because their queue pair's peer is not known yet.
        self._waiting: set[bytes] = set()

    def learn(self, record: Record) -> None:
        """Remember the peer behind an address handle; the oldest go when there are too many."""
        if record.kind == records.AH_CREATED and record.ah_peer_gid is not None:
            if len(self._peer_gids) >= _MAX_ADDRESS_HANDLES:
                del self._peer_gids[next(iter(self._peer_gids))]
            self._peer_gids[record.ah_id] = record.ah_peer_gid

    def take(self, posts: list[tuple[PostKey, Post, str | None]]) -> dict[bytes, Moved]:
        """The counters that moved, by key; those of devices that are not ours are left out."""
        moved: dict[bytes, Moved] = {}
        for key, post, device in posts:
            if device is not None and self._ledger.filter(device):
                moved[key.raw] = (key, post, device)
            elif key.raw not in self._counters:
                self._ignored[key.raw] = (key, device)
                self._index(key, device)
        return moved

    def settle(self, device: str, qpn: int, posts: dict[bytes, Moved], now_ns: int) -> None:
        """The flows of a queue pair are about to end: what it has posted until now belongs to them."""
        self._count_all(device, qpn, posts, now_ns, final=False)

    def unbind(self, device: str, qpn: int, now_ns: int) -> None:
        """A queue pair was reset: what it posts from now on is for another peer, in other series."""
        for raw in self._of_qp.get((device, qpn), ()):
            counter = self._counters.get(raw)
            if counter is not None and counter.series:
                self._end(counter)
                counter.series, counter.histogram, counter.bound_ns = [], None, now_ns

    def finish(self, device: str, qpn: int, posts: dict[bytes, Moved], now_ns: int) -> None:
        """A queue pair was destroyed: count its last posts, end its series, give its counters back."""
        self._count_all(device, qpn, posts, now_ns, final=True)
        for raw in list(self._of_qp.get((device, qpn), ())):
            self._retire(raw, now_ns)

    def fold(self, posts: dict[bytes, Moved], now_ns: int) -> None:
        """Count what is left of a tick's posts."""
        for raw in self._waiting - posts.keys():
            self._publish(self._counters[raw], now_ns, final=False)
        for key, post, device in posts.values():
            self._count(key, post, device, now_ns, final=False)

    def process_gone(self, pid: int, now_ns: int) -> None:
        """End what a process left behind: shared receive queues, and all where the control path is off."""
        for raw in list(self._of_pid.get(pid, ())):
            self._retire(raw, now_ns)

    def restart(self, now_ns: int) -> None:
        """The kernel's map is a new one: end everything that counted what was in the old.

        What was posted in between is not known, so that no connection is seen in full any more.
        """
        for connection in self._ledger.connections:
            if connection.coverage.kind != "control_only":
                connection.coverage = Coverage("since", now_ns)
        for raw in [*self._counters, *self._ignored]:
            self._retire(raw, now_ns)
        self._retired.clear()

    def delete_retired(self, delete: Callable[[bytes], None]) -> None:
        """Take ended counters out of the kernel's map. In the source's thread."""
        while self._retired:
            delete(self._retired.pop())

    def _count_all(
        self, device: str, qpn: int, posts: dict[bytes, Moved], now_ns: int, *, final: bool
    ) -> None:
        """Count the posts of one queue pair, and take them out of ``posts``."""
        own = [
            raw
            for raw, (key, _, at) in posts.items()
            if at == device and key.qpn == qpn and key.queue != records.QUEUE_SHARED_RECEIVE
        ]
        for raw in own:
            self._count(*posts.pop(raw), now_ns, final=final)

    def _index(self, key: PostKey, device: str | None) -> None:
        self._of_pid.setdefault(key.pid, set()).add(key.raw)
        if device is not None and key.queue != records.QUEUE_SHARED_RECEIVE:
            self._of_qp.setdefault((device, key.qpn), set()).add(key.raw)

    def _count(self, key: PostKey, post: Post, device: str, now_ns: int, *, final: bool) -> None:
        counter = self._counters.get(key.raw)
        if counter is None:
            counter = self._counters[key.raw] = _Counter(key, device, _PATIENCE)
            self._ignored.pop(key.raw, None)
            self._index(key, device)
        totals = (post.operations, post.bytes, post.sges, post.inlined, post.signaled)
        for slot, (now, before) in enumerate(zip(post.sizes, counter.sizes, strict=True)):
            counter.new_sizes[slot] += (now - before) & 0xFFFFFFFF
        counter.totals, counter.sizes = totals, post.sizes
        self._publish(counter, now_ns, final=final)

    def _connection(self, counter: _Counter) -> Connection | None:
        if counter.key.queue == records.QUEUE_SHARED_RECEIVE:
            return None
        return self._ledger.connections.get(counter.device, counter.key.qpn)

    def _publish(self, counter: _Counter, now_ns: int, *, final: bool) -> None:
        """Bring the series up to date. What is posted before a queue pair has a peer waits for it."""
        key = counter.key
        connection = self._connection(counter)
        if not counter.series and not final and self._must_wait(counter, connection):
            self._waiting.add(key.raw)
            return
        # What is posted in INIT belongs to the flow that opens at RTR, whenever the counter was read.
        early = (
            not final
            and connection is not None
            and connection.type in CONNECTED
            and connection.state == "init"
        )
        if connection is not None and not early:
            posted = connection.posted.setdefault(_operation(key), Posted())
            posted.operations += counter.totals[0] - counter.attributed[0]
            posted.bytes += counter.totals[1] - counter.attributed[1]
            counter.attributed = counter.totals[:2]
            hidden = connection.coverage.kind == "control_only" and not connection.extended
            if hidden and self.probed_since_ns is not None:
                connection.coverage = self._coverage(connection, self.probed_since_ns)
        if not counter.series:
            self._make_series(counter, connection, now_ns)
        (self._waiting.add if early else self._waiting.discard)(key.raw)
        for series, total, exported in zip(counter.series, counter.totals, counter.exported, strict=True):
            if series is not None:
                series.add(total - exported, now_ns)
        counter.exported = counter.totals
        if counter.histogram is not None:
            histogram = counter.histogram.value
            if not isinstance(histogram, Histogram):
                # Slot 1 of records.h is the bucket (2**-1, 2**0].
                histogram = Histogram(offset=-1, buckets=[0] * (SIZE_SLOTS - 1))
            histogram.zeros += counter.new_sizes[0]
            for slot in range(1, SIZE_SLOTS):
                histogram.buckets[slot - 1] += counter.new_sizes[slot]
            histogram.count += sum(counter.new_sizes)
            if counter.series[1] is not None and isinstance(counter.series[1].value, int):
                histogram.sum = counter.series[1].value
            counter.histogram.set(histogram, now_ns)
        counter.new_sizes = [0] * SIZE_SLOTS

    @staticmethod
    def _coverage(connection: Connection, since_ns: int) -> Coverage:
        """A process may end before its libraries are looked at; that it posted says that they are probed."""
        if (
            connection.origin == "probe"
            and connection.state != "unknown"
            and connection.created_ns >= since_ns
        ):
            return Coverage("exact")
        return Coverage("since", max(since_ns, connection.created_ns))

    def _must_wait(self, counter: _Counter, connection: Connection | None) -> bool:
        if connection is not None and connection.type not in CONNECTED:
            return False
        if connection is not None and connection.peer_gid is not None:
            return False
        if connection is not None and connection.state in ("reset", "init"):
            return True
        counter.patience -= 1
        return counter.patience > 0 and counter.key.queue != records.QUEUE_SHARED_RECEIVE

    def _make_series(self, counter: _Counter, connection: Connection | None, now_ns: int) -> None:
        key = counter.key
        operation = _operation(key)
        exact = connection is not None and connection.coverage.kind == "exact"
        start_ns = now_ns
        known: dict[str, AttributeValue | None] = {
            **self._ledger.identity(key.pid),
            "rdma.device": counter.device,
            "rdma.qp.number": key.qpn,
            "rdma.qp.type": QP_TYPES.get(key.qp_type, "unknown"),
            "rdma.operation": operation,
            "fabrictap.coverage": "exact" if exact else "since",
        }
        if key.queue == records.QUEUE_SHARED_RECEIVE:
            known["rdma.qp.type"] = "srq"
            # Its handle is the process's own: without the pid two processes would be one series.
            known["process.pid"] = key.pid
        if connection is not None:
            known["rdma.gid"] = connection.gid
            known["rdma.peer.gid"] = connection.peer_gid
            known["rdma.peer.qp.number"] = connection.peer_qpn
            start_ns = connection.created_ns if exact else connection.coverage.since_ns or now_ns
        start_ns = max(start_ns, counter.bound_ns or 0)
        if key.queue == records.QUEUE_SEND and key.peer_qpn:
            known["rdma.peer.gid"] = self._peer_gids.get(key.address_handle)
            known["rdma.peer.qp.number"] = key.peer_qpn
        attributes = {name: value for name, value in known.items() if value is not None}

        def make(metric: Metric, **more: AttributeValue) -> Series:
            return self._series.series(metric, {**attributes, **more}, now_ns, start_ns)

        operations, sges = make(catalog.VERBS_OPERATIONS), make(catalog.VERBS_SGES)
        if operation == "recv":
            counter.series = [operations, make(catalog.VERBS_RECEIVE_CAPACITY), sges, None, None]
            return
        moved = None
        if operation not in LOCAL:
            direction = "receive" if operation in INBOUND else "transmit"
            moved = make(catalog.VERBS_IO, **{catalog.IO_DIRECTION.name: direction})
            counter.histogram = make(catalog.VERBS_MESSAGE_SIZE)
        counter.series = [
            operations,
            moved,
            sges,
            make(catalog.VERBS_INLINE),
            make(catalog.VERBS_SIGNALED),
        ]

    def _end(self, counter: _Counter) -> None:
        for series in (*counter.series, counter.histogram):
            if series is not None:
                self._series.end(series)

    def _retire(self, raw: bytes, now_ns: int) -> None:
        counter = self._counters.pop(raw, None)
        if counter is None:
            key, device = self._ignored.pop(raw)
        else:
            key, device = counter.key, counter.device
            if counter.series or counter.totals != counter.exported:
                self._publish(counter, now_ns, final=True)
            self._end(counter)
            self._waiting.discard(raw)
        _discard(self._of_pid, key.pid, raw)
        _discard(self._of_qp, (device, key.qpn), raw)
        self._retired.append(raw)


def _operation(key: PostKey) -> str:
    return OPERATIONS.get(key.operation, "unknown")


def _discard(index: dict[Any, set[bytes]], key: Any, raw: bytes) -> None:
    members = index.get(key)
    if members is not None:
        members.discard(raw)
        if not members:
            del index[key]
