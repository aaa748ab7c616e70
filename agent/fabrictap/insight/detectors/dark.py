"""Dark egress: a port sent what nobody on this node asked for. Most often a peer reads memory with RDMA READ.

The victim of RDMA READ makes no call and posts nothing; its connection may never leave RTR. What remains is
the balance of the port and who could be read: a connected queue pair that can answer (RTR or RTS) whose
process has memory that a peer may read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from types import MappingProxyType

from fabrictap import catalog
from fabrictap.insight.detectors import Balance, Context, Owner
from fabrictap.insight.findings import Finding, Severity, size_text
from fabrictap.ledger.connections import Connection
from fabrictap.series import AttributeValue

#: Transports whose queue pairs answer READ requests (IBTA 9.4.1, table 37).
_ANSWERS_READS = frozenset({"rc", "xrc_tgt"})
_SENDS = frozenset({"rc", "uc", "ud", "xrc_ini", "raw_packet", "driver"})
#: An episode goes on while there is this share of the threshold in a window.
_GOES_ON = 0.5
#: Connections looked at for candidates in one episode; more are not ranked.
_MOST_EXAMINED = 65536
_MOST_NAMED = 5
_MOST_GONE = 4096
#: How much longer than a window it is remembered who could be read.
_KEPT_NS = 10 * 10**9


@dataclass(frozen=True, slots=True)
class Candidate:
    """A connection that explains dark egress. ``readable``: bytes of its process that a peer may read;
    ``reads``: by RDMA READ, else by posts that are not seen."""

    connection: Connection
    owner: Owner
    readable: int
    reads: bool

    @property
    def score(self) -> tuple[bool, bool, int]:
        return (self.reads, self.connection.state == "rtr", self.readable)

    @property
    def allowed(self) -> bool:
        """Whether the policy says that this peer may read this workload's memory."""
        rule, peer = self.owner.rule, self.connection.peer_gid
        return self.reads and rule.settings.remote_read and peer is not None and rule.allows(peer) is True


@dataclass(slots=True)
class _Port:
    since_ns: int
    #: (time, dark, payload), cumulative, over a window.
    readings: deque[tuple[int, int, int]] = field(default_factory=deque)
    #: When the episode began and what dark was then; None outside one.
    episode: tuple[int, int] | None = None
    candidates: list[Candidate] = field(default_factory=list)


class Dark:
    """Watches the transmit balance of each port."""

    name = "dark"

    def __init__(self) -> None:
        self._ports: dict[str, _Port] = {}
        #: (device, process) -> bytes that peers could read when it was last looked at, and when.
        self._readable: dict[tuple[str, int | None], tuple[int, int]] = {}
        #: Connections that have ended in the last window: a theft may be over before it is looked at.
        self._gone: deque[tuple[int, Connection]] = deque(maxlen=_MOST_GONE)

    def look(self, now_ns: int, context: Context) -> Iterator[Finding]:
        settings = context.settings
        self._remember(now_ns, context)
        out = {b.hw_id: b for b in context.balances if b.direction == "transmit"}
        for gone in self._ports.keys() - out.keys():
            del self._ports[gone]
        for hw_id, balance in out.items():
            port = self._ports.get(hw_id)
            if port is None or port.since_ns != balance.since_ns:
                port = self._ports[hw_id] = _Port(balance.since_ns)
                # The counting began then, with nothing.
                port.readings.append((balance.since_ns, 0, 0))
            payload = balance.attributed + balance.dark + balance.uncertain
            port.readings.append((now_ns, balance.dark, payload))
            # The newest reading that is a window old is the one to compare with.
            while len(port.readings) > 2 and now_ns - port.readings[1][0] >= settings.dark_window * 1e9:
                port.readings.popleft()
            began_ns, dark, moved = port.readings[0]
            span = (now_ns - began_ns) / 1e9
            if span <= 0:
                continue
            # After a pause between looks the window is longer than asked for: only its rate counts then.
            scale = min(1.0, float(settings.dark_window) / span)
            fresh, total = (balance.dark - dark) * scale, (payload - moved) * scale
            least = settings.dark_bytes * (_GOES_ON if port.episode else 1.0)
            if fresh < least or fresh < settings.dark_share * total:
                port.episode = None
                continue
            context.judged_ports.add(hw_id)
            began = port.episode is None
            if port.episode is None:
                port.episode = (began_ns, dark)
            if began or context.round_done:
                port.candidates = _candidates(balance, context, self._gone, self._readable)
            finding = _finding(balance, port, context)
            if finding is not None:
                yield finding

    def _remember(self, now_ns: int, context: Context) -> None:
        for key, size in _readable_now(context).items():
            self._readable[key] = size, now_ns
        oldest = now_ns - int(context.settings.dark_window * 1e9) - _KEPT_NS
        self._readable = {key: one for key, one in self._readable.items() if one[1] >= oldest}
        self._gone.extend((now_ns, connection) for connection in context.ended)
        while self._gone and self._gone[0][0] < oldest:
            self._gone.popleft()


def excused(balance: Balance, context: Context) -> bool:
    """Whether all that may be behind the dark egress of a port are readers that the policy allows."""
    found = _candidates(balance, context)
    return bool(found) and all(one.allowed for one in found)


