"""The fast tier of the nvml source: every number that the stand-in drove, by link and direction, in bytes."""

from __future__ import annotations

import random
import threading

import pytest

from fabrictap.catalog import (
    GPU_IO,
    GPU_MEMORY_BANDWIDTH,
    GPU_THROUGHPUT,
    NVLINK_IO,
    NVLINK_PACKETS,
    NVLINK_RAW_IO,
    NVLINK_THROUGHPUT,
)

pytest_plugins = ["nvml_fixtures"]

KIB = 1024
DIRECTIONS = ("transmit", "receive")
FIELD = {"transmit": 138, "receive": 139}
RAW = {"transmit": 140, "receive": 141}
PCIE = {"transmit": 197, "receive": 198}
#: profile -> GPUs, links of each.
PROFILES = {"hgx-h100": (8, 18), "gb200": (4, 18), "a100-mig": (8, 12), "l40s": (4, 0)}
NVLINK = {"gpu__interconnect": "nvlink"}


def drive(watched, fields, seed=1):
    """Give every link and direction a rate of its own."""
    random.seed(seed)
    gpus, links = fields
    for gpu in range(gpus):
        for link in range(links):
            for direction in DIRECTIONS:
                rate = random.randrange(0, 26_000_000)
                watched.node.field(gpu, FIELD[direction], link).rate(rate)
                watched.node.field(gpu, RAW[direction], link).rate(rate * 2)
        for direction in DIRECTIONS:
            cell = watched.node.field(gpu, PCIE[direction])
            if cell.get() is not None:
                cell.rate(random.randrange(0, 60_000_000_000))


def check(watched, gpus, links):
    """Every series says what the node's counter says, and sums are the sums of their links."""
    for index in range(gpus):
        gpu = watched.gpu(index)
        for direction in DIRECTIONS:
            way = {"hw__id": gpu, "network__io__direction": direction}
            for metric, field in ((NVLINK_IO, FIELD), (NVLINK_RAW_IO, RAW)):
                found = watched.values(metric, "gpu.nvlink.link", **way)
                assert found == {
                    link: KIB * watched.node.field(index, field[direction], link).get()
                    for link in range(links)
                }
            if links:
                total = watched.value(GPU_IO, **NVLINK, **way)
                assert total == sum(watched.values(NVLINK_IO, "gpu.nvlink.link", **way).values())
            pcie = watched.node.field(index, PCIE[direction]).get()
            found = [one.value for one in watched.find(GPU_IO, gpu__interconnect="pcie", **way)]
            assert found == ([] if pcie is None else [pcie])


@pytest.mark.parametrize("profile", PROFILES)
def test_every_counter_is_what_the_driver_said_in_bytes_over_a_thousand_ticks(watch, profile):
    watched = watch(profile)
    watched.start()
    drive(watched, PROFILES[profile])
    for tick in range(1000):
        watched.fast()
        if tick % 250 == 0:
            check(watched, *PROFILES[profile])
            drive(watched, PROFILES[profile], tick)
    check(watched, *PROFILES[profile])
    assert watched.source.errors == {}


def test_each_gpu_costs_one_call_a_tick_with_the_fields_that_it_has_and_no_other_call(watch):
    watched = watch("hgx-h100", gpm=False)
    watched.start()
    watched.node.forget_calls()
    for _ in range(10):
        watched.fast()
    called = {name for thread in watched.node.threads() for name in thread.calls}
    assert called <= {"nvmlDeviceGetFieldValues", "nvmlEventSetWait_v2"}
    assert [watched.node.calls("nvmlDeviceGetFieldValues", gpu) for gpu in range(8)] == [10] * 8
    (batch, *_) = watched.source.fast._batches
    assert len(batch.call.fields) == 18 * 4 + 2


def test_no_call_is_made_in_the_thread_that_asks(watch):
    watched = watch("hgx-h100")
    watched.source.open()
    watched.node.forget_calls()
    watched.slow()
    watched.fast()
    watched.slow(30)
    callers = {thread.tid for thread in watched.node.threads() if thread.calls}
    assert threading.get_native_id() not in callers
    assert callers


