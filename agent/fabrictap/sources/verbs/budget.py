"""Who is counted when, so that the probes cost no process more than they may. Decides only: the clock is
given, and what is decided is done by others (:mod:`duty`).

Each process has an allowance, in cores: a share of the CPU time that it uses itself, and its part of what the
node may be cost, which is divided so that whoever needs little gets all of that. What it may be cost in one
second of that is its quota, in hits. Where that is used up sooner the process is let go for as long as it
takes until the mean is within the allowance: it is counted for a part of the time. Where that part would be
less than a twentieth it is let go for longer and longer, up to a minute: it is looked at again now and then,
to see whether its rate has fallen. It counts as restored once it has been counted without a break for some
seconds, and for longer the more often it was let go before.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Mode = Literal["off", "budget", "full"]

#: Over which a quota is measured, in the kernel too.
WINDOW_SECONDS = 1.0
#: Of no process less is taken for what it uses, in cores: one that sleeps may be cost something too.
LEAST_USED = 0.1
#: A process that is counted for a smaller part of the time than this is let go for longer each time.
_LEAST_DUTY = 0.05
_SHORTEST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
#: Pauses that grew before a process counts as detached.
_DETACHED = 3
_CALM_SECONDS = 5.0
_LONGEST_CALM = 300.0
#: For which a process must be calm until one of its former lapses is forgotten.
_FORGIVEN_SECONDS = 60.0
#: Hits below which no quota goes: attaching costs more.
_LEAST_QUOTA = 64
#: No limit.
FREE = (1 << 64) - 1


#: CPU time of one hit where it could not be measured, and where it is not yet: as on a virtual machine of
#: 2 GHz, rather too much than too little.
ASSUMED_NS = 1500.0


class State(enum.Enum):
    """How a process is counted now."""

    FULL = "full"
    REDUCED = "reduced"
    DETACHED = "detached"
    #: Not by the budget, but because the configuration says so.
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Limits:
    """``process``: share of the CPU time that a process uses; ``node``: cores, all processes together."""

    process: float = 0.01
    node: float = 0.01


def first_quota(limits: Limits, cost_ns: float = ASSUMED_NS) -> int:
    """Hits in one window of a process that nobody has looked at yet: as of one that keeps a core busy."""
    return max(_LEAST_QUOTA, int(min(limits.process, limits.node) * WINDOW_SECONDS * 1e9 / cost_ns))


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a process. ``count``: it is counted from now on; ``rate``: of its hits in a second."""

    pid: int
    count: bool
    state: State
    #: The state has changed: worth to be told.
    changed: bool
    #: Seconds until it is looked at again, where it is not counted.
    pause: float
    rate: float


@dataclass(slots=True)
class Watched:
    """One process."""

    pid: int
    mode: Mode
    state: State
    #: When it was last counted anew, and with how many hits; None while it is not counted.
    opened: float | None
    #: At the last look, and when.
    hits: int
    cpu: float
    looked: float
    #: CPU time that one hit takes from it.
    cost_ns: float
    #: Cores that it uses itself.
    used: float = LEAST_USED
    #: What it is cost while it is counted, in cores.
    cost: float = 0.0
    quota: int = 0
    until: float = 0.0
    strikes: int = 0
    #: How often it was let go after it had been restored.
    lapses: int = 0
    calm_since: float = 0.0


