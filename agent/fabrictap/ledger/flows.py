"""Flows: one direction of one connection, and their identity.

The identity of a direction is (sender GID, sender qpn, receiver GID, receiver qpn, start PSN). The
sender knows the PSN as ``sq_psn`` and the receiver as ``rq_psn``, so both ends compute the same trace id
alone. A server of one-sided traffic never reaches RTS and has no ``sq_psn``: that is why an identity
covers one direction only.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fabrictap.ledger.connections import Connection

#: Opcodes whose payload comes in to the process that posts them.
INBOUND = frozenset({"rdma_read", "atomic_cmp_and_swp", "atomic_fetch_and_add"})
#: Opcodes that are not traffic by themselves.
LOCAL = frozenset({"local_inv", "bind_mw"})

AttributeValue = str | int | float | bool
Identity = Callable[["Connection"], Mapping[str, AttributeValue]]


@dataclass(frozen=True, slots=True)
class FlowId:
    """Trace and span ids of a flow, as both ends compute them. See the module's docstring."""

    trace_id: bytes
    sender_span_id: bytes
    receiver_span_id: bytes
    exact: bool

    @staticmethod
    def of(sender_gid: str, sender_qpn: int, receiver_gid: str, receiver_qpn: int, start_psn: int) -> FlowId:
        """The ids of a direction whose identity is known. GIDs in IPv6 notation."""
        identity = struct.pack(
            ">16sI16sII",
            socket.inet_pton(socket.AF_INET6, sender_gid),
            sender_qpn,
            socket.inet_pton(socket.AF_INET6, receiver_gid),
            receiver_qpn,
            start_psn & 0xFFFFFF,
        )
        return FlowId._from(identity, exact=True)

    @staticmethod
    def local() -> FlowId:
        """Ids of this node's own, for a connection whose identity is not known."""
        return FlowId._from(os.urandom(32), exact=False)

    @staticmethod
    def _from(identity: bytes, *, exact: bool) -> FlowId:
        def digest(what: bytes, size: int) -> bytes:
            return hashlib.blake2b(identity, digest_size=size, person=b"fabrictap." + what).digest()

        return FlowId(digest(b"trace", 16), digest(b"send", 8), digest(b"recv", 8), exact)


#: Most events that a flow remembers, and a window too; the first are kept.
MAX_EVENTS = 32


@dataclass(frozen=True, slots=True)
class SpanEvent:
    """Something that happened to a flow. ``time_ns``: nanoseconds since the epoch."""

    name: str
    time_ns: int
    attributes: Mapping[str, AttributeValue]


@dataclass(slots=True, eq=False)
class Flow:
    """One live flow. ``baseline`` and ``window`` hold the posted totals at its start and its window's."""

    connection: Connection
    role: str
    id: FlowId
    start_psn: int | None
    start_ns: int
    window_start_ns: int
    baseline: dict[str, tuple[int, int]]
    window: dict[str, tuple[int, int]]
    windows: int = 0
    #: What happened since its start, and since its window's.
    events: list[SpanEvent] = field(default_factory=list)
    window_events: list[SpanEvent] = field(default_factory=list)

    def remember(self, event: SpanEvent) -> None:
        """Have ``event`` on the spans of this window and of the whole flow, as far as there is room."""
        for events in (self.events, self.window_events):
            if len(events) < MAX_EVENTS:
                events.append(event)

    @property
    def span_id(self) -> bytes:
        return self.id.sender_span_id if self.role == "sender" else self.id.receiver_span_id


@dataclass(frozen=True, slots=True)
class FinishedSpan:
    """A span ready to be exported. Times in nanoseconds since the epoch; parent is None at a root."""

    name: str
    trace_id: bytes
    span_id: bytes
    parent_span_id: bytes | None
    start_ns: int
    end_ns: int
    attributes: dict[str, AttributeValue]
    sender: bool
    links: tuple[tuple[bytes, bytes], ...] = field(default=())
    events: tuple[SpanEvent, ...] = field(default=())


