"""An OTLP/gRPC receiver in the test process, for the tests of the uplink."""

import concurrent.futures
import socket
import threading

import grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceResponse,
)

from fabrictap.export.outbox import Request
from fabrictap.export.signals import Signal

OK = ExportMetricsServiceResponse().SerializeToString()


class Receiver(grpc.GenericRpcHandler):
    """Answers each call with the next of ``answers``, then with success."""

    def __init__(self):
        self.answers = []
        self.bodies = []
        self.calls = []
        self.says = "because"
        self.gate = threading.Event()
        self.gate.set()
        self.server = None

    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(
            lambda body, context: self.handle(details.method, body, context)
        )

    def handle(self, method, body, context):
        self.gate.wait(20)
        metadata = dict(context.invocation_metadata())
        self.calls.append((method, metadata, context.peer(), context.auth_context()))
        answer = self.answers.pop(0) if self.answers else OK
        if isinstance(answer, bytes):
            self.bodies.append(body)
            return answer
        code, details = answer
        if details is not None:
            context.set_trailing_metadata((("grpc-status-details-bin", details),))
        context.abort(code, self.says)
        return None

    def start(self, address, credentials=None):
        pool = concurrent.futures.ThreadPoolExecutor(4)
        self.server = grpc.server(pool, handlers=[self], options=[("grpc.so_reuseport", 0)])
        if credentials is None:
            port = self.server.add_insecure_port(address)
        else:
            port = self.server.add_secure_port(address, credentials)
        self.server.start()
        return port

    def stop(self):
        self.gate.set()
        self.server.stop(0).wait(10)


def metrics_stats(uplink):
    return uplink.outboxes[Signal.METRICS].stats


def put(uplink, *bodies, items=2, signal=Signal.METRICS):
    for body in bodies:
        uplink.put(signal, Request(body, items))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
