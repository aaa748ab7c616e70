"""What the dcgm source makes of a host engine, on a stand-in of it."""

from __future__ import annotations

import contextlib
import itertools
import math

import pytest

from doubles.dcgm import double
from doubles.dcgm.double import CPU, GPU, GPU_CI, GPU_I, LINK, SWITCH
from doubles.dcgm.node import Node, fill, hopper
from fabrictap import catalog
from fabrictap.config import Config, ConfigError, Dcgm, load
from fabrictap.ledger.providers import GPM, NVML, REASONS, Figure
from fabrictap.sources import SourceAbsent, SourceUnavailable
from fabrictap.sources.dcgm import entities as dcgm_entities
from fabrictap.sources.dcgm import states
from fabrictap.sources.dcgm.entities import split_link
from fabrictap.sources.dcgm.fields import SETS

pytest_plugins = ["dcgm_fixtures"]

MIB = 1 << 20
H0 = "GPU-h0"


# --- values


def test_every_field_of_a_gpu_is_the_series_that_it_means(engine, node):
    hopper(engine)
    one = node()
    gpu = {"hw__id": H0, "fabrictap__provider": "dcgm"}
    assert one.value(catalog.GPU_MEMORY_LIMIT, **gpu) == 250 * MIB
    assert one.value(catalog.GPU_MEMORY_USAGE, **gpu) == 252 * MIB
    assert one.value(catalog.GPU_MEMORY_UTILIZATION, **gpu) == pytest.approx(252 / 250)
    assert one.value(catalog.GPU_BAR1_LIMIT, **gpu) == 90 * MIB
    assert one.value(catalog.GPU_BAR1_USAGE, **gpu) == 92 * MIB
    assert one.value(catalog.GPU_MEMORY_BANDWIDTH, **gpu) == pytest.approx(0.01005)
    for direction, pcie, nvlink, c2c in (("transmit", 1091, 1201, 1076), ("receive", 1092, 1203, 1078)):
        gpu["network__io__direction"] = direction
        assert one.value(catalog.GPU_IO, gpu__interconnect="pcie", **gpu) == pcie
        assert one.value(catalog.GPU_IO, gpu__interconnect="nvlink", **gpu) == nvlink
        assert one.value(catalog.GPU_THROUGHPUT, gpu__interconnect="c2c", **gpu) == c2c
    for link in range(18):
        where = {"hw__id": H0, "gpu__nvlink__link": link}
        sent = one.value(catalog.NVLINK_THROUGHPUT, network__io__direction="transmit", **where)
        received = one.value(catalog.NVLINK_THROUGHPUT, network__io__direction="receive", **where)
        assert (sent, received) == (1040 + 2 * link, 1041 + 2 * link)
    errors = {
        (series.attributes["error.type"], series.attributes.get("gpu.ecc.span")): series.value
        for series in one.find(catalog.ERRORS, hw__id=H0, hw__type="gpu")
    }
    assert errors == {
        ("pcie_replay", None): 202,
        ("ecc_corrected", "volatile"): 310,
        ("ecc_uncorrected", "volatile"): 311,
        ("ecc_corrected", "aggregate"): 312,
        ("ecc_uncorrected", "aggregate"): 313,
        ("row_remap_uncorrected", None): 393,
        ("row_remap_corrected", None): 394,
        ("nvlink_crc", None): 409,
        ("nvlink_crc_data", None): 419,
        ("nvlink_replay", None): 429,
        ("nvlink_recovery", None): 439,
        ("nvlink_malformed_packet", None): 1204,
        ("nvlink_buffer_overrun", None): 1205,
        ("nvlink_receive", None): 1206,
        ("nvlink_receive_remote", None): 1207,
        ("nvlink_receive_general", None): 1208,
        ("nvlink_local_integrity", None): 1209,
        ("nvlink_transmit_discard", None): 1210,
        ("nvlink_recovery_failed", None): 1212,
        ("nvlink_symbol", None): 1214,
        ("nvlink_effective", None): 1219,
        ("nvlink_ecc", None): 1220,
    }
    assert one.value(catalog.GPU_ROW_REMAPPING, gpu__row_remap__state="failed") == 1
    assert one.value(catalog.GPU_ROW_REMAPPING, gpu__row_remap__state="pending") == 1
    kind = "gpu__nvlink__bit_error__kind"
    assert one.value(catalog.NVLINK_BIT_ERRORS, **{kind: "symbol"}) == pytest.approx(0.01216)
    assert one.value(catalog.NVLINK_BIT_ERRORS, **{kind: "effective"}) == pytest.approx(0.01218)


