"""Adapters that are more than one: processors of their own (BlueField) and virtual functions."""

from __future__ import annotations

import re

from fabrictap.audit import pci, verbs
from fabrictap.audit.facts import Denied, Node
from fabrictap.audit.model import Finding, Observed, Present, Severity, Sight, Way, doubt, many, some

#: A representor's name as mlx5 gives it (net/devlink: pf0vf1, c1pf0sf3, pf0hpf).
_REPRESENTOR = re.compile(r"(c\d+)?pf\d+((vf|sf)\d+|hpf)")
_MOST = 4096


def ways(node: Node) -> list[Way]:
    bus = pci.scan(node)
    return [_dpu(node, bus), _functions(node, bus)]


def _dpu(node: Node, bus: pci.Bus) -> Way:
    key, name = "dpu", "DPU (BlueField) and its switch"
    if bus.denied is not None:
        worst = doubt(
            Severity.MEDIUM, f"whether there is a DPU is not known: {bus.denied}", "run on the node"
        )
        return Way(key, name, Present.UNKNOWN, str(bus.denied), findings=(worst,))
    found = [one for one in bus.devices if one.vendor == pci.MELLANOX and one.device in pci.BLUEFIELD]
    product = node.read(f"{node.sys}/class/dmi/id/product_name", 128)
    arm = isinstance(product, str) and "BlueField" in product
    switched = _representors(node)
    if not found and not arm and not switched:
        return Way(key, name, Present.NO, "no BlueField on the PCI bus, no port of an embedded switch")
    told = [f"{one.address} {pci.BLUEFIELD[one.device]}" for one in found]
    told += ["this is the DPU's own processor"] if arm else []
    told += [f"switchdev: {many(len(switched), 'representor')}"] if switched else []
    findings = []
    if found and not arm:
        findings.append(
            Finding(
                Severity.MEDIUM,
                "a DPU's own processor stands between this node and the network: it may read, change and "
                "make RDMA traffic and reach host memory, and nothing on this node sees that",
                "run fabrictap on the DPU too; mlxprivhost -d DEVICE r keeps this node from changing it; "
                "mlxconfig -d DEVICE set INTERNAL_CPU_OFFLOAD_ENGINE=1 (NIC mode) takes its processor out "
                "of the path",
                some(told),
            )
        )
    if switched:
        findings.append(
            Finding(
                Severity.LOW,
                "an embedded switch forwards between functions of the adapter: that traffic is in no "
                "port's counters",
                "devlink dev eswitch show pci/ADDRESS; ethtool -S of the representors counts it",
                some(switched),
            )
        )
    return Way(key, name, Present.YES, "; ".join(some(told)), _switch(), tuple(findings))


def _switch() -> Sight:
    return Sight(Observed.NOT, "no source of this version sees a DPU's own traffic or its switch")


def _representors(node: Node) -> list[str]:
    found = []
    for name in node.names(f"{node.sys}/class/net", _MOST).names:
        port = node.read(f"{node.sys}/class/net/{name}/phys_port_name", 64)
        if isinstance(port, str) and _REPRESENTOR.fullmatch(port):
            found.append(f"{name} ({port})")
    return found


def _functions(node: Node, bus: pci.Bus) -> Way:
    key, name = "rdma.vf", "virtual functions (SR-IOV)"
    if bus.denied is not None:
        worst = doubt(Severity.MEDIUM, f"virtual functions are not known: {bus.denied}", "run on the node")
        return Way(key, name, Present.UNKNOWN, str(bus.denied), findings=(worst,))
    parents = [one for one in bus.of("adapter", "gpu") if one.functions]
    if not parents:
        return Way(key, name, Present.NO, "no adapter or GPU has virtual functions enabled")
    total = sum(one.functions for one in parents)
    guests = [one for one in bus.devices if one.driver == "vfio-pci"]
    seen = verbs.port(node, "a port counts its functions together")
    findings = []
    if guests:
        findings.append(
            Finding(
                Severity.MEDIUM,
                f"{many(len(guests), 'device')} given to virtual machines or user programs (vfio-pci): what "
                "they move no probe of this node sees",
                "run the agent in the guest too; echo 0 > /sys/bus/pci/devices/PARENT/sriov_numvfs where "
                "unused",
                some([str(one) for one in guests]),
            )
        )
    spoof = _unchecked(node, parents)
    if spoof:
        findings.append(
            doubt(
                Severity.LOW,
                "whether functions may use any address and partition is not told by sysfs",
                "ip link show DEVICE: spoof checking on, trust off; InfiniBand: a GUID and PKeys of its "
                "own for each",
            )
        )
    return Way(key, name, Present.YES, f"{total} on {many(len(parents), 'device')}", seen, tuple(findings))


def _unchecked(node: Node, parents: list[pci.Device]) -> bool:
    return any(
        one.kind == "adapter"
        and not isinstance(node.read(f"{node.sys}/bus/pci/devices/{one.address}/class"), Denied)
        for one in parents
    )
