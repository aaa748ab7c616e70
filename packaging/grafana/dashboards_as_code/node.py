"""One node: hardware and software side by side."""

from __future__ import annotations

from dashboards_as_code.common import (
    DARK,
    DARK_OUT,
    FLOWS,
    GPUS,
    NODES,
    NONE_WANTED,
    NVLINK_OUT,
    PART,
    SECURITY,
    SENT,
    UP_OR_DOWN,
    WARN_FROM_ONE,
    WHOLE_GPUS,
    numbered,
)
from dashboards_as_code.dashboard import dashboard, row, to, workload_of
from dashboards_as_code.panels import (
    BYTES,
    BYTES_PER_SECOND,
    CELSIUS,
    NUMBER,
    SHARE,
    WATTS,
    Json,
    Query,
    about,
    stat,
    states,
    timeseries,
)
from dashboards_as_code.promql import IN, OUT, P, of, rate, with_workload
from dashboards_as_code.tables import Column, table
from fabrictap import catalog

_WELL = of(P.HW_STATUS, 'hw_state="ok"', 'hw_type="gpu"')
_PROCESS = "process_pid, process_executable_name, workload"
_SELECTED_WORKLOAD = '$by=~"$workload"'


def build() -> Json:
    return dashboard(
        NODES,
        "Node",
        "One node: what its ports, GPUs and links moved, and which workloads asked for it.",
        [
            row("Now", *_now()),
            row("Traffic", *_traffic()),
            row("Workloads", *_workloads()),
            row("GPUs", *_gpus()),
        ],
        variables=workload_of(P.VERBS_IO),
        one_node=True,
    )


def _now() -> list[Json]:
    return [
        stat(
            "GPUs that are not well",
            about(catalog.HW_STATUS),
            Query(f"count({WHOLE_GPUS}) - sum({_WELL})"),
            unit=NUMBER,
            steps=NONE_WANTED,
            link=to(GPUS, "GPUs", node="$node"),
        ),
        stat(
            "Ports down",
            about(catalog.NETWORK_UP),
            Query(f"count({of(P.NETWORK_UP)}) - sum({of(P.NETWORK_UP)})"),
            unit=NUMBER,
            steps=NONE_WANTED,
        ),
        stat("RDMA sent", about(catalog.NETWORK_IO), Query(f"sum({SENT})"), unit=BYTES_PER_SECOND),
        stat(
            "NVLink sent",
            about(catalog.GPU_IO),
            Query(f"sum({NVLINK_OUT})"),
            unit=BYTES_PER_SECOND,
        ),
        stat(
            "Dark egress",
            about(catalog.PORT_DARK),
            Query(f"sum({DARK_OUT})"),
            unit=BYTES_PER_SECOND,
            steps=DARK,
            link=to(SECURITY, "Security", node="$node"),
        ),
        stat(
            "Findings open",
            about(catalog.FINDING_OPEN),
            Query(f"sum({of(P.FINDING_OPEN)})"),
            unit=NUMBER,
            steps=WARN_FROM_ONE,
            link=to(SECURITY, "Security", node="$node"),
        ),
    ]


def _traffic() -> list[Json]:
    def balance(direction: str, dark: str) -> list[Query]:
        return [
            Query(f"sum({rate(P.PORT_ATTRIBUTED, direction)})", "attributed"),
            Query(f"sum({rate(P.PORT_UNCERTAIN, direction)})", "uncertain (headers and the like)"),
            Query(f"sum({rate(P.PORT_DARK, direction)})", dark),
        ]

    says = "What the ports moved, divided by what posts of local processes explain."
    metrics = (catalog.PORT_ATTRIBUTED, catalog.PORT_UNCERTAIN, catalog.PORT_DARK)
    return [
        timeseries(
            "Sent: who asked for it",
            about(*metrics, says=says),
            *balance(OUT, "dark"),
            unit=BYTES_PER_SECOND,
            stacked=True,
        ),
        timeseries(
            "Received: who asked for it",
            about(
                *metrics,
                says=f"{says} What a peer writes into memory of this node needs no post here, and is "
                "dark on the receiving side by its nature.",
            ),
            *balance(IN, "not posted here (a peer's writes are this)"),
            unit=BYTES_PER_SECOND,
            stacked=True,
        ),
        timeseries(
            "RDMA by port (received below)",
            about(catalog.NETWORK_IO),
            Query(f"sum by (hw_id) ({SENT})", "{{hw_id}} sent"),
            Query(f"sum by (hw_id) ({rate(P.NETWORK_IO, IN)})", "{{hw_id}} received"),
            unit=BYTES_PER_SECOND,
            mirrored="received",
        ),
        states(
            "Ports",
            about(catalog.NETWORK_UP),
            Query(f"min by (hw_id) ({of(P.NETWORK_UP)})", "{{hw_id}}"),
            mapped=UP_OR_DOWN,
        ),
    ]


