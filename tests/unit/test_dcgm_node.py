"""The dcgm source in the agent: beside another provider, under its runner, in doctor."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from doubles.dcgm import double
from doubles.dcgm.double import GPU, SWITCH
from doubles.dcgm.node import Node, hopper
from fabrictap import catalog
from fabrictap.catalog import GPU_MEMORY_USAGE
from fabrictap.config import Config, Dcgm
from fabrictap.journal import Journal
from fabrictap.ledger.gpus import Gpu
from fabrictap.ledger.providers import NVML, Figure
from fabrictap.node import Node as AgentNode
from fabrictap.runner import Runner
from fabrictap.selfwatch import SelfWatch
from fabrictap.series import in_memory
from fabrictap.sources import Expiring
from fabrictap.view import dcgm, doctor
from support import eventually

pytest_plugins = ["dcgm_fixtures"]

H0 = "GPU-h0"


class NoExport:
    """Export statistics of an agent that exports nothing."""

    def counts(self):
        return iter(())


@pytest.fixture
def run(engine, libraries):
    """Starts the source of an engine in a runner; stopped when the test ends."""
    started = []

    def start(**settings) -> tuple[Node, Runner]:
        settings.setdefault("interval", 0.1)
        node = Node(engine, settings.pop("library", libraries[4]), **settings)
        runner = Runner(node.source, node.lock, Journal(in_memory(8)))
        started.append(runner)
        runner.start()
        return node, runner

    yield start
    engine.release()
    for runner in started:
        runner.stop()
        assert runner.join(30)


def source_up(node: Node, runner: Runner) -> list[int]:
    with node.lock:
        SelfWatch(node.series).fold([runner], NoExport(), 1)
    return [series.value for series in node.find(catalog.SOURCE_UP)]


def test_an_engine_that_restarts_is_watched_again_by_itself(engine, run):
    hopper(engine)
    node, runner = run()
    eventually(lambda: node.find(GPU_MEMORY_USAGE), "the first values")
    connects = engine.calls("connect_v3")
    engine.restart()

    def again() -> bool:
        runner.revive(time.monotonic())  # as the agent does between ticks
        return engine.calls("connect_v3") > connects and runner.up

    eventually(again, "connected again", 20)
    eventually(lambda: node.find(GPU_MEMORY_USAGE), "values of the new engine")
    assert runner.source.errors == {"not_connected": 1}


def test_a_call_that_hangs_takes_down_this_source_alone_and_its_figures_with_it(engine, run):
    hopper(engine)
    node, runner = run()
    runner.source.deadline = 0.2
    eventually(lambda: node.find(GPU_MEMORY_USAGE), "the first values")
    engine.hang("latest")
    eventually(lambda: runner.hung is not None, "the hang is noticed")
    assert not runner.up
    assert source_up(node, runner) == [0]
    # the lock is free: whoever else folds or exports goes on, and the figures go
    assert node.lock.acquire(timeout=1)
    assert isinstance(runner.source, Expiring)
    runner.source.hung(1)
    node.lock.release()
    assert node.find(GPU_MEMORY_USAGE) == []
    assert node.reason(H0, GPU_MEMORY_USAGE) == "hung"
    engine.release()
    eventually(lambda: runner.up and node.find(GPU_MEMORY_USAGE), "it goes on by itself")


@pytest.mark.parametrize("call", ["init", "connect_v3", "entities", "watch"])
def test_a_hang_while_opening_is_one_too(engine, run, call):
    hopper(engine)
    engine.hang(call)
    _, runner = run()
    runner.source.deadline = 0.2
    eventually(lambda: runner.hung is not None, "the hang is noticed")
    engine.release()
    eventually(lambda: runner.up, "it goes on by itself")


def test_a_node_without_dcgm_has_no_source_that_is_down(engine, run, caplog):
    node, runner = run(library="/nowhere/libdcgm.so.4")
    assert runner.settled.wait(10)
    assert source_up(node, runner) == []
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []
    assert runner.absent


def test_a_node_that_was_to_have_dcgm_says_that_it_has_not(engine, run, caplog):
    node, runner = run(library="/nowhere/libdcgm.so.4", enabled="on")
    assert runner.settled.wait(10)
    assert source_up(node, runner) == [0]
    assert "no DCGM library" in caplog.text


def test_errors_of_all_links_are_left_to_whoever_has_them_link_by_link(engine, node):
    hopper(engine)
    one = node()
    assert one.value(catalog.ERRORS, error__type="nvlink_replay") == 429
    figure = Figure(H0, catalog.ERRORS.name, "nvlink_replay.3")
    rival = one.ledger.providers.offer(NVML, figure, lambda: None)
    rival.available()
    one.tick()
    assert one.find(catalog.ERRORS, error__type="nvlink_replay") == []
    assert one.value(catalog.ERRORS, error__type="nvlink_crc") == 409
    rival.unavailable("gpu_lost")
    one.tick()
    assert one.value(catalog.ERRORS, error__type="nvlink_replay") == 429


def test_xids_of_a_gpu_that_the_driver_is_asked_about_are_counted_there(engine, node):
    hopper(engine)
    one = node()
    one.ledger.gpus.put(Gpu(H0, 0))
    engine.set(GPU, 0, 230, 79, time_us=1_000_000)
    one.tick()
    assert one.find(catalog.ERRORS, error__type="xid_79") == []
    one.ledger.gpus.remove(H0)
    engine.set(GPU, 0, 230, 48, time_us=2_000_000)
    one.tick()
    assert one.value(catalog.ERRORS, error__type="xid_48") == 1
    assert one.find(catalog.ERRORS, error__type="xid_79") == []


# --- doctor


def config(library, **settings) -> Config:
    made = Config()
    made.sources.dcgm = Dcgm(library=str(library), **settings)
    return made


def test_doctor_says_what_there_is_and_which_fields_have_no_value_and_why(engine, libraries):
    hopper(engine)
    engine.add(SWITCH, 0)
    engine.refuse_watch(1005, -37)
    engine.set(GPU, 0, 252, double.BLANK)
    checks = list(doctor._dcgm(config(libraries[4])))
    assert checks[0].ok
    assert "host engine 4.6.0 stand-in at localhost:5555" in checks[0].found
    assert "1 GPUs, 1 NVSwitches" in checks[0].found
    assert "blank: device (252)" in checks[0].cost
    assert "no_data: switch (861-862)" in checks[0].cost
    assert "error: dram (1005)" in checks[0].cost
    assert [check.found for check in checks[1:]] == [
        "dram: The third-party Profiling module returned an unrecoverable error (-37)"
    ]


def test_doctor_says_that_nothing_is_there_and_that_this_is_not_amiss(engine):
    (check,) = doctor._dcgm(config("/nowhere/libdcgm.so.4"))
    assert (check.status, check.found.partition(":")[0]) == ("absent", "no DCGM library")


def test_doctor_says_what_is_amiss_and_how_to_mend_it(engine, libraries):
    engine.control.refuse = -21
    (check,) = doctor._dcgm(config(libraries[4], enabled="on"))
    assert check.status == "missing"
    assert "no DCGM host engine at localhost:5555" in check.found
    assert "nvidia-dcgm" in check.fix


def test_doctor_says_that_it_is_switched_off(engine, libraries):
    (check,) = doctor._dcgm(config(libraries[4], enabled="off"))
    assert check.status == "absent"
    assert engine.calls("init") == 0


def test_doctor_does_not_wait_for_ever(engine, libraries, monkeypatch):
    monkeypatch.setattr(dcgm, "_PATIENCE", 0.3)
    engine.hang("entities")
    report = dcgm.look(config(libraries[4]))
    assert "has not answered" in report.problem
    engine.release()
    (thread,) = [one for one in threading.enumerate() if one.name == "doctor-dcgm"]
    thread.join(10)


def test_the_agent_exports_on_while_dcgm_hangs_and_nothing_of_dcgms_as_if_it_were_new(
    engine, libraries, tmp_path
):
    hopper(engine)
    made = config(libraries[4], interval=0.1)
    for name in ("infiniband", "rdma_netlink", "verbs", "nvml"):
        getattr(made.sources, name).enabled = False
    made.export.otlp.metrics.enabled = made.export.otlp.traces.enabled = False
    made.export.file.path = str(tmp_path / "out.jsonl")
    made.ring.path = str(tmp_path / "ring")
    agent = AgentNode(made)
    (runner,) = agent.runners
    runner.source.deadline = 0.2

    def mine() -> int:
        with agent._lock:
            return sum(
                series.attributes.get("fabrictap.provider") == "dcgm" and "hw.id" in series.attributes
                for series in agent.series
                if not series.ended
            )

    try:
        runner.start()
        eventually(mine, "the first values")
        engine.hang("latest")
        eventually(lambda: runner.hung is not None, "the hang is noticed")
        agent._export()
        assert mine() == 0
        eventually(Path(made.export.file.path).exists, "the export that went on")
    finally:
        engine.release()
        agent._end()
