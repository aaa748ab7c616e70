"""A Prometheus that holds a small fleet: a pytest plugin with the fixture ``world``.

What is in it came the way it comes in a cluster: agents, the Collector of packaging/grafana/compose,
remote write, Prometheus. Four nodes are simulated, with a clock that runs ahead (e2e/simulated_node.py); two
are a recording of real RDMA in a VM (e2e/record_vm.py), moved to now. All of it ends at ``World.end``.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from google.protobuf import json_format
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as messages
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as service

from otelcol import BUILD, find_collector, free_port
from prometheus_server import Prometheus
from support import eventually, require

ROOT = Path(__file__).parents[1]
E2E = Path(__file__).parent / "e2e"
RECORDING = E2E / "data" / "rdma-in-vm.jsonl.gz"
RULES = sorted((ROOT / "packaging" / "prometheus" / "rules").glob("*.yaml"))
COLLECTOR = ROOT / "packaging" / "grafana" / "compose" / "collector.yaml"
#: Seconds of simulation: all of its episodes, and the theft on the first node once more at the end.
SECONDS = 720
#: Host name, profile, and the second of the simulation's cycle (600 s) in which each begins. The theft lasts
#: from 180 to 220: only on the first is it going on at the end.
SIMULATED = (
    ("sim-hgx-1", "hgx-h100", 105),
    ("sim-hgx-2", "hgx-h100", 30),
    ("sim-gb200-1", "gb200", 330),
    ("sim-a100-1", "a100-mig", 20),
)
#: Nothing where nobody has recorded yet: e2e/test_dashboards.py says what is not seen then.
RECORDED = ("vm-rxe0", "vm-rxe1") if RECORDING.is_file() else ()


@dataclass(frozen=True)
class World:
    """``start`` and ``end``: seconds since the epoch between which all nodes have data.

    ``told``: log events of the recording, which no Loki has: (seconds since the epoch, severity, text).
    """

    prometheus: Prometheus
    start: float
    end: float
    told: tuple[tuple[float, str, str], ...] = ()


@contextlib.contextmanager
def collecting(folder: Path, prometheus: Prometheus) -> Iterator[int]:
    """The Collector, which writes metrics to ``prometheus``; the port at which it takes OTLP over gRPC."""
    binary = find_collector()
    require("collector", binary.is_file(), f"{binary} does not exist; build it with {BUILD}")
    port, health = free_port(), free_port()
    configuration = folder / "collector.yaml"
    configuration.write_text(collector_configuration(prometheus.url, port, health))
    with (folder / "collector.log").open("wb") as log:
        process = subprocess.Popen([binary, "--config", configuration], stdout=log, stderr=subprocess.STDOUT)
    try:
        eventually(lambda: _listens(port), f"the Collector listens; see {folder}/collector.log", 30)
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    prometheus = Prometheus(folder)
    agents: list[subprocess.Popen[bytes]] = []
    try:
        with collecting(folder, prometheus) as port:
            end = time.time()
            start_ns = int((end - SECONDS) * 1e9)
            agents += [
                subprocess.Popen(
                    [sys.executable, E2E / "simulated_node.py", profile, host, f"http://127.0.0.1:{port}",
                     str(start_ns), str(SECONDS), str(begin), str(folder / f"{host}.ring")],
                    stderr=subprocess.PIPE,
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                )
                for host, profile, begin in SIMULATED
            ]  # fmt: skip
            told = replay(port, int(end * 1e9))
            for agent in agents:
                said = agent.communicate(timeout=240)[1].decode()
                assert agent.returncode == 0, said
            hosts = {host for host, _, _ in SIMULATED} | set(RECORDED)

            def arrived() -> bool:
                found = prometheus.now("max by (host_name) (timestamp(fabrictap_series_count))", end)
                late = {one["metric"]["host_name"] for one in found if float(one["value"][1]) > end - 16}
                return late == hosts

            eventually(arrived, f"the last figures of {hosts} are in Prometheus", 120)
        prometheus.evaluate(RULES)
        yield World(prometheus, end - SECONDS + 60, end, told)
    finally:
        for agent in agents:
            if agent.poll() is None:
                agent.kill()
                agent.wait()
        prometheus.stop()


def collector_configuration(prometheus_url: str, port: int, health: int) -> str:
    """The shipped configuration, with this machine's addresses and metrics alone."""
    shipped: dict[str, Any] = yaml.safe_load(COLLECTOR.read_text())
    shipped["receivers"]["otlp"]["protocols"] = {
        "grpc": {"endpoint": f"127.0.0.1:{port}", "max_recv_msg_size_mib": 64}
    }
    shipped["exporters"] = {"prometheusremotewrite": shipped["exporters"]["prometheusremotewrite"]}
    shipped["exporters"]["prometheusremotewrite"]["endpoint"] = f"{prometheus_url}/api/v1/write"
    # A machine that tests something else as well may be slow.
    shipped["exporters"]["prometheusremotewrite"]["timeout"] = "120s"
    shipped["extensions"]["health_check"]["endpoint"] = f"127.0.0.1:{health}"
    shipped["service"]["pipelines"] = {"metrics": shipped["service"]["pipelines"]["metrics"]}
    return yaml.safe_dump(shipped)


def replay(port: int, end_ns: int) -> tuple[tuple[float, str, str], ...]:
    """Send the recording's metrics, moved in time so that they end at ``end_ns``; what was told, likewise."""
    if not RECORDED:
        return ()
    lines = [json.loads(line) for line in gzip.decompress(RECORDING.read_bytes()).decode().splitlines()]
    requests = [
        json_format.ParseDict(line, messages.ExportMetricsServiceRequest())
        for line in lines
        if "resourceMetrics" in line
    ]
    last_ns = max(point.time_unix_nano for request in requests for point in _points(request))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = service.MetricsServiceStub(channel)
        for request in requests:
            for point in _points(request):
                point.time_unix_nano += end_ns - last_ns
                point.start_time_unix_nano += end_ns - last_ns
            stub.Export(request, timeout=30)
    return tuple(
        (
            (int(record["timeUnixNano"]) + end_ns - last_ns) / 1e9,
            record["severityText"],
            record["body"]["stringValue"],
        )
        for line in lines
        for resource in line.get("resourceLogs", ())
        for scope in resource["scopeLogs"]
        for record in scope["logRecords"]
    )


def _points(request: Any) -> Iterator[Any]:
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                yield from getattr(metric, metric.WhichOneof("data")).data_points


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