def _workloads() -> list[Json]:
    return [
        timeseries(
            "Posted by workload (received below)",
            about(catalog.VERBS_IO),
            Query(f"sum by ($by) ({rate(P.VERBS_IO, OUT, _SELECTED_WORKLOAD)})", "{{$by}} out"),
            Query(f"sum by ($by) ({rate(P.VERBS_IO, IN, _SELECTED_WORKLOAD)})", "{{$by}} in"),
            unit=BYTES_PER_SECOND,
            mirrored=" in$",
            size=(12, 9),
        ),
        table(
            "Processes",
            about(catalog.VERBS_IO, catalog.MR_SIZE, says="Processes that use RDMA."),
            Query(f"sum by ({_PROCESS}) ({with_workload(rate(P.VERBS_IO, OUT))})"),
            Query(f"sum by ({_PROCESS}) ({with_workload(rate(P.VERBS_IO, IN))})"),
            Query(f"sum by ({_PROCESS}) ({with_workload(of(P.MR_SIZE))})"),
            columns=[
                Column("process_pid", "PID", link=to(FLOWS, "Flows of the node", node="$node")),
                Column("process_executable_name", "Process"),
                Column("workload", "Workload"),
                Column("Value #A", "Out", BYTES_PER_SECOND),
                Column("Value #B", "In", BYTES_PER_SECOND),
                Column("Value #C", "Registered", BYTES),
            ],
            sort="Out",
            size=(12, 9),
        ),
    ]


def _gpus() -> list[Json]:
    name = "GPU {{gpu_index}}"
    return [
        timeseries(
            "GPU utilization",
            about(catalog.GPU_UTILIZATION),
            Query(numbered(of(P.GPU_UTILIZATION)), name),
            unit=SHARE,
            size=(8, 8),
            most=1,
        ),
        timeseries(
            "Memory bandwidth",
            about(catalog.GPU_MEMORY_BANDWIDTH),
            Query(numbered(of(P.GPU_MEMORY_BANDWIDTH)), name),
            unit=SHARE,
            size=(8, 8),
            most=1,
        ),
        timeseries(
            "PCIe of GPUs (received below)",
            about(catalog.GPU_IO),
            Query(f"sum by (gpu_index) ({numbered(_pcie(OUT))})", f"{name} sent"),
            Query(f"sum by (gpu_index) ({numbered(_pcie(IN))})", f"{name} received"),
            unit=BYTES_PER_SECOND,
            size=(8, 8),
            mirrored="received",
        ),
        timeseries(
            "Power",
            about(catalog.GPU_POWER),
            Query(numbered(of(P.GPU_POWER, 'hw_type="gpu"')), name),
            unit=WATTS,
            size=(8, 8),
        ),
        timeseries(
            "Temperature",
            about(catalog.GPU_TEMPERATURE),
            Query(
                f"max by (gpu_index, hw_sensor_location) ({numbered(of(P.GPU_TEMPERATURE))})",
                f"{name} {{{{hw_sensor_location}}}}",
            ),
            unit=CELSIUS,
            size=(8, 8),
            least=None,
        ),
        timeseries(
            "GPU memory in use",
            about(catalog.GPU_MEMORY_USAGE),
            Query(numbered(of(P.GPU_MEMORY_USAGE)), name),
            unit=BYTES,
            size=(8, 8),
        ),
    ]


def _pcie(direction: str) -> str:
    moved = rate(P.GPU_IO, 'gpu_interconnect="pcie"', direction)
    return f"sum by ({PART}) ({moved})"