def test_every_series_has_only_attributes_of_the_catalog(engine, node):
    hopper(engine)
    everything_else(engine)
    for series in node().series:
        allowed = {attribute.name for attribute in series.metric.attributes}
        assert series.attributes.keys() <= allowed, series.metric.name
        for attribute in series.metric.attributes:
            if attribute.values and attribute.name in series.attributes:
                assert series.attributes[attribute.name] in attribute.values


def everything_else(engine: double.Engine) -> None:
    """A switch with links, a CPU and a MIG instance beside the GPU."""
    engine.add(SWITCH, 2)
    fill(engine, SWITCH, 2)
    for link, state in ((0, 2), (1, 0), (2, 3), (3, -1)):
        number = SWITCH | link << 8 | 2 << 24
        engine.add(LINK, number)
        fill(engine, LINK, number)
        engine.set(LINK, number, 870, state)
    engine.add(CPU, 1)
    fill(engine, CPU, 1)
    engine.add(GPU_I, 9, uuid=H0, parent=(GPU, 0), gpu_instance=4)
    engine.add(GPU_CI, 11, uuid=H0, parent=(GPU_I, 9), gpu_instance=4, compute_instance=0)
    engine.set(GPU_I, 9, 54, "MIG-m0")
    fill(engine, GPU_I, 9)


def test_a_switch_its_used_links_and_a_cpu(engine, node):
    hopper(engine)
    everything_else(engine)
    one = node()
    switch = {"hw__id": "nvswitch/2"}
    for direction, total, link in (("transmit", 861, 780), ("receive", 862, 781)):
        assert one.value(catalog.NVSWITCH_TRAFFIC, network__io__direction=direction, **switch) == total
        for number in (0, 2):
            where = {"gpu__nvswitch__link": number, "network__io__direction": direction}
            assert one.value(catalog.NVSWITCH_LINK_TRAFFIC, **where, **switch) == link
    assert {s.attributes["gpu.nvswitch.link"]: s.value for s in one.find(catalog.NVSWITCH_LINK_UP)} == {
        0: 1,
        2: 0,
    }
    errors = one.find(catalog.ERRORS, hw__type="network", gpu__nvswitch__link=0, **switch)
    assert {s.attributes["error.type"]: s.value for s in errors} == {
        "nvswitch_replay": 784,
        "nvswitch_recovery": 785,
        "nvswitch_flit": 786,
        "nvswitch_crc": 787,
        "nvswitch_ecc": 788,
    }
    assert one.value(catalog.GPU_TEMPERATURE, hw__id="cpu/1", hw__type="cpu") == pytest.approx(0.0111)
    assert one.value(catalog.GPU_POWER, hw__id="cpu/1", hw__type="cpu") == pytest.approx(0.0113)


def test_a_link_that_was_active_is_told_when_it_goes_down(engine, node):
    hopper(engine)
    everything_else(engine)
    one = node()
    engine.set(LINK, SWITCH | 2 << 24, 870, 0)
    one.tick()
    assert one.value(catalog.NVSWITCH_LINK_UP, gpu__nvswitch__link=0) == 0


