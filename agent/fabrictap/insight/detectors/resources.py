"""RDMA resource exhaustion: one process or workload holds, makes or uses so much that others may suffer.

A NIC has a fixed number of queue pairs and memory translations and caches few of them; a flood of small
messages takes its packet rate. Counts are of one process, against limits; operations are of one workload,
against a limit and against its neighbours on the node.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from fabrictap import catalog
from fabrictap.ext.connections import places_of
from fabrictap.insight.detectors import Context, Owner
from fabrictap.insight.findings import Finding, Severity
from fabrictap.ledger.connections import Connection
from fabrictap.ledger.names import OPERATIONS

#: Seconds over which queue pairs made are counted.
_RATE_SECONDS = 10.0
#: Mean bytes of a message up to which operations count as small.
_SMALL = 512
#: Share of the node's operations from which on a workload crowds out others.
_CROWDS = 0.8
_MOST_PROCESSES = 4096
#: What was asked of the NIC; receive buffers are not.
_ASKED = places_of(frozenset(OPERATIONS) - {"recv"})


@dataclass(slots=True)
class _Use:
    operations: int = 0
    bytes: int = 0


class Resources:
    """Counts come from the ledger's own tallies; operations from the shared walk, judged after each round."""

    name = "resources"

    def __init__(self) -> None:
        #: (time, process -> queue pairs made) of the last seconds.
        self._made: deque[tuple[int, dict[int, int]]] = deque()
        self._counted: dict[Connection, tuple[int, int]] = {}
        self._use: dict[str, _Use] = {}
        self._owners: dict[str, Owner] = {}
        self._round_ns: int | None = None
        self._crowding: list[Finding] = []

    def look(self, now_ns: int, context: Context) -> Iterator[Finding]:
        yield from self._held(context)
        yield from self._churn(now_ns, context)
        for connection in context.ended:
            self._count(connection, context)
            self._counted.pop(connection, None)
        for connection in context.batch:
            self._count(connection, context)
        if context.round_done:
            if len(self._counted) > 2 * len(context.ledger.connections) + 1024:
                # More have ended than could be told of.
                self._counted = {one: was for one, was in self._counted.items() if not one.ended}
            self._judge_round(now_ns, context)
        yield from self._crowding

    def _held(self, context: Context) -> Iterator[Finding]:
        settings, ledger = context.settings, context.ledger
        regions: dict[int | None, int] = {}
        for one in ledger.memory.sums():
            regions[one.pid] = regions.get(one.pid, 0) + one.count
        contexts: dict[int | None, int] = {}
        for context_ in ledger.contexts:
            contexts[context_.pid] = contexts.get(context_.pid, 0) + context_.count
        pairs: dict[int | None, int] = {
            pid: ledger.connections.count_of(pid) for pid in ledger.connections.pids()
        }
        least_pairs = min(settings.queue_pairs, context.policy.least_queue_pairs)
        for what, unit, counts, limit, least in (
            ("queue pairs", "{qp}", pairs, settings.queue_pairs, least_pairs),
            ("memory regions", "{memory_region}", regions, settings.memory_regions, settings.memory_regions),
            ("open devices", "{context}", contexts, settings.contexts, settings.contexts),
        ):
            for pid, count in counts.items():
                if count <= least or pid is None:
                    continue
                owner = context.owner(pid)
                own = owner.rule.settings.queue_pairs if unit == "{qp}" else None
                most = limit if own is None else own
                if count > most:
                    yield _finding(
                        owner,
                        (pid, what),
                        f"{_who(owner)} holds {count} {what} (limit {most})",
                        count,
                        unit,
                        most,
                    )

    def _churn(self, now_ns: int, context: Context) -> Iterator[Finding]:
        self._made.append((now_ns, dict(context.made)))
        while len(self._made) > 1 and now_ns - self._made[0][0] >= _RATE_SECONDS * 1e9:
            self._made.popleft()
        totals: dict[int, int] = {}
        for _, made in self._made:
            for pid, count in made.items():
                totals[pid] = totals.get(pid, 0) + count
        most = context.settings.queue_pair_rate * _RATE_SECONDS
        for pid, count in totals.items():
            if count > most:
                owner = context.owner(pid)
                yield _finding(
                    owner,
                    (pid, "queue pairs made"),
                    f"{_who(owner)} made {count} queue pairs in {_RATE_SECONDS:.0f} s",
                    count / _RATE_SECONDS,
                    "{qp}/s",
                    context.settings.queue_pair_rate,
                )

    def _count(self, connection: Connection, context: Context) -> None:
        operations, size = connection.posted_sum(_ASKED)
        before = self._counted.get(connection)
        self._counted[connection] = (operations, size)
        if before is None:
            # What it did before the first look may be of any time.
            return
        if operations > before[0]:
            owner = context.owner_of(connection)
            if owner.workload not in self._use and len(self._use) >= _MOST_PROCESSES:
                return
            self._owners[owner.workload] = owner
            use = self._use.setdefault(owner.workload, _Use())
            use.operations += operations - before[0]
            use.bytes += size - before[1]

    def _judge_round(self, now_ns: int, context: Context) -> None:
        began_ns, self._round_ns = self._round_ns, now_ns
        used, self._use = self._use, {}
        owners, self._owners = self._owners, {}
        self._crowding = []
        if began_ns is None or now_ns <= began_ns:
            return
        seconds = (now_ns - began_ns) / 1e9
        total = sum(use.operations for use in used.values())
        neighbours = len({owner.workload for owner in self._workloads(context)} - set(used)) + len(used) > 1
        for name, use in used.items():
            rate = use.operations / seconds
            crowds = neighbours and use.operations >= _CROWDS * total
            if rate > context.settings.operation_rate and use.bytes <= _SMALL * use.operations and crowds:
                self._crowding.append(
                    _finding(
                        owners[name],
                        (name, "operations"),
                        f"{name} posts {rate:,.0f} small operations a second, "
                        f"{100 * use.operations / total:.0f} % of this node's, beside others",
                        rate,
                        "{operation}/s",
                        context.settings.operation_rate,
                    )
                )

    @staticmethod
    def _workloads(context: Context) -> Iterator[Owner]:
        for pid in list(context.ledger.connections.pids())[:_MOST_PROCESSES]:
            yield context.owner(pid)


def _finding(  # noqa: PLR0917 - what evidence there is
    owner: Owner, key: tuple[str | int | None, ...], title: str, value: float, unit: str, limit: float
) -> Finding:
    attributes = {**owner.identity, catalog.FINDING_WORKLOAD.name: owner.workload}
    return Finding(
        catalog.RESOURCE_EXHAUSTION, Severity.WARN, title, key, value, unit, limit, None, attributes
    )


def _who(owner: Owner) -> str:
    pid = owner.identity.get(catalog.PROCESS_PID.name, "kernel")
    return f"{owner.identity.get(catalog.PROCESS_EXE.name, '?')} ({pid})"
