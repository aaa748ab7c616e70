"""One figure, several providers: the best that can deliver does, and never two at once."""

import itertools

import pytest

from fabrictap.ledger.providers import DCGM, GPM, NVML, RANK, REASONS, Figure, Providers

FIGURE = Figure("GPU-1", "hw.gpu.io", "nvlink")


class Provider:
    """One offer; ``writes`` is whether its series live."""

    def __init__(self, table, name, figure=FIGURE, *, rate=False):
        self.writes = False
        self.offer = table.offer(name, figure, self.lost, rate=rate)

    def lost(self):
        self.writes = False

    def tick(self):
        if self.offer.chosen:
            self.writes = True


def test_the_best_that_can_deliver_is_chosen_in_whatever_order_they_come():
    for order in itertools.permutations(RANK):
        table = Providers(10)
        offers = {name: Provider(table, name) for name in order}
        for count, name in enumerate(order, 1):
            offers[name].offer.available()
            assert table.chosen(FIGURE) == min(order[:count], key=RANK.index)
            for provider in offers.values():
                provider.tick()
            assert sum(provider.writes for provider in offers.values()) == 1


def test_a_worse_one_ends_its_series_before_the_better_is_told_to_begin():
    table = Providers(10)
    worse = Provider(table, DCGM)
    assert worse.offer.available()
    worse.tick()
    better = Provider(table, NVML)
    assert worse.writes
    assert better.offer.available()
    assert not worse.writes


def test_the_next_best_takes_over_and_gives_back():
    table = Providers(10)
    better, worse = Provider(table, NVML), Provider(table, DCGM)
    assert better.offer.available()
    assert not worse.offer.available()
    better.tick()
    better.offer.unavailable("gpu_lost")
    assert not better.writes
    assert worse.offer.available()
    worse.tick()
    assert better.offer.available()
    assert not worse.writes


def test_a_counter_is_better_than_any_rate():
    table = Providers(10)
    rate, counter = Provider(table, GPM, rate=True), Provider(table, DCGM)
    rate.offer.available()
    assert table.chosen(FIGURE) == GPM
    rate.tick()
    counter.offer.available()
    assert table.chosen(FIGURE) == DCGM
    assert not rate.writes


def test_withdrawing_leaves_nothing_behind():
    table = Providers(10)
    better, worse = Provider(table, NVML), Provider(table, DCGM)
    better.offer.available()
    worse.offer.available()
    better.tick()
    better.offer.withdraw()
    better.offer.withdraw()
    assert not better.writes
    assert table.chosen(FIGURE) == DCGM
    worse.offer.withdraw()
    assert len(table) == 0
    assert table.availability() == {}


def test_what_does_not_fit_is_never_chosen_and_counted():
    table = Providers(1)
    Provider(table, NVML)
    refused = Provider(table, NVML, Figure("GPU-2", "hw.gpu.io"))
    assert not refused.offer.available()
    refused.offer.unavailable("hung")
    refused.offer.withdraw()
    assert (len(table), table.dropped) == (1, 1)


def test_availability_counts_gpus_by_the_reason_worth_telling():
    table = Providers(100)
    for link in range(18):
        offer = Provider(table, NVML, Figure("GPU-1", "gpu.nvlink.io", link)).offer
        offer.available() if link == 7 else offer.unavailable("not_supported")
        offer = Provider(table, NVML, Figure("GPU-2", "gpu.nvlink.io", link)).offer
        offer.unavailable("gpu_lost" if link == 3 else "not_supported")
        Provider(table, NVML, Figure("GPU-3", "gpu.nvlink.io", link))
    Provider(table, DCGM, Figure("GPU-1", "gpu.nvlink.io", 0)).offer.unavailable("blank")
    assert table.availability() == {
        (NVML, "gpu.nvlink.io", None): 1,
        (NVML, "gpu.nvlink.io", "gpu_lost"): 1,
        (NVML, "gpu.nvlink.io", "waiting"): 1,
        (DCGM, "gpu.nvlink.io", "blank"): 1,
    }


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_can_be_told(reason):
    table = Providers(1)
    Provider(table, NVML).offer.unavailable(reason)
    assert table.availability() == {(NVML, FIGURE.metric, reason): 1}
