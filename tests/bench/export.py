"""An export over OTLP/gRPC: fabrictap, the OpenTelemetry SDK, and gRPC alone with the same bytes ready-made.

Every series gets a new value in every round. CPU of the client's process from the values to the receiver's
answer; the receiver is a process of its own, and so is each client. The SDK asks for the values while it
collects, so that getting them is part of its export; our sources set them when they read them, which is a
line of its own.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.result import Result, alternate, left_out, note
from bench.worker import Worker

HERE = Path(__file__).parent
SIZES = (5_000, 20_000)
GROWTH = (100, 1_000, 5_000, 20_000, 100_000)
ROUNDS = {5_000: 11, 20_000: 7}
SDK_GOAL, BYTES_GOAL = 1 / 35, 2.5
SDK = "opentelemetry-sdk instruments + OTLP/gRPC exporter"
BYTES = "grpcio, the same bytes ready-made"


def _environment() -> dict[str, str]:
    """What the user has set for an OpenTelemetry of his own is not meant for these."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("OTEL_")}
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@dataclass
class _Client:
    worker: Worker
    sink: Worker
    series: int
    sets: list[float]

    @classmethod
    def start(cls, stack: ExitStack, way: str, series: int, sink: Worker, compression: str) -> _Client:
        endpoint = f"127.0.0.1:{sink.ask('port')['port']}"
        command = [sys.executable, HERE / "export_client.py", way, str(series), endpoint, compression]
        client = cls(stack.enter_context(Worker(command, _environment())), sink, series, [])
        client.export()  # the first one connects and lays out what the others reuse
        client.sets.clear()
        return client

    def export(self) -> float:
        """Milliseconds of CPU. Raises RuntimeError when not every series has arrived."""
        answer = self.worker.ask("export")
        if (points := self.sink.ask("points")["points"]) < self.series:
            raise RuntimeError(f"{points} of {self.series} series arrived")
        self.sets.append(answer["set"])
        return float(answer["export"])


def _measure(series: int, sink: Worker, compression: str, rounds: int, ways: list[str]) -> dict[str, float]:
    with ExitStack() as stack:
        clients = {way: _Client.start(stack, way, series, sink, compression) for way in ways}
        times = alternate(rounds, *(client.export for client in clients.values()))
        return dict(zip(ways, times, strict=True)) | {"set": median(clients["ours"].sets)}


def measure() -> list[Result]:
    ways = ["ours", "bytes", "client"]
    if importlib.util.find_spec("opentelemetry.exporter.otlp.proto.grpc") is None:
        left_out("export", "the SDK: pip install opentelemetry-exporter-otlp-proto-grpc")
    else:
        ways.append("sdk")
    results = []
    with Worker([sys.executable, HERE / "export_sink.py"], _environment()) as sink:
        spent = {size: _measure(size, sink, "none", ROUNDS[size], ways) for size in SIZES}
        for size, of in spent.items():
            what, whole = f"export {size:,} series over gRPC", of["ours"] + of["set"]
            results += [
                Result(what, "ms", of["ours"], of.get("sdk"), SDK, SDK_GOAL),
                Result(f"{what}, and set every value", "ms", whole, of.get("sdk"), SDK, None),
                Result(f"{what} (2)", "ms", of["ours"], of["bytes"], BYTES, BYTES_GOAL),
                Result(f"hand over {size:,} series' bytes", "ms", of["client"], of["bytes"], "grpcio", None),
            ]
        zipped = _measure(SIZES[0], sink, "gzip", ROUNDS[SIZES[0]], ways)
        what = f"export {SIZES[0]:,} series over gRPC with gzip"
        results.append(Result(what, "ms", zipped["ours"], zipped.get("sdk"), SDK, None))
        results.append(Result(f"{what} (2)", "ms", zipped["ours"], zipped["bytes"], BYTES, None))
        what = f"hand over {SIZES[0]:,} series' bytes with gzip"
        results.append(Result(what, "ms", zipped["client"], zipped["bytes"], "grpcio", None))
        for size in GROWTH:
            of = spent.get(size) or _measure(size, sink, "none", 5, ["ours"])
            what = f"export one series, of {size:,}"
            results.append(note(what, "us", of["ours"] / size * 1000, "constant where it is linear"))
    return results
