"""OTLP over gRPC against a real gRPC server in this process: delivery and what answers mean."""

import time

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration as ProtoDuration
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsPartialSuccess,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from fabrictap.config import Otlp
from fabrictap.config import Signal as Settings
from fabrictap.export import retry
from fabrictap.export.signals import ExportStats, Signal
from fabrictap.export.uplink import Uplink
from fabrictap.grpc.status import Code, Failure
from otlp_receiver import Receiver, metrics_stats, put
from support import eventually

pytest_plugins = ["uplink_fixtures"]


def retry_info(seconds, nanos=0):
    """A serialized google.rpc.Status with RetryInfo, after a detail of another kind."""

    def field(number, body):
        return bytes([number << 3 | 2, len(body)]) + body

    delay = field(1, ProtoDuration(seconds=seconds, nanos=nanos).SerializeToString())
    details = (Any(type_url="type.googleapis.com/google.rpc.Help", value=b""),
               Any(type_url="type.googleapis.com/google.rpc.RetryInfo", value=delay))  # fmt: skip
    return b"\x08\x08" + field(2, b"busy") + b"".join(field(3, one.SerializeToString()) for one in details)


# --- delivery -------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_requests_arrive_as_they_are_in_order_with_headers(receiver, uplink_to, compression):
    uplink = uplink_to(receiver.port, compression=compression, headers={"X-Tenant": "blue"})
    bodies = [b"%d" % number + bytes(5000) for number in range(20)]
    put(uplink, *bodies)
    assert uplink.flush(10)
    assert receiver.bodies == bodies
    method, metadata, _, _ = receiver.calls[0]
    assert method == "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
    assert metadata["x-tenant"] == "blue"
    assert metadata["user-agent"].startswith("fabrictap/")
    assert (metrics_stats(uplink).exported, metrics_stats(uplink).failed) == (40, {})


def test_spans_go_to_the_trace_service_over_the_same_connection(receiver, uplink_to):
    uplink = uplink_to(receiver.port)
    put(uplink, b"m")
    put(uplink, b"t", signal=Signal.TRACES)
    assert uplink.flush(10)
    assert {call[0] for call in receiver.calls} >= {
        "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
    }
    assert len({call[2] for call in receiver.calls}) == 1


def test_log_events_go_to_the_logs_service_and_what_it_rejects_is_counted(receiver, uplink_to):
    partial = ExportLogsPartialSuccess(rejected_log_records=1)
    receiver.answers = [ExportLogsServiceResponse(partial_success=partial).SerializeToString()]
    uplink = uplink_to(receiver.port)
    put(uplink, b"l", signal=Signal.LOGS)
    assert uplink.flush(10)
    assert receiver.calls[0][0] == "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
    stats = uplink.outboxes[Signal.LOGS].stats
    assert (stats.exported, stats.failed) == (1, {"rejected": 1})


def test_a_unix_socket(tmp_path, uplink_to):
    receiver = Receiver()
    receiver.start(f"unix:{tmp_path}/otlp.sock")
    for form in (f"unix:{tmp_path}/otlp.sock", f"unix://{tmp_path}/otlp.sock"):
        uplink = uplink_to(form)
        put(uplink, form.encode())
        assert uplink.flush(10)
    assert len(receiver.bodies) == 2
    receiver.stop()


def test_a_disabled_signal_goes_nowhere(receiver):
    off = Settings(enabled=False, endpoint="not used:x")
    uplink = Uplink(Otlp(metrics=off, traces=off, logs=off))
    uplink.start()
    put(uplink, b"m")
    assert uplink.flush(0)
    uplink.close()
    assert uplink.outboxes == {}


# --- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    ["CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS"],
)
def test_a_failure_that_may_pass_is_tried_again(receiver, uplink_to, code):
    receiver.answers = [(grpc.StatusCode[code], None)] * 3
    uplink = uplink_to(receiver.port)
    put(uplink, b"a", b"b")
    assert uplink.flush(10)
    assert receiver.bodies == [b"a", b"b"]
    assert metrics_stats(uplink).failed == {}


@pytest.mark.parametrize(
    "code",
    [
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "FAILED_PRECONDITION",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNKNOWN",
        "RESOURCE_EXHAUSTED",
    ],
)
def test_a_failure_that_will_not_pass_drops_the_request_and_is_counted(receiver, uplink_to, caplog, code):
    receiver.answers = [(grpc.StatusCode[code], None)] * 2
    uplink = uplink_to(receiver.port)
    put(uplink, b"a", b"b", b"c")
    assert uplink.flush(10)
    assert receiver.bodies == [b"c"]
    assert (metrics_stats(uplink).exported, metrics_stats(uplink).failed) == (2, {code: 4})
    assert len([record for record in caplog.records if code in record.message]) == 1


