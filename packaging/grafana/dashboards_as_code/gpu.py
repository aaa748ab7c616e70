"""GPUs and NVLink: every link, what it moves and how it is."""

from __future__ import annotations

from dashboards_as_code import gpu_health
from dashboards_as_code.common import (
    FULL,
    GPUS,
    PART,
    UP_OR_DOWN,
    node_column,
    numbered,
)
from dashboards_as_code.dashboard import dashboard, row, values
from dashboards_as_code.panels import (
    BYTES,
    BYTES_PER_SECOND,
    NUMBER,
    PER_SECOND,
    SHARE,
    Json,
    Query,
    about,
    bargauge,
    heatmap,
    states,
    timeseries,
)
from dashboards_as_code.promql import IN, NODE, OUT, P, of, peak, rate
from dashboards_as_code.tables import Column, matrix, table
from fabrictap import catalog

_GPU = 'hw_id=~"$gpu"'
_NAME = f"{{{{{NODE}}}}} GPU {{{{gpu_index}}}}"
_NVLINK, _PCIE = 'gpu_interconnect="nvlink"', 'gpu_interconnect="pcie"'


def build() -> Json:
    return dashboard(
        GPUS,
        "GPU and NVLink",
        "What GPUs move over NVLink and PCIe without their CPU, and the health of each link and GPU.",
        [
            row("NVLink", *_nvlink()),
            row("Links", *_links()),
            row("PCIe and memory", *_pcie()),
            row("NVLink 5 and later", *_fifth()),
            row("Health", *gpu_health.panels()),
            row("Who", *_users()),
        ],
        variables=[
            values(
                "gpu",
                "GPU",
                f'label_values({P.GPU_PRESENT}{{k8s_cluster_name=~"$cluster",host_name=~"$node"}}, hw_id)',
            )
        ],
    )


def _nvlink() -> list[Json]:
    largest = f"sum by ({PART}, network_io_direction) ({of(peak(catalog.GPU_IO), _NVLINK, _GPU)})"
    limit = f"sum by ({PART}) ({of(P.NVLINK_LIMIT, _GPU)})"
    return [
        timeseries(
            "NVLink by GPU (received below)",
            about(catalog.GPU_IO),
            Query(numbered(f"sum by ({PART}) ({rate(P.GPU_IO, _NVLINK, OUT, _GPU)})"), f"{_NAME} sent"),
            Query(numbered(f"sum by ({PART}) ({rate(P.GPU_IO, _NVLINK, IN, _GPU)})"), f"{_NAME} received"),
            unit=BYTES_PER_SECOND,
            mirrored="received",
            size=(12, 9),
        ),
        timeseries(
            "Bursts: largest rate within an export interval",
            about(
                catalog.rates(catalog.GPU_IO)[1],
                says="Between two samples, 0.1 s apart by default: what an average over seconds hides.",
            ),
            Query(numbered(f"max by ({PART}) ({of(peak(catalog.GPU_IO), _NVLINK, _GPU)})"), _NAME),
            unit=BYTES_PER_SECOND,
            size=(6, 9),
        ),
        bargauge(
            "Bursts: share of the links' speed",
            about(catalog.rates(catalog.GPU_IO)[1], catalog.NVLINK_LIMIT),
            Query(
                f"topk(16, {numbered(f'max by ({PART}) ({largest} / on ({PART}) group_left () {limit})')})",
                _NAME,
            ),
            unit=SHARE,
            steps=FULL,
            most=1,
            size=(6, 9),
        ),
    ]


def _links() -> list[Json]:
    by_link = f"sum by ({PART}, gpu_nvlink_link)"
    errors = rate(P.ERRORS, 'error_type=~"nvlink_.*"', _GPU)
    return [
        matrix(
            "Sent by link, now",
            about(catalog.NVLINK_IO, says="A row for each GPU, a column for each of its links."),
            Query(
                f"sum by (gpu, gpu_nvlink_link) (label_join("
                f"{numbered(f'{by_link} ({rate(P.NVLINK_IO, OUT, _GPU)})')}"
                f', "gpu", " ", "{NODE}", "gpu_index"))'
            ),
            rows="gpu",
            columns="gpu_nvlink_link",
            unit=BYTES_PER_SECOND,
            size=(24, 9),
        ),
        states(
            "Links that were down",
            about(catalog.NVLINK_UP, says="Only those that were down at some time in the range."),
            Query(
                f"{numbered(f'min by ({PART}, gpu_nvlink_link) ({of(P.NVLINK_UP, _GPU)})')}"
                f" and on ({PART}, gpu_nvlink_link)"
                f" (min_over_time({of(P.NVLINK_UP, _GPU)}[$__range] @ end()) == 0)",
                f"{_NAME} link {{{{gpu_nvlink_link}}}}",
            ),
            mapped=UP_OR_DOWN,
            size=(12, 7),
        ),
        timeseries(
            "NVLink errors",
            about(catalog.ERRORS, says="Replays, CRC errors and recoveries in a second."),
            Query(
                f"{numbered(f'sum by ({PART}, gpu_nvlink_link, error_type) ({errors})')} > 0",
                f"{_NAME} link {{{{gpu_nvlink_link}}}} {{{{error_type}}}}",
            ),
            unit=NUMBER,
            size=(12, 7),
            bars=True,
        ),
        heatmap(
            "Sent by GPU over time",
            about(catalog.GPU_IO, says="A row for each GPU: one that moves less than the others stands out."),
            Query(numbered(f"sum by ({PART}) ({rate(P.GPU_IO, _NVLINK, OUT, _GPU)})"), _NAME),
            unit=BYTES_PER_SECOND,
            size=(24, 8),
        ),
    ]


