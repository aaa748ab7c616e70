"""Finished spans as OTLP trace requests.

The ids and times are the ledger's: both ends of a connection compute them, so the SDK's tracer, which makes
ids up, has no part in it. Nor have its span type and encoder, which take ten times as long and a tenth of the
agent's memory: a node with a thousand flows sends as many windows at once. The messages are those of
opentelemetry-proto; that they say what the SDK's would is tested.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, SpanFlags, Status

from fabrictap import catalog
from fabrictap.export import resource, wire
from fabrictap.export.outbox import Request
from fabrictap.ext.ring import encode_attributes
from fabrictap.ledger.flows import FinishedSpan, SpanEvent

# The same number in ExportTraceServiceRequest; in ResourceSpans and ScopeSpans.
_RESOURCE_SPANS, _SCOPE_SPANS, _SPANS = 1, 2, 2
_HERE = int(SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK)
_REMOTE = _HERE | int(SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK)
#: What stands around the spans of a request, at most, beside resource and scope.
_AROUND = 32


class SpanEncoder:
    """Turns finished spans into export requests."""

    def __init__(self, resource_attributes: dict[str, str], limit: int = wire.REQUEST_LIMIT) -> None:
        self._head = ResourceSpans(resource=resource.message(resource_attributes)).SerializeToString()
        self._scope = ScopeSpans(scope=resource.scope()).SerializeToString()
        self._limit = limit - len(self._head) - len(self._scope) - _AROUND

    def requests(self, spans: Sequence[FinishedSpan]) -> Iterator[Request]:
        """The spans, in order, serialized in as few requests as the limit allows."""
        parts: list[bytes] = []
        size = 0
        for span in spans:
            encoded = wire.field(_SPANS, _encode(span))
            if parts and size + len(encoded) > self._limit:
                yield self._join(parts, size)
                parts, size = [], 0
            parts.append(encoded)
            size += len(encoded)
        if parts:
            yield self._join(parts, size)

    def _join(self, parts: list[bytes], size: int) -> Request:
        scope = wire.head(_SCOPE_SPANS, len(self._scope) + size)
        inner = len(self._head) + len(scope) + len(self._scope) + size
        head = wire.head(_RESOURCE_SPANS, inner)
        return Request(b"".join((head, self._head, scope, self._scope, *parts)), len(parts))


def _encode(span: FinishedSpan) -> bytes:
    # A window's parent is this node's own flow; a flow's parent is the peer's flow.
    remote = span.parent_span_id is not None and span.name == catalog.FLOW_SPAN.name
    message = Span(
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=span.parent_span_id or b"",
        name=span.name,
        kind=_kind(span),
        start_time_unix_nano=span.start_ns,
        end_time_unix_nano=span.end_ns,
        links=[
            Span.Link(trace_id=trace_id, span_id=span_id, flags=_HERE) for trace_id, span_id in span.links
        ],
        status=_status(span),
        flags=_REMOTE if remote else _HERE,
    )
    events = b"".join(wire.field(Span.EVENTS_FIELD_NUMBER, _encode_event(event)) for event in span.events)
    attributes = encode_attributes(span.attributes, Span.ATTRIBUTES_FIELD_NUMBER)
    return message.SerializeToString() + attributes + events


def _encode_event(event: SpanEvent) -> bytes:
    message = Span.Event(time_unix_nano=event.time_ns, name=event.name)
    return message.SerializeToString() + encode_attributes(
        event.attributes, Span.Event.ATTRIBUTES_FIELD_NUMBER
    )


def _kind(span: FinishedSpan) -> Span.SpanKind.ValueType:
    if span.name != catalog.FLOW_SPAN.name:
        return Span.SPAN_KIND_INTERNAL
    return Span.SPAN_KIND_PRODUCER if span.sender else Span.SPAN_KIND_CONSUMER


def _status(span: FinishedSpan) -> Status:
    """ERROR only for a device that went away under its connections.

    A queue pair that is moved to the error state (close_reason error) is no failure by itself: it is how
    librdmacm's and the kernel's rdma_disconnect end every connection, healthy ones too. The reason is in
    the attributes for whoever knows better.
    """
    if span.attributes.get(catalog.RDMA_FLOW_CLOSE_REASON.name) == "device_removed":
        return Status(
            code=Status.STATUS_CODE_ERROR,
            message="the RDMA device was removed while the connection was up",
        )
    return Status()
