"""PCI devices that move data by themselves, the bridges above them, and what ACS and the IOMMU make of it."""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass

from fabrictap.audit.facts import Denied, Node

_MOST = 8192
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
#: PCI capability and PCIe extended capability ids, offsets and bits: PCI Express Base 7.5, 7.7.11.
_PCIE, _ACS = 0x10, 0x000D
_ROOT_PORT, _DOWNSTREAM_PORT = 4, 6
_REQUEST_REDIRECT, _COMPLETION_REDIRECT = 1 << 2, 1 << 3
_MOST_CAPABILITIES = 96

NVIDIA, AMD, MELLANOX = 0x10DE, 0x1002, 0x15B3
#: BlueField's own network functions (drivers/net/ethernet/mellanox/mlx5/core/main.c).
BLUEFIELD = {0xA2D2: "BlueField", 0xA2D6: "BlueField-2", 0xA2DC: "BlueField-3", 0xA2DF: "BlueField-4"}


@dataclass(frozen=True, slots=True)
class Device:
    """``kind``: gpu, adapter (network or InfiniBand), nvme, nvswitch, bridge, other. ``parents`` are the
    bridges above, outermost first. ``functions``: virtual functions that are enabled."""

    address: str
    vendor: int
    device: int
    kind: str
    driver: str | None
    group: str | None
    parents: tuple[str, ...]
    functions: int
    virtual: bool

    def __str__(self) -> str:
        return f"{self.address} ({self.kind})"


@dataclass(frozen=True, slots=True)
class Bus:
    devices: tuple[Device, ...]
    denied: Denied | None = None

    def of(self, *kinds: str) -> list[Device]:
        return [one for one in self.devices if one.kind in kinds]


def scan(node: Node) -> Bus:
    root = f"{node.sys}/bus/pci/devices"
    listed = node.names(root, _MOST)
    if not listed.exists:
        if not node.names(f"{node.sys}/class").exists:
            return Bus((), Denied(node.sys, "sysfs is not there"))
        return Bus(())
    return Bus(
        tuple(_device(node, f"{root}/{name}", name) for name in listed.names if _ADDRESS.fullmatch(name)),
        listed.denied,
    )


def _device(node: Node, path: str, address: str) -> Device:
    class_ = node.number(f"{path}/class") or 0
    vendor = node.number(f"{path}/vendor") or 0
    parts = os.path.realpath(path).split("/")[:-1]
    return Device(
        address,
        vendor,
        node.number(f"{path}/device") or 0,
        _kind(class_ >> 8, vendor),
        _name(f"{path}/driver"),
        _name(f"{path}/iommu_group"),
        tuple(part for part in parts if _ADDRESS.fullmatch(part)),
        node.number(f"{path}/sriov_numvfs") or 0,
        os.path.lexists(f"{path}/physfn"),
    )


def _kind(class_: int, vendor: int) -> str:
    if class_ >> 8 in (0x03, 0x12):
        # 0x0300 is a screen's: of others than these a graphics adapter of the board or of its manager.
        return "gpu" if vendor in (NVIDIA, AMD) or class_ != 0x0300 else "other"
    if class_ == 0x0680 and vendor == NVIDIA:
        return "nvswitch"
    if class_ >> 8 == 0x02 or class_ == 0x0C06:
        return "adapter"
    return {0x0108: "nvme", 0x0604: "bridge"}.get(class_, "other")


def _name(path: str) -> str | None:
    try:
        return os.path.basename(os.readlink(path)) or None  # noqa: PTH115, PTH119 - thousands of them
    except OSError:
        return None


@dataclass(frozen=True, slots=True)
class Acs:
    """Of the ports that stand above GPUs, adapters and NVMe drives: those where peers may talk directly
    (``open``), those that send them up to the IOMMU (``closed``), those that cannot be read (``unknown``)."""

    open: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    why: str = ""


def acs(node: Node, bus: Bus) -> Acs:
    wanted = sorted({one for device in bus.of("gpu", "adapter", "nvme") for one in device.parents})
    found: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    why = ""
    for address in wanted:
        raw = node.read_bytes(f"{node.sys}/bus/pci/devices/{address}/config", 4096)
        if not isinstance(raw, bytes):
            found[None].append(address)
            why = str(raw or "no config space")
            continue
        redirects = acs_of(raw)
        if redirects is None:
            if is_port(raw) is False:
                continue
            why = f"{len(raw)} of 4096 bytes of configuration space can be read (root reads all)"
        found[redirects].append(address)
    return Acs(tuple(found[False]), tuple(found[True]), tuple(found[None]), why)


def is_port(raw: bytes) -> bool | None:
    """Whether it is a PCIe root or downstream port, at which ACS decides; None where that cannot be read."""
    at = _capability(raw, _PCIE)
    if at is None:
        return None if len(raw) < 256 else False
    if at + 4 > len(raw):
        return None
    (flags,) = struct.unpack_from("<H", raw, at + 2)
    return flags >> 4 & 0xF in (_ROOT_PORT, _DOWNSTREAM_PORT)


def acs_of(raw: bytes) -> bool | None:
    """Whether a port redirects its peers' requests and completions; None: no such port, or not readable."""
    if not is_port(raw):
        return None
    if len(raw) <= 256:
        return None
    at = 0x100
    for _ in range(_MOST_CAPABILITIES):
        if not 0x100 <= at <= len(raw) - 8:
            break
        (header,) = struct.unpack_from("<I", raw, at)
        if header & 0xFFFF == _ACS:
            (control,) = struct.unpack_from("<H", raw, at + 6)
            both = _REQUEST_REDIRECT | _COMPLETION_REDIRECT
            return bool(control & both == both)
        at = header >> 20 & ~3
    return False


def _capability(raw: bytes, wanted: int) -> int | None:
    if len(raw) < 64:
        return None
    at = raw[0x34] & ~3
    for _ in range(_MOST_CAPABILITIES):
        if not 0x40 <= at <= len(raw) - 2:
            return None
        if raw[at] == wanted:
            return at
        at = raw[at + 1] & ~3
    return None
