"""CUDA IPC: GPU memory of one process mapped into another, on one GPU or over NVLink and PCIe."""

from __future__ import annotations

import os
from pathlib import Path

from fabrictap.audit import gpus
from fabrictap.audit.facts import Node
from fabrictap.audit.model import Finding, Observed, Present, Severity, Sight, Way, doubt, many, some
from fabrictap.audit.patience import each
from fabrictap.audit.process import Process, open_below

_KEY, _NAME = "cuda.ipc", "GPU memory between processes (CUDA IPC)"


def ways(node: Node) -> list[Way]:
    found = gpus.find(node)
    if found.present is Present.NO:
        return [Way(_KEY, _NAME, Present.NO, found.why)]
    holders = node.processes.gpu
    seen = Sight(Observed.NOT, "no source of this version sees cuIpcOpenMemHandle and its like")
    findings = [*_shared(node, holders), *_memory(node, holders)]
    findings += [
        doubt(Severity.HIGH, f"which GPU processes share an IPC namespace is not known: {why}", "run as root")
        for why in node.processes.doubts
    ]
    if len(holders) < 2:
        if found.present is Present.UNKNOWN or node.processes.doubts:
            why = (node.processes.doubts or [found.why])[0]
            return [Way(_KEY, _NAME, Present.UNKNOWN, why, seen, tuple(findings))]
        return [
            Way(
                _KEY,
                _NAME,
                Present.NO,
                f"{many(len(holders), 'process', 'processes')} with a GPU open",
                findings=tuple(findings),
            )
        ]
    spaces = len({one.ipc for one in holders})
    why = f"{len(holders)} processes have GPUs open, in {many(spaces, 'IPC namespace')}; "
    why += "who maps whose is not listed"
    return [Way(_KEY, _NAME, Present.YES, why, seen, tuple(findings))]


def _shared(node: Node, holders: list[Process]) -> list[Finding]:
    """Containers of one pod share their IPC namespace by design; pods and jobs do not."""
    spaces: dict[str, list[Process]] = {}
    for one in holders:
        if one.ipc is not None:
            spaces.setdefault(one.ipc, []).append(one)
    own = _link(f"{node.proc}/1/ns/ipc")
    found = []
    for space, those in spaces.items():
        workloads = {one.group: one for one in those}
        if len(workloads) < 2:
            continue
        host = space == own
        containers = [one for one in workloads.values() if one.foreign]
        if not containers and len({one.uid for one in those}) == 1:
            continue  # a node's own jobs of one user
        where = "the node's IPC namespace" if host else "one IPC namespace"
        found.append(
            Finding(
                Severity.HIGH,
                f"GPU processes of {len(workloads)} workloads share {where}: each may open GPU memory and "
                "shared memory (/dev/shm) that another offers",
                "hostIPC: false in the pods (docker: no --ipc=host); one pod for processes that belong "
                "together",
                some([str(one) for one in workloads.values()]),
            )
        )
    alone = [
        one
        for one in holders
        if one.foreign
        and one.ipc is not None
        and one.ipc == own
        and len({p.group for p in spaces[one.ipc]}) < 2
    ]
    if alone:
        found.append(
            Finding(
                Severity.MEDIUM,
                "a container with a GPU is in the node's IPC namespace",
                "hostIPC: false in the pod (docker: no --ipc=host, --shm-size instead)",
                some([str(one) for one in alone]),
            )
        )
    return found


def _memory(node: Node, holders: list[Process]) -> list[Finding]:
    """/dev/shm of one mounted into others: shared between IPC namespaces that are not."""

    def which(one: Process) -> tuple[int, int]:
        fd = open_below(node.proc, one.pid, "dev", "shm")
        try:
            status = os.fstat(fd)
            return status.st_dev, status.st_ino
        finally:
            os.close(fd)

    first = {one.group: one for one in holders if one.foreign}
    places: dict[tuple[int, int], list[Process]] = {}
    for one, found in each(list(first.values()), which):
        if isinstance(found, tuple):
            places.setdefault(found, []).append(one)
    shared = [those for those in places.values() if len({one.ipc for one in those}) > 1]
    return [
        Finding(
            Severity.MEDIUM,
            f"GPU processes of {len(those)} workloads share /dev/shm by a mount: handles of GPU memory and "
            "data pass through it",
            "no hostPath of /dev/shm; an emptyDir of medium Memory for each pod",
            some([str(one) for one in those]),
        )
        for those in shared
    ]


def _link(path: str) -> str | None:
    try:
        return str(Path(path).readlink())
    except OSError:
        return None
