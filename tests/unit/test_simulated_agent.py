"""``fabrictap run --simulate`` as a whole: all that leaves it says that it is made up; nothing real runs."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request

import pytest

from command import fabrictap
from fabrictap import config as config_module
from fabrictap.config import Config, ConfigError, load
from fabrictap.export import prometheus, resource
from fabrictap.node import Node
from fabrictap.ringfile import about
from fabrictap.sources.simulated.profiles import NAMES
from fabrictap.view import simulated
from otlp_json import Reader
from support import eventually

SAID = "SIMULATED NODE simulated-hgx-h100: all of this is made up, nothing was measured"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(directory, what it said) of an agent that ran for five seconds."""
    directory = tmp_path_factory.mktemp("simulated")
    done = fabrictap(
        "run", "--simulate", "hgx-h100", "--duration", "5s", *_settings(directory), "--set", "flows.window=2s"
    )
    return directory, done.stderr


def _settings(directory):
    settings = (
        f"ring.path={directory}/ring",
        f"export.file.path={directory}/out.jsonl",
        "export.interval=1s",
        "export.otlp.metrics.enabled=false",
        "export.otlp.traces.enabled=false",
        "export.otlp.logs.enabled=false",
    )
    return [part for setting in settings for part in ("--set", setting)]


def test_every_resource_that_leaves_says_that_it_is_simulated(ran):
    directory, _ = ran
    kinds = set()
    for line in (directory / "out.jsonl").read_text().splitlines():
        for kind, parts in json.loads(line).items():
            kinds.add(kind)
            for part in parts:
                found = {one["key"]: one["value"] for one in part["resource"]["attributes"]}
                assert found["fabrictap.simulated"] == {"stringValue": "true"}
                assert found["host.name"] == {"stringValue": "simulated-hgx-h100"}
                assert "host.id" not in found
    assert {"resourceMetrics", "resourceSpans"} <= kinds


def test_metrics_rates_and_spans_of_all_sides_leave(ran):
    reader = Reader(ran[0] / "out.jsonl")
    reader.poll()
    assert len(reader.now("gpu.nvlink.io")) == 8 * 36
    peaks = reader.now("gpu.nvlink.io.rate.peak")
    assert len(peaks) == 8 * 36
    assert max(point.value for point in peaks) < 26_562_000_000
    assert len(reader.now("rdma.qp.status")) == 36
    pods = {point.attributes.get("k8s.pod.name") for point in reader.now("rdma.verbs.io")}
    assert {"sim-pretrain-worker-0", "sim-decode-0"} <= pods
    (up,) = reader.now("fabrictap.source.up")
    assert (up["fabrictap.source"], up.value) == ("simulated", 1)


def test_the_log_says_it_first(ran):
    lines = ran[1].splitlines()
    assert "SIMULATED NODE hgx-h100" in lines[1]
    assert "Traceback" not in ran[1]
    assert not any("missing" in line or "is off" in line for line in lines)


def test_readers_of_its_recording_say_it_first(ran):
    path = ran[0] / "ring"
    for command in (["flows"], ["flows", "--no-header"], ["snapshot"], ["recorder", "events"],
                    ["recorder", "dump", "--metric", "hw.power"]):  # fmt: skip
        assert fabrictap(*command, "--file", path).stdout.splitlines()[0] == SAID, command
    for command in (["flows", "--json"], ["recorder", "events", "--json"], ["recorder", "list", "--json"],
                    ["recorder", "dump", "--metric", "hw.power", "--format", "json"]):  # fmt: skip
        lines = [json.loads(line) for line in fabrictap(*command, "--file", path).stdout.splitlines()]
        assert lines, command
        assert all(line["simulated"] is True for line in lines), command
    assert json.loads(fabrictap("snapshot", "--json", "--file", path).stdout)["simulated"] is True
    assert "ended, SIMULATED" in fabrictap("recorder", "list", "--file", path).stdout
    exported = fabrictap(
        "recorder", "dump", "--metric", "hw.power", "--format", "otlp", "--file", path
    ).stdout
    for line in exported.splitlines():
        (part,) = json.loads(line)["resourceMetrics"]
        assert {"key": "fabrictap.simulated", "value": {"stringValue": "true"}} in part["resource"][
            "attributes"
        ]