def test_a_counter_of_64_bits_that_wraps_goes_on_and_so_does_the_sum(watch):
    watched = watch("hgx-h100")
    watched.start()
    gpu = {"hw__id": watched.gpu(2), "network__io__direction": "transmit"}
    cell = watched.node.field(2, 138, 5)
    cell.rate(0)
    cell.set((1 << 64) - 3)
    watched.fast()
    before = watched.value(NVLINK_IO, gpu__nvlink__link=5, **gpu)

    def others():
        found = watched.values(NVLINK_IO, "gpu.nvlink.link", **gpu)
        return sum(value for link, value in found.items() if link != 5)

    rest = others()
    total = watched.value(GPU_IO, **NVLINK, **gpu)
    cell.set(7)
    watched.fast(0.0)
    assert watched.value(NVLINK_IO, gpu__nvlink__link=5, **gpu) - before == 10 * KIB

    assert watched.value(GPU_IO, **NVLINK, **gpu) - total == 10 * KIB + others() - rest


def test_a_pcie_counter_that_wraps_at_32_bits_goes_on(watch):
    watched = watch("hgx-h100")
    cell = watched.node.field(0, 197).set(0).width(32).rate(2_000_000_000)
    watched.start()
    way = {"hw__id": watched.gpu(0), "network__io__direction": "transmit", "gpu__interconnect": "pcie"}
    first, began = watched.value(GPU_IO, **way), watched.node.now_ns
    assert first == cell.get()
    for _ in range(100):  # wraps every 2.1 s
        watched.fast()
    moved = 2 * (watched.node.now_ns - began)
    assert watched.value(GPU_IO, **way) == first + moved


def test_a_reset_starts_the_link_anew_and_the_sum_goes_on(watch):
    watched = watch("hgx-h100")
    watched.start()
    for link in range(18):
        watched.node.field(0, 138, link).rate(0)
    watched.fast()
    way = {"hw__id": watched.gpu(0), "network__io__direction": "transmit"}
    total = watched.value(GPU_IO, **NVLINK, **way)
    (series,) = watched.find(NVLINK_IO, gpu__nvlink__link=3, **way)
    last_seen = series.time_ns
    watched.node.field(0, 138, 3).set(1000)
    watched.fast()
    assert (series.value, series.start_ns) == (1000 * KIB, last_seen)
    assert watched.value(GPU_IO, **NVLINK, **way) == total + 1000 * KIB


def test_the_peak_is_that_of_the_busiest_tick(watch):
    watched = watch("hgx-h100")
    watched.start()
    gpu, cells = watched.gpu(0), [watched.node.field(0, 138, link) for link in range(18)]
    for cell in cells:
        cell.rate(0)
    watched.fast()
    ring = watched.table.ring
    ring.tick(watched.node.now_ns)
    ring.interval(watched.node.now_ns)
    for tick in range(100):
        for cell in cells[:2]:
            cell.rate(1_000_000 if tick == 42 else 1000)
        watched.fast()
    ring.tick(watched.node.now_ns)
    ring.interval(watched.node.now_ns)
    way = {"hw__id": gpu, "network__io__direction": "transmit"}
    (link,) = watched.find(NVLINK_IO, gpu__nvlink__link=1, **way)
    (total,) = watched.find(GPU_IO, **NVLINK, **way)
    assert link.peak == pytest.approx(1_000_000 * KIB, rel=1e-6)
    assert total.peak == pytest.approx(2_000_000 * KIB, rel=1e-6)
    average = (99 * 1000 + 1_000_000) / 100 * KIB
    assert link.average == pytest.approx(average, rel=1e-3)


def test_a_thread_that_is_held_between_call_and_clock_makes_no_peak(watch):
    watched = watch("hgx-h100")
    watched.start()
    cell = watched.node.field(0, 138, 0).rate(1_000_000)
    held = random.Random(5)
    watched.source.fast._wall = lambda: watched.node.now_ns + held.randrange(0, 90_000_000)
    watched.fast()
    ring = watched.table.ring
    ring.tick(watched.node.now_ns)
    ring.interval(watched.node.now_ns)
    for _ in range(50):
        watched.fast()
    ring.tick(watched.node.now_ns)
    ring.interval(watched.node.now_ns)
    way = {"hw__id": watched.gpu(0), "network__io__direction": "transmit", "gpu__nvlink__link": 0}
    (series,) = watched.find(NVLINK_IO, **way)
    assert series.value == KIB * cell.get()
    assert series.peak == pytest.approx(1_000_000 * KIB, rel=1e-6)


