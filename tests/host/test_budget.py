"""The budget with real probes: a process that is cost too much is let go at once, and counted again later."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from doubles.provider.application import RC, Application
from doubles.provider.builder import FUNCTIONS, Double
from fabrictap.sources.verbs.attach import Attachments, File
from fabrictap.sources.verbs.budget import Limits, State
from fabrictap.sources.verbs.discovery import Discovery
from fabrictap.sources.verbs.duty import Duty
from fabrictap.sources.verbs.meter import OTHERS, Meter
from fabrictap.sources.verbs.probes import Probes, load_data

#: As much work as makes about two million posts a second on a processor of 2 to 3 GHz.
SPINS = 900
PATIENCE = 20.0


class Budget:
    """What the source ``verbs`` has of it, without the rest."""

    def __init__(self, double: Double, limits: Limits | None = None) -> None:
        self.errors: dict[str, int] = {}
        self.probes: Probes = load_data(1 << 20, 1 << 16, subtract=False, quota=10_000)
        self.attachments = Attachments(self.probes, self.errors)
        self.duty = Duty(self.probes, self.attachments, limits or Limits(), "budget", self.errors)
        functions = {name: (double.place(name).offset,) for name in FUNCTIONS}
        descriptor = os.open(double.library, os.O_RDONLY | os.O_CLOEXEC)
        made = self.attachments.add(descriptor, str(double.library), functions, kept=True)
        assert made is not None
        self.file: File = made
        self.duty.start()

    def use(self, application: Application, mode: str = "budget") -> None:
        self.duty.meet(application.pid, mode)
        self.attachments.use(self.file, application.pid)

    def posted(self, application: Application) -> int:
        """Posts of a process that were counted."""
        total = 0
        table = self.probes.object.map("posts")
        for keys, values, count in table.batches():
            for index in range(count):
                key = keys[32 * index : 32 * index + 32]
                if int.from_bytes(key[16:20], "little") == application.pid:
                    value = values[table.value_size * index : table.value_size * (index + 1)]
                    one = table.value_size // table.cpus
                    total += sum(
                        int.from_bytes(value[cpu * one : cpu * one + 8], "little")
                        for cpu in range(table.cpus)
                    )
        return total

    def state(self, application: Application) -> State:
        return self.duty._governor.processes[application.pid].state

    def counted(self, application: Application) -> bool:
        return any(
            one.pid in {0, application.pid}
            for probed in self.file.places.values()
            for one in probed.attachments
        )

    def close(self) -> None:
        self.duty.close()
        self.attachments.close()
        self.attachments.settle()
        self.probes.close()


@pytest.fixture
def budget(bpf: None, double: Double) -> Iterator[Budget]:
    made = Budget(double)
    yield made
    made.close()


def ready(application: Application) -> Application:
    application.tell("device", "mlx5_0")
    application.tell("context", 0)
    application.tell("qp", 0, 17, RC)
    return application


def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> float:
    """Seconds that it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + seconds, "it did not happen"
        time.sleep(0.005)
    return time.monotonic() - began


def test_a_process_that_posts_millions_of_times_a_second_is_let_go_within_200_ms(budget, application):
    ready(application)
    budget.use(application)
    application.tell("begin", "work", 3000, SPINS)
    took = until(lambda: not budget.counted(application))
    assert took < 0.2
    posted = budget.posted(application)
    answer = application.tell("finish")
    rate = answer["posts"] / (answer["wall"] * 1e-9)
    assert rate > 200_000
    # Three seconds, and two or three windows in them.
    counted = budget.posted(application)
    assert posted <= counted < answer["posts"] / 5
    assert budget.attachments.missed.until(application.pid, time.time_ns()) > 1.5e9
    assert budget.errors == {}


