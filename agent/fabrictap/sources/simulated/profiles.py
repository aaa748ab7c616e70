"""The nodes that can be simulated: plain data.

Sizes, speeds and numbers of things are those that such a machine shows; names, addresses and serial numbers
are made up and say so.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_GIGA = 10**9
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class MigSlice:
    """One MIG device. Sizes in bytes."""

    gpu_instance: int
    compute_instance: int
    memory: int
    memory_used: int


@dataclass(frozen=True, slots=True)
class NvLinks:
    """The NVLinks of each GPU. ``speed``: bytes per second, each way; ``switches``: PCI bus of the switch at
    the other end of each link, empty where PCI does not show it; ``ports``: number of the link there."""

    speed: int
    ports: tuple[int, ...]
    switches: tuple[int, ...] = ()
    #: NVLink 5 counts packets and has error counters of its own.
    fifth: bool = False


@dataclass(frozen=True, slots=True)
class Network:
    """Adapters. ``fabric``: those that GPUs exchange gradients over; one more leads to storage, over RoCE.

    Rates in bytes per second.
    """

    fabric: int
    fabric_rate: int
    storage_rate: int
    infiniband: bool
    model: str
    firmware: str


@dataclass(frozen=True, slots=True)
class Profile:
    """One node. Tuples have an entry for each GPU. Power in watts, temperature in degrees Celsius."""

    name: str
    model: str
    driver: str
    firmware: str
    buses: tuple[str, ...]
    numa: tuple[int, ...]
    memory: int
    memory_used: int
    bar1: int
    pcie: tuple[int, int]
    power: int
    temperature: int
    network: Network
    #: Part of the GPU UUIDs and serial numbers.
    number: int
    links: NvLinks | None = None
    memory_temperature: int | None = None
    #: Whether the driver has PCIe byte counters.
    pcie_counters: bool = True
    gpm: bool = False
    #: Bytes per second that each GPU moves to and from its CPU when it loads data; 0 without C2C.
    c2c: int = 0
    #: None: MIG is not known to these GPUs.
    migs: dict[int, tuple[MigSlice, ...]] | None = field(default_factory=dict)
    fabric_manager: bool = False
    confidential: bool = True
    #: Training runs as a Slurm job, else in pods.
    slurm: bool = False

    @property
    def count(self) -> int:
        """How many GPUs."""
        return len(self.buses)

    @property
    def trainers(self) -> tuple[int, ...]:
        """GPUs that train: those that are not split."""
        return tuple(index for index in range(self.count) if index not in (self.migs or {}))


_NDR = Network(8, 50 * _GIGA, 25 * _GIGA, True, "MT_0000000838", "28.39.1002")

PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            name="hgx-h100",
            model="NVIDIA H100 80GB HBM3",
            driver="570.172.08",
            firmware="96.00.74.00.01",
            buses=tuple(f"0000:{bus}:00.0" for bus in ("1b", "43", "52", "61", "9d", "c3", "d1", "df")),
            numa=(0, 0, 0, 0, 1, 1, 1, 1),
            memory=85520809984,
            memory_used=61203283968,
            bar1=137438953472,
            pcie=(5, 16),
            power=700,
            temperature=61,
            memory_temperature=72,
            network=_NDR,
            number=0x4100,
            links=NvLinks(
                26562 * 10**6,
                (0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 3),
                (5, 5, 5, 5, 6, 6, 6, 6, 6, 7, 7, 7, 7, 7, 8, 8, 8, 8),
            ),
            gpm=True,
            fabric_manager=True,
        ),
        Profile(
            name="a100-mig",
            model="NVIDIA A100-SXM4-40GB",
            driver="535.247.01",
            firmware="92.00.45.00.03",
            buses=tuple(f"0000:{bus}:00.0" for bus in ("07", "0f", "47", "4e", "87", "90", "b7", "bd")),
            numa=(0, 0, 0, 0, 1, 1, 1, 1),
            memory=42949672960,
            memory_used=29903290368,
            bar1=68719476736,
            pcie=(4, 16),
            power=400,
            temperature=52,
            memory_temperature=68,
            network=Network(8, 25 * _GIGA, 12_500_000_000, True, "MT_0000000223", "20.39.1002"),
            number=0x4110,
            links=NvLinks(25000 * 10**6, (0, 1) * 6, (10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 16, 16)),
            pcie_counters=False,
            confidential=False,
            migs={
                0: (
                    MigSlice(2, 0, 19968 * _MIB, 8589934592),
                    MigSlice(3, 0, 9856 * _MIB, 4294967296),
                    MigSlice(9, 0, 4864 * _MIB, 1073741824),
                    MigSlice(10, 0, 4864 * _MIB, 0),
                ),
                1: (MigSlice(0, 0, 40192 * _MIB, 21474836480),),
            },
        ),
        Profile(
            name="gb200",
            model="NVIDIA GB200",
            driver="595.45.04",
            firmware="97.00.82.00.18",
            buses=("0008:01:00.0", "0009:01:00.0", "0018:01:00.0", "0019:01:00.0"),
            numa=(0, 0, 1, 1),
            memory=198674743296,
            memory_used=151397597184,
            bar1=274877906944,
            pcie=(5, 16),
            power=1200,
            temperature=58,
            memory_temperature=70,
            network=Network(4, 50 * _GIGA, 50 * _GIGA, True, "MT_0000001010", "28.43.2566"),
            number=0x4200,
            links=NvLinks(50000 * 10**6, (0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 3), fifth=True),
            gpm=True,
            c2c=40 * _GIGA,
            fabric_manager=True,
            slurm=True,
        ),
        Profile(
            name="l40s",
            model="NVIDIA L40S",
            driver="570.172.08",
            firmware="95.02.66.00.02",
            buses=tuple(f"0000:{bus}:00.0" for bus in ("3d", "61", "ad", "d8")),
            numa=(0, 0, 1, 1),
            memory=48305799168,
            memory_used=38253611008,
            bar1=68719476736,
            pcie=(4, 16),
            power=350,
            temperature=61,
            network=Network(2, 25 * _GIGA, 12_500_000_000, False, "MT_0000000834", "28.39.1002"),
            number=0x4040,
            migs=None,
        ),
    )
}
NAMES = tuple(PROFILES)