def test_fields_that_the_driver_does_not_have_are_not_asked_for_again_soon(watch):
    watched = watch("l40s")
    watched.start()
    (batch, *_) = [one for one in watched.source.fast._batches if one.provider == "nvml"]
    assert batch.call.fields == ((197, 0), (198, 0))
    for _ in range(50):
        watched.fast()
    assert batch.call.fields == ((197, 0), (198, 0))


@pytest.mark.parametrize(("code", "reason"), [(3, "not_supported"), (4, "no_permission"), (999, "error")])
def test_a_field_that_fails_costs_its_own_figure_and_comes_back(watch, code, reason):
    watched = watch("hgx-h100", gpm=False)
    watched.start()
    gpu = watched.gpu(4)
    (lost,) = watched.find(NVLINK_IO, hw__id=gpu, gpu__nvlink__link=7, network__io__direction="receive")
    cell = watched.node.field(4, 139, 7).answer(code)
    watched.fast()
    assert lost.ended
    assert watched.find(NVLINK_IO, hw__id=gpu, gpu__nvlink__link=7) == []
    assert len(watched.find(NVLINK_IO)) == 8 * 18 * 2 - 2
    assert len(watched.find(NVLINK_RAW_IO, hw__id=gpu, gpu__nvlink__link=7)) == 2
    offers = watched.ledger.providers._figures
    (offer,) = next(found for figure, found in offers.items() if (figure.gpu, figure.metric, figure.part)
                    == (gpu, NVLINK_IO.name, 7))  # fmt: skip
    assert offer.reason == reason
    total = watched.value(GPU_IO, hw__id=gpu, network__io__direction="receive", **NVLINK)
    cell.answer(0)
    for _ in range(102):  # asked for again after 10 s
        watched.fast()
    found = watched.value(NVLINK_IO, hw__id=gpu, gpu__nvlink__link=7, network__io__direction="receive")
    assert found == KIB * cell.get()
    # what the link had counted while nobody looked is no burst of the sum
    grown = watched.value(GPU_IO, hw__id=gpu, network__io__direction="receive", **NVLINK) - total
    assert grown < 18 * 9216000000 * 10.3


def test_where_there_are_no_data_counters_those_of_the_nvlink_5_port_are_taken_and_say_so(watch):
    watched = watch("gb200", gpm=False)
    for gpu in range(4):
        for link in range(18):
            for field in (138, 139, 140, 141):
                watched.node.field(gpu, field, link).remove()
    watched.start()
    watched.fast()
    assert watched.find(NVLINK_RAW_IO) == []
    for index in range(4):
        for direction, field in (("transmit", 202), ("receive", 204)):
            way = {"hw__id": watched.gpu(index), "network__io__direction": direction}
            found = watched.values(NVLINK_IO, "gpu.nvlink.link", gpu__nvlink__counter="port", **way)
            assert found == {link: watched.node.field(index, field, link).get() for link in range(18)}
            assert watched.value(GPU_IO, **NVLINK, **way) == sum(found.values())


def test_nvlink_5_packets(watch):
    watched = watch("gb200")
    watched.start()
    watched.fast()
    for direction, field in (("transmit", 201), ("receive", 203)):
        found = watched.values(
            NVLINK_PACKETS, "gpu.nvlink.link", hw__id=watched.gpu(1), network__io__direction=direction
        )
        assert found == {link: watched.node.field(1, field, link).get() for link in range(18)}


# --- GPM ------------------------------------------------------------------------------------------


def seconds(watched, count):
    for _ in range(10 * count + 1):
        watched.fast()


def test_memory_bandwidth_comes_from_gpm_as_a_ratio(watch):
    watched = watch("hgx-h100")
    watched.start()
    watched.node.gpm(5, 10).set(87_500)
    seconds(watched, 2)
    assert watched.value(GPU_MEMORY_BANDWIDTH, hw__id=watched.gpu(5)) == pytest.approx(0.875)
    assert watched.value(GPU_MEMORY_BANDWIDTH, hw__id=watched.gpu(0)) == pytest.approx(0.415)
    (one,) = watched.find(GPU_MEMORY_BANDWIDTH, hw__id=watched.gpu(0))
    assert one.attributes["fabrictap.provider"] == "gpm"


