"""What each import of the agent adds to its memory, in a process of its own: JSON {stage: bytes}.

Stages build on each other, in the order in which ``fabrictap run`` comes to them.
"""

from __future__ import annotations

import importlib
import json
import os

from bench.process import Watched

#: What is said of a stage -> what it imports.
STAGES = {
    "Python itself": (),
    "logging, threading, socket, json": ("logging", "threading", "socket", "json", "dataclasses"),
    "msgspec, yaml (configuration)": ("msgspec", "yaml"),
    "fabrictap.config, catalog": ("fabrictap.config", "fabrictap.catalog"),
    "protobuf, OTLP messages": (
        "opentelemetry.proto.collector.metrics.v1.metrics_service_pb2",
        "opentelemetry.proto.collector.trace.v1.trace_service_pb2",
    ),
    "h2, the gRPC client": ("fabrictap.grpc.client",),
    "fabrictap's exporters, with what they use of the SDK": ("fabrictap.export.exporter",),
    "fabrictap's extensions": ("fabrictap.ext.bpf", "fabrictap.ext.records", "fabrictap.ext.counters"),
    "fabrictap.node and the sources": ("fabrictap.node", "fabrictap.view.doctor"),
}


def main() -> None:
    own = Watched(os.getpid())
    added, before = {}, 0
    for stage, modules in STAGES.items():
        for module in modules:
            importlib.import_module(module)
        now = own.alone_bytes()
        added[stage] = now - before
        before = now
    print(json.dumps(added))


if __name__ == "__main__":
    main()
