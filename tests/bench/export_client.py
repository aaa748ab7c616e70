"""One way to export the same series over OTLP/gRPC, in a process of its own. See bench/export.py.

``export_client.py WAY SERIES ENDPOINT COMPRESSION`` with WAY one of ours, sdk, bytes, client. For each line
on stdin every series gets a new value and is exported; the answer is a line of JSON: milliseconds of CPU of
all threads for the export (``export``) and for setting the values before it (``set``; part of the export with
the SDK, which asks for the values while it collects).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from itertools import count

from fabrictap import catalog

#: Many, because the SDK folds what is beyond 2,000 series of one instrument into one. Counters whose rates
#: are exported besides are left out: the SDK has nothing like them.
METRICS = [metric for metric in catalog.metrics() if metric.kind is catalog.Kind.COUNTER and not metric.rates]
RESOURCE = {"service.name": "fabrictap", "host.name": "bench"}
EXPORT_METHOD = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
TIMEOUT = 30.0

#: (before the export, the export)
Way = tuple[Callable[[], None], Callable[[], None]]


def attributes(number: int) -> dict[str, str | int]:
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


def _spread(series: int) -> list[tuple[catalog.Metric, range]]:
    """``series`` divided among the metrics, as the numbers of the attribute sets of each."""
    each, more = divmod(series, len(METRICS))
    return [(metric, range(each + (index < more))) for index, metric in enumerate(METRICS)]


def _tree(series: int) -> tuple[Callable[[], None], Callable[[], list[tuple[bytes, int]]]]:
    """Setting every value, and what is then to be sent: (request, its points)."""
    from fabrictap.export.metrics import MetricsTree  # noqa: PLC0415 - only what this way needs
    from fabrictap.series import SeriesTable  # noqa: PLC0415

    table = SeriesTable(series)
    now = time.time_ns()
    every = [
        table.series(metric, attributes(number), now)
        for metric, numbers in _spread(series)
        for number in numbers
    ]
    tree = MetricsTree(table, RESOURCE)
    values = count(10**9)

    def prepare() -> None:
        moment, value = time.time_ns(), next(values)
        for one in every:
            one.set(value, moment)

    def requests() -> list[tuple[bytes, int]]:
        tree.update(time.time_ns())
        return [(request.body, request.items) for request in tree.requests()]

    return prepare, requests


def ours(series: int, endpoint: str, compression: str) -> Way:
    from fabrictap.config import Otlp, Signal  # noqa: PLC0415
    from fabrictap.export import signals  # noqa: PLC0415
    from fabrictap.export.outbox import Request  # noqa: PLC0415
    from fabrictap.export.uplink import Uplink  # noqa: PLC0415

    prepare, requests = _tree(series)
    chosen = Signal(endpoint=f"http://{endpoint}", compression="gzip" if compression == "gzip" else "none")
    uplink = Uplink(Otlp(metrics=chosen, traces=Signal(enabled=False), logs=Signal(enabled=False)))
    uplink.start()

    def export() -> None:
        for body, items in requests():
            uplink.put(signals.Signal.METRICS, Request(body, items))
        if not uplink.flush(TIMEOUT):
            raise RuntimeError("not delivered")

    return prepare, export


def ready_made(series: int, endpoint: str, compression: str) -> Way:
    """grpcio alone, sending what our tree made of the series once."""
    import grpc  # noqa: PLC0415

    prepare, requests = _tree(series)
    prepare()
    bodies = [body for body, _ in requests()]
    channel = grpc.insecure_channel(endpoint)
    call = channel.unary_unary(EXPORT_METHOD)
    chosen = grpc.Compression.Gzip if compression == "gzip" else grpc.Compression.NoCompression

    def export() -> None:
        for body in bodies:
            call(body, timeout=TIMEOUT, compression=chosen)

    return (lambda: None), export


def ready_made_client(series: int, endpoint: str, compression: str) -> Way:
    """Our gRPC client alone, in the same way."""
    from fabrictap.grpc.client import Channel  # noqa: PLC0415

    prepare, requests = _tree(series)
    prepare()
    bodies = [body for body, _ in requests()]
    channel = Channel(endpoint)
    chosen = "gzip" if compression == "gzip" else "identity"

    def export() -> None:
        for body in bodies:
            channel.call(EXPORT_METHOD, body, TIMEOUT, compression=chosen)

    return (lambda: None), export


def sdk(series: int, endpoint: str, compression: str) -> Way:
    """Observable counters, a PeriodicExportingMetricReader and the OTLP/gRPC exporter: the documented way."""
    import grpc  # noqa: PLC0415
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import (  # noqa: PLC0415
        OTLPMetricExporter,
    )
    from opentelemetry.metrics import CallbackOptions, Observation  # noqa: PLC0415
    from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader  # noqa: PLC0415
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415

    chosen = grpc.Compression.Gzip if compression == "gzip" else grpc.Compression.NoCompression
    exporter = OTLPMetricExporter(endpoint=f"http://{endpoint}", insecure=True, compression=chosen)
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=3.6e6)
    provider = MeterProvider([reader], Resource(RESOURCE))
    meter = provider.get_meter("bench")
    values = count(10**9)

    def create(metric: catalog.Metric, numbers: range) -> None:
        each = [attributes(number) for number in numbers]

        def observe(_: CallbackOptions) -> Iterable[Observation]:
            value = next(values)
            return [Observation(value, one) for one in each]

        meter.create_observable_counter(metric.name, [observe], metric.unit, metric.description)

    for metric, numbers in _spread(series):
        create(metric, numbers)

    def export() -> None:
        if not provider.force_flush(int(TIMEOUT * 1000)):
            raise RuntimeError("not delivered")

    return (lambda: None), export


WAYS = {"ours": ours, "sdk": sdk, "bytes": ready_made, "client": ready_made_client}


def main() -> None:
    way, series, endpoint, compression = sys.argv[1:]
    prepare, export = WAYS[way](int(series), endpoint, compression)
    for _ in sys.stdin:
        began = time.process_time_ns()
        prepare()
        between = time.process_time_ns()
        export()
        ended = time.process_time_ns()
        answer = {"set": (between - began) / 1e6, "export": (ended - between) / 1e6}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
