"""The whole agent on the NVML stand-in: what leaves it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from doubles.nvml import builder
from doubles.nvml.driver import MARKER, Node
from fabrictap import catalog
from fabrictap.catalog import Kind
from otlp_json import Reader
from support import eventually

pytest_plugins = ["nvml_fixtures"]
QUIET = ("infiniband", "verbs", "rdma_netlink")


class Agent:
    """``fabrictap run`` on a stand-in's node whose clock is the machine's."""

    def __init__(self, built: builder.Built, directory: Path, *settings: str) -> None:
        self.node = Node.create(built, directory / "node", "hgx-h100")
        self.node.real_clock()
        self.exported = Reader(directory / "out.jsonl")
        settings = (
            *settings,
            f"export.file.path={self.exported.path}",
            "export.interval=500ms",
            "export.otlp.metrics.enabled=false",
            "export.otlp.traces.enabled=false",
            "ring.path=none",
            "sources.nvml.interval=1s",
            f"sources.nvml.library={built.library}",
            *(f"sources.{source}.enabled=false" for source in QUIET),
        )
        arguments = [part for setting in settings for part in ("--set", setting)]
        mine = {
            name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "FABRICTAP_"))
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fabrictap", "run", *arguments],
            env=mine | self.node.environment(built.library),
            stderr=subprocess.PIPE,
            text=True,
        )

    def now(self, name, **attributes):
        self.exported.poll()
        return self.exported.now(name, **attributes)

    def stop(self) -> str:
        """What it said; it must end by itself."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.communicate(timeout=20)[1]
        finally:
            self.process.kill()
            self.process.wait()
            self.node.close()


@pytest.fixture
def agent(built_nvml, tmp_path):
    made = Agent(built_nvml, tmp_path)
    yield made
    if made.process.poll() is None:
        made.stop()


def test_counters_rates_and_health_of_every_gpu_leave_the_agent(agent):
    eventually(lambda: len(agent.now("gpu.nvlink.io")) == 8 * 36, "all links are exported", 30)
    eventually(lambda: agent.now("gpu.nvlink.io.rate.peak"), "and their peaks", 30)
    eventually(lambda: agent.now("gpu.memory.bandwidth.utilization"), "and what GPM says", 30)
    peaks = agent.now("gpu.nvlink.io.rate.peak", direction="transmit")
    assert len(peaks) == 8 * 18
    # on a busy machine two reads may be closer together than what they read
    assert all(0.5 * 10_240_000_000 < point.value < 3 * 10_240_000_000 for point in peaks)
    assert {point["hw.driver_version"][-len(MARKER) :] for point in agent.now("gpu.present")} == {MARKER}
    (up,) = agent.now("fabrictap.source.up", source="nvml")
    assert up.value == 1
    known = {metric.name: metric for metric in catalog.metrics()}
    for point in agent.exported.latest.values():
        metric = known.get(point.name)
        if metric is not None and point.name.startswith(("gpu.", "hw.gpu.")):
            allowed = {attribute.name for attribute in metric.attributes}
            assert set(point.attributes) <= allowed | {a.name for a in catalog.ON_ANY_COUNTER}, point
            assert point.kind == ("gauge" if metric.kind is Kind.GAUGE else "sum")
    said = agent.stop()
    assert agent.process.returncode == 0
    assert "Traceback" not in said


def test_the_agent_ends_while_every_call_hangs(agent):
    eventually(lambda: agent.now("hw.gpu.io"), "it delivers", 30)
    agent.node.hang("*")
    eventually(lambda: agent.node.inside("nvmlDeviceGetFieldValues") > 0, "calls hang", 30)
    said = agent.stop()
    assert agent.process.returncode == 0
    assert "Traceback" not in said