@pytest.mark.parametrize(
    ("number", "parts"),
    [
        (3 | 17 << 8 | 5 << 24, (3, 5, 17)),  # 4.3 and later
        (3 | 255 << 8 | 255 << 24, (3, 255, 255)),
        (3 | 17 << 8 | 5 << 16, (3, 5, 17)),  # 3.x
        (3 | 17 << 8, (3, 0, 17)),
        (1 | 2 << 8 | 7 << 16, (1, 7, 2)),
    ],
)
def test_a_links_id_is_read_in_either_layout(number, parts):
    assert split_link(number) == parts


def test_a_mig_instance_with_one_device_has_its_name_and_its_gpu_as_parent(engine, node):
    hopper(engine)
    everything_else(engine)
    one = node()
    where = {"hw__id": "MIG-m0", "hw__parent": H0}
    assert one.value(catalog.GPU_MEMORY_USAGE, **where) == 252 * MIB
    assert one.value(catalog.GPU_MEMORY_BANDWIDTH, **where) == pytest.approx(0.01005)


def test_a_mig_instance_that_is_no_single_device_is_named_after_its_gpu(engine, node):
    hopper(engine)
    everything_else(engine)
    engine.add(GPU_CI, 12, uuid=H0, parent=(GPU_I, 9), gpu_instance=4, compute_instance=1)
    one = node()
    assert one.value(catalog.GPU_MEMORY_USAGE, hw__id="GPU-h0/gi4", hw__parent=H0) == 252 * MIB
    assert one.find(catalog.GPU_MEMORY_USAGE, hw__id="MIG-m0") == []


def test_mig_instances_whose_uuid_cannot_be_asked_for_are_named_all_the_same(engine, libraries):
    hopper(engine)
    everything_else(engine)
    one = Node(engine, libraries[4])
    answers = iter([0, -3])  # first the GPUs, then the instances
    latest = engine.calls("latest")
    original = dcgm_entities._once

    def once(connection, group, *arguments):
        engine.answer("latest", next(answers), 1)
        return original(connection, group, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dcgm_entities, "_once", once)
        one.source.open()
    assert engine.calls("latest") == latest + 2
    one.tick()
    assert one.value(catalog.GPU_MEMORY_USAGE, hw__id="GPU-h0/gi4", hw__parent=H0) == 252 * MIB
    one.source.close()


def test_a_counter_that_falls_began_anew(engine, node):
    hopper(engine)
    one = node()
    (series,) = one.find(catalog.ERRORS, error__type="pcie_replay")
    began = series.start_ns
    one.tick()
    engine.set(GPU, 0, 202, 3)
    one.tick()
    assert series.value == 3
    assert series.start_ns > began


@pytest.mark.parametrize("value", [-5, 1 << 62])
def test_a_count_that_cannot_be_is_no_value(engine, node, value):
    hopper(engine)
    engine.set(GPU, 0, 252, value)
    one = node()
    assert one.find(catalog.GPU_MEMORY_USAGE) == []
    assert one.reason(H0, catalog.GPU_MEMORY_USAGE) == "error"


def test_the_order_in_which_the_engine_answers_does_not_matter(engine, node):
    for i in range(8):
        hopper(engine, i, f"GPU-{i}")
        engine.set(GPU, i, 252, 1000 + i)
    engine.control.shuffle = 1
    one = node()
    for i in range(8):
        assert one.value(catalog.GPU_MEMORY_USAGE, hw__id=f"GPU-{i}") == (1000 + i) * MIB


def test_an_engine_that_answers_less_at_a_time_is_asked_for_less(engine, node):
    for i in range(8):
        hopper(engine, i, f"GPU-{i}")
    engine.control.value_limit = 100
    one = node()
    assert len(one.find(catalog.GPU_MEMORY_USAGE)) == 8
    before = engine.calls("latest")
    one.tick()
    assert engine.calls("latest") - before == 8  # and remembered
    assert one.source.errors == {}


