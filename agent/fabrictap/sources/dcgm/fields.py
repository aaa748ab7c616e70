"""Which field of DCGM becomes which metric. Bound by number: 4.6 renamed most macros, no id has moved.

Units and meanings: dcgm_fields.h and, where that is silent, DcgmCacheManager.cpp of NVIDIA/DCGM. Left out:
200 and 201 (never supported), 440-449 and 825-897 (rates in kB/s of what others have in bytes), 1077 and 1079
(C2C without headers), 1200 and 1202 (packets of all links in one: the metric is by link).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fabrictap import catalog
from fabrictap.catalog import Kind, Metric

#: Entity groups (dcgm_field_entity_group_t).
GPU, SWITCH, INSTANCE, COMPUTE_INSTANCE, LINK, CPU = 1, 3, 4, 5, 6, 7

#: What is asked once: UUID (a string), compute capability (major << 16 | minor).
UUID, CAPABILITY = 54, 63
XID, SXID_FATAL, SXID_NON_FATAL = 230, 856, 857
LINK_STATUS = 870
#: LINK_STATUS: -1 unknown, 0 off, 1 safe, 2 active, 3 error.
LINK_ACTIVE, LINK_ERROR = 2, 3
#: Profiling fields: counted by hardware that before Hopper (9.0) has one user at a time.
PROFILING = range(1001, 1100)
SHARED_PROFILING = 9 << 16
_MIB = 1 << 20

Attributes = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, eq=False)  # the object is its identity: hashing a metric is slow
class Point:
    """One field that becomes one series of an entity: times ``scale``, or as a part of the field ``per``."""

    field: int
    metric: Metric
    attributes: Attributes = ()
    scale: int = 1
    per: int | None = None

    @property
    def cumulative(self) -> bool:
        """Whether what it reads only ever grows."""
        return self.metric.kind is Kind.COUNTER


@dataclass(frozen=True, slots=True)
class Bundle:
    """What is delivered by one provider or another as a whole: ``name`` and ``part`` of its Figure.

    ``by_link``: another provider may have it link by link, each link a figure of its own, ``part.link``.
    """

    name: str
    part: str | int | None
    points: tuple[Point, ...]
    rate: bool = False
    by_link: bool = False


@dataclass(frozen=True, slots=True)
class FieldSet:
    """Bundles whose fields are watched together: what the engine refuses for one, it refuses for all."""

    name: str
    bundles: tuple[Bundle, ...]
    #: Read, not exported as they are: events and states.
    others: tuple[int, ...] = ()

    @property
    def fields(self) -> tuple[int, ...]:
        """Every field of the set, once each."""
        points = [point for bundle in self.bundles for point in bundle.points]
        wanted = [point.field for point in points] + [point.per for point in points if point.per is not None]
        return tuple(dict.fromkeys([*wanted, *self.others]))

    @property
    def profiling(self) -> bool:
        """Whether watching it takes profiling hardware."""
        return any(field in PROFILING for field in self.fields)


def _both(
    transmit: int, receive: int, metric: Metric, *attributes: tuple[str, str], scale: int = 1
) -> tuple[Point, ...]:
    """The two directions of a figure."""
    return tuple(
        Point(field, metric, (*attributes, (catalog.IO_DIRECTION.name, direction)), scale)
        for field, direction in ((transmit, "transmit"), (receive, "receive"))
    )


def _over(interconnect: str) -> tuple[str, str]:
    return (catalog.GPU_INTERCONNECT.name, interconnect)


def _error(hw_type: str, kind: str, field: int) -> Bundle:
    """One kind of error, named as NVML's of the same meaning is (sources/nvml/fields.py)."""
    attributes = ((catalog.HW_TYPE.name, hw_type), (catalog.ERROR_TYPE.name, kind))
    return Bundle(catalog.ERRORS.name, kind, (Point(field, catalog.ERRORS, attributes),))


def _link_errors(kind: str, field: int) -> Bundle:
    """Errors of all links of a GPU in one, where others may have them link by link."""
    return replace(_error("gpu", kind, field), by_link=True)


def _ecc(kind: str, span: str, field: int) -> Bundle:
    attributes = (
        (catalog.HW_TYPE.name, "gpu"),
        (catalog.ERROR_TYPE.name, kind),
        (catalog.GPU_MEMORY_SPAN.name, span),
    )
    return Bundle(catalog.ERRORS.name, f"{kind}.{span}", (Point(field, catalog.ERRORS, attributes),))


def _row_remap(state: str, field: int) -> Bundle:
    point = Point(field, catalog.GPU_ROW_REMAPPING, ((catalog.GPU_ROW_REMAP.name, state),))
    return Bundle(catalog.GPU_ROW_REMAPPING.name, state, (point,))


_MEMORY = (
    Bundle(catalog.GPU_MEMORY_LIMIT.name, None, (Point(250, catalog.GPU_MEMORY_LIMIT, scale=_MIB),)),
    Bundle(catalog.GPU_MEMORY_USAGE.name, None, (Point(252, catalog.GPU_MEMORY_USAGE, scale=_MIB),)),
    Bundle(catalog.GPU_MEMORY_UTILIZATION.name, None, (Point(252, catalog.GPU_MEMORY_UTILIZATION, per=250),)),
)
_BANDWIDTH = Bundle(catalog.GPU_MEMORY_BANDWIDTH.name, None, (Point(1005, catalog.GPU_MEMORY_BANDWIDTH),))

