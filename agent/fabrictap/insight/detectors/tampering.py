"""Signs that somebody, or something, takes the agent's eyes away.

Whoever is root on the node can end the agent; what can be told is what it would meet on the way: probes that
attach at fewer places, connections that the probes did not see being made, coverage that falls, files that
are replaced, sources that go down together. The end of the agent itself is seen where its metrics stop.
"""

from __future__ import annotations

from collections.abc import Iterator

from fabrictap import catalog
from fabrictap.insight.detectors import Context
from fabrictap.insight.findings import Finding, Severity
from fabrictap.ledger.connections import Connection

#: How long a loss that will not mend by itself is told of.
_HOLD_NS = 3600 * 10**9
#: Sources that end within this time end together.
_TOGETHER_NS = 30 * 10**9
#: A connection that netlink lists may be this old before it must have been seen by the probes.
_SETTLED_NS = 60 * 10**9
_BLIND = 3
#: Coverage: connections below which a share says nothing, the share that counts as good and as fallen.
_LEAST, _GOOD, _FALLEN = 10, 0.9, 0.5
#: Attached where libraries are used and taken off by the agent itself: what they miss is told by coverage.
_COME_AND_GO = frozenset({"uprobe"})
_KERNEL_METHODS = frozenset({"fexit", "kprobe"})
# What a budget costs is no tampering.
_SEEN = frozenset({"exact", "since", "estimated"})