def test_it_is_counted_again_when_its_rate_has_fallen(budget, application):
    ready(application)
    budget.use(application)
    application.tell("work", 300, SPINS)
    until(lambda: budget.state(application) is not State.FULL)
    until(lambda: budget.counted(application))
    before = budget.posted(application)
    answer = application.tell("pace", 500, 400)
    assert budget.posted(application) - before == answer["posts"]
    until(lambda: budget.state(application) is State.FULL)
    assert budget.errors == {}


def test_a_process_within_its_budget_is_counted_without_a_gap(budget, application):
    ready(application)
    budget.use(application)
    answer = application.tell("pace", 2500, 400)
    assert budget.posted(application) == answer["posts"]
    assert budget.state(application) is State.FULL
    assert budget.attachments.missed.pids() == []


def test_neighbours_of_a_shared_library_are_counted_on(budget, double, application):
    with Application(double.driver) as other:
        for one in (application, other):
            ready(one)
            budget.use(one)
        application.tell("begin", "work", 4000, SPINS)
        until(lambda: any(a.pid == other.pid for p in budget.file.places.values() for a in p.attachments))
        before = budget.posted(other)
        answer = other.tell("pace", 1000, 300)
        assert budget.posted(other) - before == answer["posts"]
        # What the change took, and no more.
        assert 0 < budget.attachments.missed.until(other.pid, time.time_ns()) < 1e9
        application.tell("finish")


def test_where_probes_are_for_one_thread_nobody_is_counted_anew(budget, double, application):
    """As on some kernels: what only seemed to be counted would be worse than nothing."""
    assert budget.duty.cost.by_process
    budget.attachments.by_process = False
    with Application(double.driver) as other:
        for one in (application, other):
            ready(one)
            budget.use(one)
        application.tell("work", 300, SPINS)
        until(lambda: not budget.counted(application))
        until(lambda: budget.errors.get("uprobe_of_one_thread", 0) >= len(("the other", "itself")))
        assert not any(probed.attachments for probed in budget.file.places.values())
        now_ns = time.time_ns()
        assert all(budget.attachments.missed.until(one.pid, now_ns) for one in (application, other))


@pytest.mark.parametrize("mode", ["off", "full"])
def test_workloads_that_are_off_or_full_are_left_alone_by_the_budget(budget, application, mode):
    ready(application)
    budget.use(application, mode)
    until(lambda: budget.counted(application) is (mode == "full"))
    answer = application.tell("work", 700, SPINS)
    assert budget.posted(application) == (answer["posts"] if mode == "full" else 0)


def test_nothing_is_left_of_a_thousand_processes(budget, double):
    """Which open a device and end; one in ten exceeds its budget, and one in ten is not to be counted."""
    discovery = Discovery(budget.attachments, budget.errors)
    meter = Meter(budget.probes)

    def held() -> tuple[int, int, dict[str, int]]:
        tables = ("calls", "batches", "meters")
        entries = {
            name: sum(count for _, _, count in budget.probes.object.map(name).batches()) for name in tables
        }
        return len(list(Path("/proc/self/fd").iterdir())), budget.attachments.links, entries

    def live(number: int) -> int:
        """What one process does; its pid."""
        with Application(double.driver) as application:
            mode = "off" if number % 10 == 1 else "budget"
            ready(application)
            budget.duty.meet(application.pid, mode)
            since = discovery.look(application.pid)
            assert since is not None or mode == "off"
            application.tell("work", 3, 100) if number % 10 == 0 else application.send(0, times=3)
        return application.pid

    before = held()
    pids = set()
    for number in range(1000):
        pids.add(live(number))
        if number % 100 == 99:
            discovery.sweep()
    until(lambda: budget.duty.figures() == {} and set(meter.all()) == {OTHERS}, 60)
    discovery.sweep()
    budget.attachments.settle()
    discovery.sweep()
    budget.attachments.forget_threads()
    assert len(pids) > 900
    assert held() == before
    assert budget.attachments.missed.pids() == []
    assert budget.file.users == {}
    assert budget.file.divided is False
    assert budget.errors == {}
