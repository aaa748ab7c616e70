"""``fabrictap recorder``: the files that are kept, and what is in them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fabrictap.view import simulated, text
from fabrictap.view.recording import AbsentError, Event, Recording, RecordingError
from fabrictap.view.text import UNKNOWN, address, amount, moment, plain

_SEVERITIES = ((17, "error"), (13, "warning"), (9, "info"), (0, "debug"))


def opener(path: str, owner: int | None) -> Callable[[], Recording]:
    """What opens the recording at ``path``; ``owner``: a user whose files are believed besides."""

    def open_recording() -> Recording:
        try:
            return Recording.open(path, _owners(owner))
        except AbsentError:
            raise RecordingError(
                f"{path} does not exist: no agent has run here with this ring.path "
                "(--file PATH, or --config FILE of the agent, say where its recording is)"
            ) from None

    return open_recording


def _owners(owner: int | None) -> set[int]:
    return {0, os.geteuid()} | (set() if owner is None else {owner})


def kept(path: str) -> list[str]:
    """``path`` and the older files beside it, the newest first."""
    base = Path(path)
    numbered = []
    try:
        for entry in os.scandir(base.parent):
            if match := re.fullmatch(re.escape(base.name) + r"\.([0-9]{1,4})", entry.name):
                numbered.append((int(match[1]), entry.path))
    except OSError as error:
        raise RecordingError(f"{base.parent}: {error.strerror}") from None
    return [path] * base.exists() + [name for _, name in sorted(numbered)]


def list_files(path: str, owner: int | None, *, as_json: bool) -> int:
    """Print a line for each file; 1 where there is none or one cannot be read."""
    files = [_file(name, owner) for name in kept(path)]
    if not files:
        opener(path, owner)()
    if as_json:
        print("\n".join(json.dumps(file) for file in files))
    else:
        rows = [["FILE", "AGENT", "PID", "FROM", "TO", "ROWS", "SERIES", "EVENTS", "SIZE"]]
        for file in files:
            if "error" in file:
                rows.append([plain(file["file"]), "unreadable", *[UNKNOWN] * 7])
            else:
                rows.append(
                    [
                        plain(file["file"]),
                        f"{file['agent']}, SIMULATED" if file["simulated"] else file["agent"],
                        str(file["pid"]),
                        file["from"],
                        file["to"] or UNKNOWN,
                        *(str(file[name]) for name in ("rows", "series", "events")),
                        amount(file["size"], "By"),
                    ]
                )
        print("\n".join(text.columns(rows, (2, 5, 6, 7, 8))))
        for file in files:
            if "error" in file:
                print(plain(file["error"]))
    return int(any("error" in file for file in files))


def _file(path: str, owner: int | None) -> dict[str, Any]:
    try:
        with Recording.open(path, _owners(owner)) as recording:
            rows, life = recording.rows(), recording.alive()
            return {
                "file": path,
                "agent": life.state,
                "simulated": simulated.is_simulated(recording.about.resource),
                "pid": life.pid,
                "version": recording.about.agent.version,
                "from": moment(rows[0].start_ns if rows else life.created_ns),
                "to": moment(rows[-1].end_ns) if rows else None,
                "rows": len(rows),
                "series": len(recording.series()),
                "events": len(recording.events()),
                "size": recording.allocated,
            }
    except RecordingError as error:
        return {"file": path, "error": str(error)}


def events(recording: Recording, since: float | None, *, as_json: bool) -> int:
    """Print the events that are kept, of the last ``since`` seconds before the last of anything."""
    found = recording.events()
    rows = recording.rows()
    if since is not None:
        last_ns = max([event.time_ns for event in found[-1:]] + [row.end_ns for row in rows[-1:]], default=0)
        found = [event for event in found if event.time_ns > last_ns - int(since * 1e9)]
    made_up = simulated.is_simulated(recording.about.resource)
    if not as_json:
        for line in simulated.lines(recording.about.resource):
            print(line)
    for event in found:
        if as_json:
            print(json.dumps({**_event_tree(event), "simulated": made_up}))
        else:
            print(_event_line(event))
    return 0


def _severity(number: int) -> str:
    return next(name for least, name in _SEVERITIES if number >= least)


def _event_line(event: Event) -> str:
    parts = []
    if event.process or event.pid:
        parts.append("/".join([*([str(event.pid)] if event.pid else []), plain(event.process) or UNKNOWN]))
    if event.device:
        parts.append(f"{plain(event.device)}{f'/{event.qpn}' if event.qpn else ''}")
    if event.peer_gid or event.peer_qpn:
        parts.append(f"-> {address(event.peer_gid)}/{event.peer_qpn or UNKNOWN}")
    if event.value:
        parts.append(str(event.value))
    if event.text:
        parts.append(plain(event.text))
    when, severity = moment(event.time_ns, 3), _severity(event.severity)
    return f"{when}  {severity:<7}  {plain(event.name)}  {' '.join(parts)}".rstrip()


def _event_tree(event: Event) -> dict[str, Any]:
    return {
        "time": moment(event.time_ns, 3),
        "name": event.name,
        "severity": _severity(event.severity),
        "pid": event.pid,
        "process": event.process,
        "device": event.device,
        "qpn": event.qpn or None,
        "gid": event.gid,
        "peer_gid": event.peer_gid,
        "peer_qpn": event.peer_qpn or None,
        "value": event.value,
        "text": event.text,
    }
