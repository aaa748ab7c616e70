"""What one hit of a probe costs whoever runs into it, on this machine: measured, not assumed.

The programs that stand for post_send are loaded once more, with maps of their own, and attached to a function
of ours (ext/calibrate.h), for this process only; a short loop is timed with and without. About 50 ms of CPU
time, most of it for the verifier.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass

from fabrictap.ext import calibrate
from fabrictap.ext.bpf import BpfError
from fabrictap.sources.verbs import maps
from fabrictap.sources.verbs.budget import ASSUMED_NS
from fabrictap.sources.verbs.elf import Refused
from fabrictap.sources.verbs.meter import Meter
from fabrictap.sources.verbs.probes import Kind, Probes, ProbesUnavailable, attach_function, load_data

_ROUNDS = 5
_CALLS = 1000
_STEPPED_CALLS = 100
_BOTH_THREADS = 2
ASSUMED_STEPPED_NS = 12000.0


@dataclass(frozen=True, slots=True)
class Cost:
    """Nanoseconds of CPU time of one hit, its return probe included where there is one. ``stepped``: where
    the kernel has to single-step the instruction. ``problem``: why they are assumed and not measured."""

    emulated: float = ASSUMED_NS
    stepped: float = ASSUMED_STEPPED_NS
    problem: str | None = None
    #: Whether a probe for one process is for all its threads: from Linux 6.6 until 46ba0e49b642 ("bpf: fix
    #: multi-uprobe PID filtering logic", 6.10), only its first thread is counted.
    by_process: bool = True


def measure(kind: Kind) -> Cost:
    """Takes some milliseconds. ``kind``: the programs that are in use."""
    try:
        probes = load_data(
            0, 4096, bounded=kind.bounded, returns=kind.returns, subtract=kind.subtract,
            functions=("post_send",), quota=(1 << 63),
        )  # fmt: skip
        emulated, by_process = _measure(probes, stepped=False)
        stepped, _ = _measure(probes, stepped=True)
        return Cost(emulated, stepped, by_process=by_process)
    except (ProbesUnavailable, BpfError, Refused, OSError) as error:
        return Cost(problem=str(error))


def _measure(probes: Probes, *, stepped: bool) -> tuple[float, bool]:
    """(nanoseconds of one hit, whether that of another thread is counted too)."""
    address = calibrate.address(stepped)
    pid = os.getpid()
    mapping = next((one for one in maps.mappings(pid) if one.start <= address < one.end), None)
    if mapping is None:
        raise Refused("no_function", "our own function is in no file")
    count = _STEPPED_CALLS if stepped else _CALLS
    bare = min(calibrate.calls(stepped, _CALLS) for _ in range(_ROUNDS)) / _CALLS
    descriptor = maps.open_mapped(pid, mapping)
    try:
        made = attach_function(probes, "post_send", descriptor, address - mapping.start + mapping.offset, pid)
        try:
            # The least: what disturbs the loop, or a page that is touched first, makes it longer.
            probed = min(calibrate.calls(stepped, count) for _ in range(_ROUNDS)) / count
            meter = Meter(probes)
            before = meter.get(pid).hits
            # One of these is not the first thread of this process.
            other = threading.Thread(target=calibrate.calls, args=(stepped, 1))
            other.start()
            other.join()
            calibrate.calls(stepped, 1)
            counted = meter.get(pid).hits - before
        finally:
            for attachment in made:
                attachment.link.close()
    finally:
        os.close(descriptor)
    if probed <= bare:
        raise Refused("not_hit", "the probe in our own function was not hit")
    return probed - bare, counted >= _BOTH_THREADS
