"""An OTLP/gRPC receiver of metrics that only keeps what it gets, in a process of its own.

For each line on stdin a line of JSON: its port, and how many points it got since the last line.
Requests of any size are taken, where a Collector refuses more than 4 MiB.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from bench.export_client import EXPORT_METHOD


class _Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, received: list[bytes]) -> None:
        self._received = received

    def service(self, details: Any) -> Any:
        if details.method != EXPORT_METHOD:
            return None
        return grpc.unary_unary_rpc_method_handler(self._take)

    def _take(self, body: bytes, context: Any) -> bytes:
        self._received.append(body)
        return b""  # full success


def _points(body: bytes) -> int:
    request = ExportMetricsServiceRequest.FromString(body)
    return sum(
        len(getattr(metric, str(metric.WhichOneof("data"))).data_points)
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    )


def main() -> None:
    received: list[bytes] = []
    options = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
    server = grpc.server(ThreadPoolExecutor(2), handlers=[_Handler(received)], options=options)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    for _ in sys.stdin:
        bodies, received[:] = list(received), []
        answer = {"port": port, "points": sum(map(_points, bodies)), "bytes": sum(map(len, bodies))}
        print(json.dumps(answer), flush=True)
    server.stop(None)


if __name__ == "__main__":
    main()
