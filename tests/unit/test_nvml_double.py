"""What the NVML stand-in's GPUs are and count, through the unmodified nvidia-ml-py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pynvml as nvml
import pytest

from doubles.nvml import builder, loader
from doubles.nvml.attach import attached
from doubles.nvml.driver import MARKER, Node, Process

SUM = 0xFFFFFFFF
NOT_SUPPORTED = nvml.NVML_ERROR_NOT_SUPPORTED


def fabric_of(device: object) -> nvml.c_nvmlGpuFabricInfo_v3_t:
    fabric = nvml.c_nvmlGpuFabricInfo_v3_t()
    nvml.nvmlDeviceGetGpuFabricInfoV(device, nvml.byref(fabric))
    return fabric


GETTERS: dict[str, Callable[[object], object]] = {
    "memory": nvml.nvmlDeviceGetMemoryInfo,
    "memory_v2": lambda device: nvml.nvmlDeviceGetMemoryInfo(device, nvml.nvmlMemory_v2),
    "bar1": nvml.nvmlDeviceGetBAR1MemoryInfo,
    "utilization": nvml.nvmlDeviceGetUtilizationRates,
    "ecc_mode": nvml.nvmlDeviceGetEccMode,
    "ecc_errors": lambda device: nvml.nvmlDeviceGetTotalEccErrors(device, 1, 1),
    "dram_errors": lambda device: nvml.nvmlDeviceGetMemoryErrorCounter(device, 0, 1, 2),
    "remapped": nvml.nvmlDeviceGetRemappedRows,
    "retired": lambda device: nvml.nvmlDeviceGetRetiredPages(device, 0),
    "reasons": nvml.nvmlDeviceGetCurrentClocksEventReasons,
    "clock": lambda device: nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_MEM),
    "clock_max": lambda device: nvml.nvmlDeviceGetMaxClockInfo(device, nvml.NVML_CLOCK_SM),
    "power": nvml.nvmlDeviceGetPowerUsage,
    "power_limit": nvml.nvmlDeviceGetEnforcedPowerLimit,
    "energy": nvml.nvmlDeviceGetTotalEnergyConsumption,
    "temperature": lambda device: nvml.nvmlDeviceGetTemperatureV(device, nvml.NVML_TEMPERATURE_GPU),
    "serial": nvml.nvmlDeviceGetSerial,
    "vbios": nvml.nvmlDeviceGetVbiosVersion,
    "brand": nvml.nvmlDeviceGetBrand,
    "minor": nvml.nvmlDeviceGetMinorNumber,
    "numa": nvml.nvmlDeviceGetNumaNodeId,
    "affinity": lambda device: nvml.nvmlDeviceGetMemoryAffinity(device, 1, 0)[0],
    "pcie_generation": nvml.nvmlDeviceGetCurrPcieLinkGeneration,
    "pcie_width": nvml.nvmlDeviceGetCurrPcieLinkWidth,
    "replays": nvml.nvmlDeviceGetPcieReplayCounter,
    "compute_mode": nvml.nvmlDeviceGetComputeMode,
    "persistence": nvml.nvmlDeviceGetPersistenceMode,
    "events": nvml.nvmlDeviceGetSupportedEventTypes,
    "mig": nvml.nvmlDeviceGetMigMode,
    "fabric": fabric_of,
    "link": lambda device: nvml.nvmlDeviceGetNvLinkState(device, 0),
    "remote_pci": lambda device: nvml.nvmlDeviceGetNvLinkRemotePciInfo(device, 0),
    "link_errors": lambda device: nvml.nvmlDeviceGetNvLinkErrorCounter(device, 0, 0),
}  # fmt: skip
#: What each profile's GPUs refuse.
REFUSED = {
    "hgx-h100": {"retired"},
    "a100-mig": {"retired", "utilization", "fabric"},
    "gb200": {"retired", "remote_pci", "link_errors"},
    "l40s": {"retired", "mig", "fabric", "link", "remote_pci", "link_errors"},
    "laptop": {
        "ecc_mode", "ecc_errors", "dram_errors", "remapped", "retired", "power_limit", "energy", "serial",
        "numa", "affinity", "events", "mig", "fabric", "link", "remote_pci", "link_errors",
    },
}  # fmt: skip

Attach = Callable[..., Node]


@pytest.fixture
def attach(nvml_built: builder.Built, tmp_path: Path) -> Iterator[Attach]:
    """Make nodes by profile; nvidia-ml-py talks to the last one."""
    with ExitStack() as stack:

        def make(profile: str, **options: object) -> Node:
            context: AbstractContextManager[Node] = attached(
                nvml_built, tmp_path / profile, profile, **options
            )
            return stack.enter_context(context)

        yield make


def read(device: object, *fields: int | tuple[int, int]) -> list[int | None]:
    """Field values; None for those that are not there."""
    return [
        None if one.nvmlReturn else (one.value.uiVal if one.valueType == 1 else one.value.ullVal)
        for one in nvml.nvmlDeviceGetFieldValues(device, list(fields))
    ]


@pytest.mark.parametrize("profile", loader.names())
def test_a_node_says_that_it_is_none_and_its_gpus_are_found_by_every_name(
    attach: Attach, profile: str
) -> None:
    attach(profile)
    assert nvml.nvmlSystemGetDriverVersion().endswith(MARKER)
    assert nvml.nvmlSystemGetNVMLVersion()
    assert nvml.nvmlSystemGetCudaDriverVersion() >= 12000
    count = nvml.nvmlDeviceGetCount()
    devices = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
    assert len({nvml.nvmlDeviceGetUUID(device) for device in devices}) == count
    for index, device in enumerate(devices):
        pci = nvml.nvmlDeviceGetPciInfo(device)
        assert pci.busId == f"{pci.domain:08X}:{pci.bus:02X}:{pci.device:02X}.0"
        for same in (
            nvml.nvmlDeviceGetHandleByUUID(nvml.nvmlDeviceGetUUID(device)),
            nvml.nvmlDeviceGetHandleByPciBusId(pci.busId.encode()),
            nvml.nvmlDeviceGetHandleByPciBusId(pci.busIdLegacy.lower().encode()),
        ):
            assert nvml.nvmlDeviceGetIndex(same) == index
    with pytest.raises(nvml.NVMLError_InvalidArgument):
        nvml.nvmlDeviceGetHandleByIndex(count)
    with pytest.raises(nvml.NVMLError_NotFound):
        nvml.nvmlDeviceGetHandleByUUID("GPU-none")


@pytest.mark.parametrize("profile", loader.names())
def test_a_profile_refuses_what_its_gpu_has_not(attach: Attach, profile: str) -> None:
    attach(profile)
    device = nvml.nvmlDeviceGetHandleByIndex(0)
    refused = set()
    for name, getter in GETTERS.items():
        try:
            getter(device)
        except nvml.NVMLError_NotSupported:
            refused.add(name)
    assert refused == REFUSED[profile]


def test_memory_is_told_in_both_versions_and_others_are_refused(attach: Attach) -> None:
    attach("hgx-h100")
    device = nvml.nvmlDeviceGetHandleByIndex(3)
    one, two = nvml.nvmlDeviceGetMemoryInfo(device), nvml.nvmlDeviceGetMemoryInfo(device, nvml.nvmlMemory_v2)
    assert one.total == two.total == two.used + two.free + two.reserved == 85520809984
    assert one.used == two.used + two.reserved
    with pytest.raises(nvml.NVMLError_ArgumentVersionMismatch):
        nvml.nvmlDeviceGetMemoryInfo(device, nvml.nvmlMemory_v2 + 1)


def test_nvlink_counts_kib_per_link_and_in_sum_as_time_goes_on(attach: Attach) -> None:
    node = attach("hgx-h100")
    device = nvml.nvmlDeviceGetHandleByIndex(2)
    for link in range(18):
        node.nvlink(2, link, tx_bytes_per_s=1024 * 1000 * (link + 1), rx_bytes_per_s=0)
    before = nvml.nvmlDeviceGetFieldValues(device, [(138, 0)])[0].timestamp
    node.advance(2.5)
    after = nvml.nvmlDeviceGetFieldValues(device, [(138, 0)])[0]
    assert after.timestamp - before == 2_500_000
    assert (after.valueType, after.value.ullVal) == (nvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, 2500)
    assert read(device, (138, 17), (139, 17), (140, 17), (138, SUM), (139, SUM)) == [
        45000,
        0,
        50625,
        427500,
        0,
    ]
    assert read(nvml.nvmlDeviceGetHandleByIndex(1), (138, 0)) == [25_000_000]  # its own rate


@pytest.mark.parametrize(
    ("bits", "start"), [(64, (1 << 64) - 1000), (32, (1 << 32) - 1000), (48, (1 << 48) - 1000)]
)
def test_a_counter_wraps_at_its_width(attach: Attach, bits: int, start: int) -> None:
    node = attach("hgx-h100")
    device = nvml.nvmlDeviceGetHandleByIndex(0)
    node.field(0, 138, 5).set(start).rate(1500).width(bits)
    assert read(device, (138, 5)) == [start]
    node.advance(1)
    assert read(device, (138, 5)) == [500]


def test_a_counter_is_reset_and_goes_on(attach: Attach) -> None:
    node = attach("hgx-h100")
    device = nvml.nvmlDeviceGetHandleByIndex(0)
    node.nvlink(0, 4, tx_bytes_per_s=1 << 20)
    node.advance(10)
    node.set_nvlink(0, 4, tx_bytes=0)
    assert read(device, (138, 4)) == [0]
    node.advance(1)
    assert read(device, (138, 4)) == [1024]
    node.field(0, 161, 4).set(3)
    node.reset_counters(0)
    assert read(device, (138, SUM), (140, 4), (161, 4), 197, 90) == [0, 0, 0, 0, 26562]
    node.advance(1)
    assert read(device, (138, 4), (161, 4)) == [1024, 0]


def test_a_counter_follows_the_machines_clock_and_stops(attach: Attach) -> None:
    node = attach("hgx-h100")
    device = nvml.nvmlDeviceGetHandleByIndex(0)
    node.field(0, 197).set(0).rate(1e9)
    node.real_clock()
    seen = [read(device, 197)[0] for _ in range(1000)]
    node.real_clock(False)
    assert seen == sorted(seen)
    assert len(set(seen)) > 100
    assert read(device, 197) == read(device, 197)


def test_fields_answer_each_for_itself(attach: Attach) -> None:
    node = attach("hgx-h100")
    device = nvml.nvmlDeviceGetHandleByIndex(0)
    node.field(0, 139, 1).answer(nvml.NVML_ERROR_NO_PERMISSION)
    node.field(0, 165, 2).remove()
    asked = [(138, 1), (139, 1), (165, 2), (138, 36), (201, 0), 91, 9999, (202, SUM)]
    values = nvml.nvmlDeviceGetFieldValues(device, asked)
    assert [one.nvmlReturn for one in values] == [0, 4, 3, 2, 3, 0, 2, 2]
    assert (values[5].valueType, values[5].value.uiVal) == (nvml.NVML_VALUE_TYPE_UNSIGNED_INT, 18)
    # On the other GPUs nothing has changed.
    assert read(nvml.nvmlDeviceGetHandleByIndex(1), (139, 1), (165, 2)) == [0, 1]
    node.field(0, 139, 1).answer(0)
    assert read(device, (139, 1)) == [0]


@pytest.mark.parametrize(
    ("profile", "link", "links", "switches"),
    [("hgx-h100", (26562, 6), 18, 4), ("a100-mig", (25000, 4), 12, 6)],
)
def test_nvlinks_lead_to_switches(
    attach: Attach, profile: str, link: tuple[int, int], links: int, switches: int
) -> None:
    speed, version = link
    node = attach(profile)
    device = nvml.nvmlDeviceGetHandleByIndex(3)
    assert read(device, 91, 90, (164, 0), (166, 0)) == [links, speed, speed, version]
    ends = [nvml.nvmlDeviceGetNvLinkRemotePciInfo(device, link).busId for link in range(links)]
    assert len(set(ends)) == switches
    assert nvml.nvmlDeviceGetNvLinkVersion(device, 0) == version
    assert nvml.nvmlDeviceGetNvLinkRemoteDeviceType(device, links - 1) == nvml.NVML_NVLINK_DEVICE_TYPE_SWITCH
    assert nvml.nvmlDeviceGetNvLinkCapability(device, 0, nvml.NVML_NVLINK_CAP_P2P_SUPPORTED) == 1
    assert nvml.nvmlDeviceGetNvLinkCapability(device, 0, nvml.NVML_NVLINK_CAP_SLI_BRIDGE) == 0
    with pytest.raises(nvml.NVMLError_InvalidArgument):
        nvml.nvmlDeviceGetNvLinkState(device, links)
    node.field(3, 161, 5).set(7)
    node.link_value(3, 5, "crc_data_errors").set(3)
    node.link_active(3, 5, False)
    assert [nvml.nvmlDeviceGetNvLinkErrorCounter(device, 5, kind) for kind in (0, 1, 2, 3, 4)] == [
        7,
        0,
        0,
        3,
        0,
    ]
    assert [nvml.nvmlDeviceGetNvLinkState(device, link) for link in (4, 5)] == [1, 0]


def test_blackwell_has_the_fields_of_nvlink5_and_c2c(attach: Attach) -> None:
    node = attach("gb200")
    device = nvml.nvmlDeviceGetHandleByIndex(0)
    node.nvlink(0, 7, tx_bytes_per_s=256_000, rx_bytes_per_s=512_000)
    node.advance(2)
    assert read(device, *((field, 7) for field in range(201, 205))) == [2000, 512_000, 4000, 1_024_000]
    assert None not in read(
        device, *((field, 17) for field in (*range(205, 216), 219, 221, *range(235, 251)))
    )
    assert read(device, (161, 0), (162, 0), (163, 0)) == [None] * 3
    assert read(device, 170, (171, 4), (172, 4), (171, 5), 230) == [5, 1, 44712, None, 0]
    fabric = fabric_of(device)
    assert (fabric.state, fabric.status, fabric.cliqueId, fabric.healthSummary) == (3, 0, 32766, 1)
    assert bytes(fabric.clusterUuid).hex().startswith("6d1c5a10")
    fabric.version = 1
    with pytest.raises(nvml.NVMLError_ArgumentVersionMismatch):
        nvml.nvmlDeviceGetGpuFabricInfoV(device, nvml.byref(fabric))


def test_confidential_computing_is_off_or_not_there(attach: Attach) -> None:
    attach("hgx-h100")
    assert nvml.nvmlSystemGetConfComputeState().ccFeature == nvml.NVML_CC_SYSTEM_FEATURE_DISABLED
    settings = nvml.c_nvmlSystemConfComputeSettings_v1_t()
    assert nvml.nvmlSystemGetConfComputeSettings(nvml.byref(settings)) == nvml.NVML_SUCCESS
    assert settings.multiGpuMode == nvml.NVML_CC_SYSTEM_MULTIGPU_NONE


def test_gpus_of_one_numa_node_are_nearer(attach: Attach) -> None:
    attach("hgx-h100")
    first, second, last = (nvml.nvmlDeviceGetHandleByIndex(index) for index in (0, 1, 7))
    assert nvml.nvmlDeviceGetTopologyCommonAncestor(first, second) == nvml.NVML_TOPOLOGY_NODE
    assert nvml.nvmlDeviceGetTopologyCommonAncestor(first, last) == nvml.NVML_TOPOLOGY_SYSTEM


def test_the_list_of_processes_says_how_much_room_it_needs(attach: Attach) -> None:
    node = attach("hgx-h100")
    device = nvml.nvmlDeviceGetHandleByIndex(0)
    assert nvml.nvmlDeviceGetComputeRunningProcesses(device) == []
    node.processes(0, "compute", [Process(100 + one, one << 30) for one in range(40)])
    node.processes(0, "mps", [Process(7, 1 << 20)])
    call = nvml.nvmlLib.nvmlDeviceGetComputeRunningProcesses_v3
    rows, count = (nvml.c_nvmlProcessInfo_v3_t * 64)(), nvml.c_uint(39)
    assert call(device, nvml.byref(count), rows) == nvml.NVML_ERROR_INSUFFICIENT_SIZE
    assert count.value == 40
    assert call(device, nvml.byref(count), rows) == nvml.NVML_SUCCESS
    assert (rows[39].pid, rows[39].usedGpuMemory) == (139, 39 << 30)
    assert len(nvml.nvmlDeviceGetComputeRunningProcesses(device)) == 40
    assert [one.pid for one in nvml.nvmlDeviceGetMPSComputeRunningProcesses(device)] == [7]
    assert nvml.nvmlDeviceGetGraphicsRunningProcesses(device) == []


def test_error_texts_are_there_for_every_code(attach: Attach) -> None:
    attach("laptop")
    codes = {getattr(nvml, name) for name in dir(nvml) if name.startswith("NVML_ERROR_")}
    texts = {nvml.nvmlErrorString(code) for code in codes}
    assert len(texts) == len(codes)
    assert nvml.nvmlErrorString(12345) == "Unknown Error"
