"""Keeps to the budget: a thread that the kernel tells when a process has used up its quota, and lets it go.

A thread of its own, because the source's may be looking through a process's memory just then. What is decided
is decided by :mod:`budget`; attached and detached is by :mod:`attach`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, replace

from fabrictap.ext.bpf import BpfError
from fabrictap.sources.verbs import calibration, maps
from fabrictap.sources.verbs.attach import Attachments
from fabrictap.sources.verbs.budget import Decision, Governor, Limits, Mode, State, Watched, first_quota
from fabrictap.sources.verbs.calibration import Cost
from fabrictap.sources.verbs.meter import OTHERS, Charged, Meter
from fabrictap.sources.verbs.probes import Kind, Probes

_log = logging.getLogger(__name__)
#: The longest wait for the kernel, for the thread is to end when it is told to.
_WAIT_SECONDS = 0.2
_LOOK_SECONDS = 1.0
_SWEEP_SECONDS = 10.0
_CALIBRATE_SECONDS = 600.0
#: While the others of a file wait for probes of their own.
_DIVIDE_SECONDS = 0.01
_MOST_DECISIONS = 1024
#: CPUCLOCK_SCHED of a process, kernel/time/posix-cpu-timers.c: what clock_getcpuclockid() makes.
_PROCESS_CLOCK = 2


@dataclass(frozen=True, slots=True)
class Figures:
    """One process: hits until now, what they cost it, seconds of CPU time; and how it is counted."""

    hits: int
    cost: float
    state: State
    #: When it was met first, nanoseconds since the epoch.
    met_ns: int


class Duty:
    """``default``: how processes are counted that nobody told of."""

    def __init__(
        self, probes: Probes, attachments: Attachments, limits: Limits, default: Mode, errors: dict[str, int]
    ) -> None:
        self._probes = probes
        self._attachments = attachments
        self._meter = Meter(probes)
        self._governor = Governor(limits)
        self._default = default
        self._errors = errors
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._started: dict[int, int] = {}
        self._figures: dict[int, Figures] = {}
        #: Whether a failure of the thread has been said.
        self._failed = False
        #: Processes that had gone at the last sweep.
        self._gone: set[int] = set()
        #: Newest last; what is forgotten was not taken in time.
        self._decisions: deque[Decision] = deque(maxlen=_MOST_DECISIONS)
        if not isinstance(probes.kind, Kind):
            raise TypeError("these are not the probes that count posts")
        self._kind = probes.kind
        self.cost = calibration.measure(self._kind)
        attachments.by_process = self.cost.by_process
        self._say_cost()
        now = time.monotonic()
        self._next_look, self._next_sweep = now + _LOOK_SECONDS, now + _SWEEP_SECONDS
        self._next_calibration = now + _CALIBRATE_SECONDS
        self._meter.grant(OTHERS, first_quota(limits, self.cost.emulated), time.monotonic_ns(), anew=True)
        self._thread = threading.Thread(target=self._run, name="fabrictap-budget", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Before the attachments are closed."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    # --- from the source's thread -----------------------------------------------------------------

    def meet(self, pid: int, mode: Mode) -> None:
        """A process is about to be looked at; call it before that."""
        started = maps.start_time(pid)
        if started is None:
            return
        with self._lock:
            known = self._governor.processes.get(pid)
            if known is not None and self._started.get(pid) == started and known.mode == mode:
                return
            if known is not None:
                self.forget(pid)
            self._meet(pid, mode, started)

    def calibrate(self) -> None:
        """Measure anew what a hit costs, where that is due; it takes some tenths of a second then."""
        if time.monotonic() < self._next_calibration:
            return
        self._next_calibration = time.monotonic() + _CALIBRATE_SECONDS
        cost = calibration.measure(self._kind)
        if cost.problem is None:
            self.cost = cost

    def forget(self, pid: int) -> None:
        with self._lock:
            self._governor.forget(pid)
            self._attachments.forget(pid)
            self._started.pop(pid, None)
            self._figures.pop(pid, None)
            self._meter.forget(pid)

    # --- from whoever tells of it -----------------------------------------------------------------

    def figures(self) -> dict[int, Figures]:
        with self._lock:
            return dict(self._figures)

    def decisions(self) -> list[Decision]:
        """Those since the last call."""
        with self._lock:
            taken = list(self._decisions)
            self._decisions.clear()
        return taken

    def states(self) -> dict[State, int]:
        """How many processes are counted how."""
        with self._lock:
            found = dict.fromkeys(State, 0)
            for one in self._governor.processes.values():
                found[one.state] += 1
            return found

    def run_times(self) -> dict[str, float]:
        """Seconds that each program has run, as the kernel counts them; empty where it does not."""
        found = {}
        for program, count in dict(self._probes.attached).items():
            if count:
                spent, runs = self._probes.object.run_time(program)
                if runs:
                    found[program] = spent * 1e-9
        return found

    def node_cost(self) -> float:
        """What the probes take of this node now, in cores."""
        with self._lock:
            return sum(one.cost for one in self._governor.processes.values() if one.opened is not None)

    # --- in the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        dividing = False
        while not self._stop.is_set():
            try:
                dividing = self._step(_DIVIDE_SECONDS if dividing else self._pause())
            except Exception as error:  # noqa: BLE001 - nobody else would let anybody go
                self._errors["budget"] = self._errors.get("budget", 0) + 1
                _log.log(
                    logging.DEBUG if self._failed else logging.ERROR,
                    "the budget is not kept for a moment: %s: %s",
                    type(error).__name__,
                    error,
                )
                self._failed = True
                self._stop.wait(_WAIT_SECONDS)

    def _step(self, seconds: float) -> bool:
        """Wait so long at the most, and do what is due. True where a file is still to be divided."""
        pids = self._meter.wait(seconds)
        with self._lock:
            for pid in pids:
                self._exceeded(pid)
            for decision in self._governor.due(time.monotonic()):
                self._count_again(decision)
            if time.monotonic() >= self._next_look:
                self._look()
        return self._attachments.divide()

    def _pause(self) -> float:
        with self._lock:
            due = self._governor.next_due()
        until = min(self._next_look, due if due is not None else self._next_look)
        return min(_WAIT_SECONDS, max(0.0, until - time.monotonic()))

    def _meet(self, pid: int, mode: Mode, started: int) -> Watched:
        made = self._governor.meet(pid, mode, self.cost.emulated, cpu_seconds(pid) or 0.0, time.monotonic())
        self._started[pid] = started
        charged = self._meter.get(pid)
        made.hits = charged.hits
        self._figures[pid] = Figures(charged.hits, 0.0, made.state, time.time_ns())
        if mode == "off":
            self._attachments.exclude(pid)
        else:
            self._grant(made, anew=True)
        return made

    def _exceeded(self, pid: int) -> None:
        known = self._governor.processes.get(pid)
        charged, cpu = self._meter.get(pid), cpu_seconds(pid)
        if cpu is None:
            return  # it has ended
        if not charged.quota:  # it found no room
            charged = self._meter.get(OTHERS)
            self._meter.grant(OTHERS, charged.quota, time.monotonic_ns(), anew=True)
        if known is None:
            started = maps.start_time(pid)
            if started is None:
                return
            known = self._meet(pid, self._default, started)
        decision = self._governor.exceeded(
            pid, charged.hits, cpu, time.monotonic(), began=charged.began_ns * 1e-9, mark=charged.mark
        )
        if decision is not None:
            self._attachments.pause(pid)
            self._told(decision)
        else:
            self._grant(known, anew=False)

    def _count_again(self, decision: Decision) -> None:
        one = self._governor.processes[decision.pid]
        self._grant(one, anew=True)
        if self._attachments.resume(decision.pid):
            self._told(decision)
        else:
            self._governor.refused(decision.pid, time.monotonic())

    def _grant(self, one: Watched, *, anew: bool) -> None:
        try:
            self._meter.grant(one.pid, one.quota, time.monotonic_ns(), anew=anew)
        except BpfError as error:
            self._errors["budget"] = self._errors.get("budget", 0) + 1
            _log.debug("quota of process %d: %s", one.pid, error)

    def _look(self) -> None:
        now = time.monotonic()
        self._next_look = now + _LOOK_SECONDS
        charged = self._meter.all()
        if now >= self._next_sweep:
            self._next_sweep = now + _SWEEP_SECONDS
            for pid in (charged.keys() | self._governor.processes.keys()) - {OTHERS}:
                started = maps.start_time(pid)
                if started is not None and self._started.get(pid, started) == started:
                    self._gone.discard(pid)
                elif pid in self._gone:
                    self._gone.discard(pid)
                    self.forget(pid)
                else:
                    self._gone.add(pid)  # the last that is recorded of it may not have been folded yet
        seen = []
        for pid, one in self._governor.processes.items():
            cpu = cpu_seconds(pid)
            if cpu is not None:
                one.cost_ns = self.cost.stepped if self._attachments.stepped(pid) else self.cost.emulated
                seen.append((pid, charged.get(pid, Charged()).hits, cpu))
        for decision in self._governor.look(seen, now):
            self._told(decision)
        for pid, hits, _ in seen:
            one, known = self._governor.processes[pid], self._figures[pid]
            more = max(0, hits - known.hits)
            self._figures[pid] = replace(
                known, hits=hits, cost=known.cost + more * one.cost_ns * 1e-9, state=one.state
            )
            granted = charged.get(pid)
            if one.opened is not None and (granted is None or _differs(granted.quota, one.quota)):
                self._grant(one, anew=granted is None)

    def _told(self, decision: Decision) -> None:
        self._decisions.append(decision)
        if not decision.changed:
            return
        if decision.state is State.FULL:
            _log.info("process %d is counted in full again", decision.pid)
        else:
            _log.info(
                "process %d posts %.0f times a second, which is more than the budget allows: %s",
                decision.pid,
                decision.rate,
                "counted for a part of the time" if decision.state is State.REDUCED else "detached",
            )

    def _say_cost(self) -> None:
        if self.cost.problem is not None:
            _log.warning(
                "what a probe costs could not be measured, %.0f ns are assumed: %s",
                self.cost.emulated,
                self.cost.problem,
            )
        else:
            _log.info(
                "a post that is counted costs %.0f ns here, %.0f where the kernel single-steps",
                self.cost.emulated,
                self.cost.stepped,
            )
        if not self.cost.by_process:
            _log.warning(
                "this kernel's probes for one process are for one thread only (mended in Linux 6.10): who "
                "exceeds the budget is not counted again, nor are its neighbours"
            )


def _differs(granted: int, wanted: int) -> bool:
    """Whether a quota is worth to be written anew."""
    return abs(granted - wanted) > wanted // 10


def cpu_seconds(pid: int) -> float | None:
    """CPU time that a process has used, all its threads; None if it has gone."""
    try:
        return time.clock_gettime((~pid << 3) | _PROCESS_CLOCK)
    except OSError:
        return None


__all__ = ["Cost", "Duty", "Figures", "cpu_seconds"]
