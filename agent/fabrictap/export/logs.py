"""Log events as OTLP log requests. Source: OTLP specification and logs data model ("Events")."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import (
    SEVERITY_NUMBER_ERROR,
    SEVERITY_NUMBER_INFO,
    SEVERITY_NUMBER_WARN,
)
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord as Message

from fabrictap.export import resource, wire
from fabrictap.export.outbox import Request
from fabrictap.insight.findings import LogRecord, Severity

_NUMBERS = {
    Severity.INFO: SEVERITY_NUMBER_INFO,
    Severity.WARN: SEVERITY_NUMBER_WARN,
    Severity.ERROR: SEVERITY_NUMBER_ERROR,
}


class LogEncoder:
    """Turns log events into export requests."""

    def __init__(self, resource_attributes: dict[str, str], limit: int = wire.REQUEST_LIMIT) -> None:
        self._resource = resource.message(resource_attributes)
        self._scope = resource.scope()
        self._limit = limit

    def requests(self, records: Sequence[LogRecord]) -> Iterator[Request]:
        """The events, in order, serialized in as few requests as the limit allows."""
        if not records:
            return
        request = ExportLogsServiceRequest()
        holder = request.resource_logs.add(resource=self._resource)
        scope = holder.scope_logs.add(scope=self._scope)
        for record in records:
            _put(record, scope.log_records.add())
        body = request.SerializeToString()
        if len(body) <= self._limit or len(records) == 1:
            yield Request(body, len(records))
            return
        half = len(records) // 2
        yield from self.requests(records[:half])
        yield from self.requests(records[half:])


def _put(record: LogRecord, message: Message) -> None:
    message.time_unix_nano = record.time_ns
    message.observed_time_unix_nano = record.time_ns
    message.event_name = record.event_name
    message.severity_number = _NUMBERS[record.severity]
    message.severity_text = record.severity.name
    message.body.string_value = record.body.encode(errors="replace").decode()
    resource.put_attributes(message, record.attributes)
    if record.trace_id is not None and record.span_id is not None:
        message.trace_id = record.trace_id
        message.span_id = record.span_id
        message.flags = 1  # sampled (W3C Trace Context)