def test_dcgm_3_with_more_entities_than_a_group_holds(libraries, tmp_path, monkeypatch):
    engine = double.Engine(tmp_path / "engine3", major=3)
    monkeypatch.setenv(double.VARIABLE, str(engine.file))
    hopper(engine)
    for link in range(150):
        number = SWITCH | link << 8 | 1 << 16
        engine.add(LINK, number)
        fill(engine, LINK, number)
        engine.set(LINK, number, 870, 2)
    one = Node(engine, libraries[3])
    one.source.open()
    one.tick()
    assert len(one.find(catalog.NVSWITCH_LINK_UP, hw__id="nvswitch/1")) == 150
    # older than what it does not know, and no worse for it
    assert one.value(catalog.GPU_MEMORY_USAGE) == 252 * MIB
    assert one.reason(H0, catalog.NVLINK_BIT_ERRORS) == "not_supported"
    assert one.find(catalog.GPU_THROUGHPUT, gpu__interconnect="pcie") != []
    one.source.close()
    assert engine.held() == {}
    assert engine.control.abandoned == 0


# --- providers


def test_what_nvml_delivers_is_not_delivered_again(engine, node):
    hopper(engine)
    one = node()
    assert one.value(catalog.GPU_MEMORY_USAGE) == 252 * MIB
    figure = Figure(H0, catalog.GPU_MEMORY_USAGE.name)
    offer = one.ledger.providers.offer(NVML, figure, lambda: None)
    assert offer.available()
    assert one.find(catalog.GPU_MEMORY_USAGE, fabrictap__provider="dcgm") == []
    one.tick()
    assert one.find(catalog.GPU_MEMORY_USAGE, fabrictap__provider="dcgm") == []
    offer.unavailable("gpu_lost")
    one.tick()
    assert one.value(catalog.GPU_MEMORY_USAGE, fabrictap__provider="dcgm") == 252 * MIB


def test_a_counter_of_dcgm_is_better_than_a_rate_of_anybody(engine, node):
    hopper(engine)
    one = node()
    figure = Figure(H0, catalog.GPU_IO.name, "pcie")
    rate = one.ledger.providers.offer(GPM, figure, lambda: None, rate=True)
    assert not rate.available()
    # never both, and the rate is a gauge of the same figure
    assert one.find(catalog.GPU_THROUGHPUT, gpu__interconnect="pcie") == []
    assert len(one.find(catalog.GPU_IO, gpu__interconnect="pcie")) == 2


def test_without_the_counter_the_rate_is_a_gauge_and_never_summed(engine, node):
    hopper(engine)
    engine.control.known_fields = 1091
    one = node()
    assert one.find(catalog.GPU_IO, gpu__interconnect="pcie") == []
    where = {"gpu__interconnect": "pcie", "network__io__direction": "transmit"}
    assert one.value(catalog.GPU_THROUGHPUT, **where) == 1009
    one.tick()
    assert one.value(catalog.GPU_THROUGHPUT, **where) == 1009


def test_a_gpu_that_has_gone_takes_its_offers_along(engine, node):
    hopper(engine)
    hopper(engine, 1, "GPU-h1")
    one = node()
    offers = len(one.ledger.providers)
    engine.remove(GPU, 1)
    one.tick(61)
    assert one.find(catalog.GPU_MEMORY_USAGE, hw__id="GPU-h1") == []
    assert len(one.ledger.providers) == offers / 2
    assert one.value(catalog.GPU_MEMORY_USAGE, hw__id=H0) == 252 * MIB


def test_a_gpu_that_comes_is_found_and_watched(engine, node):
    hopper(engine)
    one = node()
    hopper(engine, 1, "GPU-h1")
    one.tick(61)
    assert one.value(catalog.GPU_MEMORY_USAGE, hw__id="GPU-h1") == 252 * MIB
    assert engine.control.groups == 1


# --- errors of driver and switch


