"""RDMA devices within reach of containers and user namespaces."""

from __future__ import annotations

import os
import re
from itertools import islice

from fabrictap.audit import verbs
from fabrictap.audit.facts import Denied, Node
from fabrictap.audit.model import NOTHING, Finding, Present, Severity, Way, doubt, many, some
from fabrictap.audit.patience import each
from fabrictap.audit.process import Process, open_below

_NAME = re.compile(r"uverbs\d+|umad\d+")


def ways(node: Node) -> list[Way]:
    present, why = verbs.devices(node)
    key, name = "rdma.containers", "RDMA devices in containers"
    if present is Present.NO:
        return [Way(key, name, present, why)]
    inside, doubts = _inside(node)
    findings = [*_reach(node, inside), *_names(inside), *_users(node)]
    doubts += node.processes.doubts
    findings += [
        doubt(
            Severity.HIGH,
            f"which containers reach RDMA devices is not known: {why}",
            "run as root on the node",
        )
        for why in doubts
    ]
    if inside:
        present, why = Present.YES, f"in /dev of {many(len(inside), 'container')}"
    elif doubts:
        present, why = Present.UNKNOWN, doubts[0]
    else:
        number = len(node.processes.namespaces)
        present, why = Present.NO, f"none in /dev of {many(number, 'container')}"
    return [
        Way(
            key,
            name,
            present,
            why,
            verbs.sight(node) if present is not Present.NO else NOTHING,
            tuple(findings),
        )
    ]


def _inside(node: Node) -> tuple[list[tuple[Process, tuple[str, ...]]], list[str]]:
    """(a process of each mount namespace with RDMA devices, and which), what could not be looked at."""
    found, denied = [], 0
    for one, names in each(list(node.processes.namespaces.values()), lambda one: _devices(node, one)):
        if isinstance(names, (FileNotFoundError, ProcessLookupError, NotADirectoryError)):
            continue
        if isinstance(names, Exception):
            denied += 1
        elif names:
            found.append((one, names))
    return found, [f"/dev of {denied} containers could not be read"] if denied else []


def _devices(node: Node, one: Process) -> tuple[str, ...]:
    fd = open_below(node.proc, one.pid, "dev", "infiniband")
    try:
        with os.scandir(fd) as entries:
            return tuple(sorted(e.name for e in islice(entries, 4096) if _NAME.fullmatch(e.name)))
    finally:
        os.close(fd)


def _reach(node: Node, inside: list[tuple[Process, tuple[str, ...]]]) -> list[Finding]:
    """Network namespaces hold no RDMA device back while the kernel shares them."""
    mode = node.read(f"{node.sys}/module/ib_core/parameters/netns_mode")
    fix = (
        "rdma system set netns exclusive (before any container has a network namespace), then rdma dev set "
        "DEVICE netns NAME; for good: options ib_core netns_mode=0"
    )
    if isinstance(mode, Denied) or mode is None:
        return [doubt(Severity.MEDIUM, "whether network namespaces separate RDMA devices is not known", fix)]
    if mode not in ("Y", "1"):
        return []
    what = "every network namespace sees every RDMA device (rdma system: netns shared)"
    if not inside:
        return [Finding(Severity.LOW, f"{what}; no container has a device node now", fix)]
    return [
        Finding(
            Severity.MEDIUM,
            f"{what}, and {many(len(inside), 'container')} with device nodes: GIDs and peers are not held "
            "apart",
            fix,
            some([f"{one}: {', '.join(some(list(names), 3))}" for one, names in inside]),
        )
    ]


def _names(inside: list[tuple[Process, tuple[str, ...]]]) -> list[Finding]:
    mad = [f"{one}: {name}" for one, names in inside for name in names if name.startswith("umad")]
    if not mad:
        return []
    return [
        Finding(
            Severity.MEDIUM,
            "containers with a device for fabric management packets (umad): their root may send them",
            "give out uverbs and rdma_cm only: not /dev/infiniband as a whole, not privileged: true; where "
            "a device plugin hands umad out as well, runAsNonRoot: true",
            some(mad),
        )
    ]


def _users(node: Node) -> list[Finding]:
    first = node.user_namespace
    inside = [one for one in node.processes.rdma if first is not None and one.user not in (None, first)]
    root = [one for one in inside if one.root_outside == 0]
    found = []
    if root:
        found.append(
            Finding(
                Severity.HIGH,
                "RDMA devices open in a user namespace whose root is the node's root",
                "map root to another user: hostUsers: false with an id range, or userns-remap",
                some([str(one) for one in root]),
            )
        )
    plain = [one for one in node.processes.rdma if one.foreign and one.uid == 0 and one.user == first]
    if plain:
        found.append(
            Finding(
                Severity.LOW,
                "containers that use RDMA as the node's root (no user namespace)",
                "hostUsers: false in the pod, or runAsNonRoot: true",
                some([str(one) for one in plain]),
            )
        )
    return found
