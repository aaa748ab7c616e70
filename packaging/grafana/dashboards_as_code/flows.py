"""Flows and peers: who talks to whom, with what, how much; from a line to its trace."""

from __future__ import annotations

from dashboards_as_code.common import FLOWS, SECURITY, node_column
from dashboards_as_code.dashboard import dashboard, row, to, to_traces, values, workload_of
from dashboards_as_code.panels import (
    BYTES,
    BYTES_PER_SECOND,
    NUMBER,
    PER_SECOND,
    Json,
    Query,
    about,
    bargauge,
    stat,
    timeseries,
)
from dashboards_as_code.promql import IN, NODE, OUT, P, of, quantile, rate, with_workload
from dashboards_as_code.tables import Column, matrix, table
from fabrictap import catalog

_CHOSEN = '$by=~"$workload",rdma_device=~"$device"'
_FLOW = (
    f"{NODE}, workload, process_executable_name, rdma_device, rdma_qp_number, rdma_qp_type, rdma_gid,"
    " rdma_peer_gid, fabrictap_coverage"
)
#: Spans of the flow in the line: both ends', for both compute the same trace id.
_TRACE = (
    '{name="rdma.flow" && span.rdma.gid="${__data.fields.From}" && span.rdma.peer.gid="${__data.fields.To}"'
    " && span.rdma.qp.number=${__data.fields.QP}}"
)


def build() -> Json:
    return dashboard(
        FLOWS,
        "Flows and peers",
        "Who talks to whom over RDMA, with which operations, how much; each line leads to its trace.",
        [
            row("Who with whom", *_peers()),
            row("Flows", *_flows()),
            row("Operations", *_operations()),
            row("Connections", *_connections()),
        ],
        variables=[
            *workload_of(P.VERBS_IO),
            values(
                "device",
                "Device",
                f'label_values({P.VERBS_IO}{{k8s_cluster_name=~"$cluster",host_name=~"$node"}}, rdma_device)',
            ),
        ],
        traces=True,
    )


def _peers() -> list[Json]:
    return [
        stat(
            "Bytes posted out",
            about(catalog.VERBS_IO),
            Query(f"sum({rate(P.VERBS_IO, OUT, _CHOSEN)})"),
            unit=BYTES_PER_SECOND,
            size=(6, 4),
        ),
        stat(
            "Bytes asked in",
            about(catalog.VERBS_IO, says="By RDMA READ and atomics."),
            Query(f"sum({rate(P.VERBS_IO, IN, _CHOSEN)})"),
            unit=BYTES_PER_SECOND,
            size=(6, 4),
        ),
        stat(
            "Live queue pairs",
            about(catalog.QP_STATUS),
            Query(f"sum({of(P.QP_STATUS, _CHOSEN)})"),
            unit=NUMBER,
            size=(6, 4),
        ),
        stat(
            "Peers",
            about(catalog.QP_STATUS, says="Different addresses at the other ends."),
            Query(f"count(count by (rdma_peer_gid) ({of(P.QP_STATUS, _CHOSEN, _PEER_KNOWN)}))"),
            unit=NUMBER,
            size=(6, 4),
        ),
        matrix(
            "Traffic matrix: from, to",
            about(
                catalog.VERBS_IO,
                says="What workloads posted to send, in bytes per second. What they read is counted at the "
                "reader, in the table below.",
            ),
            Query(f"sum by (rdma_gid, rdma_peer_gid) ({rate(P.VERBS_IO, OUT, _CHOSEN)}) > 0"),
            rows="rdma_gid",
            columns="rdma_peer_gid",
            unit=BYTES_PER_SECOND,
            size=(24, 12),
        ),
    ]


_PEER_KNOWN = 'rdma_peer_gid!=""'


