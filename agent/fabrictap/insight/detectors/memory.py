"""Exposed memory: more registered for access by peers than the policy allows for one process.

What a region lies in (host or GPU memory) is not in the ledger; all of it counts alike.
"""

from __future__ import annotations

from collections.abc import Iterator

from fabrictap import catalog
from fabrictap.insight.detectors import Context
from fabrictap.insight.findings import Finding, Severity, size_text

_EXPOSED = {"read": "read", "write": "write", "read_write": "read and write"}


class Memory:
    """Costs what there are of (process, device, kind of access): a region more costs nothing."""

    name = "memory"

    def look(self, now_ns: int, context: Context) -> Iterator[Finding]:  # noqa: ARG002 - all detectors alike
        exposed: dict[int | None, dict[str, int]] = {}
        devices: dict[int | None, set[str]] = {}
        for regions in context.ledger.memory.sums():
            atomic = regions.remote_atomic and regions.remote_access == "none"
            if regions.remote_access in _EXPOSED or atomic:
                # Atomics alone change memory and tell what was there.
                access = "read_write" if atomic else regions.remote_access
                sizes = exposed.setdefault(regions.pid, {})
                sizes[access] = sizes.get(access, 0) + regions.bytes
                devices.setdefault(regions.pid, set()).add(regions.device)
        for pid, sizes in exposed.items():
            size = sum(sizes.values())
            least = context.settings.exposed_memory
            if size <= least and not context.policy.restricts_memory:
                continue
            owner = context.owner(pid)
            allowed = owner.rule.settings.exposed_memory
            limit = least if allowed is None else allowed
            if size <= limit:
                continue
            ways = ", ".join(f"{size_text(sizes[one])} to {_EXPOSED[one]}" for one in sorted(sizes))
            process = owner.identity.get(catalog.PROCESS_EXE.name, "?")
            attributes = {**owner.identity, catalog.FINDING_WORKLOAD.name: owner.workload}
            if len(devices[pid]) == 1:
                attributes[catalog.RDMA_DEVICE.name] = next(iter(devices[pid]))
            yield Finding(
                catalog.EXPOSED_MEMORY,
                # A limit that somebody has set for this workload weighs more than the general one.
                Severity.INFO if allowed is None else Severity.WARN,
                f"{process} ({pid or 'kernel'}) lets peers use {size_text(size)} of its memory: {ways}",
                (pid,),
                size,
                "By",
                limit,
                None,
                attributes,
            )