def test_an_xid_is_counted_once_when_it_happens(engine, node):
    hopper(engine)
    one = node()
    assert one.find(catalog.ERRORS, error__type="xid_79") == []
    engine.set(GPU, 0, 230, 79, time_us=1_000_000)
    one.tick()
    one.tick()
    assert one.value(catalog.ERRORS, hw__id=H0, error__type="xid_79") == 1
    engine.set(GPU, 0, 230, 79, time_us=2_000_000)
    one.tick()
    engine.set(GPU, 0, 230, 48, time_us=3_000_000)
    one.tick()
    assert one.value(catalog.ERRORS, error__type="xid_79") == 2
    assert one.value(catalog.ERRORS, error__type="xid_48") == 1


def test_an_xid_of_before_the_agent_is_not_counted(engine, node):
    hopper(engine)
    engine.set(GPU, 0, 230, 79, time_us=1_000_000)
    one = node()
    one.tick()
    assert one.find(catalog.ERRORS, error__type="xid_79") == []


def test_more_kinds_of_xids_than_there_can_be_are_counted_as_others(engine, node):
    hopper(engine)
    one = node()
    for number in range(1, 101):
        engine.set(GPU, 0, 230, number, time_us=number)
        one.tick()
    xids = [
        s for s in one.find(catalog.ERRORS, hw__id=H0) if str(s.attributes["error.type"]).startswith("xid")
    ]
    assert len(xids) == 64
    assert one.value(catalog.ERRORS, hw__id=H0, error__type="other") == 36


def test_an_sxid_is_counted_when_it_changes(engine, node):
    everything_else(engine)
    engine.set(SWITCH, 2, 856, 0)
    engine.set(SWITCH, 2, 857, 0)
    one = node()
    engine.set(SWITCH, 2, 856, 20034)
    one.tick()
    one.tick()  # the engine writes the last one again and again
    assert one.value(catalog.ERRORS, hw__id="nvswitch/2", error__type="sxid_fatal_20034") == 1
    assert one.find(catalog.ERRORS, error__type="sxid_20034") == []


# --- what is wrong


@pytest.mark.parametrize(("code", "reason"), sorted(states.REASONS.items()))
def test_every_status_of_a_value_has_its_reason_and_costs_that_value_only(engine, node, code, reason):
    hopper(engine)
    engine.set(GPU, 0, 252, 7, status=code)
    one = node()
    assert one.find(catalog.GPU_MEMORY_USAGE) == []
    assert one.reason(H0, catalog.GPU_MEMORY_USAGE) == reason
    assert one.value(catalog.GPU_MEMORY_LIMIT) == 250 * MIB


def test_every_reason_is_one_of_the_ledgers_and_of_the_catalog():
    reasons = {*states.REASONS.values(), "error", "blank", "paused", "stale", "not_connected", "hung"}
    assert reasons <= set(REASONS) == set(catalog.UNAVAILABLE.values)


@pytest.mark.parametrize(
    ("offset", "reason"),
    [(0, "blank"), (1, "no_data"), (2, "not_supported"), (3, "no_permission"), (4, "blank")],
)
def test_a_blank_with_status_0_is_no_value(engine, node, offset, reason):
    hopper(engine)
    engine.set(GPU, 0, 252, double.BLANK + offset)
    engine.set(GPU, 0, 1005, double.BLANK_FP64 + offset)
    one = node()
    assert one.reason(H0, catalog.GPU_MEMORY_USAGE) == reason
    assert one.reason(H0, catalog.GPU_MEMORY_BANDWIDTH) == reason
    assert one.find(catalog.GPU_MEMORY_USAGE) == one.find(catalog.GPU_MEMORY_BANDWIDTH) == []


