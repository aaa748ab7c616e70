"""What one node sends: series, and bytes of an export, before and on the wire.

The node is the simulated HGX H100 (8 GPUs with 18 NVLinks, 9 ports), the agent is the real one with its
default settings, the receiver a gRPC server of grpcio behind a forwarder that counts bytes.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from bench.result import Result, note
from otlp_receiver import Receiver

PROFILE = "hgx-h100"
#: Exports of metrics that are left out, as series come in them, and those that are taken.
SETTLE, TAKEN = 2, 12
_DAY = 86400


@dataclass
class Forwarder:
    """A TCP proxy to ``port`` that counts what goes there."""

    port: int
    sent: int = 0
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))

    def start(self) -> int:
        threading.Thread(target=self._accept, daemon=True).start()
        return int(self.listener.getsockname()[1])

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.port))
            for source, target, counted in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pump, args=(source, target, counted), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                if counted:
                    self.sent += len(data)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # one side has gone; the other will notice


def points(request: ExportMetricsServiceRequest) -> int:
    """Points of an export: one for each series."""
    return sum(
        len(getattr(metric, metric.WhichOneof("data")).data_points)
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    )


def measure() -> list[Result]:
    results = []
    for compression in ("gzip", "none"):
        results += _run(compression)
    return results


def _run(compression: str) -> list[Result]:
    receiver = Receiver()
    forwarder = Forwarder(receiver.start("127.0.0.1:0"))
    port = forwarder.start()
    with tempfile.TemporaryDirectory() as folder:
        agent = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "fabrictap",
                "run",
                "--simulate",
                PROFILE,
                f"--set=ring.path={folder}/ring",
            ]
            + [
                f"--set=export.otlp.{signal}.{key}={value}"
                for signal in ("metrics", "traces", "logs")
                for key, value in (("endpoint", f"http://127.0.0.1:{port}"), ("compression", compression))
            ],
            stderr=subprocess.DEVNULL,
        )
        try:
            first = _wait(receiver, SETTLE)
            before, began = forwarder.sent, time.monotonic()
            last = _wait(receiver, SETTLE + TAKEN)
            wire, seconds = forwarder.sent - before, time.monotonic() - began
        finally:
            agent.terminate()
            agent.wait(20)
            receiver.stop()
            forwarder.listener.close()
    taken = list(zip(receiver.calls, receiver.bodies, strict=True))[first:last]
    per_day = wire / seconds * _DAY
    results = [
        note(f"{PROFILE}: an export, all signals, on the wire ({compression})", "KB", wire / TAKEN / 1e3),
        note(f"{PROFILE}: a node's day on the wire ({compression})", "MB", per_day / 1e6),
        note(f"{PROFILE}: the day of 1,000 nodes ({compression})", "GB", per_day / 1e6),
        note(
            f"{PROFILE}: 1,000 nodes on the wire ({compression})", "Mbit/s", wire / seconds * 1000 * 8 / 1e6
        ),
    ]
    if compression != "none":
        return results
    metrics = [body for call, body in taken if call[0].endswith("MetricsService/Export")]
    traces = [ExportTraceServiceRequest.FromString(body) for call, body in taken if "TraceService" in call[0]]
    logs = [ExportLogsServiceRequest.FromString(body) for call, body in taken if "LogsService" in call[0]]
    spans = sum(len(s.spans) for one in traces for r in one.resource_spans for s in r.scope_spans)
    records = sum(len(s.log_records) for one in logs for r in one.resource_logs for s in r.scope_logs)
    counts = [points(ExportMetricsServiceRequest.FromString(body)) for body in metrics]
    return [
        note(f"{PROFILE}: series of a node", "series", sum(counts) / len(counts)),
        note(f"{PROFILE}: metrics of an export", "KB", sum(map(len, metrics)) / len(metrics) / 1e3),
        note(f"{PROFILE}: points of a node", "points/s", sum(counts) / seconds),
        note(f"{PROFILE}: spans of a node", "spans/min", spans / seconds * 60),
        note(f"{PROFILE}: log records of a node", "records/min", records / seconds * 60),
        *results,
    ]


def _wait(receiver: Receiver, exports: int) -> int:
    """Wait for as many exports of metrics; the number of calls then."""
    deadline = time.monotonic() + 15 * exports + 120
    while True:
        calls = list(receiver.calls)
        if sum(call[0].endswith("MetricsService/Export") for call in calls) >= exports:
            return len(receiver.bodies)
        if time.monotonic() > deadline:
            raise TimeoutError(f"{exports} exports of metrics did not come")
        time.sleep(0.1)
