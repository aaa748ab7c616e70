"""The thread that reads the counters of GPUs by itself, on the machine's clock, and calls that hang."""

from __future__ import annotations

import threading
import time

import psutil
import pytest

from fabrictap.catalog import GPU_IO, GPU_MEMORY_BANDWIDTH, NVLINK_IO
from fabrictap.ext.calls import Calls, Task
from support import eventually

pytest_plugins = ["nvml_fixtures"]
FIELDS = "nvmlDeviceGetFieldValues"
KIB = 1024


class Ticking:
    """A watched node on the machine's clock whose ticks the test makes."""

    def __init__(self, watched):
        self.watched = watched
        self.source = watched.source
        self.node = watched.node
        self.source._clock = self.source.fast._clock = time.monotonic
        self.source.fast._wall = time.time_ns
        self.node.real_clock()
        self.source.open()
        self.slow()
        # asked for everything, then for what answered
        for _ in range(2):
            self.tick()
            self.pass_ticks(3)
        self.tick()

    def slow(self):
        self.source.fold(self.source.sample(), time.time_ns())

    def tick(self):
        self.source.tick(time.time_ns())

    @property
    def reads(self):
        return self.source._calls.look()[1]

    def pass_ticks(self, count):
        before = self.reads
        eventually(lambda: self.reads >= before + count, f"{count} reads")

    def calls(self, gpu):
        return self.node.calls(FIELDS, gpu)


@pytest.fixture
def ticking(watch):
    watched = watch("hgx-h100", fast_interval=0.01)
    watched.source.fast.share = float("inf")
    return Ticking(watched)


def test_counters_are_read_between_ticks_and_folded_at_them(ticking):
    watched = ticking.watched
    for gpu in range(8):
        for link in range(18):
            ticking.node.nvlink(gpu, link, tx_bytes_per_s=0, rx_bytes_per_s=0)
    cell = ticking.node.field(3, 138, 7)
    ticking.pass_ticks(2)
    ticking.tick()
    way = {"hw__id": watched.gpu(3), "network__io__direction": "transmit"}
    (link,) = watched.find(NVLINK_IO, gpu__nvlink__link=7, **way)
    (total,) = watched.find(GPU_IO, gpu__interconnect="nvlink", **way)
    before, before_total, called = link.value, total.value, ticking.calls(3)
    for _ in range(10):
        cell.set(cell.get() + 1000)
        ticking.pass_ticks(2)
    assert link.value == before  # nothing is written between ticks
    assert ticking.calls(3) >= called + 20
    ticking.tick()
    assert link.value == before + 10_000 * KIB == cell.get() * KIB
    assert total.value == before_total + 10_000 * KIB


def test_a_burst_between_two_ticks_is_a_peak_of_its_own_length(ticking):
    watched, ring = ticking.watched, ticking.watched.table.ring
    for link in range(18):
        ticking.node.nvlink(0, link, tx_bytes_per_s=0, rx_bytes_per_s=0)
    ticking.pass_ticks(2)
    ticking.tick()
    ring.tick(time.time_ns())
    ring.interval(time.time_ns())
    began = time.time_ns()
    cell = ticking.node.field(0, 138, 0)
    cell.set(cell.get() + 1_000_000)  # at once: in one of the reads
    ticking.pass_ticks(20)
    ticking.tick()
    now = time.time_ns()
    ring.tick(now)
    ring.interval(now)
    way = {"hw__id": watched.gpu(0), "network__io__direction": "transmit"}
    for (series,) in (
        watched.find(NVLINK_IO, gpu__nvlink__link=0, **way),
        watched.find(GPU_IO, gpu__interconnect="nvlink", **way),
    ):
        assert series.average == pytest.approx(1_000_000 * KIB * 1e9 / (now - began), rel=0.5)
        assert series.peak > 3 * series.average  # 20 times, where no thread is held


def test_a_wrap_and_a_reset_between_two_ticks_are_told_apart(ticking):
    watched = ticking.watched
    way = {"hw__id": watched.gpu(1), "network__io__direction": "transmit"}
    reset, wrapping = ticking.node.field(1, 138, 2).rate(0), ticking.node.field(1, 138, 3).rate(0)
    wrapping.set((1 << 64) - 5)
    ticking.pass_ticks(2)
    ticking.tick()
    (first,) = watched.find(NVLINK_IO, gpu__nvlink__link=2, **way)
    (second,) = watched.find(NVLINK_IO, gpu__nvlink__link=3, **way)
    value, began = second.value, first.time_ns
    reset.set(reset.get() + 50)
    ticking.pass_ticks(2)
    reset.set(100)
    wrapping.set(5)
    ticking.pass_ticks(2)
    reset.set(130)
    ticking.pass_ticks(2)
    ticking.tick()
    assert (first.value, second.value - value) == (130 * KIB, 10 * KIB)
    assert began < first.start_ns < time.time_ns()


