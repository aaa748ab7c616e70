"""What the node uses of this folder: collect under the lock, ship outside it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from fabrictap.config import Config
from fabrictap.export.file import FileSink
from fabrictap.export.metrics import MetricsTree
from fabrictap.export.outbox import Outbox, Request, flush_all
from fabrictap.export.signals import ExportStats, Signal
from fabrictap.export.spans import SpanEncoder
from fabrictap.export.uplink import Uplink
from fabrictap.insight.findings import Findings, LogRecord
from fabrictap.ledger.flows import FinishedSpan, Flows
from fabrictap.series import SeriesTable

if TYPE_CHECKING:
    from fabrictap.export.logs import LogEncoder


class Exporter:
    """Exports series, finished spans and log events. Raises ConfigError for an endpoint that cannot be used.

    In every export interval one thread calls ``collect`` under the node's lock and then ``ship`` outside
    it. ``collect`` only copies values into messages that the exporter owns; all serializing is done by
    ``ship``, everything that can wait for a receiver or a disk by the outboxes' threads. At the end:
    ``collect``, ``ship``, ``flush``, ``close``.
    """

    def __init__(
        self,
        config: Config,
        attributes: dict[str, str],
        series: SeriesTable,
        flows: Flows,
        findings: Findings | None = None,
    ) -> None:
        """``attributes`` are those of the resource."""
        self._series = series
        self._flows = flows
        self._tree = MetricsTree(series, attributes)
        self._attributes = attributes
        self._encoder = SpanEncoder(attributes)
        self._spans: list[FinishedSpan] = []
        self._findings = findings
        self._log_encoder: LogEncoder | None = None
        self._logs: list[LogRecord] = []
        self._uplink = Uplink(config.export.otlp)
        self._file = (
            FileSink(config.export.file, config.export.otlp.queue) if config.export.file.path else None
        )
        self._outboxes: dict[tuple[str, Signal], Outbox] = {
            ("otlp_grpc", signal): outbox for signal, outbox in self._uplink.outboxes.items()
        }
        if self._file is not None:
            self._outboxes |= {
                ("otlp_json_file", signal): outbox for signal, outbox in self._file.outboxes.items()
            }
        self.stats = ExportStats(self._outboxes)
        for outbox in self._outboxes.values():
            outbox.start()

    def collect(self, now_ns: int) -> None:
        """Take over series and finished spans as they are now. Under the node's lock."""
        self._series.ring.interval(now_ns)
        self._tree.update(now_ns)
        self._spans += self._flows.take_finished()
        if self._findings is not None:
            self._logs += self._findings.take_records()

    def ship(self) -> None:
        """Serialize what was collected and hand it over; never waits for a receiver or a disk."""
        spans, self._spans = self._spans, []
        logs, self._logs = self._logs, []
        # The makers are generators: a signal that nobody wants is not serialized.
        self._put(Signal.METRICS, self._tree.requests())
        if spans:
            self._put(Signal.TRACES, self._encoder.requests(spans))
        if logs:
            self._put(Signal.LOGS, self._logs_encoder().requests(logs))

    def flush(self, timeout: float) -> bool:
        """Wait until all that was shipped is out, at most ``timeout`` seconds. True when it is."""
        return flush_all(self._outboxes.values(), timeout)

    def close(self, timeout: float = 2.0) -> None:
        """Stop all threads, within about ``timeout`` seconds; what is still here is counted as dropped."""
        deadline = time.monotonic() + timeout
        self._uplink.close(timeout)
        if self._file is not None:
            for outbox in self._file.outboxes.values():
                outbox.close(max(deadline - time.monotonic(), 0.1))
            self._file.close()

    def _logs_encoder(self) -> LogEncoder:
        if self._log_encoder is None:
            # Most nodes have nothing to tell of.
            from fabrictap.export.logs import LogEncoder  # noqa: PLC0415

            self._log_encoder = LogEncoder(self._attributes)
        return self._log_encoder

    def _put(self, signal: Signal, requests: Iterable[Request]) -> None:
        outboxes = [outbox for (_, of), outbox in self._outboxes.items() if of is signal]
        if outboxes:
            for request in requests:
                for outbox in outboxes:
                    outbox.put(request)
