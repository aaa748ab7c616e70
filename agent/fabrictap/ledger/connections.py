"""Connections: the queue pairs of the node, each keyed by (device, qpn), never by qpn alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

from fabrictap.ext.connections import ConnectionRow
from fabrictap.ext.ring import Ring, Series
from fabrictap.ledger.flows import Flow, Flows
from fabrictap.ledger.processes import Process, Processes

#: QP types that are bound to one peer.
CONNECTED = frozenset({"rc", "uc", "xrc_ini", "xrc_tgt"})
#: Ended connections, and processes that made some, which are kept for who watches.
_MOST_TOLD = 4096


@dataclass(frozen=True, slots=True)
class Posted:
    """Work requests posted to a connection with one opcode, cumulative. ``bytes``: sum of SGE lengths."""

    operations: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Coverage:
    """How well posts to a connection are seen. ``since_ns``: nanoseconds since the epoch; ``fraction``: of
    the time since then, or since the connection was made, where the kind is estimated."""

    kind: str
    since_ns: int | None = None
    fraction: float | None = None

    @property
    def since(self) -> str | None:
        """The start of the observation as RFC 3339, where it is not the connection's own start."""
        if self.since_ns is None:
            return None
        moment = datetime.fromtimestamp(self.since_ns / 1e9, tz=timezone.utc)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Connection(ConnectionRow):
    """One queue pair. What is not known is None: a snapshot knows neither GIDs nor first PSNs.

    ``pid`` is None for a kernel user. ``created_ns`` is nanoseconds since the epoch, or when the
    agent first saw it where ``origin`` is netlink. What the ring has a place for is kept there.
    """

    __slots__ = ("extended", "missed_before_ns", "owner", "receiver", "sender", "status")

    def __init__(  # noqa: PLR0917 - the fields, in the order that the ledger has always had
        self,
        device: str,
        qpn: int,
        type: str,  # noqa: A002 - the catalog's word
        state: str,
        pid: int | None,
        process: str,
        created_ns: int,
        origin: str,
        coverage: Coverage,
        port: int | None = None,
        gid: str | None = None,
        peer_gid: str | None = None,
        peer_qpn: int | None = None,
        sq_psn: int | None = None,
        rq_psn: int | None = None,
        mtu: int | None = None,
    ) -> None:
        super().__init__(device, qpn, type, state, pid, process, created_ns, origin)
        self.cover(coverage.kind, coverage.since_ns, coverage.fraction)
        #: Nanoseconds that had been missed of its process when it was made; None where nobody asked yet.
        self.missed_before_ns: int | None = None
        self.port = port
        self.gid = gid
        self.peer_gid = peer_gid
        self.peer_qpn = peer_qpn
        self.sq_psn = sq_psn
        self.rq_psn = rq_psn
        self.mtu = mtu
        self.sender: Flow | None = None
        self.receiver: Flow | None = None
        #: Software holds the function pointers of ibv_wr_*: its posts may go unseen.
        self.extended = False
        #: What exports it as a queue pair, kept by who does that.
        self.status: Series | None = None
        #: Its process as it was when the connection was made: the pid may be another's by the time it ends.
        self.owner: Process | None = None

    @property
    def coverage(self) -> Coverage:
        return Coverage(self.coverage_kind, self.since_ns, self.fraction)

    @coverage.setter
    def coverage(self, coverage: Coverage) -> None:
        self.cover(coverage.kind, coverage.since_ns, coverage.fraction)

    @property
    def unseen(self) -> bool:
        """Whether none of its posts could be seen: what was posted is not known, and not nothing."""
        return self.coverage_kind == "control_only" or self.fraction == 0

    @property
    def posted(self) -> dict[str, Posted]:
        """What was posted until now, by opcode."""
        return {name: Posted(operations, size) for name, operations, size in self.posted_totals()}


