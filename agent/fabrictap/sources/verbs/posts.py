"""Counters of posted work into series, joined to the connection, its process and its peer.

What moves is folded by ext/posts.pyx once it is bound; here it is decided what a counter is bound to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from fabrictap import catalog
from fabrictap.catalog import Metric
from fabrictap.ext import records
from fabrictap.ext.posts import IN, NONE, OUT, ROOM, Posts
from fabrictap.ext.records import PostKey, Record
from fabrictap.ledger import Ledger, names
from fabrictap.ledger.connections import CONNECTED, Connection, Coverage
from fabrictap.ledger.flows import INBOUND, LOCAL
from fabrictap.ledger.traffic import PortPosted
from fabrictap.series import AttributeValue, Series, SeriesTable
from fabrictap.sources.verbs.control import QP_TYPES

#: A posted receive (records.h). Other opcodes are enum ibv_wr_opcode, as the first of names.OPERATIONS are.
_RECV = 128
_OPERATION = {
    **dict.fromkeys(range(256), names.OPERATIONS.index("unknown")),
    **{opcode: opcode for opcode in range(names.OPERATIONS.index("recv"))},
    _RECV: names.OPERATIONS.index("recv"),
}
#: Bytes of extended transport headers of one request (IBTA 9.3): RETH 16, AtomicETH 28, immediate data and
#: IETH 4; a datagram has a DETH of 8 besides.
_HEADERS = {
    "rdma_write": 16,
    "rdma_write_with_imm": 20,
    "send_with_imm": 4,
    "send_with_inv": 4,
    "rdma_read": 16,
    "atomic_cmp_and_swp": 28,
    "atomic_fetch_and_add": 28,
}
_DATAGRAM_HEADER = 8
_MAX_ADDRESS_HANDLES = 65536
# Ticks for which a counter waits for its queue pair and the peer: what is older than the agent is named by
# netlink, a moment later.
_PATIENCE = 3
_TOTALS = 5


@dataclass(slots=True)
class _Counter:
    """One counter of the map; ``number`` is its number in the table. What it counts stands there."""

    number: int
    key: PostKey
    device: str
    #: Folds left to wait for the control path to tell of the queue pair.
    patience: int
    #: Operations, bytes, SGEs, inline, signaled; empty until the peer is known.
    series: list[Series | None] = field(default_factory=list)
    histogram: Series | None = None
    #: When its queue pair was last reset, nanoseconds since the epoch.
    bound_ns: int | None = None


class PostFold:
    """Holds one entry for each counter of the map, which bounds it. Under the node's lock, but for
    :meth:`delete_retired`."""

    def __init__(self, series: SeriesTable, ledger: Ledger, table: Posts) -> None:
        self._series = series
        self._ledger = ledger
        self._table = table
        self._counters: dict[int, _Counter] = {}
        #: Numbers of the counters of a queue pair and of a process, those that are not ours among them.
        self._of_qp: dict[tuple[str, int], set[int]] = {}
        self._of_pid: dict[int, set[int]] = {}
        self._retired: list[bytes] = []
        #: Counters that are not ours to export, with their device where it is known: kept to be deleted.
        self._ignored: dict[int, tuple[PostKey, str | None]] = {}
        #: When the last provider library was probed, nanoseconds since the epoch.
        self.probed_since_ns: int | None = None
        self._peer_gids: dict[int, str] = {}
        #: How many counters count in a series: those of a peer's address handles share one.
        self._users: dict[Series, int] = {}
        #: Counters that are not exported yet, because their queue pair's peer is not known yet.
        self._waiting: set[int] = set()
        #: Port (hw.id) -> its number in the table.
        self._ports: dict[str, int] = {}

    @property
    def owing(self) -> bool:
        """Whether posts have been read that do not count for a port yet."""
        return any(
            self._counters[number].key.queue == records.QUEUE_SEND and not self._counters[number].series
            for number in self._waiting
        )

    def posted(self) -> dict[str, PortPosted]:
        """What was posted to each port."""
        totals = self._table.ports(len(self._ports))
        return {hw_id: PortPosted(*totals[index]) for hw_id, index in self._ports.items()}

    def learn(self, record: Record) -> None:
        """Remember the peer behind an address handle; the oldest go when there are too many."""
        if record.kind == records.AH_CREATED and record.ah_peer_gid is not None:
            if len(self._peer_gids) >= _MAX_ADDRESS_HANDLES:
                del self._peer_gids[next(iter(self._peer_gids))]
            self._peer_gids[record.ah_id] = record.ah_peer_gid

    def admit(self) -> None:
        """Look at the counters that are new; those of devices that are not ours are left out."""
        for number in self._table.arrived():
            device = self._table.device(number)
            key = self._table.key(number)
            if device is not None and self._ledger.filter(device):
                self._table.admit(number)
                self._ignored.pop(number, None)
                self._counters[number] = _Counter(number, key, device, _PATIENCE)
            else:
                self._ignored[number] = (key, device)
                if device is not None:
                    self._table.mute(number)
            self._index(number, key, device)

    def settle(self, device: str, qpn: int, now_ns: int) -> None:
        """The flows of a queue pair are about to end: what it has posted until now belongs to them."""
        for number in self._of_qp.get((device, qpn), ()):
            if number in self._counters and self._table.fold_one(number, now_ns):
                self._publish(self._counters[number], now_ns, final=False)

    def unbind(self, device: str, qpn: int, now_ns: int) -> None:
        """A queue pair was reset: what it posts from now on is for another peer, in other series."""
        for number in self._of_qp.get((device, qpn), ()):
            counter = self._counters.get(number)
            if counter is not None and counter.series:
                self._end(counter)
                counter.bound_ns = now_ns

    def finish(self, device: str, qpn: int, now_ns: int) -> None:
        """A queue pair was destroyed: count its last posts, end its series, give its counters back."""
        self._retire_all(self._of_qp.get((device, qpn), ()), now_ns)

    def fold(self, arrived: Iterable[Connection], now_ns: int) -> None:
        """Count what is left of a tick's posts. ``arrived``: connections that are new since the last."""
        for connection in arrived:
            for number in self._of_qp.get((connection.device, connection.qpn), ()):
                self._table.unbind(number)
        moved = self._table.fold(now_ns)
        for number in self._waiting.difference(moved):
            self._publish(self._counters[number], now_ns, final=False)
        for number in moved:
            counter = self._counters.get(number)
            if counter is not None:
                self._publish(counter, now_ns, final=False)

    def process_gone(self, pid: int, now_ns: int) -> None:
        """End what a process left behind: shared receive queues, and all where the control path is off."""
        self._retire_all(self._of_pid.get(pid, ()), now_ns)

    def restart(self, table: Posts, now_ns: int) -> None:
        """The kernel's map is a new one: end everything that counted what was in the old.

        What was posted in between is not known, so that no connection is seen in full any more.
        """
        for connection in self._ledger.connections:
            if connection.coverage_kind != "control_only":
                connection.coverage = Coverage("since", now_ns)
                connection.missed_before_ns = None
        self._retire_all([*self._counters, *self._ignored], now_ns)
        self._retired.clear()
        self._table = table

    def delete_retired(self, delete: Callable[[bytes], None]) -> None:
        """Take ended counters out of the kernel's map. In the source's thread."""
        while self._retired:
            delete(self._retired.pop())

    def _index(self, number: int, key: PostKey, device: str | None) -> None:
        self._of_pid.setdefault(key.pid, set()).add(number)
        if device is not None and key.queue != records.QUEUE_SHARED_RECEIVE:
            self._of_qp.setdefault((device, key.qpn), set()).add(number)

    def _connection(self, counter: _Counter) -> Connection | None:
        if counter.key.queue == records.QUEUE_SHARED_RECEIVE:
            return None
        return self._ledger.connections.get(counter.device, counter.key.qpn)

    def _publish(self, counter: _Counter, now_ns: int, *, final: bool) -> None:
        """Bring the series up to date. What is posted before a queue pair has a peer waits for it."""
        number = counter.number
        connection = self._connection(counter)
        if not counter.series and not final and self._must_wait(counter, connection):
            self._waiting.add(number)
            return
        operation = _OPERATION[counter.key.operation]
        connected = connection is not None and connection.type in CONNECTED
        # What is posted in INIT belongs to the flow that opens at RTR, whenever the counter was read.
        early = not final and connection is not None and connected and connection.state == "init"
        hidden = False
        if connection is not None and not early:
            self._table.attribute(number, connection, operation)
            hidden = connection.coverage_kind == "control_only" and not connection.extended
            if hidden and self.probed_since_ns is not None:
                connection.coverage = self._coverage(connection, self.probed_since_ns)
                hidden = False
        if not counter.series:
            self._make_series(counter, connection, now_ns)
        self._table.tell(number, now_ns)
        if early:
            self._waiting.add(number)
            return
        self._waiting.discard(number)
        if not final and not hidden:
            self._table.bind(number, connection, operation, connected)

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
        operation = names.OPERATIONS[_OPERATION[key.operation]]
        exact = connection is not None and connection.coverage_kind == "exact"
        estimated = connection is not None and connection.coverage_kind == "estimated"
        start_ns = now_ns
        known: dict[str, AttributeValue | None] = {
            **self._ledger.identity(key.pid),
            "rdma.device": counter.device,
            "rdma.qp.number": key.qpn,
            "rdma.qp.type": QP_TYPES.get(key.qp_type, "unknown"),
            "rdma.operation": operation,
            "fabrictap.coverage": "estimated" if estimated else "exact" if exact else "since",
        }
        if key.queue == records.QUEUE_SHARED_RECEIVE:
            known["rdma.qp.type"] = "srq"
            # Its handle is the process's own: without the pid two processes would be one series.
            known["process.pid"] = key.pid
        if connection is not None:
            known["rdma.gid"] = connection.gid
            known["rdma.peer.gid"] = connection.peer_gid
            known["rdma.peer.qp.number"] = connection.peer_qpn
            start_ns = connection.created_ns if exact else connection.since_ns or now_ns
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
        else:
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
        self._table.give_series(counter.number, counter.series, counter.histogram)
        self._give_port(counter, connection, operation)
        for series in (*counter.series, counter.histogram):
            if series is not None:
                self._users[series] = self._users.get(series, 0) + 1

    def _give_port(self, counter: _Counter, connection: Connection | None, operation: str) -> None:
        port = connection.port if connection is not None else None
        if port is None:
            device = self._ledger.devices.get(counter.device)
            port = next(iter(device.ports), 1) if device is not None else 1
        index = self._ports.setdefault(f"{counter.device}/{port}", len(self._ports))
        header = _HEADERS.get(operation, 0)
        if operation == "recv":
            way = ROOM
        elif operation in LOCAL:
            way = NONE
        else:
            way = IN if operation in INBOUND else OUT
            if counter.key.queue == records.QUEUE_SEND and counter.key.peer_qpn:
                header += _DATAGRAM_HEADER
        self._table.give_port(counter.number, index, way, header)

    def _end(self, counter: _Counter) -> None:
        """No more of it goes into the series that it had."""
        self._table.unbind(counter.number)
        self._table.give_series(counter.number, [None] * _TOTALS, None)
        self._table.give_port(counter.number, None, NONE, 0)
        for series in (*counter.series, counter.histogram):
            if series is None:
                continue
            self._users[series] -= 1
            if not self._users[series]:
                del self._users[series]
                self._series.end(series)
        counter.series, counter.histogram = [], None

    def _retire_all(self, numbers: Iterable[int], now_ns: int) -> None:
        for number in list(numbers):
            self._retire(number, now_ns)

    def _retire(self, number: int, now_ns: int) -> None:
        counter = self._counters.pop(number, None)
        if counter is None:
            key, device = self._ignored.pop(number)
        else:
            key, device = counter.key, counter.device
            if counter.series or self._table.owes(number):
                self._publish(counter, now_ns, final=True)
            self._end(counter)
            self._waiting.discard(number)
        _discard(self._of_pid, key.pid, number)
        if device is not None:
            _discard(self._of_qp, (device, key.qpn), number)
        self._table.mute(number)
        self._retired.append(key.raw)


def _discard(index: dict[Any, set[int]], key: Any, number: int) -> None:
    members = index.get(key)
    if members is not None:
        members.discard(number)
        if not members:
            del index[key]
