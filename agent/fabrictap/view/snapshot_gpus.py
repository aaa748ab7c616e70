"""The GPUs of ``fabrictap snapshot``: a line for each GPU and MIG device, and its links that are down."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fabrictap import catalog
from fabrictap.catalog import Metric
from fabrictap.view import text
from fabrictap.view.text import UNKNOWN, amount, plain

_HEADS = (
    "GPU", "MODEL", "STATE", "BUSY", "MEMORY", "USED", "DRAM", "NVLINK IN/s", "OUT/s", "PCIE IN/s", "OUT/s",
    "POWER", "TEMP", "ERRORS", "ID",
)  # fmt: skip
_RIGHT = (3, 4, 5, 6, 7, 8, 9, 10, 11, 12)
#: Counted since the board was made or in every healthy one: no news.
NO_NEWS = frozenset({"ecc_corrected"})
Value = Mapping[str, Any]


def lines(gpus: list[dict[str, Any]]) -> list[str]:
    """The table; ``gpus`` as in the picture for programs."""
    if not gpus:
        return ["none seen"]
    rows = [list(_HEADS)]
    troubles: list[str] = []
    numbers = {gpu["gpu"]: gpu["index"] for gpu in gpus}
    for gpu in sorted(gpus, key=lambda gpu: place_of(gpu, numbers)):
        rows.append(_row(gpu, numbers))
        troubles += _troubles(gpu)
    # What no GPU here has takes no room.
    kept = [
        index
        for index, column in enumerate(zip(*rows[1:], strict=True))
        if index in (0, len(_HEADS) - 1) or any(cell != UNKNOWN for cell in column)
    ]
    right = [place for place, index in enumerate(kept) if index in _RIGHT]
    return [*text.columns([[row[index] for index in kept] for row in rows], right), *troubles]


def _row(gpu: Mapping[str, Any], numbers: Mapping[str, int | None]) -> list[str]:
    values = gpu["values"]
    used = _share(figure(values, catalog.GPU_MEMORY_UTILIZATION))
    degrees = figure(values, catalog.GPU_TEMPERATURE, **{"hw.sensor_location": "gpu"})
    return [
        number_of(gpu, numbers),
        plain(gpu["model"] or ("MIG device" if gpu["gpu"].startswith("MIG-") else UNKNOWN)),
        plain(gpu["state"] or UNKNOWN),
        _share(figure(values, catalog.GPU_UTILIZATION)),
        amount(figure(values, catalog.GPU_MEMORY_LIMIT), "By"),
        used,
        _share(figure(values, catalog.GPU_MEMORY_BANDWIDTH)),
        *(_moved(values, "nvlink", direction) for direction in ("receive", "transmit")),
        *(_moved(values, "pcie", direction) for direction in ("receive", "transmit")),
        amount(figure(values, catalog.GPU_POWER), "W"),
        UNKNOWN if degrees is None else f"{degrees:g} C",
        errors_of(gpu["errors"]),
        plain(gpu["gpu"]),
    ]


def _moved(values: Iterable[Value], interconnect: str, direction: str) -> str:
    attributes = {"gpu.interconnect": interconnect, "network.io.direction": direction}
    for value in _of(values, catalog.GPU_IO, attributes):
        return amount(value["rate"], "By")
    # Where nobody has the counter, a rate that the provider measured.
    return amount(figure(values, catalog.GPU_THROUGHPUT, **attributes), "By")


def _troubles(gpu: Mapping[str, Any]) -> Iterable[str]:
    """Links that are down while others are up."""
    states = {
        value["attributes"].get("gpu.nvlink.link"): value["value"]
        for value in _of(gpu["values"], catalog.NVLINK_UP, {})
    }
    down = sorted(link for link, up in states.items() if not up)
    if down and any(states.values()):
        where = UNKNOWN if gpu["index"] is None else gpu["index"]
        yield f"GPU {where}: NVLink {', '.join(map(str, down))} of {len(states)} down"


def errors_of(errors: Mapping[str, int]) -> str:
    news = {name: count for name, count in errors.items() if name not in NO_NEWS}
    return ", ".join(f"{plain(name)} {amount(count, '1')}" for name, count in news.items()) or "none"


def _of(values: Iterable[Value], metric: Metric, attributes: Mapping[str, str]) -> Iterable[Value]:
    return (
        value
        for value in values
        if value["metric"] == metric.name and attributes.items() <= value["attributes"].items()
    )


def figure(values: Iterable[Value], metric: Metric, **attributes: str) -> float | None:
    return next((value["value"] for value in _of(values, metric, attributes)), None)


def _share(part: float | None) -> str:
    return UNKNOWN if part is None else f"{100 * part:.0f}%"


def number_of(gpu: Mapping[str, Any], numbers: Mapping[str, int | None]) -> str:
    number = numbers.get(gpu["parent"]) if gpu["parent"] else gpu["index"]
    return UNKNOWN if number is None else str(number)


def place_of(gpu: Mapping[str, Any], numbers: Mapping[str, int | None]) -> tuple[bool, int, bool, str]:
    """MIG devices stand behind the GPU that they are part of."""
    number = numbers.get(gpu["parent"]) if gpu["parent"] else gpu["index"]
    return number is None, number or 0, bool(gpu["parent"]), gpu["gpu"]
