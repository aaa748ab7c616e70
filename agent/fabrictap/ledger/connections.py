"""Connections: the queue pairs of the node, each keyed by (device, qpn), never by qpn alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone

from fabrictap.ledger.flows import Flow, Flows
from fabrictap.ledger.processes import Process, Processes

#: QP types that are bound to one peer.
CONNECTED = frozenset({"rc", "uc", "xrc_ini", "xrc_tgt"})


@dataclass(slots=True)
class Posted:
    """Work requests posted to a connection with one opcode, cumulative. ``bytes``: sum of SGE lengths."""

    operations: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Coverage:
    """How well posts to a connection are seen. ``since_ns``: nanoseconds since the epoch."""

    kind: str
    since_ns: int | None = None

    @property
    def since(self) -> str | None:
        """The start of the observation as RFC 3339, where it is not the connection's own start."""
        if self.since_ns is None:
            return None
        moment = datetime.fromtimestamp(self.since_ns / 1e9, tz=timezone.utc)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(slots=True, eq=False)
class Connection:
    """One queue pair. What is not known is None: a snapshot knows neither GIDs nor first PSNs.

    ``pid`` is None for a kernel user. ``created_ns`` is nanoseconds since the epoch, or when the
    agent first saw it where ``origin`` is netlink.
    """

    device: str
    qpn: int
    type: str
    state: str
    pid: int | None
    process: str
    created_ns: int
    origin: str
    coverage: Coverage
    port: int | None = None
    gid: str | None = None
    peer_gid: str | None = None
    peer_qpn: int | None = None
    sq_psn: int | None = None
    rq_psn: int | None = None
    mtu: int | None = None
    posted: dict[str, Posted] = field(default_factory=dict)
    sender: Flow | None = None
    receiver: Flow | None = None
    #: Software holds the function pointers of ibv_wr_*: its posts may go unseen.
    extended: bool = False
    #: Its process as it was when the connection was made: the pid may be another's by the time it ends.
    owner: Process | None = None


class Connections:
    """(device, qpn) -> Connection. When full, the newest is refused and counted."""

    def __init__(self, capacity: int, flows: Flows, processes: Processes | None = None) -> None:
        self.capacity = capacity
        self.dropped = 0
        self._flows = flows
        self._processes = processes
        self._connections: dict[tuple[str, int], Connection] = {}

    def __len__(self) -> int:
        return len(self._connections)

    def __iter__(self) -> Iterator[Connection]:
        return iter(self._connections.values())

    def get(self, device: str, qpn: int) -> Connection | None:
        return self._connections.get((device, qpn))

    def put(self, connection: Connection) -> bool:
        """Add a new connection. False when the table is full."""
        if len(self._connections) >= self.capacity:
            self.dropped += 1
            return False
        if self._processes is not None and connection.pid is not None:
            connection.owner = self._processes.get(connection.pid)
        self._connections[(connection.device, connection.qpn)] = connection
        return True

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
        self._connections.pop((connection.device, connection.qpn), None)
