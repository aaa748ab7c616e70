"""``fabrictap health``: whether the agent lives, in one line and an exit code, for probes and scripts.

It reads the recording and asks the agent nothing, so that it is right about one that hangs. Of the recording
only the rows and the state of the sources are read: it runs every few seconds on every node.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from fabrictap import catalog
from fabrictap.view.recording import Recording, SeriesEntry
from fabrictap.view.text import duration, plain

_HEALTHY, _UNHEALTHY = 0, 1


def main(recording: Recording, max_age: float, *, ready: bool, now_ns: int | None = None) -> int:
    """Print one line; 0 where the agent lives, else 1.

    It lives where it holds its recording and has finished a tick, or begun, within ``max_age`` seconds.
    ``ready``: only where, besides, it has finished its first tick and one of its sources delivers.
    """
    now_ns = time.time_ns() if now_ns is None else now_ns
    life = recording.alive()
    # The clock may be set back: a tick of the future is as wrong as an old one, and the next one mends it.
    seen_ns = life.created_ns if life.last_tick_ns is None else life.last_tick_ns
    age = abs(now_ns - seen_ns) / 1e9
    if life.state in ("ended", "died"):
        verb = "was stopped" if life.state == "ended" else "died"
        return _say(f"the agent {verb}; it was seen {duration(age)} ago", _UNHEALTHY)
    if age > max_age:
        what = "has not finished its first tick" if life.last_tick_ns is None else "has not ticked"
        return _say(f"the agent (pid {life.pid}) {what} for {duration(age)}", _UNHEALTHY)
    if life.last_tick_ns is None:
        return _say(f"the agent (pid {life.pid}) is starting", _UNHEALTHY if ready else _HEALTHY)
    up, down = _sources(recording.series(lambda metric: metric.name == catalog.SOURCE_UP.name))
    ticked = f"the agent (pid {life.pid}) ticked {duration(age)} ago"
    sources = f"sources that deliver: {', '.join(up) or 'none'}"
    if down:
        sources += f"; not: {', '.join(down)}"
    return _say(f"{ticked}; {sources}", _UNHEALTHY if ready and not up else _HEALTHY)


def _sources(series: Sequence[SeriesEntry]) -> tuple[list[str], list[str]]:
    """Names of the sources that deliver, and of those that do not."""
    up: list[str] = []
    down: list[str] = []
    for one in series:
        if not one.ended:
            (up if one.value else down).append(plain(str(one.attributes.get(catalog.SOURCE.name))))
    return sorted(up), sorted(down)


def _say(reason: str, code: int) -> int:
    print(f"{'unhealthy' if code else 'ok'}: {reason}")
    return code
