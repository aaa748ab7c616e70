"""What one hit of a probe costs whoever runs into it, on this machine: measured, not assumed.

The programs that stand for post_send are loaded once more, with maps of their own, and attached to a function
of ours (ext/calibrate.h), for this process only; a short loop is timed with and without. About 50 ms of CPU
time, most of it for the verifier.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from fabrictap.ext import calibrate
from fabrictap.ext.bpf import BpfError
from fabrictap.sources.verbs import maps
from fabrictap.sources.verbs.budget import ASSUMED_NS
from fabrictap.sources.verbs.elf import Refused
from fabrictap.sources.verbs.probes import Kind, Probes, ProbesUnavailable, attach_function, load_data

_ROUNDS = 5
_CALLS = 1000
_STEPPED_CALLS = 100
ASSUMED_STEPPED_NS = 12000.0


@dataclass(frozen=True, slots=True)
class Cost:
    """Nanoseconds of CPU time of one hit, its return probe included where there is one. ``stepped``: where
    the kernel has to single-step the instruction. ``problem``: why they are assumed and not measured."""

    emulated: float = ASSUMED_NS
    stepped: float = ASSUMED_STEPPED_NS
    problem: str | None = None


def measure(kind: Kind) -> Cost:
    """Takes some milliseconds. ``kind``: the programs that are in use."""
    try:
        probes = load_data(
            0, 4096, bounded=kind.bounded, returns=kind.returns, subtract=kind.subtract,
            functions=("post_send",), quota=(1 << 63),
        )  # fmt: skip
        return Cost(_measure(probes, stepped=False), _measure(probes, stepped=True))
    except (ProbesUnavailable, BpfError, Refused, OSError) as error:
        return Cost(problem=str(error))


def _measure(probes: Probes, *, stepped: bool) -> float:
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
        finally:
            for attachment in made:
                attachment.link.close()
    finally:
        os.close(descriptor)
    if probed <= bare:
        raise Refused("not_hit", "the probe in our own function was not hit")
    return probed - bare
