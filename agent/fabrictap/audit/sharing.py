"""One GPU for several: MPS, MIG, and processes that take turns."""

from __future__ import annotations

import os
import re

from fabrictap.audit import gpus
from fabrictap.audit.facts import Denied, Node
from fabrictap.audit.model import Finding, Observed, Present, Severity, Sight, Way, doubt, many, some
from fabrictap.audit.patience import each
from fabrictap.audit.process import open_below

_KEY, _NAME = "gpu.sharing", "GPUs shared (MPS, MIG, time slices)"
_GPU = re.compile(r"gpu\d+")


def ways(node: Node) -> list[Way]:
    found = gpus.find(node)
    if found.present is Present.NO:
        return [Way(_KEY, _NAME, Present.NO, found.why)]
    findings, told = [], []
    mps = sorted(
        {*node.processes.named("nvidia-cuda-mps-control"), *node.processes.named("nvidia-cuda-mps-server")}
    )
    if mps:
        told.append(f"MPS runs ({mps[0]})")
        findings.append(
            Finding(
                Severity.MEDIUM,
                "processes share a GPU context (MPS): a fault of one ends all, and one user's server "
                "serves them",
                "one user for each MPS daemon, CUDA_MPS_PIPE_DIRECTORY of mode 0700; MIG where tenants "
                "differ: echo quit | nvidia-cuda-mps-control",
                _pipes(node),
            )
        )
    slices = _slices(node)
    if isinstance(slices, Denied):
        findings.append(
            doubt(Severity.LOW, f"whether GPUs are sliced (MIG) is not known: {slices}", "run as root")
        )
    elif slices:
        told.append(f"{slices} MIG instances (separated by the hardware)")
    findings += _capabilities(node)
    turns: dict[str, set[str]] = {}
    for one in node.processes.gpu:
        for gpu in one.gpus:
            turns.setdefault(gpu, set()).add(one.group)
    shared = [f"{gpu}: {len(groups)} workloads" for gpu, groups in sorted(turns.items()) if len(groups) > 1]
    if shared and not slices:
        told.append(f"{many(len(shared), 'GPU')} open in more than one workload")
        findings.append(
            Finding(
                Severity.LOW,
                "workloads take turns on a GPU: separated by its page tables alone, no limit of bandwidth",
                "whole GPUs, or MIG, where tenants differ (device plugin: no sharing.timeSlicing)",
                some(shared),
            )
        )
    seen = Sight(Observed.NOT, "what moves between processes inside a GPU is counted by nothing")
    if told:
        return [Way(_KEY, _NAME, Present.YES, "; ".join(told), seen, tuple(findings))]
    if node.processes.doubts or isinstance(slices, Denied) or found.present is Present.UNKNOWN:
        why = (node.processes.doubts or [str(slices) if isinstance(slices, Denied) else found.why])[0]
        findings.append(doubt(Severity.MEDIUM, f"whether GPUs are shared is not known: {why}", "run as root"))
        return [Way(_KEY, _NAME, Present.UNKNOWN, why, seen, tuple(findings))]
    return [Way(_KEY, _NAME, Present.NO, "no MPS, no MIG, no GPU in two workloads", findings=tuple(findings))]


def _pipes(node: Node) -> tuple[str, ...]:
    """The default pipe directory, as the daemon sees it."""

    def mode(pid: int) -> int:
        fd = open_below(node.proc, pid, "tmp", "nvidia-mps")
        try:
            return os.fstat(fd).st_mode & 0o777
        finally:
            os.close(fd)

    pids = node.processes.named("nvidia-cuda-mps-control")[:4]
    return tuple(
        f"/tmp/nvidia-mps of {pid} has mode {found:04o}"
        for pid, found in each(pids, mode)
        if isinstance(found, int)
    )


def _slices(node: Node) -> int | Denied:
    """GPU instances: /proc/driver/nvidia/capabilities/gpuN/mig/giM."""
    root = f"{node.proc}/driver/nvidia/capabilities"
    listed = node.names(root, 1024)
    if listed.denied is not None:
        return listed.denied
    number = 0
    for gpu in listed.names:
        if _GPU.fullmatch(gpu):
            inner = node.names(f"{root}/{gpu}/mig", 1024)
            if inner.denied is not None:
                return inner.denied
            number += sum(name.startswith("gi") for name in inner.names)
    return number


def _capabilities(node: Node) -> list[Finding]:
    """Who may change how GPUs are sliced: the mode that nvidia-modprobe gives the device file."""
    text = node.read(f"{node.proc}/driver/nvidia/capabilities/mig/config")
    if not isinstance(text, str):
        return []
    match = re.search(r"^DeviceFileMode:\s*(\d{1,5})\s*$", text, re.MULTILINE)
    if match is None or not int(match[1]) & 0o006:
        return []
    return [
        Finding(
            Severity.MEDIUM,
            f"any user may open the capability to re-slice GPUs (MIG config, mode {int(match[1]):04o})",
            "options nvidia NVreg_DeviceFileMode=0660, and no nvidia-cap1 in pods but the MIG manager's",
        )
    ]
