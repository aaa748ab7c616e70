"""Findings: what an operator or security engineer should look at, with evidence.

A detector yields a :class:`Finding` in every look for as long as it is so. The board tells of it once
when it opens, again when it has become many times worse or has lasted long, and once when it has ended.
Memory and the rate of events are bounded, and what is not told is counted.
"""

from __future__ import annotations

import enum
import hashlib
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone

from fabrictap import catalog
from fabrictap.catalog import Event
from fabrictap.config import FindingSettings
from fabrictap.journal import Journal
from fabrictap.ledger.flows import Flow, SpanEvent
from fabrictap.ledger.workloads.text import clean
from fabrictap.series import AttributeValue, SeriesTable

#: A finding that is this many times as bad as when it was told is told again.
WORSE = 10.0
#: And one that has lasted this long since.
REMIND_NS = 24 * 3600 * 10**9
#: A finding that no look has confirmed for so long has ended.
QUIET_NS = 60 * 10**9
#: One that comes back within this time is the same episode and not told again, unless it is worse.
REOPEN_NS = 600 * 10**9
#: Events that wait for the exporter, the newest refused.
MAX_WAITING = 1024
_MAX_TEXT = 512
_MAX_TITLE = 400


class Severity(enum.IntEnum):
    """OTLP SeverityNumber."""

    INFO = 9
    WARN = 13
    ERROR = 17


@dataclass(frozen=True, slots=True)
class Finding:
    """What a detector has found. ``key`` tells it from others of its kind; the kind's name is part of it.

    ``value`` is what was measured, in ``unit`` (UCUM); ``attributes`` are further evidence. ``flows``: the
    flows concerned, the likeliest first.
    """

    kind: catalog.Finding
    severity: Severity
    title: str
    key: tuple[str | int | None, ...]
    value: float = 1
    unit: str | None = None
    threshold: float | None = None
    since_ns: int | None = None
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    flows: tuple[Flow, ...] = ()


@dataclass(frozen=True, slots=True)
class LogRecord:
    """A log event ready to be exported. The ids are those of a flow, where there is one."""

    event_name: str
    severity: Severity
    body: str
    attributes: dict[str, AttributeValue]
    time_ns: int
    trace_id: bytes | None = None
    span_id: bytes | None = None


@dataclass(slots=True)
class _Open:
    finding: Finding
    since_ns: int
    seen_ns: int
    told_ns: int
    told_value: float
    told_severity: Severity
    #: Whether an event was sent: what was never told does not end aloud.
    told: bool = False
    #: The last try to tell met the limit of the rate.
    refused: bool = False


