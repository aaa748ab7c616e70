"""A dump of the recorder, as the real OpenTelemetry Collector reads it from a file."""

import subprocess
import sys

import rings
from fabrictap import catalog
from rings import S
from support import eventually

pytest_plugins = ["otelcol"]

NOW = 1_800_000_000 * S
KINDS = ("sum", "gauge", "histogram")


def test_the_collector_takes_a_dump(collector, tmp_path):
    path = tmp_path / "ring"
    memory, table = rings.make(path, rows=8, series=200, now_ns=NOW)
    for metric in catalog.metrics():
        series = table.series(
            metric, {"hw.id": "mlx5_0/1", "rdma.port": 1, "otel.metric.overflow": True}, NOW
        )
        for tick in range(1, 4):
            if metric.kind is catalog.Kind.HISTOGRAM:
                series.record(64, NOW + tick * S)
            else:
                series.set(2**53 + tick, NOW + tick * S)
    for tick in range(1, 4):
        memory.tick(NOW + tick * S)
    with collector.lines.open("w") as lines:
        subprocess.run(
            [sys.executable, "-m", "fabrictap", "recorder", "dump", "--format", "otlp", "--file", path],
            stdout=lines,
            check=True,
            timeout=60,
        )
    collector.read_lines()
    expected = {metric.name for metric in catalog.exported()}

    def arrived():
        return {
            metric["name"]: metric
            for request in collector.requests()
            for resource in request["resourceMetrics"]
            for scope in resource["scopeMetrics"]
            for metric in scope["metrics"]
        }

    eventually(lambda: len(arrived()) >= len(expected), "every metric of the dump has arrived", 30)
    found = arrived()
    assert set(found) == expected
    for metric in catalog.metrics():
        kind = next(kind for kind in KINDS if kind in found[metric.name])
        points = found[metric.name][kind]["dataPoints"]
        assert [point["timeUnixNano"] for point in points] == [str(NOW + tick * S) for tick in range(1, 4)]
        if kind == "sum":
            assert found[metric.name]["sum"].get("isMonotonic", False) == (
                metric.kind is catalog.Kind.COUNTER
            )
            assert points[-1]["asInt"] == str(2**53 + 3)
        if kind == "histogram":
            assert (points[-1]["count"], points[-1]["sum"]) == ("3", 192)
