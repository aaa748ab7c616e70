"""Detectors: each looks at the ledger, the series and the balance of hardware and software, and finds.

A detector is called every few seconds under the node's lock and must not block. What it costs is bounded
twice: what there are many of (connections) is walked in slices that all detectors share, and a detector
whose looks take more than a fixed share of a core is looked at less often (``insight/detection.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fabrictap.config import FindingSettings
from fabrictap.insight.findings import Finding
from fabrictap.insight.policy import CompiledPolicy, Rule, workload_key
from fabrictap.insight.remembered import Remembered
from fabrictap.ledger import Ledger
from fabrictap.ledger.connections import Connection
from fabrictap.ledger.processes import KERNEL
from fabrictap.series import AttributeValue, Series


class Balance(Protocol):
    """One direction of one port, cumulative bytes since ``since_ns`` (insight/reconcile.py)."""

    @property
    def hw_id(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def direction(self) -> str: ...
    @property
    def since_ns(self) -> int: ...
    @property
    def attributed(self) -> int: ...
    @property
    def dark(self) -> int: ...
    @property
    def uncertain(self) -> int: ...


@dataclass(frozen=True, slots=True)
class SourceState:
    """A source as its runner sees it."""

    name: str
    up: bool
    reason: str | None


@dataclass(frozen=True, slots=True)
class FileState:
    """A file that somebody else should not change while the agent runs. ``changed``: what was done to it."""

    what: str
    path: str
    changed: str | None


@dataclass(slots=True)
class Owner:
    """Whose it is: the full identity of a process, what it is called over restarts, its rule."""

    identity: Mapping[str, AttributeValue]
    workload: str
    rule: Rule
    tenant: str | None


@dataclass(slots=True)
class Context:
    """What detectors may look at in one look.

    ``batch``: a slice of the live connections; ``round_done``: with it all have been seen once.
    ``ended``: the connections that have ended since the last look. ``made``: queue pairs made by each process
    since then. ``series``: those of the metrics that detectors watch.
    """

    ledger: Ledger
    settings: FindingSettings
    policy: CompiledPolicy
    remembered: Remembered
    balances: Sequence[Balance] = ()
    batch: Sequence[Connection] = ()
    round_done: bool = True
    ended: Sequence[Connection] = ()
    made: Mapping[int, int] = field(default_factory=dict)
    series: Mapping[str, Sequence[Series]] = field(default_factory=dict)
    sources: Sequence[SourceState] = ()
    files: Sequence[FileState] = ()
    #: Ports whose dark egress another detector has judged in this look.
    judged_ports: set[str] = field(default_factory=set)
    _owners: dict[int | None, Owner] = field(default_factory=dict)
    #: Those of live connections, as far as they were asked for in this look.
    _alive: dict[int | None, Owner] = field(default_factory=dict)

    def owner(self, pid: int | None, name: str | None = None) -> Owner:
        """Who ``pid`` is; None for the kernel."""
        found = self._owners.get(pid)
        if found is None:
            identity: Mapping[str, AttributeValue]
            if pid is None:
                identity = {"process.executable.name": name or KERNEL}
            else:
                process = self.ledger.processes.get(pid)
                workloads = self.ledger.workloads
                if process is None:
                    identity = {"process.pid": pid, "process.executable.name": name or "unknown"}
                else:
                    identity = workloads.full_identity(pid, process.name, process.workload)
            found = self._owner(identity)
            self._owners[pid] = found
        return found

    def owner_of(self, connection: Connection) -> Owner:
        """Whose connection it is; the process that made it may have ended."""
        if not connection.ended and (alive := self._alive.get(connection.pid)) is not None:
            return alive
        if connection.pid is not None and (
            connection.ended or self.ledger.processes.get(connection.pid) is None
        ):
            return self._owner(self.ledger.identity_of(connection))
        found = self._alive[connection.pid] = self.owner(connection.pid, connection.process)
        return found

    def _owner(self, identity: Mapping[str, AttributeValue]) -> Owner:
        rule = self.policy.rule(identity)
        return Owner(identity, workload_key(identity), rule, self.policy.tenant(identity))


class Detector(Protocol):
    """One subject. ``name`` stands in fabrictap.detector."""

    name: str

    def look(self, now_ns: int, context: Context) -> Iterable[Finding]:
        """What is found now; the same finding again in every look for as long as it is so."""