class Findings:
    """The board. Everything under the node's lock. Times are nanoseconds since the epoch."""

    def __init__(
        self, settings: FindingSettings, capacity: int, series: SeriesTable, journal: Journal
    ) -> None:
        self.capacity = capacity
        self.dropped: Counter[str] = Counter()
        self._per_minute = settings.per_minute
        self._series = series
        self._journal = journal
        self._open: dict[tuple[str, ...], _Open] = {}
        #: Ended a short while ago, the oldest first.
        self._ended: OrderedDict[tuple[str, ...], _Open] = OrderedDict()
        self._waiting: deque[LogRecord] = deque()
        self._counts: Counter[tuple[str, str]] = Counter()
        #: (tokens, when they were counted) by kind: each has a rate of its own, so that a flood of one kind
        #: does not hide another.
        self._tokens: dict[str, tuple[float, int]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def open_findings(self) -> list[Finding]:
        """What is open now, as last seen."""
        return [entry.finding for entry in self._open.values()]

    def see(self, found: Iterable[Finding], now_ns: int) -> None:
        """Take note of what a look has found."""
        for finding in found:
            self._see(finding, now_ns)

    def expire(self, now_ns: int, quiet_ns: int = QUIET_NS) -> None:
        """End what no look has confirmed for a while, and forget what ended long ago."""
        for key in [key for key, entry in self._open.items() if now_ns - entry.seen_ns > quiet_ns]:
            entry = self._open.pop(key)
            self._ended[key] = entry
            if entry.told:
                self._tell(entry, "ended", now_ns)
        while self._ended:
            key, entry = next(iter(self._ended.items()))
            if len(self._ended) <= self.capacity and now_ns - entry.seen_ns <= REOPEN_NS:
                break
            del self._ended[key]

    def take_records(self) -> list[LogRecord]:
        """Hand the events to the exporter, oldest first."""
        records = list(self._waiting)
        self._waiting.clear()
        return records

    def fold(self, now_ns: int) -> None:
        """Bring the board's own series up to date."""
        table = self._series
        opened = Counter(_labels(entry.finding) for entry in self._open.values())
        for kind, severity in self._counts:
            labels = {catalog.FINDING_KIND.name: kind, catalog.FINDING_SEVERITY.name: severity}
            table.series(catalog.FINDING_COUNT, labels, now_ns).observe(self._counts[kind, severity], now_ns)
            table.series(catalog.FINDING_OPEN, labels, now_ns).set(opened[kind, severity], now_ns)
        for reason, count in self.dropped.items():
            labels = {catalog.FINDING_SUPPRESSED.name: reason}
            table.series(catalog.FINDING_DROPPED, labels, now_ns).observe(count, now_ns)

    def _see(self, finding: Finding, now_ns: int) -> None:
        key = (finding.kind.name, *(str(part) for part in finding.key))
        entry = self._open.get(key)
        if entry is not None:
            entry.finding, entry.seen_ns = finding, now_ns
            self._again(entry, now_ns)
            return
        if len(self._open) >= self.capacity:
            self.dropped["full"] += 1
            return
        entry = self._ended.pop(key, None)
        if entry is not None and now_ns - entry.seen_ns <= REOPEN_NS:
            entry.finding, entry.seen_ns = finding, now_ns
            self._open[key] = entry
            self._again(entry, now_ns)
            return
        since_ns = finding.since_ns if finding.since_ns is not None else now_ns
        entry = _Open(finding, since_ns, now_ns, now_ns, finding.value, finding.severity)
        self._open[key] = entry
        self._counts[_labels(finding)] += 1
        self._tell(entry, "opened", now_ns)

    def _again(self, entry: _Open, now_ns: int) -> None:
        finding = entry.finding
        if finding.severity > entry.told_severity or finding.value >= WORSE * max(entry.told_value, 1e-9):
            self._tell(entry, "worsened", now_ns)
        elif not entry.told:
            self._tell(entry, "opened", now_ns)
        elif now_ns - entry.told_ns >= REMIND_NS:
            self._tell(entry, "continuing", now_ns)

    def _tell(self, entry: _Open, state: str, now_ns: int) -> None:
        finding = entry.finding
        ended = state == "ended"
        if not ended and not self._may_tell(finding.kind.name, now_ns):
            # Tried again with the next look, and counted once.
            self.dropped["rate"] += not entry.refused
            entry.refused = True
            return
        entry.told_ns, entry.told_value, entry.told_severity = now_ns, finding.value, finding.severity
        entry.refused = False
        entry.told = True
        event = catalog.FINDING_ENDED if ended else catalog.FINDING_RAISED
        severity = Severity.INFO if ended else finding.severity
        attributes = _attributes(entry, state)
        body = clean(f"Ended: {finding.title}" if ended else finding.title, _MAX_TITLE)
        self._write(event, severity, finding, body, now_ns)
        flow = finding.flows[0] if finding.flows else None
        if len(self._waiting) >= MAX_WAITING:
            self.dropped["queue"] += 1
        else:
            self._waiting.append(
                LogRecord(
                    event.name,
                    severity,
                    body,
                    attributes,
                    now_ns,
                    flow.id.trace_id if flow else None,
                    flow.span_id if flow else None,
                )
            )
        if not ended:
            for one in finding.flows:
                one.remember(SpanEvent(event.name, now_ns, attributes))

    def _may_tell(self, kind: str, now_ns: int) -> bool:
        """A token bucket for each kind that holds a minute's worth."""
        tokens, counted_ns = self._tokens.get(kind, (float(self._per_minute), now_ns))
        elapsed = max(0, now_ns - counted_ns) / 60e9
        tokens = min(float(self._per_minute), tokens + elapsed * self._per_minute)
        allowed = tokens >= 1
        self._tokens[kind] = (tokens - 1 if allowed else tokens, now_ns)
        return allowed

    def _write(self, event: Event, severity: Severity, finding: Finding, body: str, now_ns: int) -> None:
        def of(attribute: catalog.Attribute) -> AttributeValue | None:
            return finding.attributes.get(attribute.name)

        pid, qpn, peer_qpn = of(catalog.PROCESS_PID), of(catalog.RDMA_QPN), of(catalog.RDMA_PEER_QPN)
        gid, peer = of(catalog.RDMA_GID), of(catalog.RDMA_PEER_GID)
        self._journal.write(
            event,
            now_ns,
            pid=pid if isinstance(pid, int) else None,
            process=str(of(catalog.PROCESS_EXE) or ""),
            device=str(of(catalog.RDMA_DEVICE) or ""),
            qpn=qpn if isinstance(qpn, int) else 0,
            gid=gid if isinstance(gid, str) else None,
            peer_gid=peer if isinstance(peer, str) else None,
            peer_qpn=peer_qpn if isinstance(peer_qpn, int) else None,
            value=max(0, min(int(finding.value), (1 << 63) - 1)),
            text=f"{finding.kind.name}: {body}",
            severity=int(severity),
        )


def rfc3339(time_ns: int) -> str:
    """A time as the catalog writes it: RFC 3339, UTC, milliseconds."""
    moment = datetime.fromtimestamp(time_ns / 1e9, tz=timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def size_text(size: float) -> str:
    """Bytes for a reader: ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}" if size < 1000 else f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


def _labels(finding: Finding) -> tuple[str, str]:
    return finding.kind.name, finding.severity.name.lower()


def _attributes(entry: _Open, state: str) -> dict[str, AttributeValue]:
    finding = entry.finding
    identity = "\0".join((finding.kind.name, *(str(part) for part in finding.key)))
    digest = hashlib.blake2b(identity.encode(errors="backslashreplace"), digest_size=8)
    made: dict[str, AttributeValue] = {
        catalog.FINDING_KIND.name: finding.kind.name,
        catalog.FINDING_SEVERITY.name: finding.severity.name.lower(),
        catalog.FINDING_STATE.name: state,
        catalog.FINDING_ID.name: digest.hexdigest(),
        catalog.FINDING_SINCE.name: rfc3339(entry.since_ns),
        catalog.FINDING_ADVICE.name: finding.kind.advice,
    }
    if finding.unit is not None:
        made[catalog.FINDING_UNIT.name] = finding.unit
        made[catalog.FINDING_VALUE.name] = round(finding.value)
        if finding.threshold is not None:
            made[catalog.FINDING_THRESHOLD.name] = round(finding.threshold)
    # Names of processes, cgroups and devices are other people's words.
    for name, value in finding.attributes.items():
        made[name] = clean(value, _MAX_TEXT) if isinstance(value, str) else value
    return made
