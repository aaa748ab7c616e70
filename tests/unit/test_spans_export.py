"""Finished spans as OTLP trace requests."""

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, SpanFlags, Status
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status as SdkStatus
from opentelemetry.trace.status import StatusCode

from fabrictap.export import resource
from fabrictap.export.spans import SpanEncoder
from fabrictap.ledger.flows import FinishedSpan

TRACE = bytes(range(16))
SENDER, RECEIVER, WINDOW = b"\x00sender_", b"receiver", b"window_1"


def finished(name="rdma.flow", span_id=SENDER, parent=None, sender=True, links=(), **attributes):
    return FinishedSpan(name, TRACE, span_id, parent, 1000, 2000, attributes, sender, links)


def encode(*spans, limit=4 << 20):
    """The spans of all requests, checked to be in one resource and scope each."""
    encoded = []
    for request in SpanEncoder({"service.name": "fabrictap"}, limit).requests(spans):
        (resource,) = ExportTraceServiceRequest.FromString(request.body).resource_spans
        assert resource.resource.attributes[0].value.string_value == "fabrictap"
        (scope,) = resource.scope_spans
        assert scope.scope.name == "fabrictap"
        assert len(scope.spans) == request.items
        encoded += scope.spans
    return encoded


def test_ids_times_and_attributes_are_the_ledgers():
    (span,) = encode(finished(**{"rdma.device": "mlx5_0", "rdma.port": 1, "yes": True}))
    assert (span.trace_id, span.span_id, span.parent_span_id) == (TRACE, SENDER, b"")
    assert (span.name, span.start_time_unix_nano, span.end_time_unix_nano) == ("rdma.flow", 1000, 2000)
    values = {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in span.attributes}
    assert values == {"rdma.device": "mlx5_0", "rdma.port": 1, "yes": True}


def test_the_sender_produces_the_receiver_consumes_and_a_window_is_internal():
    kinds = [
        span.kind
        for span in encode(
            finished(),
            finished(span_id=RECEIVER, parent=SENDER, sender=False),
            finished("rdma.flow.window", WINDOW, SENDER),
        )
    ]
    assert kinds == [Span.SPAN_KIND_PRODUCER, Span.SPAN_KIND_CONSUMER, Span.SPAN_KIND_INTERNAL]


def test_a_flows_parent_is_on_the_peer_and_a_windows_parent_is_here():
    flow, window = encode(
        finished(span_id=RECEIVER, parent=SENDER, sender=False),
        finished("rdma.flow.window", WINDOW, RECEIVER),
    )
    assert (flow.parent_span_id, window.parent_span_id) == (SENDER, RECEIVER)
    assert flow.flags & SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
    assert not window.flags & SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK


def test_links_point_to_the_other_direction():
    (span,) = encode(finished(links=((b"t" * 16, b"s" * 8),)))
    assert [(link.trace_id, link.span_id) for link in span.links] == [(b"t" * 16, b"s" * 8)]


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("destroyed", Status.STATUS_CODE_UNSET),
        ("error", Status.STATUS_CODE_UNSET),  # rdma_disconnect ends healthy connections so
        ("device_removed", Status.STATUS_CODE_ERROR),
    ],
)
def test_only_a_device_that_went_away_is_an_error(reason, code):
    (span,) = encode(finished(**{"rdma.flow.close_reason": reason}))
    assert span.status.code == code
    assert bool(span.status.message) is (code == Status.STATUS_CODE_ERROR)


def test_many_spans_are_split_and_stay_in_order():
    spans = [finished(span_id=number.to_bytes(8, "big"), note="x" * 100) for number in range(1, 400)]
    limit = 10_000
    requests = list(SpanEncoder({}, limit).requests(spans))
    assert len(requests) > 4
    assert all(len(request.body) <= limit for request in requests)
    assert [span.span_id for span in encode(*spans, limit=limit)] == [span.span_id for span in spans]


def test_one_span_above_the_limit_goes_alone():
    assert len(encode(finished(note="x" * 5000), finished(note="y"), limit=1000)) == 2


def test_no_spans_make_no_request():
    assert encode() == []


def context(trace_id, span_id, remote=False):
    number = int.from_bytes
    return SpanContext(
        number(trace_id, "big"), number(span_id, "big"), remote, TraceFlags(TraceFlags.SAMPLED)
    )


def readable(span, kind, status, attributes):
    """The same span as the SDK has it."""
    remote = span.name == "rdma.flow"
    return ReadableSpan(
        name=span.name,
        context=context(span.trace_id, span.span_id),
        parent=context(span.trace_id, span.parent_span_id, remote) if span.parent_span_id else None,
        resource=Resource(attributes),
        attributes=dict(sorted(span.attributes.items())),
        links=tuple(Link(context(*link)) for link in span.links),
        kind=kind,
        status=status,
        start_time=span.start_ns,
        end_time=span.end_ns,
        instrumentation_scope=InstrumentationScope(resource.SCOPE_NAME, resource.SCOPE_VERSION),
    )


def test_the_message_is_the_one_that_the_sdk_makes_of_the_same_spans():
    attributes = {"service.name": "fabrictap", "host.name": "node"}
    unset = SdkStatus(StatusCode.UNSET)
    error = SdkStatus(StatusCode.ERROR, "the RDMA device was removed while the connection was up")
    sent = finished(links=((b"T" * 16, b"S" * 8),), **{"rdma.device": "mlx5_0", "rdma.port": 1, "yes": True})
    received = finished(span_id=RECEIVER, parent=SENDER, sender=False, big=(1 << 63) - 1)
    window = finished("rdma.flow.window", WINDOW, SENDER, text="ü€", none="")
    removed = finished(**{"rdma.flow.close_reason": "device_removed"})
    cases = [
        (sent, SpanKind.PRODUCER, unset),
        (received, SpanKind.CONSUMER, unset),
        (window, SpanKind.INTERNAL, unset),
        (removed, SpanKind.PRODUCER, error),
    ]
    (request,) = SpanEncoder(attributes).requests([span for span, *_ in cases])
    ours = ExportTraceServiceRequest.FromString(request.body)
    theirs = encode_spans([readable(*case, attributes) for case in cases])
    assert ours == theirs
