"""Findings as the recording's events tell them: what was found, whether it still is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from fabrictap import catalog
from fabrictap.view.recording import Event, Recording
from fabrictap.view.text import address

#: The catalog's word -> OTLP SeverityNumber.
SEVERITIES = {"info": 9, "warn": 13, "error": 17}
#: The most that are kept; the oldest goes.
_MOST = 256
_ENDED = "Ended: "
#: After so long the agent's own count has been brought up to date: exports are 10 s apart by default.
_SETTLED_NS = 60 * 10**9


@dataclass(frozen=True, slots=True)
class Found:
    """One finding: ``since_ns`` first told (0: not known), ``time_ns`` told last; ``severity`` as in OTLP."""

    kind: str
    text: str
    severity: int
    since_ns: int
    time_ns: int
    ended: bool
    pid: int | None
    process: str
    device: str
    peer: str | None


class Findings:
    """Follows the events. One of a finding that was told before takes the place of that."""

    def __init__(self) -> None:
        self._after = 0
        self._found: dict[tuple[object, ...], Found] = {}

    def update(self, recording: Recording, counts: Mapping[str, tuple[int, int]], now_ns: int) -> list[Found]:
        """All that are known, the open ones first, then the latest.

        ``counts``: kind -> (how many are open, by the agent's own count, the worst severity of them), some
        seconds behind the events, and right where these were overwritten.
        """
        for event in recording.events(after=self._after):
            self._after = max(self._after, event.number)
            if event.name in (catalog.FINDING_RAISED.name, catalog.FINDING_ENDED.name):
                self._take(event)
        for key, one in self._found.items():
            if not one.ended and counts.get(one.kind) == (0, 0) and now_ns - one.time_ns > _SETTLED_NS:
                self._found[key] = replace(one, ended=True)
        listed = Counter(one.kind for one in self._found.values() if not one.ended)
        found = list(self._found.values())
        # An end that has just been told is not in the count yet.
        fresh = {one.kind for one in found if now_ns - one.time_ns <= _SETTLED_NS}
        for kind, (number, severity) in counts.items():
            if number and not listed[kind] and kind not in fresh:
                found.append(_told_earlier(kind, number, severity, now_ns))
        return sorted(found, key=lambda one: (one.ended, -one.severity, -one.time_ns))

    def _take(self, event: Event) -> None:
        kind, _, text = event.text.partition(": ")
        # What an event says of a finding is whom it concerns; its title may have other numbers each time.
        key: tuple[object, ...] = (
            kind,
            event.device,
            event.pid,
            event.qpn,
            event.gid,
            event.peer_gid,
            event.peer_qpn,
        )
        ended = event.name == catalog.FINDING_ENDED.name
        if ended and key not in self._found:
            # Whom it concerns was found out while it lasted.
            alike = (at for at, one in self._found.items() if not one.ended and at[:2] == key[:2])
            key = next(alike, key)
        before = self._found.pop(key, None)
        severity = before.severity if ended and before is not None else event.severity
        self._found[key] = Found(
            kind=kind,
            text=text.removeprefix(_ENDED) if ended else text,
            severity=severity,
            since_ns=before.since_ns if before is not None and (ended or not before.ended) else event.time_ns,
            time_ns=event.time_ns,
            ended=ended,
            pid=event.pid,
            process=event.process,
            device=event.device,
            peer=None if event.peer_gid is None else address(event.peer_gid),
        )
        while len(self._found) > _MOST:
            del self._found[next(iter(self._found))]


def _told_earlier(kind: str, number: int, severity: int, now_ns: int) -> Found:
    text = f"{number} open, told of before what the recording still has"
    return Found(kind, text, severity, 0, now_ns, ended=False, pid=None, process="", device="", peer=None)
