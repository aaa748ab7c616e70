"""Fleet overview: every node on one page, the worst first."""

from __future__ import annotations

from dashboards_as_code.common import (
    DARK,
    DARK_OUT,
    FLEET,
    FULL,
    NONE_WANTED,
    NVLINK_OUT,
    PART,
    PLACE,
    SECURITY,
    SENT,
    WARN_FROM_ONE,
    WHOLE_GPUS,
    finding_columns,
    node_column,
)
from dashboards_as_code.dashboard import dashboard, row, to
from dashboards_as_code.panels import (
    BYTES_PER_SECOND,
    GREEN,
    NUMBER,
    RED,
    SHARE,
    Json,
    Query,
    about,
    bargauge,
    stat,
    states,
    timeseries,
)
from dashboards_as_code.promql import NODE, P, of, rate
from dashboards_as_code.tables import Column, table
from fabrictap import catalog

_WARNINGS = of(P.FINDING_OPEN, 'fabrictap_finding_severity!="info"')


def build() -> Json:
    return dashboard(
        FLEET,
        "Fleet",
        "Every node: what moves past its CPUs, what of it nobody asked for, what should be looked at.",
        [
            row("Now", *_now()),
            row("Nodes", *_nodes()),
            row("Traffic", *_traffic()),
        ],
    )


def _now() -> list[Json]:
    return [
        stat(
            "Nodes",
            about(catalog.SOURCE_UP, says="Nodes whose agent is heard of."),
            Query(f"count(count by ({PLACE}) ({of(P.SOURCE_UP)}))"),
            unit=NUMBER,
            size=(3, 4),
        ),
        stat(
            "GPUs",
            about(catalog.GPU_PRESENT),
            Query(f"sum({WHOLE_GPUS})"),
            unit=NUMBER,
            size=(3, 4),
        ),
        stat(
            "Ports down",
            about(catalog.NETWORK_UP, says="RDMA ports that are not active."),
            Query(f"count({of(P.NETWORK_UP)}) - sum({of(P.NETWORK_UP)})"),
            unit=NUMBER,
            size=(3, 4),
            steps=NONE_WANTED,
        ),
        stat(
            "RDMA sent",
            about(catalog.NETWORK_IO, says="By all ports together; what one receives another has sent."),
            Query(f"sum({SENT})"),
            unit=BYTES_PER_SECOND,
            size=(4, 4),
        ),
        stat(
            "NVLink sent",
            about(catalog.GPU_IO, says="By all GPUs together, over NVLink."),
            Query(f"sum({NVLINK_OUT})"),
            unit=BYTES_PER_SECOND,
            size=(4, 4),
        ),
        stat(
            "Dark egress",
            about(catalog.PORT_DARK, says="Sent, and asked for by nobody who was seen."),
            Query(f"sum({DARK_OUT})"),
            unit=BYTES_PER_SECOND,
            size=(4, 4),
            steps=DARK,
            link=to(SECURITY, "Security", node="$node"),
        ),
        stat(
            "Findings open",
            about(catalog.FINDING_OPEN, says="Warnings and errors."),
            Query(f"sum({_WARNINGS})"),
            unit=NUMBER,
            size=(3, 4),
            steps=WARN_FROM_ONE,
            link=to(SECURITY, "Security", node="$node"),
        ),
    ]


def _nodes() -> list[Json]:
    return [
        table(
            "Every node",
            about(says="One line for each node. Rates are those of the last few minutes."),
            Query(f"sum by ({PLACE}) ({WHOLE_GPUS})"),
            Query(f"sum by ({PLACE}) ({of(P.NETWORK_UP)})"),
            Query(f"sum by ({PLACE}) ({SENT})"),
            Query(f"sum by ({PLACE}) ({NVLINK_OUT})"),
            Query(f"sum by ({PLACE}) ({DARK_OUT})"),
            Query(f"sum by ({PLACE}) ({_WARNINGS})"),
            Query(f"min by ({PLACE}) ({of(P.SOURCE_UP)})"),
            columns=[
                node_column(),
                Column("Value #A", "GPUs"),
                Column("Value #B", "Ports up"),
                Column("Value #C", "RDMA sent", BYTES_PER_SECOND),
                Column("Value #D", "NVLink sent", BYTES_PER_SECOND),
                Column("Value #E", "Dark egress", BYTES_PER_SECOND, steps=DARK),
                Column("Value #F", "Findings", NUMBER, steps=WARN_FROM_ONE),
                Column("Value #G", "Sources", mapped={"1": ("all up", GREEN), "0": ("down", RED)}),
            ],
            sort="Dark egress",
            size=(14, 8),
        ),
        table(
            "Open findings",
            about(catalog.FINDING_OPEN),
            Query(
                f"sum by ({PLACE}, fabrictap_finding_kind, fabrictap_finding_severity)"
                f" ({of(P.FINDING_OPEN)}) > 0"
            ),
            columns=[*finding_columns(), Column("Value", "Open")],
            size=(10, 8),
        ),
        states(
            "Findings by node",
            about(catalog.FINDING_OPEN, says="How many warnings and errors were open."),
            Query(f"sum by ({NODE}) ({_WARNINGS})", f"{{{{{NODE}}}}}"),
            mapped={
                "0": ("none", "#23422f"),
                "1": ("1", "#c9a227"),
                "2": ("2", "#e07b39"),
                "3": ("3", "#d1495b"),
                "4": ("4", "#a4133c"),
            },
            size=(14, 7),
        ),
        bargauge(
            "Busiest ports",
            about(
                catalog.NETWORK_IO,
                catalog.NETWORK_LIMIT,
                says="Share of the link's speed, in the busier direction.",
            ),
            Query(
                f"topk(8, max by ({NODE}, hw_id) ("
                f"sum by ({PART}, network_io_direction) ({rate(P.NETWORK_IO)})"
                f" / on ({PART}) group_left () {of(P.NETWORK_LIMIT)}))",
                f"{{{{{NODE}}}}} {{{{hw_id}}}}",
            ),
            unit=SHARE,
            steps=FULL,
            most=1,
            size=(10, 7),
        ),
    ]


def _traffic() -> list[Json]:
    by_node = f"{{{{{NODE}}}}}"
    return [
        timeseries(
            "RDMA sent by node",
            about(catalog.NETWORK_IO),
            Query(f"sum by ({NODE}) ({SENT})", by_node),
            unit=BYTES_PER_SECOND,
            size=(8, 8),
            stacked=True,
        ),
        timeseries(
            "NVLink sent by node",
            about(catalog.GPU_IO),
            Query(f"sum by ({NODE}) ({NVLINK_OUT})", by_node),
            unit=BYTES_PER_SECOND,
            size=(8, 8),
            stacked=True,
        ),
        timeseries(
            "Dark egress by node",
            about(catalog.PORT_DARK),
            Query(f"sum by ({NODE}) ({DARK_OUT})", by_node),
            unit=BYTES_PER_SECOND,
            size=(8, 8),
        ),
    ]
