"""Whether the writer of a recording is still there.

A writer holds an exclusive flock on its file, which ends with it however it ends; so that neither a process
of the same number nor one in another PID namespace deceives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fabrictap.view.recording.records import Life

#: Ticks without a row after which a writer is not simply late, and the least time for that.
_LATE_TICKS = 5
_LATE_NS = 3 * 10**9


def of(header: Mapping[str, Any], last_tick_ns: int | None, now_ns: int, *, locked: bool) -> Life:
    """The life of the writer behind ``header``; ``locked``: somebody holds the file's lock."""
    seen_ns = header["created_ns"] if last_tick_ns is None else last_tick_ns
    late = abs(now_ns - seen_ns) > max(_LATE_TICKS * header["tick_ns"], _LATE_NS)
    if header["ended_ns"]:
        state = "ended"
    elif locked:
        state = "stalled" if late else "running"
    else:
        state = "died"
    age = None if last_tick_ns is None else max(0.0, (now_ns - last_tick_ns) / 1e9)
    return Life(state, header["pid"], header["created_ns"], last_tick_ns, header["ended_ns"] or None, age)