def _flows() -> list[Json]:
    return [
        table(
            "Flows",
            about(
                catalog.VERBS_IO,
                says="One line for each queue pair that moved something. The address leads to the flow's "
                "trace, the node to what is found there.",
            ),
            Query(f"topk(50, sum by ({_FLOW}) ({with_workload(rate(P.VERBS_IO, OUT, _CHOSEN))}))"),
            Query(f"topk(50, sum by ({_FLOW}) ({with_workload(rate(P.VERBS_IO, IN, _CHOSEN))}))"),
            Query(f"topk(50, sum by ({_FLOW}) ({with_workload(rate(P.VERBS_OPERATIONS, _CHOSEN))}))"),
            columns=[
                node_column(),
                Column("workload", "Workload", link=to(SECURITY, "What is found there", node="$node")),
                Column("process_executable_name", "Process"),
                Column("rdma_device", "Device"),
                Column("rdma_qp_number", "QP", width=70),
                Column("rdma_qp_type", "Type", width=60),
                Column("rdma_gid", "From", link=to_traces("Traces of this flow", _TRACE)),
                Column("rdma_peer_gid", "To", link=to_traces("Traces of this flow", _TRACE)),
                Column("Value #A", "Out", BYTES_PER_SECOND),
                Column("Value #B", "In", BYTES_PER_SECOND),
                Column("Value #C", "Posts/s", NUMBER),
                Column("fabrictap_coverage", "Coverage"),
            ],
            sort="Out",
            size=(24, 12),
        ),
    ]


def _operations() -> list[Json]:
    bytes_by = f"sum by (rdma_operation) ({rate(P.VERBS_IO, _CHOSEN)})"
    posts_by = f"sum by (rdma_operation) ({rate(P.VERBS_OPERATIONS, _CHOSEN)})"
    return [
        timeseries(
            "Bytes by operation",
            about(catalog.VERBS_IO),
            Query(bytes_by, "{{rdma_operation}}"),
            unit=BYTES_PER_SECOND,
            stacked=True,
            size=(8, 8),
        ),
        timeseries(
            "Posts by operation",
            about(catalog.VERBS_OPERATIONS),
            Query(posts_by, "{{rdma_operation}}"),
            unit=PER_SECOND,
            stacked=True,
            size=(8, 8),
        ),
        timeseries(
            "Size of messages",
            about(catalog.VERBS_MESSAGE_SIZE, says="Half of the messages are smaller; nine of ten are."),
            Query(
                quantile(0.5, P.VERBS_MESSAGE_SIZE, "rdma_operation", _CHOSEN), "{{rdma_operation}} median"
            ),
            Query(quantile(0.9, P.VERBS_MESSAGE_SIZE, "rdma_operation", _CHOSEN), "{{rdma_operation}} p90"),
            unit=BYTES,
            size=(8, 8),
        ),
        timeseries(
            "By workload (received below)",
            about(catalog.VERBS_IO),
            Query(f"sum by ($by) ({rate(P.VERBS_IO, OUT, _CHOSEN)})", "{{$by}} out"),
            Query(f"sum by ($by) ({rate(P.VERBS_IO, IN, _CHOSEN)})", "{{$by}} in"),
            unit=BYTES_PER_SECOND,
            mirrored=" in$",
            size=(12, 8),
        ),
        bargauge(
            "Busiest peers",
            about(catalog.VERBS_IO, says="In both directions."),
            Query(f"topk(10, sum by (rdma_peer_gid) ({rate(P.VERBS_IO, _CHOSEN)}))", "{{rdma_peer_gid}}"),
            unit=BYTES_PER_SECOND,
            size=(12, 8),
        ),
    ]


def _connections() -> list[Json]:
    return [
        timeseries(
            "Queue pairs by state",
            about(catalog.QP_STATUS),
            Query(f"sum by (rdma_qp_state) ({of(P.QP_STATUS, _CHOSEN)})", "{{rdma_qp_state}}"),
            unit=NUMBER,
            stacked=True,
            size=(8, 8),
        ),
        timeseries(
            "Queue pairs by coverage",
            about(catalog.QP_STATUS, says=f"{catalog.COVERAGE.meaning}."),
            Query(f"sum by (fabrictap_coverage) ({of(P.QP_STATUS, _CHOSEN)})", "{{fabrictap_coverage}}"),
            unit=NUMBER,
            stacked=True,
            size=(8, 8),
        ),
        timeseries(
            "Connection manager",
            about(catalog.CM_EVENTS),
            Query(
                f"sum by (rdma_cm_event) (increase({of(P.CM_EVENTS)}[$__rate_interval]))", "{{rdma_cm_event}}"
            ),
            unit=NUMBER,
            bars=True,
            size=(8, 8),
        ),
    ]