def test_profiling_that_somebody_paused_is_told_from_blanks_and_comes_back(engine, node):
    hopper(engine)
    one = node()
    engine.control.profiling_paused = 1
    one.tick()
    assert one.reason(H0, catalog.GPU_MEMORY_BANDWIDTH) == "paused"
    assert one.find(catalog.GPU_MEMORY_BANDWIDTH) == one.find(catalog.NVLINK_THROUGHPUT) == []
    assert one.value(catalog.GPU_MEMORY_USAGE) == 252 * MIB
    engine.control.profiling_paused = 0
    one.tick()
    assert one.reason(H0, catalog.GPU_MEMORY_BANDWIDTH) is None
    assert one.value(catalog.GPU_MEMORY_BANDWIDTH) == pytest.approx(0.01005)


def test_a_value_that_is_not_brought_up_to_date_is_stale(engine, node):
    hopper(engine)
    engine.set(GPU, 0, 252, 7, time_us=1_700_000_000_000_000)  # years ago, by the engine's clock
    engine.set(GPU, 0, 90, 8)
    one = node()
    assert one.reason(H0, catalog.GPU_MEMORY_USAGE) == "stale"
    assert one.value(catalog.GPU_BAR1_LIMIT) == 8 * MIB
    engine.set(GPU, 0, 252, 7)
    one.tick()
    assert one.value(catalog.GPU_MEMORY_USAGE) == 7 * MIB


def test_an_engine_that_stops_updating_is_noticed_whatever_its_clock_says(engine, node):
    hopper(engine)
    for each in SETS[GPU]:
        for field in each.fields:
            engine.set(GPU, 0, field, 1, time_us=5_000_000)  # 1970
    one = node()
    assert one.value(catalog.GPU_MEMORY_USAGE) == MIB
    for _ in range(3):
        one.tick()
    assert one.value(catalog.GPU_MEMORY_USAGE) == MIB
    one.tick()
    assert one.reason(H0, catalog.GPU_MEMORY_USAGE) == "stale"
    one.tick()
    one.tick()  # counters have three samples' grace
    assert one.live() == []


def test_a_counter_that_is_missing_for_a_moment_goes_on(engine, node):
    hopper(engine)
    one = node()
    (series,) = one.find(catalog.ERRORS, error__type="pcie_replay")
    engine.set(GPU, 0, 202, 0, status=-14)
    one.tick()
    one.tick()
    assert not series.ended
    assert series.value == 202
    engine.set(GPU, 0, 202, 300)
    one.tick()
    assert series.value == 300
    engine.set(GPU, 0, 202, 0, status=-14)
    for _ in range(3):
        one.tick()
    assert series.ended


@pytest.mark.parametrize("code", [-36, -37, -38])
def test_profiling_that_is_refused_costs_itself_and_is_asked_for_ever_more_rarely(engine, node, code):
    hopper(engine)
    engine.refuse_watch(1005, code)
    one = node()
    assert one.reason(H0, catalog.GPU_MEMORY_BANDWIDTH) == states.REASONS[code]
    assert one.value(catalog.GPU_MEMORY_USAGE) == 252 * MIB
    assert len(one.find(catalog.NVLINK_THROUGHPUT)) == 36
    asked = []
    for _ in range(200):
        before = engine.calls("watch")
        one.tick(60)
        if engine.calls("watch") > before:
            asked.append(one.now)
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert gaps[:5] == [120, 240, 480, 960, 1920]
    assert max(gaps) <= 3600
    engine.allow_watches()
    one.tick(3600)
    assert one.value(catalog.GPU_MEMORY_BANDWIDTH) == pytest.approx(0.01005)


def test_before_hopper_profiling_is_not_watched_but_read_where_another_client_watches_it(engine, node):
    engine.gpu(0, "GPU-a0", capability=(8, 0))
    fill(engine, GPU, 0)
    one = node()
    assert one.reason("GPU-a0", catalog.GPU_MEMORY_BANDWIDTH) == "not_watched"
    assert one.find(catalog.GPU_THROUGHPUT) == []
    assert one.value(catalog.GPU_MEMORY_USAGE) == 252 * MIB
    engine.set(GPU, 0, 1005, 0.5, foreign=True)
    one.tick()
    assert one.value(catalog.GPU_MEMORY_BANDWIDTH, hw__id="GPU-a0") == 0.5


