"""Which RDMA devices are nearest to a GPU, from where sysfs puts both in the PCI tree."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_MAX_DEVICES = 1024
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_ROOT = re.compile(r"pci[0-9a-f]{4,8}:[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a device is: its host bridge, the PCI addresses from the root port down, its NUMA node."""

    bridge: str
    path: tuple[str, ...]
    numa: int | None


def address(domain: int, bus: int, device: int, function: int = 0) -> str:
    """A PCI address as sysfs writes it."""
    return f"{domain:04x}:{bus:02x}:{device:02x}.{function:x}"


def place(directory: Path) -> Place | None:
    """Where the device of a sysfs directory is; None where that is not on PCI or cannot be read."""
    try:
        parts = Path(os.path.realpath(directory, strict=True)).parts
    except OSError:
        return None
    bridge = next((index for index, part in enumerate(parts) if _ROOT.fullmatch(part)), None)
    if bridge is None:
        return None
    path = tuple(part for part in parts[bridge + 1 :] if _ADDRESS.fullmatch(part))
    return Place(parts[bridge], path, _numa(directory)) if path else None


def distance(one: Place, other: Place) -> str:
    """How near two devices are, the catalog's gpu.rdma.distance.

    A root port leads to one device: two devices below the same one are below the same switch.
    """
    if one.bridge == other.bridge:
        return "switch" if one.path[0] == other.path[0] else "host_bridge"
    return "numa" if one.numa is not None and one.numa == other.numa else "system"


_ORDER = ("switch", "host_bridge", "numa", "system")


def rdma_places(sysfs: str) -> dict[str, Place]:
    """RDMA device -> where it is; those that are not on PCI are left out."""
    places: dict[str, Place] = {}
    try:
        entries = sorted(Path(f"{sysfs}/class/infiniband").iterdir())[:_MAX_DEVICES]
    except OSError:
        return places
    for entry in entries:
        found = place(entry / "device")
        if found is not None:
            places[entry.name] = found
    return places


def nearest(gpu: Place, rdma: dict[str, Place]) -> tuple[tuple[str, ...], str | None]:
    """The RDMA devices nearest to a GPU, and how near."""
    by_distance: dict[str, list[str]] = {}
    for name, where in rdma.items():
        by_distance.setdefault(distance(gpu, where), []).append(name)
    for how_near in _ORDER:
        if how_near in by_distance:
            return tuple(sorted(by_distance[how_near])), how_near
    return (), None


def _numa(directory: Path) -> int | None:
    try:
        number = int((directory / "numa_node").read_text(encoding="ascii")[:16])
    except (OSError, ValueError):
        return None
    return number if number >= 0 else None  # -1: the firmware did not say
