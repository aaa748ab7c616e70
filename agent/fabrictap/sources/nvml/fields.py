"""What the numbers of NVML are called and worth: field ids, GPM metrics, bits and codes.

Numbers are those of nvml.h (CUDA 13.1); nvidia-ml-py has the same as NVML_FI_DEV_* and NVML_GPM_METRIC_*.
"""

from __future__ import annotations

from dataclasses import dataclass

from fabrictap.catalog import GPU_IO, NVLINK_IO, NVLINK_PACKETS, NVLINK_RAW_IO, Metric

KIB = 1024
MIB = 1 << 20
TRANSMIT = "transmit"
RECEIVE = "receive"
NVLINK = "nvlink"
PCIE = "pcie"
C2C = "c2c"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two counters of one figure, transmit and receive: ids, what a count is worth, how wide they are."""

    metric: Metric
    transmit: int
    receive: int
    scale: int
    bits: int = 64
    #: The catalog's gpu.nvlink.counter, where it is one.
    counter: str | None = None

    @property
    def sides(self) -> tuple[tuple[str, int], tuple[str, int]]:
        return (TRANSMIT, self.transmit), (RECEIVE, self.receive)


#: Counters of one NVLink (scope id = link); of those with one metric the first that answers is taken.
#: NVLINK_THROUGHPUT_DATA_TX/RX and RAW_TX/RX count KiB; NVLINK_COUNT_XMIT_BYTES and RCV_BYTES, of NVLink 5,
#: are what the port counts.
LINK_PAIRS = (
    Pair(NVLINK_IO, 138, 139, KIB, counter="data"),
    Pair(NVLINK_IO, 202, 204, 1, counter="port"),
    Pair(NVLINK_RAW_IO, 140, 141, KIB),
    Pair(NVLINK_PACKETS, 201, 203, 1),
)
#: PCIE_COUNT_TX_BYTES and RX_BYTES: "value can be wrapped", without a word at which width. One that falls
#: from the upper half of 32 bits is taken to have wrapped there, any other fall is a reset.
PCIE_PAIR = Pair(GPU_IO, 197, 198, 1, bits=32)

#: The last field of the R535 branch.
FIELDS_R535 = 200

# --- GPM ------------------------------------------------------------------------------------------

GPM_DRAM = 10  # percent
#: (interconnect, direction) -> rate in MiB/s, of the whole GPU.
GPM_RATES = {
    (PCIE, TRANSMIT): 20,
    (PCIE, RECEIVE): 21,
    (NVLINK, RECEIVE): 60,
    (NVLINK, TRANSMIT): 61,
    (C2C, TRANSMIT): 100,
    (C2C, RECEIVE): 101,
}
#: The last metric of the first release of GPM.
GPM_FIRST_RELEASE = 97
#: Cumulative bytes, in newer drivers.
GPM_PCIE_PAIR = Pair(GPU_IO, 255, 256, 1)


def gpm_link_rates(link: int) -> tuple[tuple[str, int], tuple[str, int]]:
    """MiB/s of one link: NVLINK_L0_RX_PER_SEC is 62, L0_TX 63 and so on; L18 begins anew at 212."""
    first = 62 + 2 * link if link < 18 else 212 + 2 * (link - 18)
    return (RECEIVE, first), (TRANSMIT, first + 1)


def gpm_link_pair(link: int) -> Pair:
    """Cumulative bytes of one link, in newer drivers: NVLINK_L0_RX is 261, L0_TX 262 and so on."""
    first = 261 + 2 * link
    return Pair(NVLINK_IO, first + 1, first, 1, counter="data")


# --- the slow tier --------------------------------------------------------------------------------

#: Field -> (error.type, gpu.ecc.span or None), of the whole GPU.
GPU_ERRORS: dict[int, tuple[str, str | None]] = {
    3: ("ecc_corrected", "volatile"),
    4: ("ecc_uncorrected", "volatile"),
    5: ("ecc_corrected", "aggregate"),
    6: ("ecc_uncorrected", "aggregate"),
    142: ("row_remap_corrected", None),
    143: ("row_remap_uncorrected", None),
    94: ("pcie_replay", None),
    173: ("pcie_correctable", None),
    179: ("pcie_non_fatal", None),
    180: ("pcie_fatal", None),
}
#: Field -> error.type, of one link. 161-163 before NVLink 5, the others from NVLink 5 on.
LINK_ERRORS: dict[int, str] = {
    161: "nvlink_replay",
    162: "nvlink_recovery",
    163: "nvlink_crc",
    206: "nvlink_malformed_packet",
    207: "nvlink_buffer_overrun",
    208: "nvlink_receive",
    209: "nvlink_receive_remote",
    210: "nvlink_receive_general",
    211: "nvlink_local_integrity",
    212: "nvlink_transmit_discard",
    214: "nvlink_recovery_failed",
    215: "nvlink_recovery",
    219: "nvlink_effective",
    221: "nvlink_symbol",
}
#: What nvmlDeviceGetNvLinkErrorCounter counts where the driver has none of the fields.
LEGACY_LINK_ERRORS: dict[int, str] = {0: "nvlink_replay", 1: "nvlink_recovery", 2: "nvlink_crc"}
#: Errors that both kinds of links name alike are one figure; a link has one of the two.
MEMORY_TEMPERATURE = 82
REMAPPED_PENDING = 144
REMAPPED_FAILURE = 145
REMOTE_LINK = 146
LINK_SPEED = 164  # MB/s
LINK_SPEED_COMMON = 90  # MB/s
RECOVERY_ACTION = 230

REMOTE_TYPES = {0: "gpu", 1: "npu", 2: "switch"}

#: Bit of nvmlDeviceGetCurrentClocksEventReasons -> the catalog's gpu.clocks.reason.
CLOCK_REASONS = {
    0x001: "gpu_idle",
    0x002: "application_clocks",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal",
    0x040: "hw_thermal",
    0x080: "hw_power_brake",
    0x100: "display_clocks",
}
FABRIC_STATES = {0: "not_supported", 1: "not_started", 2: "in_progress", 3: "completed"}
#: NVML_GPU_RECOVERY_ACTION_*: what needs more than a reset of this GPU.
RECOVERY_FAILED = frozenset({2, 7})  # NODE_REBOOT, SYSTEM_REBOOT

#: PCIe generation -> bytes per second of one lane and direction, line code taken off (8b/10b, 128b/130b, and
#: for 6 the 242 of 256 bytes of a flit that are not CRC and FEC).
_PCIE_LANE = {
    1: 2.5e9 * 8 / 10 / 8,
    2: 5e9 * 8 / 10 / 8,
    3: 8e9 * 128 / 130 / 8,
    4: 16e9 * 128 / 130 / 8,
    5: 32e9 * 128 / 130 / 8,
    6: 64e9 * 242 / 256 / 8,
}


def pcie_bandwidth(generation: int, width: int) -> int | None:
    """Bytes per second of a PCIe link in one direction; None for a generation that is not known."""
    lane = _PCIE_LANE.get(generation)
    return None if lane is None else round(lane * width)
