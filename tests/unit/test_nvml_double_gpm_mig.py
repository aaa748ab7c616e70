"""GPM samples and MIG instances of the NVML stand-in, through the unmodified nvidia-ml-py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pynvml as nvml
import pytest

from doubles.nvml import builder
from doubles.nvml.attach import attached
from doubles.nvml.driver import Node, Process

MIB = 1 << 20


@pytest.fixture
def h100(nvml_built: builder.Built, tmp_path: Path) -> Iterator[Node]:
    with attached(nvml_built, tmp_path / "node", "hgx-h100") as node:
        yield node


@pytest.fixture
def a100(nvml_built: builder.Built, tmp_path: Path) -> Iterator[Node]:
    with attached(nvml_built, tmp_path / "node", "a100-mig") as node:
        yield node


def request(first: object, second: object, *metrics: int) -> nvml.c_nvmlGpmMetricsGet_t:
    get = nvml.c_nvmlGpmMetricsGet_t()
    get.version, get.numMetrics = nvml.NVML_GPM_METRICS_GET_VERSION, len(metrics)
    get.sample1, get.sample2 = first, second
    for row, metric in zip(get.metrics, metrics, strict=False):
        row.metricId = metric
    return get


def results(get: nvml.c_nvmlGpmMetricsGet_t) -> list[float | str]:
    """Values, and the names of refusals."""
    nvml.nvmlGpmMetricsGet(get)
    rows = get.metrics[: get.numMetrics]
    return [row.value if row.nvmlReturn == 0 else nvml.nvmlErrorString(row.nvmlReturn) for row in rows]


def samples(node: Node, gpu: int, seconds: float) -> tuple[object, object]:
    device = nvml.nvmlDeviceGetHandleByIndex(gpu)
    first = nvml.nvmlGpmSampleGet(device, nvml.nvmlGpmSampleAlloc())
    node.advance(seconds)
    return first, nvml.nvmlGpmSampleGet(device, nvml.nvmlGpmSampleAlloc())


def test_gpm_gives_rates_of_the_traffic_between_two_samples(h100: Node) -> None:
    assert nvml.nvmlGpmQueryDeviceSupport(nvml.nvmlDeviceGetHandleByIndex(1)).isSupportedDevice == 1
    for link in range(18):
        h100.nvlink(1, link, tx_bytes_per_s=10 * MIB * link, rx_bytes_per_s=MIB)
    h100.pcie(1, tx_bytes_per_s=3 * MIB, rx_bytes_per_s=5 * MIB)
    h100.gpm(1, nvml.NVML_GPM_METRIC_DRAM_BW_UTIL).set(62_500)
    pair = samples(h100, 1, 0.5)
    # DRAM %, PCIe tx and rx, NVLink total rx and tx, L0 rx and tx, L17 rx and tx
    assert results(request(*pair, 10, 20, 21, 60, 61, 62, 63, 96, 97)) == pytest.approx(
        [62.5, 3, 5, 18, 1530, 1, 0, 1, 170]
    )
    for sample in pair:
        nvml.nvmlGpmSampleFree(sample)


def test_gpm_metrics_answer_each_for_itself(h100: Node) -> None:
    h100.gpm(0, 2).answer(nvml.NVML_ERROR_NO_DATA)
    # DRAM, SM, an engine that is not there, link 18, cumulative PCIe, one that no driver has
    answers = results(request(*samples(h100, 0, 1), 10, 2, 30, 212, 255, 9999))
    assert answers == [41.5, "No data", "Not Supported", *["Invalid Argument"] * 3]


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.1])
def test_gpm_samples_that_are_too_close_are_refused(h100: Node, seconds: float) -> None:
    with pytest.raises(nvml.NVMLError_InvalidArgument):
        nvml.nvmlGpmMetricsGet(request(*samples(h100, 0, seconds), 10))


def test_gpm_refuses_another_version_samples_of_two_gpus_and_the_wrong_order(h100: Node) -> None:
    first, second = samples(h100, 0, 1)
    wrong = request(first, second, 10)
    wrong.version = 2
    with pytest.raises(nvml.NVMLError_ArgumentVersionMismatch):
        nvml.nvmlGpmMetricsGet(wrong)
    other, _ = samples(h100, 1, 1)
    for pair in ((second, first), (first, other), (first, nvml.nvmlGpmSampleAlloc())):
        with pytest.raises(nvml.NVMLError_InvalidArgument):
            nvml.nvmlGpmMetricsGet(request(*pair, 10))


def test_newer_drivers_give_bytes_since_reboot(nvml_built: builder.Built, tmp_path: Path) -> None:
    with attached(nvml_built, tmp_path / "node", "gb200") as node:
        node.nvlink(0, 17, tx_bytes_per_s=7 * MIB, rx_bytes_per_s=2 * MIB)
        pair = samples(node, 0, 4)
        # L17 rx and tx, PCIe tx; C2C both ways in MiB/s
        answers = results(request(*pair, 295, 296, 255, 100, 103))
        assert answers == pytest.approx([8 * MIB, 28 * MIB, 4 * 1_536_000_000, 1953.125, 1953.125])
        node.value(0, "gpm_cumulative").set(0)
        assert results(request(*pair, 295, 255)) == ["Not Supported"] * 2


def test_ampere_has_no_gpm(a100: Node) -> None:
    device = nvml.nvmlDeviceGetHandleByIndex(0)
    assert nvml.nvmlGpmQueryDeviceSupport(device).isSupportedDevice == 0
    with pytest.raises(nvml.NVMLError_NotSupported):
        nvml.nvmlGpmSampleGet(device, nvml.nvmlGpmSampleAlloc())


def test_gpm_of_a_gpu_instance_tells_its_own_load_and_no_links(h100: Node) -> None:
    h100.add_mig(0, 0, "MIG-a", gpu_instance=2, compute_instance=0, dram_util_millipercent=12_500)
    device = nvml.nvmlDeviceGetHandleByIndex(0)
    pair = []
    for _ in range(2):
        h100.advance(1)
        pair.append(nvml.nvmlGpmMigSampleGet(device, 2, nvml.nvmlGpmSampleAlloc()))
    assert results(request(*pair, 10, 60)) == [12.5, "Not Supported"]
    with pytest.raises(nvml.NVMLError_NotFound):
        nvml.nvmlGpmMigSampleGet(device, 3, nvml.nvmlGpmSampleAlloc())


def instances(gpu: int) -> dict[int, object]:
    device = nvml.nvmlDeviceGetHandleByIndex(gpu)
    found = {}
    for slot in range(nvml.nvmlDeviceGetMaxMigDeviceCount(device)):
        try:
            found[slot] = nvml.nvmlDeviceGetMigDeviceHandleByIndex(device, slot)
        except nvml.NVMLError_NotFound:
            continue
    return found


def test_mig_instances_have_ids_slices_and_memory_of_their_own(a100: Node) -> None:
    assert [nvml.nvmlDeviceGetMigMode(nvml.nvmlDeviceGetHandleByIndex(gpu)) for gpu in (0, 2)] == [
        [1, 1],
        [0, 0],
    ]
    assert {gpu: list(instances(gpu)) for gpu in (0, 1, 2)} == {0: [0, 1, 2, 3], 1: [0], 2: []}
    first = instances(0)[0]
    attributes = nvml.nvmlDeviceGetAttributes(first)
    assert (attributes.multiprocessorCount, attributes.gpuInstanceSliceCount) == (42, 3)
    assert attributes.memorySizeMB == 19968
    assert nvml.nvmlDeviceGetMemoryInfo(first).total == 19968 * MIB
    assert (nvml.nvmlDeviceGetGpuInstanceId(first), nvml.nvmlDeviceGetComputeInstanceId(first)) == (2, 0)
    assert nvml.nvmlDeviceIsMigDeviceHandle(first)
    parent = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(first)
    assert not nvml.nvmlDeviceIsMigDeviceHandle(parent)
    assert nvml.nvmlDeviceGetIndex(parent) == 0
    uuid = nvml.nvmlDeviceGetUUID(first)
    assert uuid.startswith("MIG-")
    assert nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByUUID(uuid)) == uuid
    with pytest.raises(nvml.NVMLError_NotSupported):
        nvml.nvmlDeviceGetPowerUsage(first)
    with pytest.raises(nvml.NVMLError_NotSupported):
        nvml.nvmlDeviceGetGpuInstanceId(parent)


def test_the_handle_of_an_instance_dies_with_it_and_not_with_others(a100: Node) -> None:
    before = instances(0)
    a100.remove_mig(0, 1)
    assert list(instances(0)) == [0, 2, 3]
    with pytest.raises(nvml.NVMLError_InvalidArgument):
        nvml.nvmlDeviceGetUUID(before[1])
    assert nvml.nvmlDeviceGetGpuInstanceId(before[2]) == 9
    a100.add_mig(0, 1, "MIG-new", gpu_instance=5, compute_instance=1)
    with pytest.raises(nvml.NVMLError_InvalidArgument):
        nvml.nvmlDeviceGetUUID(before[1])
    assert nvml.nvmlDeviceGetUUID(instances(0)[1]) == "MIG-new"


def test_processes_of_a_gpu_instance_are_those_with_its_ids(a100: Node) -> None:
    a100.processes(0, "compute", [Process(11, MIB, 2, 0), Process(12, MIB, 3, 0), Process(13, MIB, 2, 0)])
    first = instances(0)[0]
    assert [one.pid for one in nvml.nvmlDeviceGetComputeRunningProcesses(first)] == [11, 13]
    whole = nvml.nvmlDeviceGetComputeRunningProcesses(nvml.nvmlDeviceGetHandleByIndex(0))
    assert [(one.pid, one.gpuInstanceId) for one in whole] == [(11, 2), (12, 3), (13, 2)]