_GPU = (
    FieldSet(
        "device",
        (
            *_MEMORY,
            Bundle(catalog.GPU_BAR1_LIMIT.name, None, (Point(90, catalog.GPU_BAR1_LIMIT, scale=_MIB),)),
            Bundle(catalog.GPU_BAR1_USAGE.name, None, (Point(92, catalog.GPU_BAR1_USAGE, scale=_MIB),)),
            _error("gpu", "pcie_replay", 202),
            _ecc("ecc_corrected", "volatile", 310),
            _ecc("ecc_uncorrected", "volatile", 311),
            _ecc("ecc_corrected", "aggregate", 312),
            _ecc("ecc_uncorrected", "aggregate", 313),
            _error("gpu", "row_remap_uncorrected", 393),
            _error("gpu", "row_remap_corrected", 394),
            _row_remap("failed", 395),
            _row_remap("pending", 396),
            # NVLink before 5
            _link_errors("nvlink_crc", 409),
            _link_errors("nvlink_crc_data", 419),
            _link_errors("nvlink_replay", 429),
            _link_errors("nvlink_recovery", 439),
        ),
        (XID,),
    ),
    FieldSet(
        "nvlink5",
        (
            Bundle(catalog.GPU_IO.name, "nvlink", _both(1201, 1203, catalog.GPU_IO, _over("nvlink"))),
            _link_errors("nvlink_malformed_packet", 1204),
            _link_errors("nvlink_buffer_overrun", 1205),
            _link_errors("nvlink_receive", 1206),
            _link_errors("nvlink_receive_remote", 1207),
            _link_errors("nvlink_receive_general", 1208),
            _link_errors("nvlink_local_integrity", 1209),
            _link_errors("nvlink_transmit_discard", 1210),
            _link_errors("nvlink_recovery_failed", 1212),
            _link_errors("nvlink_recovery", 1213),
            _link_errors("nvlink_symbol", 1214),
            _link_errors("nvlink_effective", 1219),
            _link_errors("nvlink_ecc", 1220),
            Bundle(
                catalog.NVLINK_BIT_ERRORS.name,
                None,
                (
                    Point(1216, catalog.NVLINK_BIT_ERRORS, ((catalog.GPU_BIT_ERROR_KIND.name, "symbol"),)),
                    Point(1218, catalog.NVLINK_BIT_ERRORS, ((catalog.GPU_BIT_ERROR_KIND.name, "effective"),)),
                ),
            ),
        ),
    ),
    # Profiling, a set for each group of hardware counters: where not all fit in one pass, some still do.
    FieldSet("dram", (_BANDWIDTH,)),
    FieldSet(
        "pcie",
        (
            Bundle(
                catalog.GPU_IO.name, "pcie", _both(1009, 1010, catalog.GPU_THROUGHPUT, _over("pcie")), True
            ),
        ),
    ),
    FieldSet(
        "pcie_total",
        (Bundle(catalog.GPU_IO.name, "pcie", _both(1091, 1092, catalog.GPU_IO, _over("pcie"))),),
    ),
    FieldSet(
        "nvlink",
        (
            Bundle(
                catalog.GPU_IO.name,
                "nvlink",
                _both(1011, 1012, catalog.GPU_THROUGHPUT, _over("nvlink")),
                True,
            ),
        ),
    ),
    FieldSet(
        "nvlink_links",
        tuple(
            Bundle(
                catalog.NVLINK_IO.name,
                link,
                _both(1040 + 2 * link, 1041 + 2 * link, catalog.NVLINK_THROUGHPUT),
                True,
            )
            for link in range(18)
        ),
    ),
    FieldSet(
        "c2c",
        (Bundle(catalog.GPU_IO.name, "c2c", _both(1076, 1078, catalog.GPU_THROUGHPUT, _over("c2c")), True),),
    ),
)

_INSTANCE = (
    FieldSet("instance", _MEMORY),
    FieldSet("instance_dram", (_BANDWIDTH,)),
)

_SWITCH = (
    FieldSet(
        "switch",
        (Bundle(catalog.NVSWITCH_TRAFFIC.name, None, _both(861, 862, catalog.NVSWITCH_TRAFFIC)),),
        (SXID_FATAL, SXID_NON_FATAL),
    ),
)

_LINK = (
    FieldSet(
        "switch_link",
        (
            Bundle(catalog.NVSWITCH_LINK_TRAFFIC.name, None, _both(780, 781, catalog.NVSWITCH_LINK_TRAFFIC)),
            _error("network", "nvswitch_replay", 784),
            _error("network", "nvswitch_recovery", 785),
            _error("network", "nvswitch_flit", 786),
            _error("network", "nvswitch_crc", 787),
            _error("network", "nvswitch_ecc", 788),
        ),
        (LINK_STATUS,),
    ),
)

_HW_CPU = ((catalog.HW_TYPE.name, "cpu"),)
_CPU = (
    FieldSet(
        "cpu",
        (
            Bundle(catalog.GPU_TEMPERATURE.name, None, (Point(1110, catalog.GPU_TEMPERATURE, _HW_CPU),)),
            Bundle(catalog.GPU_POWER.name, None, (Point(1130, catalog.GPU_POWER, _HW_CPU),)),
        ),
    ),
)

#: Entity group -> what is watched of it.
SETS: dict[int, tuple[FieldSet, ...]] = {
    GPU: _GPU,
    INSTANCE: _INSTANCE,
    SWITCH: _SWITCH,
    LINK: _LINK,
    CPU: _CPU,
}