class Tampering:
    """Costs a few dictionary entries for each probe and source; coverage rides on the shared walk."""

    name = "tampering"

    def __init__(self) -> None:
        #: (probe, method) -> the most that it was attached at, and since when it has been fewer.
        self._attached: dict[tuple[str, str], tuple[int, int | None]] = {}
        self._up_since: dict[str, int] = {}
        self._down: dict[str, int] = {}
        self._down_together: tuple[int, tuple[str, ...]] | None = None
        self._lost = 0
        self._lost_ns = 0
        self._unseen: dict[tuple[str, int, int], int] = {}
        self._round: list[int] = [0, 0]
        self._good_since: int | None = None
        self._fell: tuple[int, float, int] | None = None

    def look(self, now_ns: int, context: Context) -> Iterator[Finding]:
        yield from self._sources(now_ns, context)
        yield from self._probes(now_ns, context)
        yield from self._blind(now_ns, context)
        yield from self._coverage(now_ns, context)
        for file in context.files:
            if file.changed is not None:
                yield Finding(
                    catalog.FILE_REPLACED,
                    Severity.WARN,
                    f"{file.what} {file.path} {file.changed}",
                    (file.what, file.path),
                )

    def _sources(self, now_ns: int, context: Context) -> Iterator[Finding]:
        for source in context.sources:
            if source.up:
                self._up_since.setdefault(source.name, now_ns)
                self._down.pop(source.name, None)
            elif self._up_since.pop(source.name, None) is not None:
                self._down[source.name] = now_ns
        recent = sorted(name for name, since in self._down.items() if now_ns - since <= _TOGETHER_NS)
        if len(recent) > 1 and (self._down_together is None or len(recent) > len(self._down_together[1])):
            self._down_together = (now_ns, tuple(recent))
        if self._down_together is None:
            return
        since_ns, names = self._down_together
        if not any(name in self._down for name in names):
            self._down_together = None
            return
        reasons = {source.name: source.reason or "hangs" for source in context.sources}
        said = "; ".join(f"{name}: {reasons.get(name, '?')}" for name in names)
        yield Finding(
            catalog.SOURCES_DOWN,
            Severity.WARN,
            f"{len(names)} sources stopped together: {said}",
            (),
            len(names),
            "{source}",
            1,
            since_ns,
            {catalog.SOURCE.name: ", ".join(names)},
        )

    def _probes(self, now_ns: int, context: Context) -> Iterator[Finding]:
        if "verbs" not in self._up_since:
            # Its end is told by its source; what it attaches anew may be less.
            self._attached.clear()
            return
        for series in context.series.get(catalog.PROBE_ATTACHED.name, ()):
            if series.ended or not isinstance(series.value, (int, float)):
                continue
            attributes = series.attributes
            key = (str(attributes[catalog.PROBE.name]), str(attributes[catalog.PROBE_METHOD.name]))
            if key[1] in _COME_AND_GO:
                continue
            now = int(series.value)
            most, since_ns = self._attached.get(key, (now, None))
            if now >= most:
                self._attached[key] = (now, None)
                continue
            since_ns = now_ns if since_ns is None else since_ns
            if now_ns - since_ns > _HOLD_NS:
                # It has been said; from now on this is what there is.
                self._attached[key] = (now, None)
                continue
            self._attached[key] = (most, since_ns)
            yield Finding(
                catalog.PROBE_DETACHED,
                Severity.ERROR if now == 0 else Severity.WARN,
                f"{key[0]} ({key[1]}) is attached at {now} places, was at {most}",
                key,
                now,
                "{probe}",
                most,
                since_ns,
                {catalog.PROBE.name: key[0], catalog.PROBE_METHOD.name: key[1]},
            )

    def _blind(self, now_ns: int, context: Context) -> Iterator[Finding]:
        lost = sum(
            int(series.value)
            for series in context.series.get(catalog.LOST.name, ())
            if isinstance(series.value, (int, float))
        )
        lossy, self._lost = lost != self._lost, lost
        if lossy:
            self._lost_ns = now_ns
        up_ns = self._up_since.get("verbs")
        for key in [key for key, seen_ns in self._unseen.items() if now_ns - seen_ns > 600 * 10**9]:
            del self._unseen[key]
        if lossy or up_ns is None or not _hooked(context) or context.ledger.connections.dropped:
            # What was lost, or refused by a full table, explains it: their counters say so already.
            self._unseen.clear()
            return
        # Netlink lists a connection a while after its record was lost.
        settled_ns = max(up_ns, self._lost_ns) + _SETTLED_NS
        for connection in context.batch:
            # The hooks at the system call see no users in the kernel.
            user = connection.pid is not None
            if user and connection.origin == "netlink" and connection.created_ns > settled_ns:
                self._unseen.setdefault(_key(connection), now_ns)
        if len(self._unseen) >= _BLIND:
            yield Finding(
                catalog.PROBES_BLIND,
                Severity.ERROR,
                f"netlink lists {len(self._unseen)} new connections that no probe saw being made",
                (),
                len(self._unseen),
                "{qp}",
                _BLIND,
            )

    def _coverage(self, now_ns: int, context: Context) -> Iterator[Finding]:
        for connection in context.batch:
            if connection.state == "rts":
                self._round[0] += 1
                self._round[1] += connection.coverage_kind in _SEEN
        if context.round_done:
            total, seen = self._round
            self._round = [0, 0]
            if total >= _LEAST:
                share = seen / total
                if share >= _GOOD:
                    self._good_since, self._fell = now_ns, None
                elif share <= _FALLEN and self._good_since is not None:
                    # From good to bad within a few rounds; a slow change is another set of jobs.
                    if self._fell is None and now_ns - self._good_since <= 10 * _TOGETHER_NS:
                        self._fell = (now_ns, share, total)
                elif share > _FALLEN:
                    self._fell = None
        if self._fell is not None and now_ns - self._fell[0] <= _HOLD_NS:
            since_ns, share, total = self._fell
            yield Finding(
                catalog.COVERAGE_FELL,
                Severity.WARN,
                f"posts of only {100 * share:.0f} % of {total} connections are seen now; it was 90 % or more",
                (),
                round(100 * share),
                "%",
                round(100 * _GOOD),
                since_ns,
            )


def _hooked(context: Context) -> bool:
    """Whether the control path is probed at all: sources.verbs.control may be off."""
    for series in context.series.get(catalog.PROBE_ATTACHED.name, ()):
        if not series.ended and series.value:
            name = str(series.attributes[catalog.PROBE.name])
            method = series.attributes[catalog.PROBE_METHOD.name]
            if method in _KERNEL_METHODS or name.startswith("syscall_"):
                return True
    return False


def _key(connection: Connection) -> tuple[str, int, int]:
    return connection.device, connection.qpn, connection.created_ns
