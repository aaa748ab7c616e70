"""Finished spans as OTLP trace requests, through the SDK's own span type and encoder.

The ids and times are the ledger's: both ends of a connection compute them, so the SDK's tracer, which
makes ids up, has no part in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from fabrictap import catalog
from fabrictap.export import resource, wire
from fabrictap.export.outbox import Request
from fabrictap.ledger.flows import FinishedSpan

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_UNSET = Status(StatusCode.UNSET)


class SpanEncoder:
    """Turns finished spans into export requests."""

    def __init__(self, resource_attributes: dict[str, str], limit: int = wire.REQUEST_LIMIT) -> None:
        self._resource = Resource(resource_attributes)
        self._scope = InstrumentationScope(resource.SCOPE_NAME, resource.SCOPE_VERSION)
        self._limit = limit

    def requests(self, spans: Sequence[FinishedSpan]) -> Iterator[Request]:
        """The spans, in order, serialized in as few requests as the limit allows."""
        if not spans:
            return
        body = encode_spans([self._readable(span) for span in spans]).SerializeToString()
        if len(body) <= self._limit or len(spans) == 1:
            yield Request(body, len(spans))
            return
        half = len(spans) // 2
        yield from self.requests(spans[:half])
        yield from self.requests(spans[half:])

    def _readable(self, span: FinishedSpan) -> ReadableSpan:
        parent = None
        if span.parent_span_id is not None:
            # A window's parent is this node's own flow; a flow's parent is the peer's flow.
            remote = span.name == catalog.FLOW_SPAN.name
            parent = _context(span.trace_id, span.parent_span_id, remote=remote)
        return ReadableSpan(
            name=span.name,
            context=_context(span.trace_id, span.span_id),
            parent=parent,
            resource=self._resource,
            attributes=span.attributes,
            events=tuple(Event(one.name, one.attributes, one.time_ns) for one in span.events),
            links=tuple(Link(_context(trace_id, span_id)) for trace_id, span_id in span.links),
            kind=_kind(span),
            status=_status(span),
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=self._scope,
        )


def _context(trace_id: bytes, span_id: bytes, *, remote: bool = False) -> SpanContext:
    return SpanContext(
        int.from_bytes(trace_id, "big"),
        int.from_bytes(span_id, "big"),
        is_remote=remote,
        trace_flags=_SAMPLED,
    )


def _kind(span: FinishedSpan) -> SpanKind:
    if span.name != catalog.FLOW_SPAN.name:
        return SpanKind.INTERNAL
    return SpanKind.PRODUCER if span.sender else SpanKind.CONSUMER


def _status(span: FinishedSpan) -> Status:
    """ERROR only for a device that went away under its connections.

    A queue pair that is moved to the error state (close_reason error) is no failure by itself: it is how
    librdmacm's and the kernel's rdma_disconnect end every connection, healthy ones too. The reason is in
    the attributes for whoever knows better.
    """
    if span.attributes.get(catalog.RDMA_FLOW_CLOSE_REASON.name) == "device_removed":
        return Status(StatusCode.ERROR, "the RDMA device was removed while the connection was up")
    return _UNSET
