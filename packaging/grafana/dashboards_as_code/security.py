"""Security: dark traffic, exposure, findings, and how much of it is seen."""

from __future__ import annotations

from dashboards_as_code.common import (
    DARK,
    DARK_OUT,
    PART,
    PLACE,
    SECURITY,
    SENT,
    WARN_FROM_ONE,
    finding_columns,
    node_column,
    numbered,
)
from dashboards_as_code.dashboard import dashboard, row, workload_of
from dashboards_as_code.panels import (
    BYTES,
    BYTES_PER_SECOND,
    NUMBER,
    ORANGE,
    SHARE,
    Json,
    Query,
    about,
    logs,
    stat,
    states,
    timeseries,
)
from dashboards_as_code.promql import NODE, OUT, P, grown, of, rate, with_workload
from dashboards_as_code.tables import Column, table
from fabrictap import catalog

_PORT = f"{{{{{NODE}}}}} {{{{hw_id}}}}"
_OPEN_TO_PEERS = 'rdma_memory_region_remote_access=~"read|write|read_write"'


def build() -> Json:
    return dashboard(
        SECURITY,
        "Security",
        "Traffic that nobody asked for, memory that peers may reach, findings, and what cannot be seen.",
        [
            row("Now", *_now()),
            row("Findings", *_findings()),
            row("Dark traffic", *_dark()),
            row("Exposure", *_exposure()),
            row("What cannot be seen", *_blind()),
        ],
        variables=workload_of(P.MR_SIZE),
        logs=True,
    )


def _now() -> list[Json]:
    severity = f"sum by (fabrictap_finding_severity) ({of(P.FINDING_OPEN)})"
    exposed = of(P.MR_SIZE, _OPEN_TO_PEERS)
    unseen = of(P.QP_STATUS, 'fabrictap_coverage="control_only"')
    return [
        stat(
            "Findings open",
            about(catalog.FINDING_OPEN),
            Query(severity, "{{fabrictap_finding_severity}}"),
            unit=NUMBER,
            size=(6, 4),
            steps=WARN_FROM_ONE,
            names=True,
        ),
        stat(
            "Dark egress",
            about(catalog.PORT_DARK),
            Query(f"sum({DARK_OUT})"),
            unit=BYTES_PER_SECOND,
            size=(6, 4),
            steps=DARK,
        ),
        stat(
            "Memory open to peers",
            about(catalog.MR_SIZE, says="Memory that whoever knows the key may read or write."),
            Query(f"sum({exposed})"),
            unit=BYTES,
            size=(6, 4),
        ),
        stat(
            "Queue pairs whose posts are not seen",
            about(catalog.QP_STATUS, says="Coverage control_only; 0 where there is none."),
            Query(f"sum({unseen}) or 0 * sum({of(P.SOURCE_UP)})"),
            unit=NUMBER,
            size=(6, 4),
            steps=WARN_FROM_ONE,
        ),
    ]


def _findings() -> list[Json]:
    kinds = "fabrictap_finding_kind, fabrictap_finding_severity"
    return [
        table(
            "Open",
            about(catalog.FINDING_OPEN, says="The kind leads to what it means and what to do."),
            Query(f"sum by ({PLACE}, {kinds}) ({of(P.FINDING_OPEN)}) > 0"),
            columns=[*finding_columns(), Column("Value", "Open")],
            size=(8, 8),
        ),
        states(
            "By kind",
            about(catalog.FINDING_OPEN, says="Open findings over time."),
            Query(
                f"sum by ({NODE}, fabrictap_finding_kind) ({of(P.FINDING_OPEN)})",
                f"{{{{{NODE}}}}} {{{{fabrictap_finding_kind}}}}",
            ),
            mapped={"0": ("none", "#23422f"), **{str(n): (str(n), ORANGE) for n in range(1, 10)}},
            size=(8, 8),
        ),
        timeseries(
            "Opened",
            about(catalog.FINDING_COUNT),
            Query(
                f"sum by (fabrictap_finding_kind) ({grown(P.FINDING_COUNT)})",
                "{{fabrictap_finding_kind}}",
            ),
            unit=NUMBER,
            bars=True,
            size=(8, 8),
        ),
        logs(
            "Told",
            about(
                says="The events of findings, from Loki: who, where, with whom, how much, and what to do. "
                f"`{catalog.FINDING_RAISED.name}`: {catalog.FINDING_RAISED.description}."
            ),
            f'{{service_name="fabrictap"}} | {NODE}=~"$node" | fabrictap_finding_kind!=""',
            size=(24, 6),
        ),
    ]


