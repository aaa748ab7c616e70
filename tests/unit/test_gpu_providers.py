"""Both providers of a GPU's figures at once, each on its stand-in: nothing counts twice, whatever happens."""

from __future__ import annotations

from collections import defaultdict

import pytest

from doubles.dcgm.double import CPU, GPU, SWITCH
from doubles.dcgm.node import fill, hopper
from fabrictap import catalog
from fabrictap.config import Dcgm
from fabrictap.sources.dcgm import source

pytest_plugins = ["dcgm_fixtures", "nvml_fixtures"]

#: What two providers may write under two names: a counter, or the rate that stands in for it.
_ONE_FIGURE = {
    catalog.GPU_THROUGHPUT.name: catalog.GPU_IO.name,
    catalog.NVLINK_THROUGHPUT.name: catalog.NVLINK_IO.name,
}
#: What a provider adds to the figure, and what the other does not know.
_DETAIL = ("fabrictap.provider", "gpu.nvlink.counter", "gpu.nvlink.remote")


class Both:
    """One ledger and one table, two sources; DCGM is of the same GPUs as the driver."""

    def __init__(self, watched, engine, library) -> None:
        self.nvml, self.engine = watched, engine
        self.now = 100.0
        settings = Dcgm(library=str(library), enabled="on")
        self.dcgm = source.Dcgm(settings, watched.table, watched.ledger, clock=lambda: self.now)

    def dcgm_tick(self, seconds: float = 10.0) -> None:
        self.now += seconds
        self.dcgm.fold(self.dcgm.sample(), self.nvml.node.now_ns)

    def providers(self, metric: catalog.Metric, **attributes: object) -> set[object]:
        found = self.nvml.find(metric, **attributes)
        return {series.attributes["fabrictap.provider"] for series in found}

    def check(self) -> None:
        by_figure = defaultdict(list)
        links = defaultdict(set)
        for series in self.nvml.table:
            if series.ended or "fabrictap.provider" not in series.attributes:
                continue
            if series.metric.name.startswith("fabrictap."):
                continue
            rest = {name: v for name, v in series.attributes.items() if not name.startswith(_DETAIL)}
            name = _ONE_FIGURE.get(series.metric.name, series.metric.name)
            by_figure[name, frozenset(rest.items())].append(series.attributes["fabrictap.provider"])
            if series.metric is catalog.ERRORS:
                links[rest["hw.id"], rest["error.type"]].add("gpu.nvlink.link" in rest)
        assert by_figure
        assert {figure: who for figure, who in by_figure.items() if len(who) > 1} == {}
        # an error of all links is not beside the same by link
        assert {figure: ways for figure, ways in links.items() if len(ways) > 1} == {}


@pytest.fixture
def both(watch, engine, libraries):
    made = []

    def make(profile: str) -> Both:
        watched = watch(profile)
        watched.start()
        for gpu in watched.ledger.gpus:
            hopper(engine, gpu.index, gpu.id)
        engine.add(SWITCH, 0)
        fill(engine, SWITCH, 0)
        engine.add(CPU, 0)
        fill(engine, CPU, 0)
        one = Both(watched, engine, libraries[4])
        made.append(one)
        one.dcgm.open()
        one.dcgm_tick()
        return one

    yield make
    for one in made:
        one.dcgm.close()


@pytest.mark.parametrize("profile", ["hgx-h100", "gb200", "a100-mig", "l40s"])
def test_nothing_is_counted_twice(both, profile):
    one = both(profile)
    one.check()
    for _ in range(3):
        one.nvml.slow(10)
        one.nvml.fast()
        one.check()
        one.dcgm_tick()
        one.check()
    # the driver is asked first for what it has, DCGM adds what it has not
    assert one.providers(catalog.GPU_MEMORY_USAGE, hw__id=one.nvml.gpu(3)) == {"nvml"}
    assert one.providers(catalog.GPU_POWER, hw__type="cpu") == {"dcgm"}
    assert one.providers(catalog.NVSWITCH_TRAFFIC) == {"dcgm"}
    assert one.providers(catalog.NVLINK_BIT_ERRORS) == {"dcgm"}


def test_before_hopper_dcgm_has_the_memory_bandwidth_and_from_hopper_on_gpm(both):
    assert both("l40s").providers(catalog.GPU_MEMORY_BANDWIDTH) == {"dcgm"}


def test_from_hopper_on_gpm_has_it(both):
    one = both("hgx-h100")
    for _ in range(4):
        one.nvml.fast(1.5)  # two samples of GPM are some time apart
        one.dcgm_tick()
        one.check()
    assert one.providers(catalog.GPU_MEMORY_BANDWIDTH) == {"gpm"}


def test_where_the_driver_loses_a_gpu_dcgm_takes_over_what_it_still_has_and_gives_it_back(both):
    one = both("hgx-h100")
    gpu = one.nvml.gpu(2)
    one.nvml.node.lose(2)
    for _ in range(4):
        one.nvml.slow(10)
        one.nvml.fast()
        one.dcgm_tick()
        one.check()
    assert one.providers(catalog.GPU_MEMORY_USAGE, hw__id=gpu) == {"dcgm"}
    assert one.providers(catalog.GPU_MEMORY_USAGE, hw__id=one.nvml.gpu(3)) == {"nvml"}
    one.nvml.node.find(2)
    for _ in range(4):
        one.nvml.slow(10)
        one.nvml.fast()
        one.check()
        one.dcgm_tick()
        one.check()
    assert one.providers(catalog.GPU_MEMORY_USAGE, hw__id=gpu) == {"nvml"}


def test_where_dcgm_goes_away_the_driver_goes_on(both):
    one = both("hgx-h100")
    one.engine.restart()
    one.dcgm_tick()
    one.check()
    assert one.providers(catalog.NVSWITCH_TRAFFIC) == set()
    assert one.providers(catalog.GPU_MEMORY_USAGE) == {"nvml"}


def test_an_xid_is_counted_by_one_of_them(both):
    one = both("hgx-h100")
    gpu = one.nvml.gpu(1)
    one.engine.set(GPU, 1, 230, 79, time_us=1_000_000)
    one.dcgm_tick()
    assert one.providers(catalog.ERRORS, error__type="xid_79", hw__id=gpu) == set()