def test_snapshot_shows_the_node_on_one_page(ran):
    page = fabrictap("snapshot", "--file", ran[0] / "ring").stdout
    lines = page.splitlines()
    assert len(lines) < 60
    gpus = [line for line in lines if "GPU-00000000-4100" in line]
    assert len(gpus) == 8
    assert all("ok" in line and "none" in line for line in gpus)
    ports = [line for line in lines if line.lstrip().startswith("mlx5_") and "active" in line]
    assert len(ports) == 9
    assert "DARK OUT/s" in page
    assert "4200011/sim-model-store 140 GiB" in page


def test_the_prometheus_page_says_it(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "fabrictap", "run", "--simulate", "l40s", "--duration", "60s",
         *_settings(tmp_path), "--set", "export.prometheus.listen=127.0.0.1:0"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        address = next(line.split(" at ")[1].split(",")[0] for line in process.stderr if " at " in line)

        def page() -> str:
            with urllib.request.urlopen(
                f"http://{address.removeprefix('http://')}/metrics", timeout=10
            ) as answer:
                return answer.read().decode()

        eventually(lambda: "hw_gpu_io_bytes_total" in page(), "GPUs are on the page", 30)
        (target,) = [line for line in page().splitlines() if line.startswith("target_info{")]
        assert 'fabrictap_simulated="true"' in target
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("profile", NAMES)
def test_with_it_no_real_source_runs(profile, tmp_path):
    config = load(
        environ={},
        settings=[
            f"sources.simulated.profile={profile}",
            f"ring.path={tmp_path}/ring",
            "export.otlp.metrics.enabled=false",
            "export.otlp.traces.enabled=false",
            "export.otlp.logs.enabled=false",
            # Not even where somebody asks for them.
            "sources.nvml.enabled=true",
            "sources.dcgm.enabled=on",
            "sources.kubelet.enabled=on",
        ],
    )
    node = Node(config)
    try:
        assert [runner.source.name for runner in node.runners] == ["simulated"]
    finally:
        node.ring.close(0)


def test_without_it_nothing_says_that_it_is_simulated():
    config = load(environ={}, settings=[])
    assert config.sources.simulated.profile is None
    attributes = resource.attributes(config.resource)
    assert "fabrictap.simulated" not in attributes
    assert simulated.lines(attributes) == []


def test_it_has_a_recording_of_its_own_unless_told_otherwise():
    made_up = load(environ={}, settings=["sources.simulated.profile=gb200"])
    assert made_up.ring.path == config_module.SIMULATED_RING != Config().ring.path
    # Nor do detectors of a real node learn its peers.
    assert made_up.state.path is None
    more = ["ring.path=/run/here", "state.path=/var/lib/here"]
    named = load(environ={}, settings=["sources.simulated.profile=gb200", *more])
    assert (named.ring.path, named.state.path) == ("/run/here", "/var/lib/here")


def test_it_has_an_instance_of_its_own_and_cannot_be_told_to_hide_what_it_is(tmp_path):
    machine = tmp_path / "machine-id"
    machine.write_text("00000000000000000000000000000001\n")
    settings = config_module.Resource(attributes={"fabrictap.simulated": "false", "site": "here"})
    made = [
        resource.attributes(settings, (str(machine),), simulated=profile)
        for profile in (None, *NAMES, NAMES[0])
    ]
    assert len({one["service.instance.id"] for one in made}) == 1 + len(NAMES)
    assert all(one["fabrictap.simulated"] == "true" and one["site"] == "here" for one in made[1:])
    described = json.loads(about(made[1], {}))
    assert described["resource"]["fabrictap.simulated"] == "true"
    assert b'fabrictap_simulated="true"' in prometheus._target(made[1])


@pytest.mark.parametrize("name", ["hgx-h10", "", "null", "dgx"])
def test_a_node_that_nobody_knows_is_one_line(name):
    said = fabrictap("run", "--simulate", name, code=2).stderr
    assert len(said.splitlines()) == 1
    assert said.startswith("fabrictap: --simulate: expected one of hgx-h100, a100-mig, gb200, l40s, got")


def test_the_configuration_names_them_too():
    with pytest.raises(ConfigError, match=r"simulated\.profile: expected one of hgx-h100, .* mean gb200"):
        load(environ={"FABRICTAP_SOURCES__SIMULATED__PROFILE": "gb20"})
    with pytest.raises(ConfigError, match=r"simulated\.fast_interval"):
        load(environ={}, settings=["sources.simulated.fast_interval=1ms"])
