"""gdrcopy: GPU memory mapped into the CPU's address space, past the driver's copies."""

from __future__ import annotations

from fabrictap.audit.facts import Denied, Node
from fabrictap.audit.model import Finding, Observed, Present, Severity, Way, doubt, many, some

_KEY, _NAME = "gdrcopy", "gdrcopy (GPU memory mapped)"


def ways(node: Node) -> list[Way]:
    mode = node.mode(f"{node.dev}/gdrdrv")
    modules = node.modules
    if isinstance(modules, Denied) and mode is None:
        found = doubt(Severity.MEDIUM, f"whether gdrdrv is loaded is not known: {modules}", "run as root")
        return [Way(_KEY, _NAME, Present.UNKNOWN, str(modules), findings=(found,))]
    if mode is None and (isinstance(modules, Denied) or "gdrdrv" not in modules):
        return [Way(_KEY, _NAME, Present.NO, "gdrdrv is not loaded")]
    users = node.processes.holding("gdrdrv")
    seen = node.watch.sight("gpudirect", Observed.EXACT, "which process pins which GPU memory")
    findings = []
    if isinstance(mode, int) and mode & 0o006:
        findings.append(
            Finding(
                Severity.MEDIUM,
                "any user may map GPU memory of its own into the CPU: /dev/gdrdrv has mode "
                f"{mode & 0o777:04o}",
                "chgrp GROUP /dev/gdrdrv && chmod 0660 /dev/gdrdrv; mount it only into pods that use it",
                some([str(one) for one in users]),
            )
        )
    why = f"gdrdrv is loaded, open in {many(len(users), 'process', 'processes')}"
    return [Way(_KEY, _NAME, Present.YES, why, seen, tuple(findings))]
