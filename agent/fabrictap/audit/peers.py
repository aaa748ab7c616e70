"""PCIe peer-to-peer: devices that reach each other's memory without passing the CPU, and what holds them."""

from __future__ import annotations

from fabrictap.audit import pci
from fabrictap.audit.facts import Denied, Node
from fabrictap.audit.model import Finding, Observed, Present, Severity, Way, doubt, many, some

_KEY, _NAME = "pcie.p2p", "PCIe peer-to-peer"


def ways(node: Node) -> list[Way]:
    bus = pci.scan(node)
    ends = bus.of("gpu", "adapter", "nvme")
    if bus.denied is not None:
        worst = doubt(Severity.MEDIUM, f"PCIe devices are not known: {bus.denied}", "run on the node itself")
        return [Way(_KEY, _NAME, Present.UNKNOWN, str(bus.denied), findings=(worst,))]
    if not bus.of("gpu"):
        return [Way(_KEY, _NAME, Present.NO, "no GPU on the PCI bus")]
    if len(ends) < 2:
        return [Way(_KEY, _NAME, Present.NO, "one GPU, and no device beside it that could reach it")]
    counts = ", ".join(f"{len(bus.of(kind))} {kind}" for kind in ("gpu", "adapter", "nvme") if bus.of(kind))
    seen = node.watch.sight("nvml", Observed.HARDWARE, "PCIe bytes of each GPU; not with whom, not whose")
    findings = [*_acs(node, bus), *_iommu(node, ends), *_published(node, bus)]
    return [Way(_KEY, _NAME, Present.YES, counts, seen, tuple(findings))]


def _acs(node: Node, bus: pci.Bus) -> list[Finding]:
    found = pci.acs(node, bus)
    guests = [one for one in bus.devices if one.driver == "vfio-pci"]
    findings = []
    if found.open:
        findings.append(
            Finding(
                Severity.HIGH if guests else Severity.MEDIUM,
                f"{many(len(found.open), 'PCIe port')} with ACS off: the devices below reach each other past "
                "the IOMMU" + (", and virtual machines have devices of this node" if guests else ""),
                "shared nodes and VMs: setpci -s PORT ECAP_ACS+6.w=001d (request and completion redirect), "
                "or ACS in the firmware; a node of one tenant may need it off for GPUDirect",
                some(list(found.open)),
            )
        )
    if found.unknown:
        findings.append(
            doubt(
                Severity.HIGH if guests else Severity.MEDIUM,
                f"ACS of {many(len(found.unknown), 'PCIe port')} is not known: {found.why}",
                "run as root; in a virtual machine the host knows",
            )
        )
    return findings


def _iommu(node: Node, ends: list[pci.Device]) -> list[Finding]:
    groups = node.names(f"{node.sys}/kernel/iommu_groups", 65536)
    if groups.denied is not None:
        return [doubt(Severity.MEDIUM, f"IOMMU groups: {groups.denied}", "run as root")]
    fix = "intel_iommu=on or amd_iommu=on, and iommu=nopt, on the kernel's command line"
    if not groups.names:
        return [
            Finding(
                Severity.MEDIUM,
                "no IOMMU: every PCIe device can read and write all memory of the node and of its GPUs",
                fix,
                some([str(one) for one in ends]),
            )
        ]
    through, unread = [], 0
    for one in ends:
        if one.group is None or not one.group.isdigit():
            through.append(f"{one}: in no IOMMU group")
            continue
        kind = node.read(f"{node.sys}/kernel/iommu_groups/{one.group}/type", 64)
        if isinstance(kind, Denied) or kind is None:
            unread += 1
        elif kind == "identity":
            through.append(f"{one}: group {one.group} is passed through")
    found = []
    if through:
        found.append(
            Finding(
                Severity.LOW,
                f"{many(len(through), 'device')} with all memory in reach: the IOMMU passes through",
                fix,
                some(through),
            )
        )
    if unread:
        found.append(
            doubt(Severity.MEDIUM, f"what the IOMMU does for {unread} devices is not known", "run as root")
        )
    shared: dict[str, list[str]] = {}
    for one in ends:
        if one.kind == "gpu" and one.group is not None:
            shared.setdefault(one.group, []).append(one.address)
    together = [
        f"group {group}: {', '.join(some(those))}" for group, those in shared.items() if len(those) > 1
    ]
    if together:
        found.append(
            Finding(
                Severity.LOW,
                "GPUs in one IOMMU group: nothing separates them from each other",
                "ACS on the ports above them (see above)",
                some(together),
            )
        )
    return found


def _published(node: Node, bus: pci.Bus) -> list[Finding]:
    """Memory of devices that the kernel hands to other devices (drivers/pci/p2pdma.c)."""
    found = []
    for one in bus.devices:
        if node.number(f"{node.sys}/bus/pci/devices/{one.address}/p2pmem/published"):
            found.append(str(one))
    if not found:
        return []
    return [
        Finding(
            Severity.LOW,
            "device memory is offered to other devices by the kernel (pci-p2pdma); its use is counted "
            "nowhere",
            "nvmet: do not set p2pmem on the namespaces of ports that need it not",
            some(found),
        )
    ]
