"""Agent health: does every source deliver, does everything arrive, what does it cost."""

from __future__ import annotations

from dashboards_as_code.common import AGENT, UP_OR_DOWN, WARN_FROM_ONE, node_column
from dashboards_as_code.dashboard import dashboard, row
from dashboards_as_code.panels import (
    BYTES,
    GREEN,
    NUMBER,
    PER_SECOND,
    RED,
    SECONDS,
    SHARE,
    Json,
    Query,
    about,
    stat,
    states,
    timeseries,
)
from dashboards_as_code.promql import NODE, P, grown, of, quantile, rate
from dashboards_as_code.tables import Column, table
from fabrictap import catalog

_NODE = f"{{{{{NODE}}}}}"
_SENT = "POINTS_EXPORTED", "SPANS_EXPORTED", "LOGS_EXPORTED"


def build() -> Json:
    return dashboard(
        AGENT,
        "Agent health",
        "fabrictap about itself: sources, probes, losses, exports, cost.",
        [
            row("Now", *_now()),
            row("Sources and probes", *_sources()),
            row("Budget of probes", *_budget()),
            row("Losses", *_losses()),
            row("Exports", *_exports()),
            row("Cost", *_cost()),
        ],
    )


def _now() -> list[Json]:
    return [
        stat(
            "Agents",
            about(catalog.SOURCE_UP, says="Nodes that are heard of."),
            Query(f"count(count by ({NODE}) ({of(P.SOURCE_UP)}))"),
            unit=NUMBER,
            size=(6, 4),
        ),
        stat(
            "Sources down",
            about(catalog.SOURCE_UP),
            Query(f"count({of(P.SOURCE_UP)}) - sum({of(P.SOURCE_UP)})"),
            unit=NUMBER,
            size=(6, 4),
            steps=((None, GREEN), (1, RED)),
        ),
        stat(
            "Points not handed over, in an hour",
            about(catalog.POINTS_EXPORTED),
            Query(f"sum(increase({_failed(P.POINTS_EXPORTED)}[1h])) or 0 * sum({of(P.SOURCE_UP)})"),
            unit=NUMBER,
            size=(6, 4),
            steps=WARN_FROM_ONE,
        ),
        stat(
            "CPU of an agent, the most",
            about(catalog.PROCESS_CPU, says="Share of one core."),
            Query(f"max(sum by ({NODE}) ({rate(P.PROCESS_CPU)}))"),
            unit=SHARE,
            size=(6, 4),
            decimals=2,
        ),
    ]


def _failed(metric: str) -> str:
    return of(metric, 'error_type!=""')


def _sources() -> list[Json]:
    return [
        states(
            "Sources",
            about(catalog.SOURCE_UP),
            Query(
                f"min by ({NODE}, fabrictap_source) ({of(P.SOURCE_UP)})", f"{_NODE} {{{{fabrictap_source}}}}"
            ),
            mapped=UP_OR_DOWN,
        ),
        timeseries(
            "Time of a sample, p99",
            about(catalog.SOURCE_DURATION),
            Query(
                quantile(0.99, P.SOURCE_DURATION, f"{NODE}, fabrictap_source"),
                f"{_NODE} {{{{fabrictap_source}}}}",
            ),
            unit=SECONDS,
        ),
        table(
            "Probes",
            about(catalog.PROBE_ATTACHED),
            Query(f"sum by ({NODE}, fabrictap_probe, fabrictap_probe_method) ({of(P.PROBE_ATTACHED)})"),
            columns=[
                node_column(),
                Column("fabrictap_probe", "Probe"),
                Column("fabrictap_probe_method", "By"),
                Column("Value", "Attached", NUMBER, steps=((None, RED), (1, GREEN))),
            ],
            size=(8, 9),
        ),
        timeseries(
            "Reads that failed",
            about(catalog.SOURCE_ERRORS, says="Only what has grown."),
            Query(
                f"sum by ({NODE}, fabrictap_source, error_type) ({rate(P.SOURCE_ERRORS)}) > 0",
                f"{_NODE} {{{{fabrictap_source}}}} {{{{error_type}}}}",
            ),
            unit=PER_SECOND,
            size=(8, 9),
        ),
        table(
            "Figures that GPUs do not deliver",
            about(catalog.METRIC_UNAVAILABLE),
            Query(
                f"sum by ({NODE}, fabrictap_provider, fabrictap_metric, fabrictap_unavailable_reason)"
                f" ({of(P.METRIC_UNAVAILABLE)}) > 0"
            ),
            columns=[
                node_column(),
                Column("fabrictap_provider", "Provider"),
                Column("fabrictap_metric", "Metric"),
                Column("fabrictap_unavailable_reason", "Why"),
                Column("Value", "GPUs", NUMBER),
            ],
            size=(8, 9),
        ),
    ]