def _dark() -> list[Json]:
    share = f"sum by ({PART}) ({DARK_OUT}) / sum by ({PART}) ({SENT})"
    return [
        timeseries(
            "Sent, and asked for by nobody who was seen",
            about(catalog.PORT_DARK),
            Query(f"sum by ({NODE}, hw_id) ({DARK_OUT}) > 0", _PORT),
            unit=BYTES_PER_SECOND,
            size=(10, 9),
        ),
        timeseries(
            "Share of what the port sent",
            about(catalog.PORT_DARK, catalog.NETWORK_IO),
            Query(f"{share} > 0", _PORT),
            unit=SHARE,
            size=(7, 9),
        ),
        table(
            "Dark bytes in the range",
            about(catalog.PORT_DARK, catalog.PORT_UNCERTAIN, catalog.PORT_ATTRIBUTED),
            Query(f"sum by ({PLACE}, hw_id) (increase({of(P.PORT_DARK, OUT)}[$__range])) > 0"),
            Query(f"sum by ({PLACE}, hw_id) (increase({of(P.PORT_UNCERTAIN, OUT)}[$__range])) > 0"),
            Query(f"sum by ({PLACE}, hw_id) (increase({of(P.PORT_ATTRIBUTED, OUT)}[$__range])) > 0"),
            columns=[
                node_column(),
                Column("hw_id", "Port", width=90),
                Column("Value #A", "Dark", BYTES),
                Column("Value #B", "Uncertain", BYTES),
                Column("Value #C", "Attributed", BYTES),
            ],
            sort="Dark",
            size=(7, 9),
        ),
    ]


def _exposure() -> list[Json]:
    chosen = '$by=~"$workload"'
    labels = f"{NODE}, workload, process_executable_name, rdma_device, rdma_memory_region_remote_access"
    return [
        table(
            "Memory that peers may reach",
            about(catalog.MR_SIZE),
            Query(f"sum by ({labels}) ({with_workload(of(P.MR_SIZE, _OPEN_TO_PEERS, chosen))})"),
            Query(f"sum by ({labels}) ({with_workload(of(P.MR_COUNT, _OPEN_TO_PEERS, chosen))})"),
            columns=[
                node_column(),
                Column("workload", "Workload"),
                Column("process_executable_name", "Process"),
                Column("rdma_device", "Device"),
                Column("rdma_memory_region_remote_access", "Peers may"),
                Column("Value #A", "Memory", BYTES),
                Column("Value #B", "Regions", NUMBER),
            ],
            sort="Memory",
            size=(12, 9),
        ),
        timeseries(
            "Memory by what peers may do",
            about(catalog.MR_SIZE),
            Query(
                f"sum by (rdma_memory_region_remote_access) ({of(P.MR_SIZE, chosen)})",
                "{{rdma_memory_region_remote_access}}",
            ),
            unit=BYTES,
            stacked=True,
            size=(6, 9),
        ),
        states(
            "GPUs with several containers",
            about(catalog.GPU_CONTAINERS, says="GPUs that MIG does not split."),
            Query(numbered(of(P.GPU_CONTAINERS, 'hw_parent=""')), f"{{{{{NODE}}}}} GPU {{{{gpu_index}}}}"),
            mapped={
                "0": ("none", "#30363d"),
                "1": ("one", "#23422f"),
                **{str(n): (str(n), ORANGE) for n in range(2, 9)},
            },
            size=(6, 9),
        ),
    ]


def _blind() -> list[Json]:
    unseen = 'fabrictap_coverage="control_only"'
    return [
        timeseries(
            "Coverage of queue pairs",
            about(catalog.QP_STATUS, says=f"{catalog.COVERAGE.meaning}."),
            Query(f"sum by (fabrictap_coverage) ({of(P.QP_STATUS)})", "{{fabrictap_coverage}}"),
            unit=NUMBER,
            stacked=True,
            size=(8, 8),
        ),
        timeseries(
            "Share of queue pairs whose posts are seen",
            about(catalog.QP_STATUS),
            Query(
                f"1 - (sum by ({NODE}) ({of(P.QP_STATUS, unseen)})"
                f" or 0 * sum by ({NODE}) ({of(P.QP_STATUS)})) / sum by ({NODE}) ({of(P.QP_STATUS)})",
                f"{{{{{NODE}}}}}",
            ),
            unit=SHARE,
            most=1,
            size=(8, 8),
        ),
        timeseries(
            "Uncertain: headers, or asked for by nobody",
            about(catalog.PORT_UNCERTAIN),
            Query(f"sum by ({NODE}) ({rate(P.PORT_UNCERTAIN, OUT)})", f"{{{{{NODE}}}}}"),
            unit=BYTES_PER_SECOND,
            size=(8, 8),
        ),
    ]
