"""OTLP over gRPC: serialized requests go to the receiver, in order, for as long as it takes.

A failure that may pass keeps the request in its outbox (``retry`` says which failures those are); one
that will not pass drops it and is counted. Trouble is said once, and once when it is over.
"""

from __future__ import annotations

import logging
import time

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from fabrictap.config import ConfigError, Otlp
from fabrictap.config import Signal as Settings
from fabrictap.export import endpoint as endpoints
from fabrictap.export.outbox import Delivered, Later, Outbox, Outcome, Refused, Request, flush_all
from fabrictap.export.retry import Backoff, is_retryable, retry_delay
from fabrictap.export.signals import Signal
from fabrictap.grpc import message
from fabrictap.grpc.status import Failure

log = logging.getLogger(__name__)

_LONGEST_DETAILS = 300

_METHODS = {
    Signal.METRICS: "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    Signal.TRACES: "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    Signal.LOGS: "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
}
_COMPRESSIONS = {"gzip": message.GZIP, "none": message.IDENTITY}


def _partial_metrics(response: bytes) -> tuple[int, str]:
    partial = ExportMetricsServiceResponse.FromString(response).partial_success
    return partial.rejected_data_points, partial.error_message


def _partial_traces(response: bytes) -> tuple[int, str]:
    partial = ExportTraceServiceResponse.FromString(response).partial_success
    return partial.rejected_spans, partial.error_message


def _partial_logs(response: bytes) -> tuple[int, str]:
    # Most nodes have nothing to tell of.
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (  # noqa: PLC0415
        ExportLogsServiceResponse,
    )

    partial = ExportLogsServiceResponse.FromString(response).partial_success
    return partial.rejected_log_records, partial.error_message


_PARTIAL_SUCCESS = {
    Signal.METRICS: _partial_metrics,
    Signal.TRACES: _partial_traces,
    Signal.LOGS: _partial_logs,
}


class _Sender:
    """Makes one try to deliver one request of one signal. Used by its outbox's thread alone."""

    def __init__(
        self, signal: Signal, settings: Settings, queue: int, channels: endpoints.Channels, backoff: Backoff
    ) -> None:
        key = f"export.otlp.{signal.value}"
        try:
            self._endpoint = endpoints.parse(settings)
        except endpoints.EndpointError as error:
            raise ConfigError(f"{key}.endpoint: {error}") from None
        try:
            self._metadata = endpoints.metadata(settings.headers)
        except endpoints.EndpointError as error:
            raise ConfigError(f"{key}.headers: {error}") from None
        self._signal = signal
        self._timeout = float(settings.timeout)
        chosen = settings.compression
        if chosen == "auto":
            chosen = "none" if self._endpoint.local else "gzip"
        self._compression = _COMPRESSIONS[chosen]
        self._queue = queue
        self._channels = channels
        self._backoff = backoff
        self._away_since: float | None = None
        self._said = ""
        self.closing = False

    def deliver(self, request: Request) -> Outcome:
        try:
            with self._channels.use(self._endpoint) as channel:
                response = channel.call(
                    _METHODS[self._signal], request.body, self._timeout, self._metadata, self._compression
                )
        except Failure as failure:
            return self._failed(request, failure)
        except OSError as error:
            return self._later(f"{error.filename}: {error.strerror}", None)
        return self._answered(request, response)

    def _answered(self, request: Request, response: bytes) -> Outcome:
        self._backoff.reset()
        if self._away_since is not None:
            log.info("%s: delivered again after %.0f s", self._where, time.monotonic() - self._away_since)
            self._away_since, self._said = None, ""
        rejected, message = _PARTIAL_SUCCESS[self._signal](response)
        rejected = min(max(rejected, 0), request.items)
        if rejected:
            self._say(
                f"rejected:{message}", "%d of %d items were rejected: %s", rejected, request.items, message
            )
        elif message:
            self._say(f"warning:{message}", "the receiver warns: %s", message)
        else:
            self._said = ""
        return Delivered(rejected)

    def _failed(self, request: Request, failure: Failure) -> Outcome:
        code, delay = failure.code, retry_delay(failure)
        details = _printable(failure.details)
        if is_retryable(code, delay):
            return self._later(f"{code.name}: {details}", delay)
        self._backoff.reset()
        self._say(
            code.name,
            "%d items were dropped, because the receiver answered %s: %s (said once)",
            request.items,
            code.name,
            details,
        )
        return Refused(code.name)

    def _later(self, why: str, delay: float | None) -> Outcome:
        if self._away_since is None and not self.closing:
            self._away_since = time.monotonic()
            log.warning(
                "%s: cannot deliver (%s). Trying again until it works; up to %d requests are kept meanwhile",
                self._where,
                why,
                self._queue,
            )
        # A server that asks for no wait at all would be asked in a tight loop.
        return Later(delay or self._backoff.next())

    def _say(self, key: str, text: str, *arguments: object) -> None:
        if key != self._said:
            self._said = key
            log.warning(f"%s: {text}", self._where, *arguments)

    @property
    def _where(self) -> str:
        return f"OTLP {self._signal.value} to {self._endpoint.target}"


def _printable(text: str) -> str:
    """A server's words as they may stand in a log: on one line, and not for ever."""
    return "".join(character if character.isprintable() else " " for character in text[:_LONGEST_DETAILS])


class Uplink:
    """The outboxes of the enabled signals. Raises ConfigError for an endpoint that cannot be used."""

    def __init__(self, otlp: Otlp, first_delay: float = 1.0, longest_delay: float = 30.0) -> None:
        self._channels = endpoints.Channels()
        self._senders: list[_Sender] = []
        self.outboxes: dict[Signal, Outbox] = {}
        wanted = ((Signal.METRICS, otlp.metrics), (Signal.TRACES, otlp.traces), (Signal.LOGS, otlp.logs))
        for signal, settings in wanted:
            if not settings.enabled:
                continue
            sender = _Sender(
                signal, settings, otlp.queue, self._channels, Backoff(first_delay, longest_delay)
            )
            self._senders.append(sender)
            self.outboxes[signal] = Outbox(
                f"otlp-{signal.value}", otlp.queue, sender.deliver, self._channels.close
            )

    def start(self) -> None:
        for outbox in self.outboxes.values():
            outbox.start()

    def put(self, signal: Signal, request: Request) -> None:
        """Hand a request over; returns at once. A disabled signal's requests go nowhere."""
        if signal in self.outboxes:
            self.outboxes[signal].put(request)

    def flush(self, timeout: float) -> bool:
        """Wait until all is delivered, at most ``timeout`` seconds. True when it is."""
        return flush_all(self.outboxes.values(), timeout)

    def close(self, timeout: float = 2.0) -> None:
        """Stop, within about ``timeout`` seconds; what is not delivered is counted as dropped."""
        for sender in self._senders:
            sender.closing = True
        deadline = time.monotonic() + timeout
        for outbox in self.outboxes.values():
            outbox.close(max(deadline - time.monotonic(), 0.1))
        self._channels.close()