def test_gpm_samples_once_a_second_only_what_nobody_else_delivers(watch):
    watched = watch("hgx-h100")
    watched.start()
    seconds(watched, 2)
    watched.node.forget_calls()
    seconds(watched, 10)
    assert 9 <= watched.node.calls("nvmlGpmSampleGet", 0) <= 11
    gpm = [batch for batch in watched.source.fast._batches if batch.provider == "gpm"]
    assert {batch.call.metrics for batch in gpm} == {(10,)}
    assert watched.find(NVLINK_THROUGHPUT) == []


def without_fields(watched, gpus):
    for gpu in range(gpus):
        for link in range(18):
            for field in (138, 139, 140, 141, 201, 202, 203, 204):
                watched.node.field(gpu, field, link).remove()
        for field in (197, 198):
            watched.node.field(gpu, field).remove()


def test_where_the_fields_are_missing_gpm_rates_stand_in_and_are_never_counters(watch):
    watched = watch("hgx-h100")
    without_fields(watched, 8)
    watched.node.nvlink(3, 4, tx_bytes_per_s=7 << 30, rx_bytes_per_s=5 << 30)
    watched.start()
    seconds(watched, 3)
    watched.slow()
    seconds(watched, 2)
    assert watched.find(GPU_IO) == watched.find(NVLINK_IO) == []
    gpu = watched.gpu(3)
    link = watched.values(NVLINK_THROUGHPUT, "network.io.direction", hw__id=gpu, gpu__nvlink__link=4)
    assert link == pytest.approx({"transmit": 7 << 30, "receive": 5 << 30}, rel=1e-6)
    pcie = watched.values(GPU_THROUGHPUT, "network.io.direction", hw__id=gpu, gpu__interconnect="pcie")
    assert pcie == pytest.approx({"transmit": 1536000000, "receive": 3072000000}, rel=1e-6)
    total = watched.values(GPU_THROUGHPUT, "network.io.direction", hw__id=gpu, gpu__interconnect="nvlink")
    assert total["transmit"] == pytest.approx(17 * 10240000000 + (7 << 30), rel=1e-6)


def test_cumulative_gpm_numbers_are_preferred_over_rates(watch):
    watched = watch("gb200")
    without_fields(watched, 4)
    watched.start()
    seconds(watched, 3)
    watched.slow()
    seconds(watched, 3)
    assert watched.find(NVLINK_THROUGHPUT) == []
    assert {one.attributes["gpu.interconnect"] for one in watched.find(GPU_THROUGHPUT)} == {"c2c"}
    gpu = {"hw__id": watched.gpu(2), "network__io__direction": "transmit"}
    links = watched.values(NVLINK_IO, "gpu.nvlink.link", **gpu)
    assert len(links) == 18
    assert watched.value(GPU_IO, **NVLINK, **gpu) == sum(links.values())
    one = watched.value(NVLINK_IO, gpu__nvlink__link=9, **gpu)
    # at most one GPM interval behind
    assert 0 <= watched.node.gpm(2, 262 + 18).get() - one <= 1.2 * 50_000_000_000


def test_the_fields_coming_back_end_what_stood_in_for_them(watch):
    watched = watch("hgx-h100")
    for field in (197, 198):
        watched.node.field(0, field).remove()
    watched.start()
    seconds(watched, 3)
    watched.slow()
    seconds(watched, 2)
    where = {"hw__id": watched.gpu(0), "gpu__interconnect": "pcie"}
    assert len(watched.find(GPU_THROUGHPUT, **where)) == 2
    assert watched.find(GPU_IO, **where) == []
    for field in (197, 198):
        watched.node.field(0, field).set(5)
    seconds(watched, 21)
    assert watched.find(GPU_THROUGHPUT, **where) == []
    assert watched.values(GPU_IO, "fabrictap.provider", **where) == {"nvml": 5}


def test_without_a_fast_tier_the_counters_are_read_with_everything_else(watch):
    watched = watch("hgx-h100", fast_interval=0.0)
    watched.source.open()
    for _ in range(3):
        watched.slow(10)
    check(watched, 8, 18)
    watched.slow(10)
    check(watched, 8, 18)