def test_resource_exhausted_with_retry_info_is_tried_again_after_that_time(receiver, uplink_to):
    receiver.answers = [(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_info(0, 400_000_000))]
    uplink = uplink_to(receiver.port)
    started = time.monotonic()
    put(uplink, b"a")
    eventually(lambda: receiver.bodies == [b"a"], "the second try")
    assert 0.4 <= time.monotonic() - started < 5


def test_retry_info_is_longer_than_the_back_off_and_flush_does_not_wait_for_it(receiver, uplink_to):
    receiver.answers = [(grpc.StatusCode.UNAVAILABLE, retry_info(300))]
    uplink = uplink_to(receiver.port)
    put(uplink, b"a")
    eventually(lambda: receiver.calls, "the first try")
    eventually(lambda: uplink.flush(0.2), "the second try")
    assert receiver.bodies == [b"a"]


@pytest.mark.parametrize("details", [b"\xff\xff\xff", b"\x1a\x7f", b"\x1a\x02\x0a\x00", b""])
def test_details_that_cannot_be_read_are_no_retry_info(details):
    failure = Failure(Code.UNAVAILABLE, "", (("other", "x"), ("grpc-status-details-bin", details)))
    assert retry.retry_delay(failure) is None


def test_partial_success_counts_what_was_rejected(receiver, uplink_to, caplog):
    partial = ExportMetricsPartialSuccess(rejected_data_points=3, error_message="bad unit")
    receiver.answers = [ExportMetricsServiceResponse(partial_success=partial).SerializeToString()] * 2
    uplink = uplink_to(receiver.port)
    put(uplink, b"a", b"b", b"c", items=5)
    assert uplink.flush(10)
    assert (metrics_stats(uplink).exported, metrics_stats(uplink).failed) == (9, {"rejected": 6})
    assert [record.message for record in caplog.records] == [
        f"OTLP metrics to 127.0.0.1:{receiver.port}: 3 of 5 items were rejected: bad unit"
    ]


def test_partial_success_of_spans_and_a_warning_without_rejection(receiver, uplink_to, caplog):
    receiver.answers = [
        ExportTraceServiceResponse(
            partial_success=ExportTracePartialSuccess(rejected_spans=1)
        ).SerializeToString(),
        ExportTraceServiceResponse(
            partial_success=ExportTracePartialSuccess(error_message="old version")
        ).SerializeToString(),
    ]
    uplink = uplink_to(receiver.port)
    put(uplink, b"a", b"b", signal=Signal.TRACES)
    assert uplink.flush(10)
    stats = uplink.outboxes[Signal.TRACES].stats
    assert (stats.exported, stats.failed) == (3, {"rejected": 1})
    assert "old version" in caplog.text


def test_what_was_exported_and_failed_is_told_in_the_catalogs_words(receiver, uplink_to):
    receiver.answers = [(grpc.StatusCode.INTERNAL, None)]
    uplink = uplink_to(receiver.port)
    put(uplink, b"a", b"b")
    assert uplink.flush(10)
    stats = ExportStats({("otlp_grpc", signal): outbox for signal, outbox in uplink.outboxes.items()})
    component = "otlp_grpc_metric_exporter"
    who = {"otel.component.type": component, "otel.component.name": f"{component}/0"}
    counts = [(metric.name, attributes, count) for metric, attributes, count in stats.counts()]
    assert counts[:2] == [
        ("otel.sdk.exporter.metric_data_point.exported", who, 2),
        ("otel.sdk.exporter.metric_data_point.exported", who | {"error.type": "INTERNAL"}, 2),
    ]
    others = [name for name, _, _ in counts[2:]]
    assert others == ["otel.sdk.exporter.span.exported", "otel.sdk.exporter.log.exported"]


def test_what_the_receiver_says_stands_on_one_line_of_the_log(receiver, uplink_to, caplog):
    receiver.answers = [(grpc.StatusCode.INVALID_ARGUMENT, None)]
    receiver.says = "no\nFORGED line \x1b[31m" + "x" * 1000
    uplink = uplink_to(receiver.port)
    put(uplink, b"a")
    assert uplink.flush(10)
    (record,) = caplog.records
    assert "INVALID_ARGUMENT: no FORGED line  [31mxxx" in record.message
    assert record.message.isprintable()
    assert len(record.message) < 500
