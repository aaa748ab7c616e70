"""The simulated node: exact, the same each time, named like the real sources, and never taken for one."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from doubles.sysfs import Sysfs
from fabrictap import catalog
from fabrictap.config import Config
from fabrictap.insight.inventory import Inventory
from fabrictap.insight.reconcile import Reconciler
from fabrictap.ledger import Ledger, names
from fabrictap.ledger.processes import Process
from fabrictap.ringfile import directions
from fabrictap.series import Series, SeriesTable, in_memory
from fabrictap.sources.infiniband.source import Infiniband
from fabrictap.sources.simulated import gpus, script
from fabrictap.sources.simulated.ports import faulty_port
from fabrictap.sources.simulated.profiles import NAMES, PROFILES
from fabrictap.sources.simulated.script import EXCHANGE, SECOND, Script
from fabrictap.sources.simulated.source import Simulated

pytest_plugins = ["nvml_fixtures"]
#: What sysfs adds, and what the stand-in has because bus numbers of its GPUs are those of its switches too.
SYSFS = {"gpu.rdma.devices", "gpu.rdma.distance", "gpu.nvlink.remote.gpu"}
WALL = 1_800_000_000 * SECOND


class Simulation:
    """A simulated node whose clock the test moves."""

    def __init__(self, profile: str = "hgx-h100", seed: int = 1) -> None:
        config = Config()
        config.sources.simulated.profile = profile
        config.sources.simulated.seed = seed
        memory = in_memory(config.limits.series, connections=256, events=1024, **directions(names.OPERATIONS))
        self.table = SeriesTable(config.limits.series, memory)
        self.ledger = Ledger(config, memory)
        self.now = 0
        self.source = Simulated(
            config.sources.simulated,
            self.table,
            self.ledger,
            clock=lambda: self.now,
            wall=lambda: WALL + self.now,
        )
        self.reconciler = Reconciler(self.table, self.ledger)
        self.inventory = Inventory(self.table, self.ledger)
        self.source.open()
        self.tick(0)

    def tick(self, seconds: float = 1.0, fast: bool = False) -> None:
        """One tick, as the runner makes it: with fast samples before its end where they are wanted."""
        end = self.now + round(seconds * SECOND)
        while fast and self.now + SECOND // 10 < end:
            self.now += SECOND // 10
            self.source.sample_fast()
            self.source.fold_fast(WALL + self.now)
        self.now = end
        self.source.fold(self.source.sample(), WALL + self.now)
        self.reconciler.fold(WALL + self.now)
        self.inventory.fold(WALL + self.now)

    def go(self, until: float, step: float = 1.0) -> None:
        while self.now < until * SECOND:
            self.tick(min(step, until - self.now / SECOND))

    def find(self, metric: catalog.Metric, **attributes: object):
        wanted = {name.replace("__", "."): value for name, value in attributes.items()}
        return [
            one
            for one in self.table
            if one.metric is metric and not one.ended and wanted.items() <= one.attributes.items()
        ]

    def value(self, metric: catalog.Metric, **attributes: object):
        (found,) = self.find(metric, **attributes)
        return found.value

    def counters(self) -> dict[tuple[str, bytes], object]:
        return {
            (one.metric.name, one.encoded): one.value
            for one in self.table
            if one.metric.kind is catalog.Kind.COUNTER and not one.ended
        }

    def port(self, hw_id: str, direction: str) -> tuple[int, int, int]:
        """(attributed, dark, uncertain) bytes of a port."""
        (found,) = (
            one for one in self.reconciler.balances() if (one.hw_id, one.direction) == (hw_id, direction)
        )
        return found.attributed, found.dark, found.uncertain


@pytest.mark.parametrize("profile", NAMES)
def test_what_counters_say_depends_on_the_time_alone(profile):
    often, seldom = Simulation(profile), Simulation(profile)
    for _ in range(130):
        often.tick(fast=True)
    seldom.go(130, step=65)
    # Energy is read every few seconds only; what is reconciled depends on what was read when.
    left_out = ("hw.energy", "rdma.port.attributed", "rdma.port.dark", "rdma.port.uncertain")
    told = {key: value for key, value in seldom.counters().items() if not key[0].startswith(left_out)}
    both = often.counters()
    assert len(told) > 200
    assert {key: both[key] for key in told} == told


def test_the_same_seed_makes_the_same_data_and_another_one_other_data():
    made = []
    for seed in (7, 7, 8):
        simulation = Simulation(seed=seed)
        simulation.go(30)
        made.append(simulation.counters())
    assert made[0] == made[1]
    assert made[0].keys() == made[2].keys()
    assert made[0] != made[2]


@pytest.mark.parametrize("profile", NAMES)
def test_counters_never_fall_and_totals_are_sums_of_links(profile):
    simulation = Simulation(profile)
    sides: dict[tuple[object, object], list[Series]] = {}
    for link in simulation.find(catalog.NVLINK_IO):
        sides.setdefault((link.attributes["hw.id"], link.attributes["network.io.direction"]), []).append(link)
    totals = simulation.find(catalog.GPU_IO, gpu__interconnect="nvlink")
    links = [sides[total.attributes["hw.id"], total.attributes["network.io.direction"]] for total in totals]
    assert len(totals) == (0 if profile == "l40s" else 2 * simulation.source.profile.count)
    before = simulation.counters()
    while simulation.now < 620 * SECOND:
        simulation.tick(2.7)
        now = simulation.counters()
        fallen = [key for key in before.keys() & now.keys() if now[key] < before[key]]
        assert not fallen, f"at {simulation.now / SECOND} s"
        before = now
        for total, of_one in zip(totals, links, strict=True):
            assert len(of_one) == len(simulation.source.profile.links.ports)
            assert total.value == sum(link.value for link in of_one)
    if profile != "l40s":
        assert all(
            total.value > 10**12
            for total in simulation.find(catalog.GPU_IO, gpu__interconnect="nvlink")
            if total.attributes["hw.id"]
            in {gpu.id for gpu in simulation.ledger.gpus if gpu.index in simulation.source.profile.trainers}
        )


def test_peaks_are_the_rate_of_the_burst():
    simulation = Simulation()
    simulation.table.ring.interval(WALL)
    for _ in range(3):
        simulation.tick(fast=True)
    simulation.table.ring.interval(WALL + simulation.now)
    profile = simulation.source.profile
    speed, rate = profile.links.speed, profile.network.fabric_rate
    least = EXCHANGE / 1e6 * 11 / 12  # a step exchanges a little less hard than another
    for link in simulation.find(catalog.NVLINK_IO):
        assert least * speed * 0.98 < link.peak <= EXCHANGE / 1e6 * speed, link.attributes
        assert link.average < link.peak / 2
    for port in simulation.find(catalog.NETWORK_IO, rdma__link_layer="infiniband"):
        # with headers
        assert least * rate < port.peak <= EXCHANGE / 1e6 * rate * 1.02, port.attributes


def test_what_ports_move_is_explained_by_posts_but_for_what_a_peer_pulls():
    simulation = Simulation()
    simulation.go(179)
    out = {one.hw_id: one for one in simulation.reconciler.balances() if one.direction == "transmit"}
    assert len(out) == 9
    for balance in out.values():
        assert balance.attributed > 10**11
        assert balance.dark == 0, balance
        assert balance.uncertain < balance.attributed / 50
    attributed, dark, _ = simulation.port("mlx5_8/1", "receive")  # reads from storage are asked for
    assert attributed > 10**11
    assert dark == 0
    # Peers write gradients into this node: no local process asked for that.
    assert simulation.port("mlx5_0/1", "receive")[1] > 10**11
    simulation.go(240)
    pulled = simulation.source.script.moved("pull", 50 * 10**9)
    assert pulled == 200 * 10**9
    # Never overstated: some of it may have been headers of the 3 TB that were asked for.
    assert 0.8 * pulled < simulation.port("mlx5_1/1", "transmit")[1] <= pulled
    dark = {one.hw_id for one in simulation.reconciler.balances() if one.direction == "transmit" and one.dark}
    assert dark == {"mlx5_1/1"}
    (exposed,) = simulation.find(catalog.MR_SIZE, rdma__memory_region__remote_access="read")
    assert exposed.attributes["process.executable.name"] == "sim-model-store"
    assert exposed.attributes["rdma.device"] == "mlx5_1"


def test_a_link_fails_and_recovers():
    simulation = Simulation()
    profile = simulation.source.profile
    gpu = next(gpu.id for gpu in simulation.ledger.gpus if gpu.index == gpus.faulty_gpu(profile))
    link = {"hw__id": gpu, "gpu__nvlink__link": gpus.faulty_link(profile)}

    def errors(kind):
        return simulation.value(catalog.ERRORS, error__type=kind, **link)

    simulation.go(89)
    assert (errors("nvlink_crc"), errors("nvlink_recovery")) == (0, 0)
    assert simulation.value(catalog.NVLINK_UP, **link) == 1
    simulation.go(101)
    assert errors("nvlink_crc") == 370
    assert simulation.value(catalog.NVLINK_UP, **link) == 0
    assert simulation.find(catalog.NVLINK_LIMIT, **link) == []
    assert simulation.value(catalog.HW_STATUS, hw__id=gpu, hw__state="degraded") == 1
    stood = simulation.find(catalog.NVLINK_IO, **link)[0].value
    simulation.go(105)
    assert simulation.find(catalog.NVLINK_IO, **link)[0].value == stood
    simulation.go(112)
    assert (errors("nvlink_crc"), errors("nvlink_recovery")) == (370, 1)
    assert simulation.value(catalog.NVLINK_UP, **link) == 1
    assert simulation.value(catalog.HW_STATUS, hw__id=gpu, hw__state="ok") == 1
    assert simulation.find(catalog.NVLINK_IO, **link)[0].value > stood


def test_a_memory_error_is_an_xid_and_degrades_its_gpu_until_the_reset():
    simulation = Simulation()
    profile = simulation.source.profile
    gpu = next(gpu.id for gpu in simulation.ledger.gpus if gpu.index == gpus.worn_gpu(profile))
    simulation.go(299)
    assert simulation.find(catalog.ERRORS, error__type="xid_94") == []
    simulation.go(301)
    assert simulation.value(catalog.ERRORS, error__type="xid_94", hw__id=gpu) == 1
    assert simulation.value(catalog.GPU_ROW_REMAPPING, hw__id=gpu, gpu__row_remap__state="pending") == 1
    assert simulation.value(catalog.HW_STATUS, hw__id=gpu, hw__state="degraded") == 1
    simulation.go(401)
    assert simulation.value(catalog.HW_STATUS, hw__id=gpu, hw__state="ok") == 1
    simulation.go(902, step=10)
    assert simulation.value(catalog.ERRORS, error__type="xid_94", hw__id=gpu) == 2


def test_a_port_flaps_takes_a_queue_pair_with_it_and_nothing_becomes_dark():
    simulation = Simulation()
    device = f"mlx5_{faulty_port(simulation.source.profile)}"
    states = []
    simulation.go(479)
    before = {(one.device, one.qpn) for one in simulation.ledger.connections}
    while simulation.now < 490 * SECOND:
        simulation.tick(0.25)
        (up,) = simulation.find(catalog.NETWORK_UP, hw__parent=device)
        states.append((up.attributes["rdma.port.state"], up.value))
    assert list(dict.fromkeys(states)) == [("active", 1), ("down", 0), ("init", 0), ("armed", 0)]
    assert states[-1] == ("active", 1)
    assert simulation.value(catalog.ERRORS, error__type="link_downed", hw__parent=device) == 1
    after = {(one.device, one.qpn) for one in simulation.ledger.connections}
    ((_, gone),), ((there, new),) = before - after, after - before
    assert (there, new) == (device, gone + 0x1000)
    ended = [span for span in simulation.ledger.flows.take_finished() if span.name == "rdma.flow"]
    assert {span.attributes["rdma.flow.close_reason"] for span in ended} == {"error"}
    assert all(span.attributes["k8s.pod.name"] == "sim-pretrain-worker-0" for span in ended)
    simulation.go(560)
    assert simulation.port(f"{device}/1", "transmit")[1] == 0
    posted = simulation.ledger.connections.get(there, new).posted
    assert posted["rdma_write"].bytes > 10**11


def test_a_checkpoint_is_written_to_storage():
    simulation = Simulation()
    writer = next(one for one in simulation.ledger.connections if one.process == "sim-checkpoint")
    simulation.go(19)
    assert writer.posted == {}
    simulation.go(30)
    posted = writer.posted
    assert posted["rdma_write"].bytes == pytest.approx(8 * 0.8 * 25e9, rel=1e-3)
    assert posted["send"].operations > 1000
    assert writer.peer_gid == "::ffff:192.0.2.101"


@pytest.mark.parametrize("profile", NAMES)
def test_names_are_those_of_the_nvml_source(profile, watch):
    real = watch(profile)
    real.start()
    for _ in range(12):
        real.fast()
    real.slow(1)
    simulation = Simulation(profile)
    simulation.go(2)

    def names_of(table):
        kept = ("gpu.", "hw.gpu.", "hw.power", "hw.energy", "hw.temperature", "hw.status")
        return {
            (one.metric.name, frozenset(one.attributes) - SYSFS, one.attributes.get("error.type"))
            for one in table
            if not one.ended
            and (one.metric.name.startswith(kept) or one.attributes.get("hw.type") == "gpu")
            and one.metric is not catalog.GPU_PROCESS_MEMORY  # the stand-in has no processes
        }

    assert names_of(simulation.table) == names_of(real.table)
    for metric in (catalog.NVLINK_IO, catalog.NVLINK_UP, catalog.GPU_PRESENT, catalog.GPU_IO, catalog.ERRORS):
        there, here = (
            sum(
                one.metric is metric and not one.ended and one.attributes.get("hw.type") != "network"
                for one in table
            )
            for table in (real.table, simulation.table)
        )
        assert there == here, metric.name


def test_names_are_those_of_the_infiniband_source(tmp_path):
    Sysfs(tmp_path, 1)
    config = Config()
    config.sources.infiniband.sysfs = str(tmp_path)
    table = SeriesTable(config.limits.series)
    real = Infiniband(config.sources.infiniband, table, Ledger(config))
    real.open()
    for _ in range(2):
        real.fold(real.sample(), time.time_ns())
    real.close()
    simulation = Simulation()

    def names_of(found):
        return {
            (one.metric.name, frozenset(one.attributes), one.attributes.get("rdma.counter.name"))
            for one in found
            if one.metric.name.startswith(("hw.network.", "rdma.port.counter"))
        }

    found = names_of(one for one in simulation.table if one.attributes.get("hw.parent") == "mlx5_8")
    assert len(found) > 8
    assert found <= names_of(table)


@pytest.mark.parametrize("profile", NAMES)
def test_everything_is_in_the_catalog_and_within_limits(profile):
    simulation = Simulation(profile)
    simulation.go(10)
    assert simulation.table.refused == 0
    for series in simulation.table:
        allowed = {attribute.name for attribute in series.metric.attributes}
        assert set(series.attributes) <= allowed, series.metric.name
        for attribute in series.metric.attributes:
            value = series.attributes.get(attribute.name)
            assert value is None or isinstance(value, attribute.type)
            assert value is None or not attribute.values or value in attribute.values
    assert simulation.ledger.connections.dropped == simulation.ledger.gpus.dropped == 0
    users = {process for gpu in simulation.ledger.gpus for process in [gpu.index]}
    assert len(users) == PROFILES[profile].count


@pytest.mark.parametrize("profile", NAMES)
def test_nobody_takes_it_for_a_real_node(profile):
    simulation = Simulation(profile)
    found = [simulation.ledger.processes.get(one.pid) for one in simulation.ledger.connections]
    assert found
    for process in found:
        assert isinstance(process, Process)
        # include/linux/threads.h: Linux gives out no pid beyond it.
        assert process.pid > 4 * 1024 * 1024
        assert process.name.startswith("sim-")
        name = process.workload.pod_name or process.workload.slurm_user
        assert name is not None
        assert name.startswith("sim-")
    assert all("simulated" in gpu.model for gpu in simulation.ledger.gpus)
    assert all("simulated" in device.model for device in simulation.ledger.devices)


def test_levels_never_go_beyond_what_a_port_or_link_can():
    for profile in PROFILES.values():
        simulated = Script(3)
        before = dict(simulated.totals)
        for tenth in range(1, 6500):
            simulated.advance(tenth * SECOND // 10)
            now = dict(simulated.totals)
            gained = {name: (now[name] - before[name]) / (script.MILLION * SECOND / 10) for name in now}
            assert all(0 <= level <= 1 for level in gained.values()), gained
            assert gained["fabric"] + gained["pull"] <= 1
            assert gained["load"] + gained["reads"] <= 1
            before = now
        assert profile.network.storage_rate <= profile.network.fabric_rate


def test_it_costs_little():
    """As it runs by default: a tick a second, with nine fast samples."""
    simulation = Simulation()
    began = time.thread_time()
    for _ in range(60):
        simulation.tick(fast=True)
    spent = time.thread_time() - began
    print(f"simulated hgx-h100: {1000 * spent / 60:.1f} ms of CPU for each second, reconciler included")
    assert spent / 60 < 0.1


def test_series_are_those_of_all_sides():
    simulation = Simulation()
    simulation.go(25)
    found = Counter(one.metric.name for one in simulation.table if one.known)
    for metric in (
        catalog.VERBS_IO,
        catalog.VERBS_OPERATIONS,
        catalog.VERBS_MESSAGE_SIZE,
        catalog.QP_STATUS,
        catalog.CONTEXT_COUNT,
        catalog.MR_COUNT,
        catalog.NETWORK_LIMIT,
        catalog.NETWORK_UP,
        catalog.PORT_ATTRIBUTED,
        catalog.PORT_COUNTER,
        catalog.GPU_PROCESS_MEMORY,
        catalog.METRIC_AVAILABLE,
    ):
        assert found[metric.name], metric.name
