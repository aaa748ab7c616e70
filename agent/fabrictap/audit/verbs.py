"""RDMA through verbs: devices, who may open them, who uses them, and how well their posts are seen."""

from __future__ import annotations

import re
from collections import Counter

from fabrictap.audit.facts import Denied, Node
from fabrictap.audit.model import ORDER, Finding, Observed, Present, Severity, Sight, Way, doubt, many, some
from fabrictap.audit.watch import in_build
from fabrictap.view.text import share

_COVERAGE = {
    "exact": Observed.EXACT,
    "since": Observed.SINCE,
    "estimated": Observed.ESTIMATED,
    "control_only": Observed.HARDWARE,
}
_NODES = re.compile(r"(uverbs|umad|issm)\d+|rdma_cm")


def ways(node: Node) -> list[Way]:
    present, why = devices(node)
    findings = []
    if present is not Present.NO:
        findings = [*_modes(node), *_blind(node), *_users(node)]
    seen = sight(node) if present is not Present.NO else Sight(Observed.NOTHING, "")
    return [Way("rdma.verbs", "RDMA by verbs programs", present, why, seen, tuple(findings))]


def devices(node: Node) -> tuple[Present, str]:
    """Whether there are RDMA devices, and which."""
    found = node.rdma_devices
    if found.denied is not None:
        return Present.UNKNOWN, str(found.denied)
    users = len(node.processes.rdma)
    if not found.names:
        return _elsewhere(node, users)
    names = ", ".join(some(list(found.names), 8))
    libraries = Counter(name for one in node.processes.rdma for name in one.libraries if name != "libibverbs")
    # Where no driver matches by its name, libibverbs maps every provider that is installed.
    told = ", ".join(some([f"{name} {number}" for name, number in libraries.most_common()], 3))
    return Present.YES, f"{names}; open in {many(users, 'process', 'processes')}" + (
        f" ({told})" if told else ""
    )


def _elsewhere(node: Node, users: int) -> tuple[Present, str]:
    """sysfs shows the RDMA devices of this network namespace only, where they are not shared."""
    if users:
        return (
            Present.YES,
            f"none in this network namespace, but open in {many(users, 'process', 'processes')}",
        )
    if not node.names(f"{node.sys}/class").exists:
        return Present.UNKNOWN, f"{node.sys}: sysfs is not there"
    if isinstance(node.modules, Denied):
        return Present.UNKNOWN, str(node.modules)
    mode = node.read(f"{node.sys}/module/ib_core/parameters/netns_mode", 16)
    if mode is not None and mode not in ("Y", "1"):
        return (
            Present.UNKNOWN,
            "none in this network namespace; others may have some (rdma system: exclusive)",
        )
    return Present.NO, "no RDMA device in /sys/class/infiniband"


def sight(node: Node) -> Sight:
    """The worst coverage of what lives now."""
    watch = node.watch
    base = watch.sight("verbs", Observed.EXACT, "connections, memory and posted work")
    if base.how is not Observed.EXACT:
        return base
    counts: dict[str, int] = {}
    for one in watch.connections:
        counts[one.coverage] = counts.get(one.coverage, 0) + 1
    if not counts:
        return Sight(Observed.EXACT, "verbs: waits; no connection is open")
    worst = max((_COVERAGE.get(name, Observed.UNKNOWN) for name in counts), key=ORDER.index)
    told = ", ".join(f"{many} {name}" for name, many in sorted(counts.items()))
    return Sight(worst, f"verbs: {sum(counts.values())} connections ({told}); the worst counts here")


def port(node: Node, by: str) -> Sight:
    """What the ports' counters tell: of software devices the interface's bytes, other traffic included."""
    if node.software_rdma:
        seen = node.watch.sight("infiniband", Observed.ESTIMATED, f"{by} (of its interface: software RDMA)")
    else:
        seen = node.watch.sight("infiniband", Observed.HARDWARE, by)
    return seen


