"""The signals of OTLP that the agent sends, and what the agent says about having sent them."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from fabrictap import catalog

if TYPE_CHECKING:
    from fabrictap.export.outbox import Outbox


class Signal(enum.Enum):
    """A signal; the value is its name in the configuration."""

    METRICS = "metrics"
    TRACES = "traces"
    LOGS = "logs"


_COUNTED_BY = {
    Signal.METRICS: catalog.POINTS_EXPORTED,
    Signal.TRACES: catalog.SPANS_EXPORTED,
    Signal.LOGS: catalog.LOGS_EXPORTED,
}
_ITEM = {Signal.METRICS: "metric", Signal.TRACES: "span", Signal.LOGS: "log"}


class ExportStats:
    """What became of everything that was exported, as points of the catalog's otel.sdk.exporter.* metrics."""

    def __init__(self, outboxes: Mapping[tuple[str, Signal], Outbox]) -> None:
        self._outboxes = outboxes

    def counts(self) -> Iterator[tuple[catalog.Metric, dict[str, str], int]]:
        """Metric, attributes and cumulative count, for ``SeriesTable.series`` and ``Series.observe``.

        ``otel.component.type`` is that of the semantic conventions for OTLP over gRPC; they have none for
        a file.
        """
        for (way, signal), outbox in self._outboxes.items():
            component = f"{way}_{_ITEM[signal]}_exporter"
            attributes = {
                catalog.COMPONENT_TYPE.name: component,
                catalog.COMPONENT_NAME.name: f"{component}/0",
            }
            yield _COUNTED_BY[signal], attributes, outbox.stats.exported
            for error_type, count in sorted(outbox.stats.failed.items()):
                yield _COUNTED_BY[signal], attributes | {catalog.ERROR_TYPE.name: error_type}, count

    def exported(self, way: str, signal: Signal) -> int:
        """Items handed over. ``way``: otlp_grpc or otlp_json_file."""
        return self._outboxes[way, signal].stats.exported

    def failed(self, way: str, signal: Signal) -> dict[str, int]:
        """Items that were not handed over, by error.type."""
        return self._outboxes[way, signal].stats.failed