def _readable_now(context: Context) -> dict[tuple[str, int | None], int]:
    """(device, process) -> bytes that a peer with the key may read."""
    readable: dict[tuple[str, int | None], int] = {}
    for regions in context.ledger.memory.sums():
        if regions.remote_access in ("read", "read_write", "unknown"):
            key = regions.device, regions.pid
            readable[key] = readable.get(key, 0) + regions.bytes
    return readable


def _candidates(
    balance: Balance,
    context: Context,
    gone: Iterable[tuple[int, Connection]] = (),
    before: Mapping[tuple[str, int | None], tuple[int, int]] = MappingProxyType({}),
) -> list[Candidate]:
    """Who may be behind it, likeliest first. Costs one pass over the connections; once in an episode and
    once in a round of the shared walk. ``gone`` are connections that have ended lately, ``before`` what could
    be read of processes then."""
    readable = {key: size for key, (size, _) in before.items()} | _readable_now(context)
    found = []
    ended = (connection for _, connection in gone)
    for examined, connection in enumerate(chain(context.ledger.connections, ended)):
        if examined >= _MOST_EXAMINED:
            break
        if connection.device != balance.device or connection.port not in (None, balance.port):
            continue
        size = readable.get((connection.device, connection.pid), 0)
        reads = connection.type in _ANSWERS_READS and connection.state in ("rtr", "rts") and size > 0
        unseen = (
            connection.type in _SENDS
            and connection.state == "rts"
            and connection.coverage_kind in {"control_only", "estimated"}
        )
        if reads or unseen:
            found.append(Candidate(connection, context.owner_of(connection), size, reads))
    found.sort(key=lambda one: one.score, reverse=True)
    return found


def _finding(balance: Balance, port: _Port, context: Context) -> Finding | None:
    assert port.episode is not None
    since_ns, dark = port.episode
    size = balance.dark - dark
    readers = [one for one in port.candidates if one.reads]
    others = [one for one in port.candidates if not one.reads]
    suspects = [one for one in readers if not one.allowed]
    if readers and not suspects and not others:
        return None
    attributes: dict[str, AttributeValue] = {
        catalog.HW_ID.name: balance.hw_id,
        catalog.RDMA_DEVICE.name: balance.device,
        catalog.RDMA_PORT.name: balance.port,
        catalog.IO_DIRECTION.name: balance.direction,
        catalog.FINDING_WINDOW.name: round(context.settings.dark_window),
    }
    ranked = [*suspects, *others]
    processes = {one.connection.pid for one in ranked}
    kind, severity, who = catalog.DARK_EGRESS, Severity.WARN, "no process here can be named"
    if len(processes) == 1:
        attributes |= ranked[0].owner.identity
        attributes[catalog.FINDING_WORKLOAD.name] = ranked[0].owner.workload
    if suspects and not others:
        kind = catalog.REMOTE_READ_EGRESS
        severity = Severity.ERROR if len(processes) == 1 else Severity.WARN
        who = f"a peer reads memory of {_name(suspects[0])}" if len(processes) == 1 else _list(suspects)
    elif ranked:
        who = _list(ranked)
    if len(ranked) == 1:
        attributes |= _ends(ranked[0].connection)
    elif ranked:
        attributes[catalog.FINDING_CANDIDATES.name] = "; ".join(
            _describe(one) for one in ranked[:_MOST_NAMED]
        )
        peers = {one.connection.peer_gid for one in ranked}
        if len(peers) == 1 and (peer := peers.pop()) is not None:
            attributes[catalog.RDMA_PEER_GID.name] = peer
    flows = tuple(
        flow
        for one in ranked[:_MOST_NAMED]
        if (flow := one.connection.sender or one.connection.receiver) is not None
    )
    return Finding(
        kind,
        severity,
        f"{size_text(size)} left {balance.hw_id} that nobody on this node asked for: {who}",
        # One episode is one finding, whoever turns out to be behind it.
        (balance.hw_id,),
        size,
        "By",
        context.settings.dark_bytes,
        since_ns,
        attributes,
        flows,
    )


def _ends(connection: Connection) -> dict[str, AttributeValue]:
    known: dict[str, AttributeValue | None] = {
        catalog.RDMA_QPN.name: connection.qpn,
        catalog.RDMA_GID.name: connection.gid,
        catalog.RDMA_PEER_GID.name: connection.peer_gid,
        catalog.RDMA_PEER_QPN.name: connection.peer_qpn,
    }
    return {name: value for name, value in known.items() if value is not None}


def _name(one: Candidate) -> str:
    connection = one.connection
    process = one.owner.identity.get(catalog.PROCESS_EXE.name, connection.process)
    return str(process) if connection.pid is None else f"{process} ({connection.pid})"


def _list(candidates: list[Candidate]) -> str:
    names = list(dict.fromkeys(_name(one) for one in candidates))
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"it may concern {', '.join(names[:_MOST_NAMED])}{more}"


def _describe(one: Candidate) -> str:
    connection = one.connection
    how = f"{size_text(one.readable)} readable" if one.reads else "posts not seen"
    peer = connection.peer_gid or "an unknown peer"
    return f"{_name(one)} queue pair {connection.qpn} {connection.state} to {peer}: {how}"
