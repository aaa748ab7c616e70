"""One source in its thread: unavailable, failing, hanging, coming back, and stopped."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from fabrictap.journal import Journal
from fabrictap.runner import Runner
from fabrictap.series import in_memory
from fabrictap.sources import SourceUnavailable
from support import eventually


def journal() -> Journal:
    return Journal(in_memory(8))


class Scripted:
    """A source that does what the test says; each list holds what the next calls raise (None: nothing)."""

    name = "scripted"
    interval = 0.001
    deadline = 1000.0
    waited = 0.0

    def __init__(self, opens: list[Exception | None] = (), samples: list[Exception | None] = ()) -> None:
        self.errors: dict[str, int] = {}
        self.opens, self.samples = list(opens), list(samples)
        self.folded: list[int] = []
        self.calls: list[str] = []
        self.at_sample: Callable[[], None] = lambda: None
        self.close_error: Exception | None = None

    def _next(self, name: str, script: list[Exception | None]) -> None:
        self.calls.append(name)
        error = script.pop(0) if script else None
        if error is not None:
            raise error

    def open(self) -> None:
        self._next("open", self.opens)

    def sample(self) -> int:
        self.at_sample()
        self._next("sample", self.samples)
        return self.calls.count("sample")

    def fold(self, sample: int, now_ns: int) -> None:
        self.folded.append(sample)

    def close(self) -> None:
        self.calls.append("close")
        if self.close_error is not None:
            raise self.close_error


@pytest.fixture
def pauses() -> list[float]:
    """The pauses after failures, which end at once here."""
    return []


@pytest.fixture
def run(pauses) -> Iterator[Callable[[Scripted], Runner]]:
    started: list[Runner] = []
    ended = threading.Event()

    def start(source: Scripted) -> Runner:
        made = Runner(source, threading.Lock(), journal())
        made.start()
        started.append(made)
        return made

    def node() -> None:
        while not ended.wait(0.001):
            for made in started:
                if made.resting and made.pause is not None:
                    pauses.append(made.pause)
                    made.revive(math.inf)

    thread = threading.Thread(target=node)
    thread.start()
    yield start
    ended.set()
    thread.join()
    for made in started:
        made.stop()
        assert made.join(10)


def test_a_source_whose_pause_is_not_over_rests_without_a_thread():
    source = Scripted(opens=[SourceUnavailable("no device")])
    running = Runner(source, threading.Lock(), journal())
    running.start()
    eventually(lambda: running.resting, "its thread has ended")
    running.revive(time.monotonic() + 0.5)
    assert (running.resting, source.calls) == (True, ["open", "close"])
    running.revive(time.monotonic() + 1.5)
    eventually(lambda: running.up, "the source comes back")
    running.stop()
    assert running.join(10)


def test_a_source_that_delivers_is_up(run):
    running = run(Scripted())
    assert running.settled.wait(10)
    eventually(lambda: running.up, "the source is up")
    assert running.reason is None
    assert min(running.take_durations()) >= 0


def test_a_source_that_has_not_answered_yet_is_not_up():
    unstarted = Runner(Scripted(), threading.Lock(), journal())
    assert (unstarted.up, unstarted.reason, unstarted.take_durations()) == (False, "starting", [])


def test_a_source_that_is_unavailable_says_why_once_and_comes_back(run, pauses, caplog):
    caplog.set_level(logging.INFO)
    source = Scripted(opens=[SourceUnavailable("no device")] * 3)
    running = run(source)
    eventually(lambda: running.up, "the source comes back")
    assert source.calls[:7] == ["open", "close"] * 3 + ["open"]
    assert [record.message for record in caplog.records] == [
        "source scripted is off: no device",
        "source scripted delivers",
    ]
    assert pauses[:3] == [1.0, 2.0, 4.0]


def test_the_pauses_grow_to_a_limit_and_are_short_again_after_a_success(run, pauses):
    gone = SourceUnavailable("gone")
    source = Scripted(opens=[gone] * 7, samples=[None, gone, gone])
    running = run(source)
    eventually(lambda: len(pauses) >= 9 and running.up, "it has come back for good")
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 1.0, 2.0]


def test_a_source_that_fails_unexpectedly_costs_itself_only_and_says_so_once(run, caplog):
    source = Scripted(samples=[ZeroDivisionError("oops"), ZeroDivisionError("oops"), None])
    running = run(source)
    eventually(lambda: running.up, "the source comes back")
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert ["ZeroDivisionError: oops" in record.getMessage() for record in errors] == [True]
    assert [record.exc_info for record in errors] == [None]


def test_a_source_that_cannot_be_closed_is_opened_again_all_the_same(run, caplog):
    source = Scripted(samples=[SourceUnavailable("gone")])
    source.close_error = OSError("stuck")
    running = run(source)
    eventually(lambda: running.up, "the source comes back")
    assert source.calls[:4] == ["open", "sample", "close", "open"]
    assert "OSError: stuck" in caplog.text


def test_a_source_that_fails_while_it_folds_lets_go_of_the_lock():
    source = Scripted()
    lock = threading.Lock()
    source.fold = lambda sample, now_ns: 1 / 0  # type: ignore[method-assign]
    running = Runner(source, lock, journal())
    running.start()
    eventually(lambda: running.reason == "ZeroDivisionError: division by zero", "the failure is known")
    assert lock.acquire(timeout=10)
    lock.release()
    running.stop()
    assert running.join(10)


def test_a_source_that_hangs_is_down_until_it_answers(run):
    release = threading.Event()
    source = Scripted()
    source.deadline = 0.01
    source.at_sample = lambda: release.wait(60) and None
    running = run(source)
    try:
        eventually(lambda: running.hung is not None, "the deadline has passed")
        assert not running.up
        assert running.hung > source.deadline
        running.stop()
        assert not running.join(0.01)
    finally:
        release.set()
    assert running.join(10)
    assert running.hung is None


def test_a_hang_after_a_success_is_down_too_and_ends_by_itself(run):
    release, hanging = threading.Event(), threading.Event()
    source = Scripted()
    source.deadline = 0.01

    def third() -> None:
        if source.calls.count("sample") == 2:
            hanging.set()
            release.wait(60)

    source.at_sample = third
    running = run(source)
    try:
        assert hanging.wait(10)
        eventually(lambda: running.hung is not None, "the deadline has passed")
        assert (running.reason, running.up) == (None, False)
    finally:
        release.set()
    eventually(lambda: running.up, "the source is up again")


def test_stopping_takes_a_last_sample_and_closes(run):
    source = Scripted()
    running = run(source)
    source.interval = 1000.0
    eventually(lambda: source.folded and running.up, "a first sample")
    taken = len(source.folded)
    running.stop()
    assert running.join(10)
    assert len(source.folded) in (taken + 1, taken + 2)
    assert source.calls[-2:] == ["sample", "close"]


def test_stopping_while_a_source_is_unavailable_ends_at_once(pauses):
    source = Scripted(opens=[SourceUnavailable("never")] * 10**6)
    running = Runner(source, threading.Lock(), journal())
    running.start()
    assert running.settled.wait(10)
    running.stop()
    assert running.join(10)
    assert "sample" not in source.calls


def test_the_time_a_sample_waited_for_events_is_not_its_duration(run):
    source = Scripted()
    source.waited = 1000.0
    running = run(source)
    assert running.settled.wait(10)
    assert set(running.take_durations()) == {0.0}


class Bursty(Scripted):
    """A source with fast samples, each of which takes some CPU."""

    interval = 3600.0
    fast_interval = 0.001

    def __init__(self, cost: float) -> None:
        super().__init__()
        self.cost = cost
        self.times: list[int] = []

    def sample_fast(self) -> None:
        end = time.thread_time() + self.cost
        while time.thread_time() < end:
            pass

    def fold_fast(self, now_ns: int) -> None:
        self.times.append(now_ns)


def test_fast_samples_go_on_between_samples_and_end_with_the_source():
    source = Bursty(0)
    running = Runner(source, threading.Lock(), journal())
    running.start()
    eventually(lambda: len(source.times) >= 5, "fast samples come")
    running.stop()
    assert running.join(5)
    assert len(source.folded) == 2  # the first and the last


def test_fast_samples_that_cost_much_come_more_rarely():
    source = Bursty(0.002)
    running = Runner(source, threading.Lock(), journal())
    running.start()
    eventually(lambda: len(source.times) >= 2, "fast samples come")
    running.stop()
    assert running.join(5)
    assert running.fast_interval >= 0.2  # 2 ms are 1 % of that
    assert source.times[1] - source.times[0] >= 0.15e9


def test_one_fast_sample_that_costs_much_does_not_end_the_others():
    source = Bursty(0.02)
    source.interval = 0.2
    running = Runner(source, threading.Lock(), journal())
    running.start()
    eventually(lambda: source.times, "a fast sample comes")
    source.cost = 0
    eventually(lambda: len(source.times) >= 20, "they come often again")
    running.stop()
    assert running.join(5)
    assert running.fast_interval < 0.1
