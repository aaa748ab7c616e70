"""Who talks to whom: peers that the policy does not list, that a workload never had, of another tenant."""

from __future__ import annotations

from collections.abc import Iterator

from fabrictap import catalog
from fabrictap.insight.detectors import Context, Owner
from fabrictap.insight.findings import Finding, Severity
from fabrictap.insight.remembered import hour_of
from fabrictap.ledger.connections import Connection
from fabrictap.series import AttributeValue

#: A new peer is told of for so long, and known from then on.
_NEW_NS = 600 * 10**9
_MOST_NEW = 1024
#: Findings of the last round that are repeated until the next one is done.
_MOST_HELD = 1024


class Peers:
    """Looks at each connection once in a round of the shared walk, and at those that have ended since."""

    name = "peers"

    def __init__(self) -> None:
        #: (workload, peer) -> when it was first seen, while it is new.
        self._new: dict[tuple[str, str], int] = {}
        self._held: dict[tuple[str, ...], Finding] = {}
        self._round: dict[tuple[str, ...], Finding] = {}
        self._local: dict[str, str] = {}
        self._policy: object = None

    def look(self, now_ns: int, context: Context) -> Iterator[Finding]:
        if self._policy is not context.policy:
            # What was found under another policy is found again or not at all.
            self._policy = context.policy
            self._held.clear()
            self._round.clear()
        self._local = {
            gid: device.name
            for device in context.ledger.devices
            for port in device.ports.values()
            for gid in port.gids.values()
        }
        for pair in [pair for pair, since_ns in self._new.items() if now_ns - since_ns > _NEW_NS]:
            del self._new[pair]
        # A job has many connections to each peer: what is quiet on one of them is quiet on the next.
        quiet: set[tuple[int, str]] = set()
        for connection in (*context.ended, *context.batch):
            peer = connection.peer_gid
            if peer is None:
                continue
            owner = context.owner_of(connection)
            both = id(owner), peer
            if both in quiet:
                continue
            findings = list(self._judge(connection, peer, owner, now_ns, context))
            if not findings and peer not in self._local and not connection.ended:
                quiet.add(both)
            for finding in findings:
                key = (finding.kind.name, *(str(part) for part in finding.key))
                if len(self._round) < _MOST_HELD:
                    self._round.setdefault(key, finding)
        found = {**self._held, **self._round}
        if context.round_done:
            self._held, self._round = self._round, {}
        yield from found.values()

    def _judge(
        self, connection: Connection, peer: str, owner: Owner, now_ns: int, context: Context
    ) -> Iterator[Finding]:
        remembered, hour = context.remembered, hour_of(now_ns)
        allowed = owner.rule.allows(peer)
        if (other := self._other(connection, peer, context)) is not None:
            yield from _tenants(connection, owner, other)
        if allowed is False and peer not in self._local:
            yield _finding(
                catalog.FORBIDDEN_PEER,
                Severity.WARN,
                f"{_who(owner)} talks to {peer}, which its policy does not list",
                connection,
                owner,
                peer,
            )
        known = remembered.workload(owner.workload, hour)
        key = (owner.workload, peer)
        learning = hour - known.first_hour < 24 * context.settings.learn_days
        if allowed is None and peer not in self._local and not learning:
            if not known.knows(peer) and key not in self._new and len(self._new) < _MOST_NEW:
                self._new[key] = now_ns
            if key in self._new:
                yield _finding(
                    catalog.NEW_PEER,
                    Severity.INFO,
                    f"{_who(owner)} talks to {peer} for the first time",
                    connection,
                    owner,
                    peer,
                    since_ns=self._new[key],
                )
        remembered.learn(known, peer, hour)

    def _other(self, connection: Connection, peer: str, context: Context) -> Owner | None:
        """Who has the other end, where it is on this node too."""
        device = self._local.get(peer)
        if device is None or connection.peer_qpn is None:
            return None
        other = context.ledger.connections.get(device, connection.peer_qpn)
        return None if other is None else context.owner_of(other)


def _tenants(connection: Connection, owner: Owner, other: Owner) -> Iterator[Finding]:
    ours, theirs = owner.tenant, other.tenant
    if ours is None or theirs is None or ours == theirs:
        return
    if theirs in owner.rule.settings.talks_to or ours in other.rule.settings.talks_to:
        return
    assert connection.peer_gid is not None
    finding = _finding(
        catalog.CROSS_TENANT,
        Severity.ERROR,
        f"{_who(owner)} of tenant {ours} is connected to {_who(other)} of tenant {theirs}",
        connection,
        owner,
        connection.peer_gid,
        {catalog.FINDING_TENANT.name: ours, catalog.FINDING_PEER_TENANT.name: theirs},
        # Both ends see it; it is one finding.
        key=tuple(sorted((f"{ours}/{owner.workload}", f"{theirs}/{other.workload}"))),
    )
    yield finding


def _finding(  # noqa: PLR0917 - what evidence there is
    kind: catalog.Finding,
    severity: Severity,
    title: str,
    connection: Connection,
    owner: Owner,
    peer: str,
    more: dict[str, AttributeValue] | None = None,
    key: tuple[str, ...] | None = None,
    since_ns: int | None = None,
) -> Finding:
    known: dict[str, AttributeValue | None] = {
        **owner.identity,
        catalog.FINDING_WORKLOAD.name: owner.workload,
        catalog.RDMA_DEVICE.name: connection.device,
        catalog.RDMA_PORT.name: connection.port,
        catalog.RDMA_QPN.name: connection.qpn,
        catalog.RDMA_GID.name: connection.gid,
        catalog.RDMA_PEER_GID.name: peer,
        catalog.RDMA_PEER_QPN.name: connection.peer_qpn,
        **(more or {}),
    }
    attributes = {name: value for name, value in known.items() if value is not None}
    flows = tuple(flow for flow in (connection.sender, connection.receiver) if flow is not None)
    return Finding(
        kind,
        severity,
        title,
        (owner.workload, peer) if key is None else key,
        since_ns=connection.created_ns if since_ns is None else since_ns,
        attributes=attributes,
        flows=flows,
    )


def _who(owner: Owner) -> str:
    pid = owner.identity.get(catalog.PROCESS_PID.name, "kernel")
    return f"{owner.identity.get(catalog.PROCESS_EXE.name, '?')} ({pid})"