class Governor:
    """All processes of the node."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.processes: dict[int, Watched] = {}
        self._slack = limits.node
        self._level = limits.node

    def meet(self, pid: int, mode: Mode, cost_ns: float, cpu: float, now: float) -> Watched:
        """A process is to be watched. ``cost_ns``: CPU time that one hit takes from it; ``cpu``: seconds that
        it has used; ``now``: seconds of a steady clock."""
        state = State.OFF if mode == "off" else State.FULL
        opened = None if mode == "off" else now
        made = self.processes[pid] = Watched(
            pid, mode, state, opened, 0, cpu, now, cost_ns, calm_since=now, used=1.0
        )
        made.quota = self._quota(made)
        return made

    def forget(self, pid: int) -> None:
        self.processes.pop(pid, None)

    def look(self, seen: Iterable[tuple[int, int, float]], now: float) -> list[Decision]:
        """Every second or so: (pid, its hits until now, its CPU seconds until now). Sets quotas anew."""
        for pid, hits, cpu in seen:
            if (one := self.processes.get(pid)) is not None:
                self._measure(one, hits, cpu, now)
        self._divide()
        decisions = []
        for one in self.processes.values():
            if one.mode != "budget" or one.opened is None:
                continue
            one.quota = self._quota(one)
            if now - one.calm_since < self._calm(one):
                continue
            if one.state is not State.FULL:
                one.state, one.strikes, one.calm_since = State.FULL, 0, now
                decisions.append(Decision(one.pid, True, one.state, True, 0.0, self._rate(one)))
            elif one.lapses and now - one.calm_since >= _FORGIVEN_SECONDS:
                one.lapses -= 1
                one.calm_since = now
        return decisions

    def exceeded(
        self, pid: int, hits: int, cpu: float, now: float, *, began: float, mark: int
    ) -> Decision | None:
        """The kernel says that a process has used up its quota: ``hits`` less ``mark`` since ``began``.

        None where it may be cost that after all; its quota has then been raised.
        """
        one = self.processes.get(pid)
        if one is None or one.mode != "budget" or one.opened is None:
            return None
        elapsed = max(now - max(began, one.opened), 1e-6)
        spent = max(0, hits - mark)
        if now - one.looked >= 0.1:
            self._measure(one, hits, cpu, now)
        one.cost = max(one.cost, min(spent / elapsed * one.cost_ns * 1e-9, 1e3))
        # What it takes away from the others is theirs again once it has been let go.
        one.quota = self._quota(one)
        if spent < one.quota / WINDOW_SECONDS * max(elapsed, WINDOW_SECONDS):
            return None
        # By the allowance itself: a quota has a least.
        base = max(spent * one.cost_ns * 1e-9 / self._allowance(one) - elapsed, 0.0)
        if elapsed / (elapsed + base) < _LEAST_DUTY:
            pause = min(base * 2**one.strikes, _LONGEST_PAUSE)
            one.strikes = min(one.strikes + 1, 16)
        else:
            pause = base
            one.strikes = max(0, one.strikes - 1)
        pause = max(pause, _SHORTEST_PAUSE)
        was = one.state
        if was is State.FULL:
            one.lapses = min(one.lapses + 1, 16)
        one.state = State.DETACHED if one.strikes > _DETACHED else State.REDUCED
        one.until, one.opened = now + pause, None
        return Decision(pid, False, one.state, one.state is not was, pause, spent / elapsed)

    def due(self, now: float) -> list[Decision]:
        """The processes that are to be looked at again: they are counted from now on."""
        decisions = []
        for one in self.processes.values():
            if one.opened is None and one.mode == "budget" and now >= one.until:
                one.opened = one.calm_since = now
                decisions.append(Decision(one.pid, True, one.state, False, 0.0, self._rate(one)))
        return decisions

    def refused(self, pid: int, now: float) -> None:
        """A process could not be counted anew: later."""
        if (one := self.processes.get(pid)) is not None:
            one.opened, one.until = None, now + _LONGEST_PAUSE

    def next_due(self) -> float | None:
        """When somebody is due; None where nobody is let go."""
        return min(
            (one.until for one in self.processes.values() if one.opened is None and one.mode == "budget"),
            default=None,
        )

    def _measure(self, one: Watched, hits: int, cpu: float, now: float) -> None:
        elapsed = now - one.looked
        if elapsed <= 0:
            return
        used = max(0.0, cpu - one.cpu) / elapsed
        if one.opened is not None:
            counted = max(now - max(one.opened, one.looked), 1e-3)
            one.cost = max(0, hits - one.hits) / counted * one.cost_ns * 1e-9
            # What the probes take is no work of its own.
            used = max(0.0, used - one.cost * counted / elapsed)
        one.used = max(LEAST_USED, used)
        one.hits, one.cpu, one.looked = hits, cpu, now

    def _divide(self) -> None:
        """What the node may be cost among the processes: nobody gets more than he needs while others lack."""
        wanted = sorted(
            min(one.cost, self._limits.process * one.used)
            for one in self.processes.values()
            # One that is looked at now and then costs next to nothing.
            if one.mode == "budget" and one.state is not State.DETACHED
        )
        left = self._limits.node
        self._level = self._limits.node
        for number, cost in enumerate(wanted):
            if cost * (len(wanted) - number) > left:
                self._level = left / (len(wanted) - number)
                self._slack = 0.0
                return
            left -= cost
        self._slack = left

    def _quota(self, one: Watched) -> int:
        if one.mode == "full":
            return FREE
        return max(_LEAST_QUOTA, int(self._allowance(one) * WINDOW_SECONDS / (one.cost_ns * 1e-9)))

    def _allowance(self, one: Watched) -> float:
        """What it may be cost, in cores."""
        own = self._limits.process * one.used
        part = min(one.cost, own) + self._slack if self._slack else self._level
        return max(min(own, part), 1e-9)

    def _rate(self, one: Watched) -> float:
        return one.cost / (one.cost_ns * 1e-9)

    @staticmethod
    def _calm(one: Watched) -> float:
        if one.state is State.FULL:
            return 0.0
        return min(_CALM_SECONDS * 2.0 ** max(0, one.lapses - 1), _LONGEST_CALM)