def test_gpm_samples_come_once_a_second_of_the_same_thread(ticking):
    watched = ticking.watched
    eventually(lambda: ticking.tick() or watched.find(GPU_MEMORY_BANDWIDTH), "two samples were compared")
    called, began = ticking.node.calls("nvmlGpmSampleGet", 0), time.monotonic()
    ticking.pass_ticks(150)
    made = ticking.node.calls("nvmlGpmSampleGet", 0) - called
    assert made <= time.monotonic() - began + 1
    assert made >= 1


def test_a_hung_gpu_is_left_out_and_the_others_are_read_at_their_times(ticking):
    watched = ticking.watched
    ticking.source.fast.limit = 0.2
    ticking.source.fast._kept = []  # the limit is taken up with the next list
    ticking.tick()
    gpu = watched.gpu(2)
    with ticking.node.hang(FIELDS, gpu=2):
        eventually(lambda: ticking.tick() or ticking.source.fast.stuck == 1, "it is left behind")
        ticking.tick()
        assert watched.find(NVLINK_IO, hw__id=gpu) == []
        called = [ticking.calls(index) for index in range(8)]
        ticking.pass_ticks(30)
        ticking.tick()
        more = [ticking.calls(index) - before for index, before in enumerate(called)]
        assert more[2] == 0
        assert min(more[:2] + more[3:]) >= 30
        assert ticking.source.fast.stuck == ticking.node.inside(FIELDS) == 1
        way = {"network__io__direction": "receive", "gpu__nvlink__link": 0}
        ticking.node.field(7, 139).rate(0)
        ticking.pass_ticks(2)
        ticking.tick()
        found = watched.value(NVLINK_IO, hw__id=watched.gpu(7), **way)
        assert found == KIB * ticking.node.field(7, 139).get()
    eventually(lambda: ticking.source.fast.stuck == 0, "the call has returned")

    def again():
        ticking.tick()
        return len(watched.find(NVLINK_IO, hw__id=gpu)) == 36

    eventually(again, "it is read again")


def test_a_slow_call_that_hangs_does_not_stop_the_reads(ticking):
    let_go = threading.Event()
    calls = ticking.source._calls
    call = Task(lambda: let_go.wait() and 7)
    assert calls.round([call], 0.2) == 0
    assert call.stuck
    ticking.pass_ticks(5)
    let_go.set()
    eventually(lambda: call.returned, "it has returned")
    assert call.result() == 7
    assert ticking.source._patience.run(lambda: 3, 5.0) == 3
    ticking.pass_ticks(5)


def test_whoever_closes_the_library_waits_for_what_is_in_it_and_no_call_comes_after(ticking):
    ticking.source.close()
    ticking.node.forget_calls()
    ticking.tick()  # main's may come at any time
    assert ticking.calls(0) == 0
    assert ticking.source._calls.look()[0] == 0
    ticking.source.open()
    ticking.slow()
    ticking.tick()

    def all_links():
        ticking.tick()
        return len(ticking.watched.find(NVLINK_IO)) == 8 * 36

    eventually(all_links, "all are read again")


def test_two_threads_call_the_driver_and_none_is_left_when_it_is_closed(watch):
    process = psutil.Process()
    before = process.num_threads()
    ticking = Ticking(watch("hgx-h100", fast_interval=0.01))
    ticking.slow()
    ticking.pass_ticks(5)
    assert process.num_threads() == before + 2
    ticking.source.close()
    eventually(lambda: process.num_threads() == before, "they have ended")


def test_reads_that_cost_too_much_come_more_rarely(ticking):
    fast = ticking.source.fast
    fast.share = 1e-6
    eventually(lambda: ticking.tick() or fast.interval == fast._longest, "they are as rare as they may be")
    fast.share = float("inf")
    assert ticking.source.sampled_every == fast.interval > 0.01


def test_of_no_call_there_is_no_thread():
    calls = Calls(1)
    assert calls.keep([], 1.0, 0.01) == 0
    assert calls.look()[:2] == (0, 0)
    with pytest.raises(ValueError, match="at most 256"):
        calls.keep([Task(int)] * 257, 1.0, 0.01)
    calls.close()
    with pytest.raises(RuntimeError):
        calls.keep([], 1.0, 0.01)