def _budget() -> list[Json]:
    return [
        timeseries(
            "Taken from processes by probes",
            about(catalog.PROBE_COST, says="In cores, of all processes of a node together."),
            Query(f"sum by ({NODE}) ({rate(P.PROBE_COST)})", _NODE),
            unit=SHARE,
            size=(8, 8),
        ),
        timeseries(
            "Processes by how their posts are counted",
            about(catalog.BUDGET_PROCESSES, says=f"{catalog.BUDGET_STATE.meaning}."),
            Query(
                f"sum by ({NODE}, fabrictap_budget_state) ({of(P.BUDGET_PROCESSES)})",
                f"{_NODE} {{{{fabrictap_budget_state}}}}",
            ),
            unit=NUMBER,
            size=(8, 8),
        ),
        timeseries(
            "Decisions",
            about(catalog.BUDGET_DECISIONS, says=f"{catalog.BUDGET_DECISION.meaning}."),
            Query(
                f"sum by ({NODE}, fabrictap_budget_decision) ({grown(P.BUDGET_DECISIONS)})",
                f"{_NODE} {{{{fabrictap_budget_decision}}}}",
            ),
            unit=NUMBER,
            bars=True,
            size=(8, 8),
        ),
    ]


def _losses() -> list[Json]:
    return [
        timeseries(
            "Records of probes, received and lost",
            about(catalog.RECORDS, catalog.LOST),
            Query(f"sum by ({NODE}) ({rate(P.RECORDS)})", f"{_NODE} received"),
            Query(
                f"sum by ({NODE}, fabrictap_loss_reason) ({rate(P.LOST)})",
                f"{_NODE} lost: {{{{fabrictap_loss_reason}}}}",
            ),
            unit=PER_SECOND,
            size=(8, 8),
        ),
        timeseries(
            "Tables",
            about(catalog.TABLE_ENTRIES),
            Query(f"sum by (fabrictap_table) ({of(P.TABLE_ENTRIES)})", "{{fabrictap_table}}"),
            unit=NUMBER,
            size=(8, 8),
        ),
        timeseries(
            "Dropped because a limit was reached",
            about(
                catalog.TABLE_EVICTED,
                catalog.SERIES_REFUSED,
                says="Should be nothing: raise limits.* if not.",
            ),
            Query(
                f"sum by ({NODE}, fabrictap_table) (increase({of(P.TABLE_EVICTED)}[5m]))",
                f"{_NODE} {{{{fabrictap_table}}}}",
            ),
            Query(f"sum by ({NODE}) (increase({of(P.SERIES_REFUSED)}[5m]))", f"{_NODE} series"),
            unit=NUMBER,
            size=(8, 8),
        ),
    ]


def _exports() -> list[Json]:
    handed = [
        Query(f"sum by ({NODE}) ({rate(getattr(P, name), _NO_ERROR)})", f"{_NODE} {what}")
        for name, what in zip(_SENT, ("points", "spans", "log events"), strict=True)
    ]
    lost = " or ".join(
        f"sum by ({NODE}, error_type, otel_component_type) (increase({_failed(getattr(P, name))}[5m]))"
        for name in _SENT
    )
    return [
        timeseries(
            "Handed over",
            about(catalog.POINTS_EXPORTED, catalog.SPANS_EXPORTED, catalog.LOGS_EXPORTED),
            *handed,
            unit=PER_SECOND,
            size=(8, 8),
        ),
        timeseries(
            "Not handed over, in five minutes",
            about(catalog.POINTS_EXPORTED),
            Query(lost, f"{_NODE} {{{{otel_component_type}}}} {{{{error_type}}}}"),
            unit=NUMBER,
            size=(8, 8),
        ),
        timeseries(
            "Series",
            about(catalog.SERIES_COUNT),
            Query(f"sum by ({NODE}) ({of(P.SERIES_COUNT)})", _NODE),
            unit=NUMBER,
            size=(8, 8),
        ),
    ]


_NO_ERROR = 'error_type=""'


def _cost() -> list[Json]:
    return [
        timeseries(
            "CPU",
            about(catalog.PROCESS_CPU, says="Share of one core."),
            Query(f"sum by ({NODE}) ({rate(P.PROCESS_CPU)})", _NODE),
            unit=SHARE,
            size=(8, 8),
        ),
        timeseries(
            "Memory",
            about(catalog.PROCESS_MEMORY),
            Query(f"sum by ({NODE}) ({of(P.PROCESS_MEMORY)})", _NODE),
            unit=BYTES,
            size=(8, 8),
        ),
        timeseries(
            "CPU time of a look of each detector, p99",
            about(catalog.DETECTOR_DURATION),
            Query(quantile(0.99, P.DETECTOR_DURATION, "fabrictap_detector"), "{{fabrictap_detector}}"),
            unit=SECONDS,
            size=(8, 8),
        ),
    ]
