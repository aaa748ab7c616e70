"""What a window of completions costs who polls and posts: before it, in it, and after it, CPU time per call.

The functions are the stand-in's (tests/doubles/provider); poll_cq finds nothing, as in a busy loop. After a
window must be as before any: nothing is attached then.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from bench.result import Result, alternate
from doubles.provider import builder
from doubles.provider.application import RC, Application
from doubles.provider.builder import Double
from fabrictap.ext.completions import Completions
from fabrictap.sources.verbs.probes import attach_place
from fabrictap.sources.verbs.windows import CALL_NS
from fabrictap.sources.verbs.work import Reader, open_probes

ROUNDS = 15
CALLS, CALLS_PROBED = 400_000, 10_000
AFTER_GOAL = 1.05
#: More than this a probed call may not take, for the limit on what windows cost counts on it.
CALL_GOAL = 1.5


def measure() -> list[Result]:
    for missing in (
        "" if os.geteuid() == 0 else "uprobes take root: sudo make bench B=completions",
        builder.missing(),
    ):
        if missing:
            print(f"completions: left out: {missing}", file=sys.stderr)
            return []
    with tempfile.TemporaryDirectory() as work:
        double = builder.build(Path(work))
        with Application(double.driver, [max(os.sched_getaffinity(0))]) as application:
            for command in (("device", "bench0"), ("context", 0), ("qp", 0, 17, RC), ("qp", 0, 18, RC)):
                application.tell(*command)
            return _measure(double, application)


def _measure(double: Double, application: Application) -> list[Result]:
    probes = open_probes(4 << 20)
    reader = Reader(probes, Completions(time.monotonic_ns()))

    def polls(calls: int) -> float:
        application.tell("polls", calls // 20)
        return float(application.tell("polls", calls)["cpu"]) / calls

    def bare() -> float:
        return polls(CALLS)

    def probed(command: str) -> float:
        for function in ("post_send", "poll_cq"):
            attach_place(probes, double.place(function))
        try:
            taken = float(application.tell(command, CALLS_PROBED)["cpu"]) / CALLS_PROBED
        finally:
            probes.close()
        reader.read(0)
        return taken

    def polling() -> float:
        return probed("polls")

    def posting() -> float:
        return probed("time")

    before, polled, posted, after = alternate(ROUNDS, bare, polling, posting, bare)
    return [
        Result("poll_cq after a window", "ns", after, before, "no window ever", AFTER_GOAL),
        Result("an empty poll within a window", "ns", polled, CALL_NS, "as accounted", CALL_GOAL),
        Result("a signaled post within a window", "ns", posted, CALL_NS, "as accounted", CALL_GOAL),
    ]