class Connections:
    """(device, qpn) -> Connection. When full, the newest is refused and counted.

    ``memory``: the ring whose table of connections shows them to other processes. One that is full costs a
    connection its row there, which is counted in ``unlisted``, and nothing else.
    """

    def __init__(
        self, capacity: int, flows: Flows, memory: Ring | None = None, processes: Processes | None = None
    ) -> None:
        self.capacity = capacity
        self.dropped = 0
        #: Those that have a row of the ring now, and those that got none since the start.
        self.listed = self.unlisted = 0
        self._flows = flows
        self._ring = memory
        self._processes = processes
        self._connections: dict[tuple[str, int], Connection] = {}
        self._of_pid: dict[int, dict[Connection, None]] = {}
        self._arrived: dict[Connection, None] = {}
        #: What has changed, for who exports it; of those that have ended, what was exported before.
        self._changed: set[Connection] = set()
        #: For who watches: what has ended, the oldest forgotten, and how many each process has made.
        self._ended: deque[Connection] = deque(maxlen=_MOST_TOLD)
        self._made: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._connections)

    def __iter__(self) -> Iterator[Connection]:
        return iter(self._connections.values())

    def get(self, device: str, qpn: int) -> Connection | None:
        return self._connections.get((device, qpn))

    def of_process(self, pid: int) -> list[Connection]:
        """The connections of a process."""
        return list(self._of_pid.get(pid, ()))

    def count_of(self, pid: int) -> int:
        """How many connections a process has."""
        return len(self._of_pid.get(pid, ()))

    def take_ended(self) -> list[Connection]:
        """The connections that have ended since the last call, the newest of them."""
        ended = list(self._ended)
        self._ended.clear()
        return ended

    def take_made(self) -> dict[int, int]:
        """How many connections each process has made since the last call; those that netlink listed not."""
        made, self._made = self._made, {}
        return made

    def pids(self) -> Iterable[int]:
        """The processes that have connections."""
        return self._of_pid.keys()

    def touch(self, pid: int) -> None:
        """What is known of a process has changed, and so what its connections are exported with."""
        self._changed.update(self._of_pid.get(pid, ()))

    def put(self, connection: Connection) -> bool:
        """Add a new connection. False when the table is full."""
        if len(self._connections) >= self.capacity:
            self.dropped += 1
            return False
        if self._ring is not None:
            if connection.list_in(self._ring, connection.created_ns):
                self.listed += 1
            else:
                self.unlisted += 1
        if self._processes is not None and connection.pid is not None:
            connection.owner = self._processes.get(connection.pid)
        self._connections[(connection.device, connection.qpn)] = connection
        if connection.pid is not None:
            self._of_pid.setdefault(connection.pid, {})[connection] = None
            if connection.origin == "probe" and (
                connection.pid in self._made or len(self._made) < _MOST_TOLD
            ):
                self._made[connection.pid] = self._made.get(connection.pid, 0) + 1
        self._arrived[connection] = None
        self._changed.add(connection)
        connection.tell_changes(self._changed)
        return True

    def take_arrived(self) -> list[Connection]:
        """The connections that were added since the last call and are still there."""
        arrived = list(self._arrived)
        self._arrived.clear()
        return arrived

    def take_changed(self) -> list[Connection]:
        """The connections that came, changed or ended since the last call; posts are no change."""
        changed = list(self._changed)
        self._changed.clear()
        return changed

    def advance(self, connection: Connection, state: str, now_ns: int) -> None:
        """Move to ``state`` and open or close the flows that this implies.

        A connected QP can receive from RTR on and send from RTS on; RESET and ERR end both directions.
        """
        connection.state = state
        if state in ("reset", "err"):
            self.close_flows(connection, "error" if state == "err" else "reset", now_ns)
            return
        if connection.type not in CONNECTED:
            return
        if state in ("rtr", "rts") and connection.receiver is None:
            connection.receiver = self._flows.open(connection, "receiver", connection.rq_psn, now_ns)
        if state == "rts" and connection.sender is None:
            connection.sender = self._flows.open(connection, "sender", connection.sq_psn, now_ns)

    def close_flows(self, connection: Connection, reason: str, now_ns: int) -> None:
        for flow in (connection.sender, connection.receiver):
            if flow is not None:
                self._flows.close(flow, reason, now_ns)
        connection.sender = connection.receiver = None

    def remove(self, connection: Connection, reason: str, now_ns: int) -> None:
        """End a connection and its flows for ``reason`` (catalog: rdma.flow.close_reason)."""
        self.close_flows(connection, reason, now_ns)
        key = (connection.device, connection.qpn)
        if self._connections.get(key) is not connection:
            return
        del self._connections[key]
        self._arrived.pop(connection, None)
        if (siblings := self._of_pid.get(connection.pid or 0)) is not None:
            siblings.pop(connection, None)
            if not siblings:
                del self._of_pid[connection.pid or 0]
        self.listed -= connection.listed
        connection.unlist(now_ns)
        self._ended.append(connection)
        if connection.status is None:
            # Nobody has heard of it: what comes and goes between two exports is not kept for the next.
            self._changed.discard(connection)