class Flows:
    """The live flows and the spans that have ended and wait for the exporter (the oldest go when full)."""

    def __init__(self, capacity: int, window_ns: int, identity: Identity | None = None) -> None:
        """``identity``: who a connection belongs to, as attributes; without it, its pid and name."""
        self.capacity = capacity
        self.dropped = 0
        self._window_ns = window_ns
        self._identity = identity
        self._live: dict[Flow, None] = {}
        self._finished: deque[FinishedSpan] = deque()

    def __len__(self) -> int:
        return len(self._live)

    @property
    def waiting(self) -> int:
        """Spans that wait for the exporter."""
        return len(self._finished)

    def open(self, connection: Connection, role: str, start_psn: int | None, now_ns: int) -> Flow:
        """Start a direction of ``connection`` in which this node is ``role`` (sender or receiver)."""
        flow_id = FlowId.local()
        if (
            connection.gid is not None
            and connection.peer_gid is not None
            and connection.peer_qpn is not None
            and start_psn is not None
        ):
            here, there = (connection.gid, connection.qpn), (connection.peer_gid, connection.peer_qpn)
            ends = (*here, *there) if role == "sender" else (*there, *here)
            flow_id = FlowId.of(*ends, start_psn)
        totals = _totals(connection, role)
        flow = Flow(connection, role, flow_id, start_psn, now_ns, now_ns, totals, totals)
        self._live[flow] = None
        return flow

    def close(self, flow: Flow, reason: str, now_ns: int) -> None:
        """End a flow: its last window and its own span are finished."""
        if flow not in self._live:
            return
        del self._live[flow]
        if flow.windows:
            self._finish_window(flow, now_ns)
        attributes = self._attributes(flow, flow.baseline)
        attributes["rdma.flow.close_reason"] = reason
        parent = flow.id.sender_span_id if flow.role == "receiver" and flow.id.exact else None
        other = flow.connection.sender if flow.role == "receiver" else flow.connection.receiver
        links = ((other.id.trace_id, other.span_id),) if other is not None else ()
        self._finish(
            FinishedSpan(
                "rdma.flow",
                flow.id.trace_id,
                flow.span_id,
                parent,
                flow.start_ns,
                max(now_ns, flow.start_ns),
                attributes,
                flow.role == "sender",
                links,
                tuple(flow.events),
            )
        )

    def roll(self, now_ns: int) -> None:
        """Finish the windows that are full."""
        for flow in self._live:
            if now_ns - flow.window_start_ns >= self._window_ns:
                self._finish_window(flow, now_ns)

    def close_all(self, reason: str, now_ns: int) -> None:
        for flow in list(self._live):
            self.close(flow, reason, now_ns)

    def take_finished(self) -> list[FinishedSpan]:
        """Hand the finished spans to the exporter, oldest first."""
        spans = list(self._finished)
        self._finished.clear()
        return spans

    def _finish_window(self, flow: Flow, now_ns: int) -> None:
        flow.windows += 1
        span_id = hashlib.blake2b(flow.span_id + struct.pack(">Q", flow.windows), digest_size=8).digest()
        self._finish(
            FinishedSpan(
                "rdma.flow.window",
                flow.id.trace_id,
                span_id,
                flow.span_id,
                flow.window_start_ns,
                max(now_ns, flow.window_start_ns),
                self._attributes(flow, flow.window),
                flow.role == "sender",
                (),
                tuple(flow.window_events),
            )
        )
        flow.window_events.clear()
        flow.window = _totals(flow.connection, flow.role)
        flow.window_start_ns = now_ns

    def _attributes(self, flow: Flow, since: dict[str, tuple[int, int]]) -> dict[str, AttributeValue]:
        attributes = _attributes(flow, since)
        if self._identity is not None:
            attributes.update(self._identity(flow.connection))
        return attributes

    def _finish(self, span: FinishedSpan) -> None:
        if len(self._finished) >= self.capacity:
            self._finished.popleft()
            self.dropped += 1
        self._finished.append(span)


def _totals(connection: Connection, role: str) -> dict[str, tuple[int, int]]:
    """What this node posted in the direction: a sender's sends and writes, a receiver's reads and buffers."""
    return {
        operation: (operations, 0 if operation == "recv" else size)
        for operation, operations, size in connection.posted_totals()
        if operation not in LOCAL and (operation in INBOUND or operation == "recv") == (role == "receiver")
    }


def _attributes(flow: Flow, since: dict[str, tuple[int, int]]) -> dict[str, AttributeValue]:
    connection = flow.connection
    sending = flow.role == "sender"
    here, there = (connection.gid, connection.qpn), (connection.peer_gid, connection.peer_qpn)
    sender, receiver = (here, there) if sending else (there, here)
    known: dict[str, AttributeValue | None] = {
        "rdma.device": connection.device,
        "rdma.port": connection.port,
        "rdma.qp.number": connection.qpn,
        "rdma.qp.type": connection.type,
        "rdma.gid": connection.gid,
        "rdma.peer.gid": connection.peer_gid,
        "rdma.peer.qp.number": connection.peer_qpn,
        "rdma.flow.role": flow.role,
        "network.io.direction": "transmit" if sending else "receive",
        "rdma.flow.sender.gid": sender[0],
        "rdma.flow.sender.qp.number": sender[1],
        "rdma.flow.receiver.gid": receiver[0],
        "rdma.flow.receiver.qp.number": receiver[1],
        "rdma.flow.start_psn": flow.start_psn,
        "rdma.path_mtu": connection.mtu,
        "rdma.flow.identity": "exact" if flow.id.exact else "local",
        "process.pid": connection.pid,
        "process.executable.name": connection.process,
        "fabrictap.coverage": connection.coverage.kind,
        "fabrictap.coverage.since": connection.coverage.since,
        "fabrictap.coverage.fraction": connection.fraction,
    }
    attributes = {name: value for name, value in known.items() if value is not None}
    if connection.unseen:
        return attributes
    total_operations = total_bytes = 0
    for operation, (operations_now, bytes_now) in _totals(connection, flow.role).items():
        operations_before, bytes_before = since.get(operation, (0, 0))
        operations, size = operations_now - operations_before, bytes_now - bytes_before
        if operations:
            attributes[f"rdma.flow.{operation}.operations"] = operations
            if operation != "recv":
                attributes[f"rdma.flow.{operation}.io"] = size
        total_operations += operations
        total_bytes += size
    attributes["rdma.flow.operations"] = total_operations
    attributes["rdma.flow.io"] = total_bytes
    return attributes
