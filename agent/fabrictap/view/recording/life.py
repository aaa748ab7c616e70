"""Whether the writer of a recording is still there."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fabrictap.view.recording.records import Life

#: Ticks without a row after which a writer is not simply late, and the least time for that.
_LATE_TICKS = 5
_LATE_NS = 3 * 10**9
#: /proc counts the start of a process in hundredths of a second, from a boot time in whole seconds.
_START_SLACK_NS = 2 * 10**9


def of(
    header: Mapping[str, Any],
    last_tick_ns: int | None,
    boot_id: str,
    now_ns: int,
    ticks: Callable[[], bool],
    proc: str = "/proc",
) -> Life:
    """The life of the writer behind ``header``.

    ``ticks`` waits and says whether another tick came. It is asked where the process is not there though the
    last tick was just now: one in another PID namespace cannot be seen.
    """
    created_ns, pid = header["created_ns"], header["pid"]
    seen_ns = created_ns if last_tick_ns is None else last_tick_ns
    fresh = abs(now_ns - seen_ns) <= max(_LATE_TICKS * header["tick_ns"], _LATE_NS)
    if header["ended_ns"]:
        state = "ended"
    elif _same_boot(boot_id, proc) and _is_writer(pid, created_ns, proc):
        state = "running" if fresh else "stalled"
    else:
        state = "running" if fresh and ticks() else "died"
    age = None if last_tick_ns is None else max(0.0, (now_ns - last_tick_ns) / 1e9)
    return Life(state, pid, created_ns, last_tick_ns, header["ended_ns"] or None, age)


def _same_boot(boot_id: str, proc: str) -> bool:
    """True also where the file does not say of which boot it is."""
    try:
        return not boot_id or Path(proc, "sys/kernel/random/boot_id").read_text().strip() == boot_id.strip()
    except OSError:
        return True


def _is_writer(pid: int, created_ns: int, proc: str) -> bool:
    """Whether there is a process of this number that is older than the file; a younger one is another."""
    try:
        fields = Path(proc, str(pid), "stat").read_bytes().rpartition(b")")[2].split()
        boot = next(
            int(line.split()[1])
            for line in Path(proc, "stat").read_text().splitlines()
            if line.startswith("btime ")
        )
        # proc(5): state is the first field after the name, starttime the 20th
        started_ns = boot * 10**9 + int(fields[19]) * 10**9 // os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, StopIteration):
        return False
    return fields[0] not in (b"Z", b"X") and started_ns <= created_ns + _START_SLACK_NS
