"""What the budget leaves of the throughput of a process that posts two million times a second.

Two processes on two copies of the stand-in provider, one of them watched with the default budget; they post
in turn, some seconds each, a minute in all, so that what disturbs one disturbs the other. Posts per second of
CPU time, which other load on the machine does not take; between its turns the watched one is calm, so that it
is noticed and let go again and again. Then how soon it is let go, and what charging adds to a counted post.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from statistics import median

from bench.result import Result, alternate, left_out, limit, note
from bench.uprobe import _per_call
from doubles.provider import builder
from doubles.provider.application import RC, Application
from doubles.provider.builder import FUNCTIONS, Double
from fabrictap.sources.verbs.attach import Attachments, File
from fabrictap.sources.verbs.budget import Limits
from fabrictap.sources.verbs.duty import Duty
from fabrictap.sources.verbs.probes import Probes, attach_place, load_data

TURNS, TURN_MS = 12, 5000
#: Work after each post that makes it about two million a second on a processor of 2 to 3 GHz.
SPINS = 900
LEAST_KEPT = 0.99
REACTION_S = 0.2
METERED_GOAL = 1.15
_EPISODES = 7


class Watched:
    """The data path with the default budget over one copy of the provider."""

    def __init__(self, double: Double) -> None:
        self._errors: dict[str, int] = {}
        self._probes = load_data(1 << 20, 1 << 16, subtract=False, quota=10_000)
        self._attachments = Attachments(self._probes, self._errors)
        self.duty = Duty(self._probes, self._attachments, Limits(), "budget", self._errors)
        places: dict[str, tuple[int, ...]] = {name: (double.place(name).offset,) for name in FUNCTIONS}
        descriptor = os.open(double.library, os.O_RDONLY | os.O_CLOEXEC)
        made = self._attachments.add(descriptor, str(double.library), places, kept=True)
        assert made is not None
        self._file: File = made
        self.duty.start()

    def use(self, application: Application) -> None:
        self.duty.meet(application.pid, "budget")
        self._attachments.use(self._file, application.pid)

    def missed(self, application: Application) -> bool:
        return self._attachments.missed.until(application.pid, time.time_ns()) > 0

    def seen(self, application: Application) -> float:
        """Share of the time in which it was watched."""
        met_ns = self.duty.figures()[application.pid].met_ns
        now_ns = time.time_ns()
        return 1 - self._attachments.missed.until(application.pid, now_ns) / (now_ns - met_ns)

    def cost(self, application: Application) -> float:
        """CPU seconds that its probes took from it."""
        return self.duty.figures()[application.pid].cost

    def close(self) -> None:
        self.duty.close()
        self._attachments.close()
        self._probes.close()
        if self._errors:
            raise RuntimeError(f"the budget had errors: {self._errors}")


def _started(double: Double) -> Application:
    application = Application(double.driver, [max(os.sched_getaffinity(0))])
    application.tell("device", "bench0")
    application.tell("context", 0)
    application.tell("qp", 0, 17, RC)
    return application


def measure() -> list[Result]:
    why = "" if os.geteuid() == 0 else "uprobes take root: sudo make bench B=budget"
    if why or (why := builder.missing()):
        left_out("budget", why)
        return []
    with tempfile.TemporaryDirectory() as work:
        one, other = (builder.build(Path(work) / name) for name in ("watched", "bare"))
        return [*_throughput(one, other), _reaction(one), _metered(one)]


def _throughput(one: Double, other: Double) -> list[Result]:
    watched = Watched(one)
    try:
        with _started(one) as probed, _started(other) as bare:
            watched.use(probed)

            spent = {probed: 0.0, bare: 0.0}

            def rate(application: Application) -> float:
                answer = application.tell("work", TURN_MS, SPINS)
                spent[application] += answer["cpu"] * 1e-9
                return float(answer["posts"] / (answer["cpu"] * 1e-9))

            alternate(1, lambda: rate(bare))
            rates: list[tuple[float, float]] = [(rate(probed), rate(bare)) for _ in range(TURNS)]
            kept = median(ours / peer for ours, peer in rates)
            seen = watched.seen(probed)
            charged = watched.cost(probed) / spent[probed]
    finally:
        watched.close()
    return [
        # A cost, so that less is better: CPU time of a post with the budget over one without a probe.
        Result(
            "post under the budget, CPU time", "ns", 1e9 / median(r for r, _ in rates),
            1e9 / median(r for _, r in rates), "no uprobe", 1 / LEAST_KEPT,
        ),
        limit("CPU time charged under the budget", "%", 100 * charged, 100 * Limits().process),
        note("throughput kept under the budget", "%", 100 * kept, "median of pairs"),
        note("posts a second meant by that", "M/s", median(r for _, r in rates) * 1e-6, "no uprobe"),
        note("of the time in which it was counted", "%", 100 * seen, ""),
    ]  # fmt: skip


def _reaction(double: Double) -> Result:
    taken = []
    for _ in range(_EPISODES):
        watched = Watched(double)
        try:
            with _started(double) as application:
                watched.use(application)
                application.tell("begin", "work", 1000, SPINS)
                began = time.monotonic()
                while not watched.missed(application):
                    if time.monotonic() > began + 10:
                        raise RuntimeError("a process over its budget was not let go")
                    time.sleep(0.001)
                taken.append(time.monotonic() - began)
                application.tell("finish")
        finally:
            watched.close()
    return limit("until it is let go, the longest", "ms", 1000 * max(taken), 1000 * REACTION_S)


def _metered(double: Double) -> Result:
    place = double.place("post_send")
    plain, metered = (load_data(1 << 20, 1 << 16, subtract=False, quota=quota) for quota in (None, 1 << 62))
    with _started(double) as application:

        def cost(probes: Probes) -> float:
            attach_place(probes, place)
            try:
                return _per_call(application)
            finally:
                probes.close()

        ours, peer = alternate(15, lambda: cost(metered), lambda: cost(plain))
    return Result("post_send counted and charged", "ns", ours, peer, "counted only", METERED_GOAL)