def _fifth() -> list[Json]:
    return [
        timeseries(
            "Packets by GPU",
            about(catalog.NVLINK_PACKETS),
            Query(numbered(f"sum by ({PART}) ({rate(P.NVLINK_PACKETS, OUT, _GPU)})"), _NAME),
            unit=PER_SECOND,
        ),
        timeseries(
            "NVLink bit errors",
            about(catalog.NVLINK_BIT_ERRORS),
            Query(
                f"max by ({NODE}, gpu_nvlink_bit_error_kind) ({of(P.NVLINK_BIT_ERRORS, _GPU)})",
                f"{{{{{NODE}}}}} {{{{gpu_nvlink_bit_error_kind}}}}",
            ),
            unit="none",
        ),
    ]


def _pcie() -> list[Json]:
    moved = f"sum by ({PART}, network_io_direction) ({rate(P.GPU_IO, _PCIE, _GPU)})"
    return [
        timeseries(
            "PCIe by GPU (received below)",
            about(catalog.GPU_IO),
            Query(numbered(f"sum by ({PART}) ({rate(P.GPU_IO, _PCIE, OUT, _GPU)})"), f"{_NAME} sent"),
            Query(numbered(f"sum by ({PART}) ({rate(P.GPU_IO, _PCIE, IN, _GPU)})"), f"{_NAME} received"),
            unit=BYTES_PER_SECOND,
            size=(8, 8),
            mirrored="received",
        ),
        timeseries(
            "PCIe: share of the link's speed",
            about(catalog.PCIE_LIMIT),
            Query(
                numbered(f"max by ({PART}) ({moved} / on ({PART}) group_left () {of(P.PCIE_LIMIT, _GPU)})"),
                _NAME,
            ),
            unit=SHARE,
            most=1,
            size=(8, 8),
        ),
        timeseries(
            "BAR1 in use",
            about(catalog.GPU_BAR1_USAGE),
            Query(numbered(of(P.GPU_BAR1_USAGE, _GPU)), _NAME),
            unit=BYTES,
            size=(8, 8),
        ),
        timeseries(
            "Memory bandwidth",
            about(catalog.GPU_MEMORY_BANDWIDTH),
            Query(numbered(of(P.GPU_MEMORY_BANDWIDTH, _GPU)), _NAME),
            unit=SHARE,
            most=1,
        ),
        timeseries(
            "Utilization",
            about(catalog.GPU_UTILIZATION),
            Query(numbered(of(P.GPU_UTILIZATION, _GPU)), _NAME),
            unit=SHARE,
            most=1,
        ),
    ]


def _users() -> list[Json]:
    labels = "hw_id, process_pid, process_executable_name, k8s_namespace_name, k8s_pod_name, slurm_job_id"
    return [
        table(
            "GPUs",
            about(catalog.GPU_PRESENT),
            Query(
                f"max by ({NODE}, hw_id, gpu_index, hw_model, hw_driver_version, gpu_pci_address,"
                f" gpu_rdma_devices) ({of(P.GPU_PRESENT, _GPU)})"
            ),
            columns=[
                node_column(),
                Column("gpu_index", "GPU", width=60),
                Column("hw_model", "Model"),
                Column("hw_driver_version", "Driver"),
                Column("gpu_pci_address", "PCI"),
                Column("gpu_rdma_devices", "Nearest RDMA"),
            ],
            size=(12, 9),
        ),
        table(
            "Processes on GPUs",
            about(catalog.GPU_PROCESS_MEMORY),
            Query(f"sum by ({NODE}, {labels}) ({of(P.GPU_PROCESS_MEMORY, _GPU)})"),
            columns=[
                node_column(),
                Column("process_pid", "PID"),
                Column("process_executable_name", "Process"),
                Column("k8s_namespace_name", "Namespace"),
                Column("k8s_pod_name", "Pod"),
                Column("slurm_job_id", "Slurm job"),
                Column("Value", "Memory", BYTES),
            ],
            sort="Memory",
            size=(12, 9),
        ),
    ]