@pytest.mark.parametrize(("wanted", "watched"), [("on", True), ("off", False)])
def test_profiling_is_as_configured(engine, node, wanted, watched):
    engine.gpu(0, "GPU-a0", capability=(8, 0))
    fill(engine, GPU, 0)
    hopper(engine, 1, "GPU-h1")
    one = node(profiling=wanted)
    assert len(one.find(catalog.GPU_MEMORY_BANDWIDTH)) == (2 if watched else 0)


def test_a_module_that_is_not_loaded_costs_what_it_serves(engine, node):
    hopper(engine)
    engine.set(GPU, 0, 1005, 0.1, status=-33)
    one = node()
    assert one.reason(H0, catalog.GPU_MEMORY_BANDWIDTH) == "module_not_loaded"
    engine.answer("entities", -33)  # whatever kind is asked for
    one.tick(61)
    assert one.live() == []
    engine.answer("entities", 0)
    one.tick(61)
    assert one.value(catalog.GPU_MEMORY_USAGE) == 252 * MIB


def test_a_gpu_that_is_lost_says_so(engine, node):
    hopper(engine)
    one = node()
    for each in SETS[GPU]:
        for field in each.fields:
            engine.set(GPU, 0, field, 0, status=-18)
    for _ in range(3):
        one.tick()
    assert one.reason(H0, catalog.GPU_MEMORY_USAGE) == "gpu_lost"
    assert one.live() == []


def test_an_engine_that_is_paused_answers_nothing_and_goes_on_later(engine, node):
    hopper(engine)
    one = node()
    engine.answer("latest", -54)
    for _ in range(3):
        one.tick()
    assert one.reason(H0, catalog.GPU_MEMORY_USAGE) == "paused"
    assert one.live() == []
    assert one.source.errors["paused"] > 0
    engine.answer("latest", 0)
    one.tick()
    assert one.value(catalog.GPU_MEMORY_USAGE) == 252 * MIB


def test_a_gpu_without_a_name_is_left_out(engine, node):
    hopper(engine)
    engine.add(GPU, 1)
    one = node()
    assert {series.attributes["hw.id"] for series in one.live()} == {H0}


# --- coming and going


def test_a_restarted_engine_is_connected_again_without_a_restart_of_the_agent(engine, node):
    hopper(engine)
    one = node()
    series = one.live()
    engine.restart()
    sample = one.tick()
    assert "-21" in sample.lost
    assert all(each.ended for each in series)
    assert one.reason(H0, catalog.GPU_MEMORY_USAGE) == "not_connected"
    assert one.source.interval == 0  # the runner is to know at once
    with pytest.raises(SourceUnavailable, match="-21"):
        one.source.sample()
    one.source.close()
    one.source.open()
    one.tick()
    assert one.value(catalog.GPU_MEMORY_USAGE) == 252 * MIB
    assert one.source.interval == 10


def test_auto_says_quietly_that_there_is_no_library(engine):
    one = Node(engine, "/nowhere/libdcgm.so.4")
    with pytest.raises(SourceAbsent, match=r"no DCGM library: /nowhere/libdcgm\.so\.4"):
        one.source.open()
    one.source.close()


def test_auto_says_quietly_that_there_is_no_engine(engine, libraries):
    engine.control.refuse = -21
    one = Node(engine, libraries[4])
    with pytest.raises(SourceAbsent, match=r"no DCGM host engine at localhost:5555: .*-21"):
        one.source.open()
    one.source.close()


