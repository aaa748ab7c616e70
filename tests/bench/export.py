"""An export of 5,000 series: the kept message tree against the OpenTelemetry SDK's instruments and encoder.

Both get a new value for every series in every round and end with serialized OTLP. The SDK asks for the values
while it collects; ours are set by the sources when they read them, so both are given: the export alone, and
with the setting of every value.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count

from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource

from bench.result import Result, alternate
from fabrictap import catalog
from fabrictap.export.metrics import MetricsTree
from fabrictap.series import SeriesTable

SERIES = 5000
METRICS = (
    catalog.VERBS_OPERATIONS,
    catalog.VERBS_IO,
    catalog.VERBS_SGES,
    catalog.VERBS_INLINE,
    catalog.VERBS_SIGNALED,
)
ROUNDS = 11
GOAL = 1 / 35
RESOURCE = {"service.name": "fabrictap", "host.name": "bench"}


def _attributes(number: int) -> dict[str, str | int]:
    """As those of a posted work request's series."""
    return {
        "process.pid": 4000 + number // 100,
        "process.executable.name": "python3.11",
        "rdma.device": f"mlx5_{number % 8}",
        "rdma.qp.number": 1000 + number,
        "rdma.qp.type": "rc",
        "rdma.operation": "rdma_write",
        "rdma.gid": "::ffff:10.0.0.1",
        "rdma.peer.gid": "::ffff:10.0.0.2",
        "rdma.peer.qp.number": 2000 + number,
        "fabrictap.coverage": "exact",
    }


@dataclass(frozen=True)
class _Export:
    """``prepare`` is done before the measured ``run``."""

    prepare: Callable[[], None]
    run: Callable[[], bytes]


def _ours() -> _Export:
    table = SeriesTable(SERIES)
    now = time.time_ns()
    every = [
        table.series(metric, _attributes(number), now)
        for metric in METRICS
        for number in range(SERIES // len(METRICS))
    ]
    tree = MetricsTree(table, RESOURCE)
    values = count(10**9)

    def prepare() -> None:
        moment, value = time.time_ns(), next(values)
        for series in every:
            series.set(value, moment)

    def run() -> bytes:
        tree.update(time.time_ns())
        return b"".join(request.body for request in tree.requests())

    return _Export(prepare, run)


def _sdk() -> _Export:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], Resource(RESOURCE))
    meter = provider.get_meter("bench")
    attributes = [_attributes(number) for number in range(SERIES // len(METRICS))]
    values = count(10**9)

    def observe(_: CallbackOptions) -> Iterable[Observation]:
        value = next(values)
        return [Observation(value, one) for one in attributes]

    for metric in METRICS:
        meter.create_observable_counter(metric.name, [observe], metric.unit, metric.description)

    def run() -> bytes:
        return encode_metrics(reader.get_metrics_data()).SerializeToString()

    return _Export(lambda: None, run)


def _points(body: bytes) -> int:
    request = ExportMetricsServiceRequest.FromString(body)
    return sum(
        len(metric.sum.data_points)
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    )


def _timed(export: _Export, *, all_of_it: bool = False) -> Callable[[], float]:
    """Milliseconds of CPU of one export, once it is seen to hold every series."""
    export.prepare()
    if (points := _points(export.run())) != SERIES:
        raise RuntimeError(f"exported {points} of {SERIES} series")

    def measure() -> float:
        began = time.process_time_ns()
        export.prepare()
        if not all_of_it:
            began = time.process_time_ns()
        export.run()
        return (time.process_time_ns() - began) / 1e6

    return measure


def measure() -> list[Result]:
    tree = _ours()
    alone, whole, sdk = alternate(ROUNDS, _timed(tree), _timed(tree, all_of_it=True), _timed(_sdk()))
    what, peer = f"export {SERIES:,} series", "opentelemetry-sdk instruments + OTLP encoder"
    return [
        Result(f"{what}, update and serialize", "ms", alone, sdk, peer, GOAL),
        Result(f"{what}, and set every value", "ms", whole, sdk, peer, None),
    ]
