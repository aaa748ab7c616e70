"""GPUDirect Storage: drives and file systems that write into GPU memory."""

from __future__ import annotations

from fabrictap.audit.facts import Denied, Node
from fabrictap.audit.model import Finding, Observed, Present, Severity, Way, doubt

_KEY, _NAME = "gpudirect.storage", "GPUDirect Storage"


def ways(node: Node) -> list[Way]:
    modules = node.modules
    root = f"{node.proc}/driver/nvidia-fs"
    there = node.names(root, 64)
    if isinstance(modules, Denied) or there.denied is not None:
        why = str(modules if isinstance(modules, Denied) else there.denied)
        return [
            Way(
                _KEY,
                _NAME,
                Present.UNKNOWN,
                why,
                findings=(
                    doubt(Severity.MEDIUM, f"whether nvidia-fs is loaded is not known: {why}", "run as root"),
                ),
            )
        ]
    if "nvidia_fs" not in modules and not there.exists:
        return [Way(_KEY, _NAME, Present.NO, "nvidia-fs is not loaded (cuFile may use pci-p2pdma: see PCIe)")]
    version = node.read(f"{root}/version", 128)
    said = " ".join(version.split())[:64] if isinstance(version, str) else "no version"
    users = node.processes.holding("nvidia-fs")
    seen = node.watch.sight("gpudirect", Observed.EXACT, "reads and writes between storage and GPU memory")
    if seen.how is Observed.NOT:
        seen = type(seen)(
            seen.how, f"{seen.by}; /proc/driver/nvidia-fs/stats counts them for the node, where enabled"
        )
    finding = Finding(
        Severity.MEDIUM,
        "files and drives may move to and from GPU memory unseen; nvidia-fs counts, if at all, without a "
        "process",
        "echo 1 > /sys/module/nvidia_fs/parameters/rw_stats_enabled and read /proc/driver/nvidia-fs/stats; "
        "where it is not used: modprobe -r nvidia_fs",
        tuple(str(one) for one in users[:4]),
    )
    return [Way(_KEY, _NAME, Present.YES, f"nvidia-fs is loaded ({said})", seen, (finding,))]