def test_an_engine_that_was_there_is_missed(engine, node):
    hopper(engine)
    one = node()
    one.source.close()
    engine.control.refuse = -21
    with pytest.raises(SourceUnavailable) as caught:
        one.source.open()
    assert not isinstance(caught.value, SourceAbsent)


@pytest.mark.parametrize("library", ["/nowhere/libdcgm.so.4", None])
def test_on_says_loudly_what_is_not_there(engine, libraries, library):
    engine.control.refuse = -21
    one = Node(engine, library or libraries[4], enabled="on")
    with pytest.raises(SourceUnavailable) as caught:
        one.source.open()
    assert not isinstance(caught.value, SourceAbsent)
    one.source.close()


def test_an_engine_that_refuses_us_for_another_reason_is_not_absent(engine, libraries):
    engine.control.refuse = -12
    one = Node(engine, libraries[4])
    with pytest.raises(SourceUnavailable, match="version mismatch") as caught:
        one.source.open()
    assert not isinstance(caught.value, SourceAbsent)
    one.source.close()


@pytest.mark.parametrize(
    "call", ["init", "entities", "group_create", "group_add", "fields_create", "watch", "latest", "hierarchy"]
)
@pytest.mark.parametrize("code", [-1, -3, -11, -21, -24, -31, -54])
def test_any_call_may_fail_with_anything_at_any_time(engine, libraries, call, code):
    hopper(engine)
    everything_else(engine)
    one = Node(engine, libraries[4])
    for when in range(6):  # before, between and after what opening and a rescan do
        with contextlib.suppress(SourceUnavailable):
            engine.answer(call, code if when == 0 else 0, 1)
            one.source.open()
            one.tick()
            hopper(engine, 100 + when, f"GPU-{call}-{when}")
            engine.answer(call, code if when > 0 else 0, when)
            one.tick(61)
            one.tick()
        engine.answer(call, 0)
        one.source.close()
    assert engine.held() == {}
    one.source.open()
    one.tick()
    assert one.value(catalog.GPU_MEMORY_USAGE, hw__id=H0) == 252 * MIB
    one.source.close()


@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize("seed", range(1, 6))
def test_an_engine_that_answers_random_bytes_is_survived(engine, node, seed, kind):
    hopper(engine)
    everything_else(engine)
    one = node()
    engine.control.seed = 0x9E3779B9 * seed & 0xFFFFFFFF
    engine.control.garbage = kind
    for _ in range(40):
        one.tick(61)  # with a rescan each time
        for series in one.live():
            assert isinstance(series.value, (int, float))
            assert math.isfinite(series.value)
            assert 0 <= series.value < 1 << 63 or series.metric is catalog.GPU_TEMPERATURE
            assert series.attributes["hw.id"].isprintable()
    engine.control.garbage = 0
    for _ in range(3):
        one.tick(61)
    assert one.value(catalog.GPU_MEMORY_USAGE, hw__id=H0) == 252 * MIB


def test_nothing_is_left_at_the_engine_after_any_number_of_opens(engine, libraries):
    hopper(engine)
    everything_else(engine)
    one = Node(engine, libraries[4])
    for _ in range(50):
        one.source.open()
        one.tick()
        one.source.close()
    one.source.close()
    assert engine.held() == {}
    assert engine.control.abandoned == 0


def test_watches_ask_for_what_is_configured(engine, node):
    hopper(engine)
    node(interval=30.0)
    assert engine.control.last_interval_us == 30_000_000
    assert engine.control.last_keep > 60
    assert engine.control.last_name.startswith(b"fabrictap-")


def test_the_configuration_says_what_is_wrong_with_an_address():
    with pytest.raises(ConfigError, match=r"sources\.dcgm\.address: expected host"):
        load(environ={}, settings=["sources.dcgm.address=http://here:5555/"])
    assert load(environ={}, settings=["sources.dcgm.enabled=on"]).sources.dcgm.enabled == "on"
    assert Config().sources.dcgm == Dcgm(enabled="auto")
