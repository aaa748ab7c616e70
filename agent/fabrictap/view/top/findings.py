"""Findings as the recording's events tell them: what was found, whether it still is."""

from __future__ import annotations

from dataclasses import dataclass

from fabrictap import catalog
from fabrictap.view.recording import Event, Recording
from fabrictap.view.text import address

#: The most that are kept; the oldest goes.
_MOST = 256
_ENDED = "Ended: "


@dataclass(frozen=True, slots=True)
class Found:
    """One finding: ``since_ns`` first told, ``time_ns`` told last; ``severity`` as in OTLP."""

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

    def update(self, recording: Recording) -> list[Found]:
        """All that are known, the open ones first, then the latest."""
        events = recording.events(after=self._after)
        for event in events:
            self._after = max(self._after, event.number)
            if event.name in (catalog.FINDING_RAISED.name, catalog.FINDING_ENDED.name):
                self._take(event)
        return sorted(self._found.values(), key=lambda one: (one.ended, -one.severity, -one.time_ns))

    def _take(self, event: Event) -> None:
        kind, _, text = event.text.partition(": ")
        # What an event says of a finding is whom it concerns; its title may have other numbers each time.
        key = (kind, event.pid, event.device, event.qpn, event.gid, event.peer_gid, event.peer_qpn)
        ended = event.name == catalog.FINDING_ENDED.name
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
