"""The GPUs of a simulated node: what they are, and the figures that NVML's slow tier has of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from fabrictap import catalog
from fabrictap.ledger.gpus import Gpu, Link, MigDevice
from fabrictap.series import AttributeValue
from fabrictap.sources.nvml import fields
from fabrictap.sources.nvml.devices import link_attributes
from fabrictap.sources.nvml.figures import Part, Point, Reading
from fabrictap.sources.nvml.health import status
from fabrictap.sources.simulated.applications import training_port
from fabrictap.sources.simulated.profiles import MigSlice, Profile
from fabrictap.sources.simulated.script import LINK_DOWN, MEMORY_ERROR, Script

#: What names of hardware end with, so that nobody takes them for real.
MARKER = "simulated"
XID = "xid_94"  # contained memory error
_LABELS: dict[str, AttributeValue] = {"hw.type": "gpu"}
#: Errors in a second of LINK_ERRORS.
_CRC_RATE, _REPLAY_RATE = 37, 5
_IDLE = 0.25  # of the power
#: Part of the power above which clocks are held down.
_CAPPED = 0.8
_POWER_CAP = "sw_power_cap"


def faulty_gpu(profile: Profile) -> int:
    """Index of the GPU one of whose links fails."""
    return profile.trainers[min(2, len(profile.trainers) - 1)]


def faulty_link(profile: Profile) -> int:
    """Number of that link."""
    return 0 if profile.links is None else min(5, len(profile.links.ports) - 1)


def worn_gpu(profile: Profile) -> int:
    """Index of the GPU that has the memory error."""
    return profile.trainers[-2]


def make(profile: Profile) -> tuple[Gpu, ...]:
    """All GPUs."""
    return tuple(_gpu(profile, index) for index in range(profile.count))


def _gpu(profile: Profile, index: int) -> Gpu:
    gpu = f"GPU-00000000-{profile.number:04x}-4000-8000-{index:012x}"
    links: tuple[Link, ...] = ()
    if (kind := profile.links) is not None:
        links = tuple(
            Link(
                number,
                True,
                remote_type="switch",
                remote_pci=f"0000:{kind.switches[number]:02x}:00.0" if kind.switches else None,
                remote_link=port,
                speed=kind.speed,
            )
            for number, port in enumerate(kind.ports)
        )
    slices = (profile.migs or {}).get(index, ())
    return Gpu(
        id=gpu,
        index=index,
        model=f"{profile.model} ({MARKER})",
        pci=profile.buses[index],
        numa=profile.numa[index],
        serial=f"{MARKER}-{index}",
        driver=f"{profile.driver}-{MARKER}",
        firmware=profile.firmware,
        rdma=(f"mlx5_{training_port(profile, index)}",),
        rdma_distance="switch",
        links=links,
        migs=tuple(
            MigDevice(
                f"MIG-00000000-{profile.number:04x}-4000-8000-{index:04x}{number:08x}",
                gpu,
                one.gpu_instance,
                one.compute_instance,
            )
            for number, one in enumerate(slices)
        ),
    )


def read(profile: Profile, gpu: Gpu, script: Script, average: Mapping[str, float]) -> Reading:
    """The slow figures of a GPU, now. ``average``: levels of busy and power since the last reading."""
    now, index = script.now_ns, gpu.index
    trains = index in profile.trainers
    reading = Reading()

    def put(
        metric: catalog.Metric,
        value: int | float,
        labels: dict[str, AttributeValue] | None = None,
        part: Part = None,
    ) -> None:
        reading.points.append(Point(metric, value, labels or {}, part))

    reading.points += _memory(profile.memory, profile.memory_used)
    put(catalog.GPU_BAR1_LIMIT, profile.bar1)
    put(catalog.GPU_BAR1_USAGE, 1 << 20)
    if not gpu.migs:  # a GPU that is split has no utilization of its own
        put(catalog.GPU_UTILIZATION, round(average["busy"], 2))
    level = max(average["power"], _IDLE) if trains else _IDLE
    put(catalog.GPU_POWER, round(profile.power * level, 1), _LABELS)
    # a watt is a joule in a second
    joules = script.moved("power", profile.power) if trains else int(now * profile.power * _IDLE) // 10**9
    put(catalog.GPU_ENERGY, joules, _LABELS)
    warmth = round(6 * (level - 0.8)) + (index * 7 + profile.number) % 4
    for place, degrees in (("gpu", profile.temperature), ("memory", profile.memory_temperature)):
        if degrees is not None:
            labels = _LABELS | {"hw.sensor_location": place}
            put(catalog.GPU_TEMPERATURE, degrees + warmth, labels, place)
    bandwidth = fields.pcie_bandwidth(*profile.pcie)
    assert bandwidth is not None
    put(catalog.PCIE_LIMIT, bandwidth)
    for reason in fields.CLOCK_REASONS.values():
        holds = reason == (_POWER_CAP if level > _CAPPED else "")
        put(catalog.GPU_CLOCKS_REASON, int(holds), {"gpu.clocks.reason": reason})
    pending = _errors(reading, profile, gpu, now)
    down = _links(reading, profile, gpu, script)
    for state, value in (("pending", pending), ("failed", False)):
        put(catalog.GPU_ROW_REMAPPING, int(value), {"gpu.row_remap.state": state}, state)
    if profile.fabric_manager:
        put(catalog.GPU_FABRIC, 1, {"gpu.fabric.state": "completed"})
    if profile.migs is not None:
        put(catalog.GPU_MIG_MODE, int(bool(gpu.migs)))
    if profile.confidential:
        put(catalog.GPU_CONFIDENTIAL, 0)
    reading.points += status("degraded" if pending or down else "ok")
    return reading


def read_gpm(profile: Profile, gpu: Gpu, average: Mapping[str, float]) -> Reading:
    """What GPM has of a GPU. ``average``: levels of memory and load since the last reading."""
    busy = average["memory"] * (1 - 0.01 * (gpu.index % 3))
    points = [Point(catalog.GPU_MEMORY_BANDWIDTH, round(busy, 4))]
    if profile.c2c:
        rate = int(profile.c2c * average["load"])
        for direction, value in ((fields.TRANSMIT, rate // 10), (fields.RECEIVE, rate)):
            labels: dict[str, AttributeValue] = {
                "gpu.interconnect": fields.C2C,
                "network.io.direction": direction,
            }
            points.append(Point(catalog.GPU_THROUGHPUT, value, labels, fields.C2C))
    return Reading(points)


def read_mig(gpu: Gpu, one: MigSlice) -> Reading:
    """The figures of a MIG device of ``gpu``."""
    return Reading(list(_memory(one.memory, one.memory_used, {"hw.parent": gpu.id})))


def _memory(limit: int, used: int, labels: dict[str, AttributeValue] | None = None) -> Iterator[Point]:
    yield Point(catalog.GPU_MEMORY_LIMIT, limit, labels or {})
    yield Point(catalog.GPU_MEMORY_USAGE, used, labels or {})
    yield Point(catalog.GPU_MEMORY_UTILIZATION, used / limit, labels or {})


def _errors(reading: Reading, profile: Profile, gpu: Gpu, now_ns: int) -> bool:
    """Returns whether a row waits to be put out of use."""
    worn = gpu.index == worn_gpu(profile)
    had = MEMORY_ERROR.times(now_ns) if worn else 0
    counts = {"ecc_uncorrected": had, "row_remap_uncorrected": had, "ecc_corrected": 2}
    for kind, span in fields.GPU_ERRORS.values():
        if kind in ("pcie_correctable", "pcie_non_fatal", "pcie_fatal"):
            continue  # not in the drivers of these nodes
        labels = _LABELS | {"error.type": kind} | ({} if span is None else {"gpu.ecc.span": span})
        part = kind if span is None else f"{kind}.{span}"
        reading.points.append(Point(catalog.ERRORS, counts.get(kind, 0), labels, part))
    return worn and MEMORY_ERROR.on(now_ns)


def _links(reading: Reading, profile: Profile, gpu: Gpu, script: Script) -> bool:
    """Returns whether a link is down."""
    now = script.now_ns
    kinds = link_errors(profile)
    down_now = False
    for link in gpu.links:
        labels = link_attributes(gpu, link)
        faulty = gpu.index == faulty_gpu(profile) and link.number == faulty_link(profile)
        down = faulty and LINK_DOWN.on(now)
        down_now = down_now or down
        reading.points.append(Point(catalog.NVLINK_UP, int(not down), labels, link.number))
        if down:
            reading.failed[catalog.NVLINK_LIMIT, link.number] = "no_data"
        else:
            reading.points.append(Point(catalog.NVLINK_LIMIT, link.speed or 0, labels, link.number))
        counts: dict[str, int] = {}
        if faulty:
            crc = script.moved("link_errors", _CRC_RATE)
            counts = {
                "nvlink_crc": crc,
                "nvlink_symbol": crc,
                "nvlink_replay": script.moved("link_errors", _REPLAY_RATE),
                "nvlink_recovery": LINK_DOWN.ended(now),
            }
        for kind in kinds:
            of: dict[str, AttributeValue] = {"error.type": kind, "gpu.nvlink.link": link.number}
            point = Point(catalog.ERRORS, counts.get(kind, 0), _LABELS | of, f"{kind}.{link.number}")
            reading.points.append(point)
    return down_now


def link_errors(profile: Profile) -> Iterable[str]:
    """The errors that a link of this node counts: NVLink 5 has others than its forerunners."""
    if profile.links is None:
        return ()
    if not profile.links.fifth:
        return fields.LEGACY_LINK_ERRORS.values()
    return dict.fromkeys(kind for number, kind in fields.LINK_ERRORS.items() if number >= 206)