def _modes(node: Node) -> list[Finding]:
    """Who may open what is in /dev/infiniband."""
    listed = node.names(f"{node.dev}/infiniband", 4096)
    if listed.denied is not None:
        return [
            doubt(Severity.HIGH, f"permissions of RDMA devices are not known: {listed.denied}", "run as root")
        ]
    mad: list[str] = []
    verbs: list[str] = []
    cm: list[str] = []
    for name in listed.names:
        if not _NODES.fullmatch(name):
            continue
        mode = node.mode(f"{node.dev}/infiniband/{name}")
        if not isinstance(mode, int) or not mode & 0o006:
            continue
        told = f"{name} {mode & 0o777:04o}"
        (mad if name.startswith(("umad", "issm")) else cm if name == "rdma_cm" else verbs).append(told)
    found = []
    if mad:
        found.append(
            Finding(
                Severity.HIGH,
                "any user may send management packets to the fabric (umad, issm)",
                'udev: KERNEL=="umad*|issm*", MODE="0600"; then udevadm trigger -s infiniband_mad',
                some(mad),
            )
        )
    if verbs:
        found.append(
            Finding(
                Severity.MEDIUM,
                "any user and every process with a changed uid may open RDMA devices: the kernel's default",
                'groupadd -r rdma; udev: KERNEL=="uverbs*", GROUP="rdma", MODE="0660"; '
                "then udevadm trigger -s infiniband_verbs",
                some([*verbs, *cm]),
            )
        )
    return found


def _blind(node: Node) -> list[Finding]:
    """Connections and libraries whose posts the running agent does not count."""
    found = []
    blind = [one for one in node.watch.connections if one.coverage == "control_only"]
    if blind:
        who = sorted({f"{one.pid}/{one.process} on {one.device}" for one in blind})
        found.append(
            Finding(
                Severity.MEDIUM,
                f"{len(blind)} connections whose posted work is not seen: bytes in the port's counters only",
                "fabrictap flows --coverage control_only says which; use the node's own rdma-core in the "
                "container (mount it, or the same file), and no library that writes queue entries itself",
                some(who),
            )
        )
    partly = [one for one in node.watch.connections if one.fraction is not None]
    if partly:
        least = min(one.fraction or 0.0 for one in partly)
        who = sorted({f"{one.pid}/{one.process} on {one.device}" for one in partly})
        found.append(
            Finding(
                Severity.LOW,
                f"{len(partly)} connections whose posted work is counted in a part of the time (the least: "
                f"{share(least)}), to keep within sources.verbs.budget",
                "count them in full by a rule of sources.verbs.budget.workloads, or raise its limits",
                some(who),
            )
        )
    copies = [one for one in node.processes.rdma if one.foreign and "libibverbs" in one.libraries]
    if copies and not in_build("verbs.discovery"):
        found.append(
            Finding(
                Severity.MEDIUM,
                "processes with an image's own copy of the verbs libraries: this version probes the node's "
                "only",
                "mount the node's libibverbs and providers into the container",
                some([f"{one}: {one.libraries['libibverbs']}" for one in copies]),
            )
        )
    return found


def _users(node: Node) -> list[Finding]:
    """Processes that hold an RDMA device: what is mapped; and whether all of them could be seen."""
    found = []
    strange = [one for one in node.processes.rdma if not one.libraries and one.incomplete is None]
    if strange:
        found.append(
            Finding(
                Severity.MEDIUM,
                "processes that have an RDMA device open and no verbs library of a known name mapped: "
                "linked statically, or calling the kernel themselves",
                "see what they are: ls -l /proc/PID/exe; their posts are not counted",
                some([str(one) for one in strange]),
            )
        )
    found += [
        doubt(
            Severity.HIGH, f"who has RDMA devices open is not known in full: {why}", "run as root on the node"
        )
        for why in node.processes.doubts
    ]
    return found
