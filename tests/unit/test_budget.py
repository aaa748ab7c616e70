"""Who is counted when: the decisions alone, on a clock of the test's, against processes that are modelled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from fabrictap.sources.verbs.budget import (
    FREE,
    LEAST_USED,
    WINDOW_SECONDS,
    Decision,
    Governor,
    Limits,
    Mode,
    State,
    first_quota,
)

COST_NS = 1000.0
COST = COST_NS * 1e-9


@dataclass
class Modelled:
    """Would post ``rate(time)`` times a second; a hit takes its time, and it has ``threads`` of them."""

    pid: int
    rate: Callable[[float], float]
    threads: int = 1
    #: Cores that it uses besides posting.
    busy: float = 1.0
    counted: bool = True
    hits: float = 0.0
    posts: float = 0.0
    cpu: float = 0.0
    cost: float = 0.0
    mark: float = 0.0
    began: float = 0.0
    quota: int = 0
    told: bool = False
    counted_for: float = 0.0
    decisions: list[Decision] = field(default_factory=list)

    def run(self, now: float, step: float) -> bool:
        """One step; whether the kernel would tell."""
        rate = self.rate(now)
        if self.counted:
            rate /= 1 + rate * COST / self.threads
            self.hits += rate * step
            self.cost += rate * step * COST
            self.counted_for += step
        self.posts += rate * step
        self.cpu += self.busy * step
        if not self.counted or self.told or self.hits - self.mark < self.quota:
            return False
        if now - self.began >= WINDOW_SECONDS:
            self.began, self.mark = now, self.hits
            return False
        self.told = True
        return True

    def grant(self, quota: int, now: float, *, anew: bool) -> None:
        self.quota, self.told = quota, False
        if anew:
            self.began, self.mark = now, self.hits


class Node:
    """The kernel, and :class:`fabrictap.sources.verbs.duty.Duty`, as far as the governor knows them."""

    def __init__(
        self, *processes: Modelled, limits: Limits | None = None, mode: Mode = "budget", step: float = 0.002
    ) -> None:
        self.step = step
        self.governor = Governor(limits or Limits(node=1.0))
        self.processes = {one.pid: one for one in processes}
        self.now = 100.0
        self.next_look = self.now + 1
        for one in processes:
            met = self.governor.meet(one.pid, mode, COST_NS, 0.0, self.now)
            one.grant(met.quota, self.now, anew=True)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += self.step
            for one in self.processes.values():
                if one.run(self.now, self.step):
                    self._told(one)
            for decision in self.governor.due(self.now):
                one = self.processes[decision.pid]
                one.grant(self.governor.processes[decision.pid].quota, self.now, anew=True)
                one.counted = True
                one.decisions.append(decision)
            if self.now >= self.next_look:
                self.next_look += 1
                self._look()

    def _told(self, one: Modelled) -> None:
        decision = self.governor.exceeded(
            one.pid, int(one.hits), one.cpu, self.now, began=one.began, mark=int(one.mark)
        )
        if decision is None:
            one.grant(self.governor.processes[one.pid].quota, self.now, anew=False)
        else:
            one.counted = False
            one.decisions.append(decision)

    def _look(self) -> None:
        seen = [(one.pid, int(one.hits), one.cpu) for one in self.processes.values()]
        for decision in self.governor.look(seen, self.now):
            self.processes[decision.pid].decisions.append(decision)
        for one in self.processes.values():
            one.quota = self.governor.processes[one.pid].quota

    def state(self, pid: int = 1) -> State:
        return self.governor.processes[pid].state


def steady(rate: float) -> Callable[[float], float]:
    return lambda _: rate


def changes(one: Modelled) -> list[State]:
    return [decision.state for decision in one.decisions if decision.changed]


def test_a_process_within_its_budget_is_never_touched():
    one = Modelled(1, steady(9_000))  # 0.9 % of the core that it uses
    node = Node(one)
    node.run(120)
    assert one.decisions == []
    assert one.counted_for == pytest.approx(120, abs=0.1)


def test_one_that_posts_millions_of_times_loses_less_than_a_percent():
    one = Modelled(1, steady(2e6))
    node = Node(one)
    node.run(0.1)
    assert not one.counted
    node.run(59.9)
    assert node.state() is State.DETACHED
    assert one.cost < 0.01 * 60
    assert one.posts > 0.99 * 2e6 * 60
    assert one.hits > 0


def test_one_that_is_a_little_over_is_counted_for_a_part_of_the_time():
    one = Modelled(1, steady(30_000))
    node = Node(one)
    node.run(60)
    assert node.state() is State.REDUCED
    assert one.cost <= 0.0101 * 60
    assert one.counted_for > 0.2 * 60  # a third, less what pauses of a second cannot give


def test_it_comes_back_when_its_rate_falls_and_stays():
    one = Modelled(1, lambda now: 2e6 if now < 130 else 1000)
    node = Node(one)
    node.run(30)
    assert node.state() is State.DETACHED
    node.run(100)
    assert node.state() is State.FULL
    assert one.counted
    assert changes(one)[-1] is State.FULL
    counted = one.counted_for
    node.run(60)
    assert one.counted_for - counted == pytest.approx(60, abs=0.1)


def test_the_longest_time_until_it_is_looked_at_again_is_a_minute():
    one = Modelled(1, steady(2e6))
    node = Node(one, step=0.01)
    node.run(1200)
    pauses = [decision.pause for decision in one.decisions if not decision.count]
    assert max(pauses) == 60
    assert pauses[-3:] == [60, 60, 60]
    assert pauses[0] < 2


def test_bursts_do_not_make_it_flap():
    """Seven seconds calm, one hot, for half an hour: ever longer calm is asked for."""
    one = Modelled(1, lambda now: 2e6 if now % 8 < 1 else 100)
    node = Node(one, step=0.01)
    node.run(1800)
    restored = [decision for decision in one.decisions if decision.changed and decision.state is State.FULL]
    assert len(restored) <= 4
    assert one.cost < 0.01 * 1800


@pytest.mark.parametrize("rate", [9_500, 10_000, 10_500, 11_000])
def test_at_the_limit_itself_changes_are_rare(rate):
    one = Modelled(1, steady(rate))
    node = Node(one, step=0.01)
    node.run(600)
    assert one.cost <= 0.0101 * 600
    assert len(changes(one)) <= 12
    assert one.counted_for > 0.4 * 600


def test_the_budget_grows_with_the_cpu_time_that_a_process_uses():
    one = Modelled(1, steady(50_000), threads=8, busy=8.0)
    node = Node(one)
    node.run(60)
    assert node.state() is State.FULL
    assert one.decisions == []


def test_one_that_sleeps_may_be_cost_something_too():
    one = Modelled(1, steady(0.9 * 0.01 * LEAST_USED / COST), busy=0.001)
    node = Node(one)
    node.run(60)
    assert one.decisions == []


def test_one_that_uses_little_cpu_may_be_cost_little():
    one = Modelled(1, steady(5_000), busy=0.2)
    node = Node(one)
    node.run(60)
    assert one.cost <= 0.01 * 0.2 * 60 * 1.2
    assert node.state() is not State.FULL


def test_the_node_is_shared_so_that_those_who_need_little_get_it_all():
    small = [Modelled(pid, steady(500)) for pid in range(1, 6)]
    large = [Modelled(pid, steady(2e5)) for pid in range(6, 10)]
    node = Node(*small, *large, limits=Limits(node=0.01))
    node.run(120)
    assert all(one.decisions == [] for one in small)
    assert sum(one.cost for one in (*small, *large)) <= 0.0125 * 120
    assert all(one.hits > 0 for one in large)


def test_a_thousand_processes_keep_within_the_node():
    processes = [Modelled(pid, steady(100.0 * (pid % 7))) for pid in range(1, 1001)]
    node = Node(*processes, limits=Limits(node=0.01), step=0.05)
    node.run(30)
    before = sum(one.cost for one in processes)
    node.run(30)
    assert sum(one.cost for one in processes) - before <= 0.02 * 30


def test_full_is_never_let_go_and_off_never_counted():
    one = Modelled(1, steady(2e6))
    node = Node(one, mode="full")
    assert one.quota == FREE
    node.run(10)
    assert one.decisions == []
    governor = Governor(Limits())
    governor.meet(2, "off", COST_NS, 0.0, 0.0)
    assert governor.processes[2].state is State.OFF
    assert governor.due(1e9) == []
    assert governor.next_due() is None


def test_what_the_kernel_says_of_an_old_quota_is_looked_at_again():
    """It was told with a quota for one core, while the process uses eight by now."""
    governor = Governor(Limits(node=1.0))
    governor.meet(1, "budget", COST_NS, 0.0, 0.0)
    assert governor.exceeded(1, 10_000, 4.0, 0.5, began=0.0, mark=0) is None
    assert governor.processes[1].quota > 50_000
    assert governor.exceeded(2, 10_000, 4.0, 0.5, began=0.0, mark=0) is None


def test_one_that_cannot_be_counted_anew_is_tried_later():
    one = Modelled(1, steady(2e6))
    node = Node(one)
    node.run(0.1)
    due = node.governor.next_due()
    assert due is not None
    node.governor.due(due)
    node.governor.refused(1, due)
    assert node.governor.next_due() == due + 60
    node.governor.forget(1)
    assert node.governor.next_due() is None


def test_nobody_gets_a_quota_that_costs_less_than_attaching():
    assert first_quota(Limits(0.0001, 0.0001), 1e6) >= 64
