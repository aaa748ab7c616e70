"""Which GPUs are on the node, and who has them open: what the other subjects ask first."""

from __future__ import annotations

from dataclasses import dataclass

from fabrictap.audit import pci
from fabrictap.audit.facts import Node
from fabrictap.audit.model import Present


@dataclass(frozen=True, slots=True)
class Gpus:
    present: Present
    why: str
    bus: pci.Bus
    nvidia: int = 0
    amd: int = 0


def find(node: Node) -> Gpus:
    bus = pci.scan(node)
    found = bus.of("gpu")
    nvidia = sum(one.vendor == pci.NVIDIA for one in found)
    driver = node.names(f"{node.proc}/driver/nvidia/gpus", 1024)
    nvidia = max(nvidia, len(driver.names))
    amd = sum(one.vendor == pci.AMD for one in found)
    if nvidia or found:
        vendors = [f"{many} {name}" for many, name in ((nvidia, "NVIDIA"), (amd, "AMD")) if many]
        other = len(found) - amd - sum(one.vendor == pci.NVIDIA for one in found)
        vendors += [f"{other} of others"] if other else []
        return Gpus(Present.YES, f"GPUs: {', '.join(vendors)}", bus, nvidia, amd)
    if bus.denied is not None:
        return Gpus(Present.UNKNOWN, str(bus.denied), bus)
    # Without a PCI bus (a container's sysfs, a GPU on the CPU's own link) the device files tell.
    files = node.names(node.dev, 65536)
    if {"nvidiactl", "kfd"} & set(files.names):
        return Gpus(Present.YES, f"{node.dev}/nvidiactl or kfd is there", bus, 1)
    return Gpus(Present.NO, "no GPU on the PCI bus", bus)
