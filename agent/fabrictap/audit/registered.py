"""Memory that peers may read or write over the network, without this node's CPU or the owner's knowing."""

from __future__ import annotations

from fabrictap.audit import verbs
from fabrictap.audit.facts import Denied, Node
from fabrictap.audit.model import NOTHING, Finding, Observed, Present, Severity, Sight, Way, doubt, many, some
from fabrictap.audit.watch import Memory
from fabrictap.view.text import amount

_FIX = (
    "register for the accesses that are used (no IBV_ACCESS_REMOTE_* for send and receive), deregister after "
    "use; alert on rdma.memory_region.size{rdma.memory_region.remote_access} and on rdma.port.dark.io"
)


def ways(node: Node) -> list[Way]:
    present, why = verbs.devices(node)
    if present is Present.NO:
        return [Way("rdma.one_sided", "registered memory", present, why)]
    watch = node.watch
    reach = [one for one in watch.memory if one.access not in ("none", "unknown") or one.atomic]
    findings: list[Finding] = []
    if watch.state == "running" and watch.sources.get("verbs") and present is Present.YES:
        total = sum(one.bytes for one in watch.memory)
        present = Present.YES if watch.memory else Present.NO
        why = (
            f"{amount(total, 'By')} registered, {amount(sum(one.bytes for one in reach), 'By')} open to peers"
        )
        findings += _open(reach)
        findings += _unclear([one for one in watch.memory if one.access == "unknown" and not one.atomic])
    else:
        present, why, more = _from_netlink(node)
        findings += more
    return [
        Way(
            "rdma.one_sided",
            "registered memory",
            present,
            why,
            NOTHING if present is Present.NO else _sight(node),
            tuple(findings),
        )
    ]


def _sight(node: Node) -> Sight:
    """The side that is read or written sees nothing of it: only the port counts."""
    watch = node.watch
    seen = verbs.port(node, "a peer's access moves bytes of the port only")
    if seen.how in (Observed.HARDWARE, Observed.ESTIMATED) and watch.dark is not None:
        return Sight(seen.how, f"{seen.by}; {amount(watch.dark, 'By')} dark since the agent began")
    return seen


def _open(reach: list[Memory]) -> list[Finding]:
    found = []
    for severity, may, those in (
        (Severity.MEDIUM, "overwrite", [m for m in reach if "write" in m.access or m.atomic]),
        (Severity.MEDIUM, "read", [m for m in reach if m.access == "read" and not m.atomic]),
    ):
        if not those:
            continue
        those.sort(key=lambda one: -one.bytes)
        evidence = [
            f"{one} {amount(one.bytes, 'By')} on {one.device} ({one.access}{', atomic' * one.atomic})"
            for one in those
        ]
        size = amount(sum(one.bytes for one in those), "By")
        owners = len({one.pid for one in those})
        found.append(
            Finding(
                severity,
                f"{size} of {many(owners, 'process', 'processes')} that peers with the key may {may}",
                _FIX,
                some(evidence),
            )
        )
    return found


def _unclear(unclear: list[Memory]) -> list[Finding]:
    if not unclear:
        return []
    size = amount(sum(one.bytes for one in unclear), "By")
    return [
        doubt(
            Severity.MEDIUM,
            f"what peers may do to {size} is not known: registered before the agent came, or from a GPU's "
            "buffer",
            "start the agent before the workloads",
        )
    ]


def _from_netlink(node: Node) -> tuple[Present, str, list[Finding]]:
    """Without an agent: the kernel lists what is registered, not what peers may do to it."""
    owners = node.rdma_owners()
    fix = "run the agent: its verbs source knows the access of what is registered from then on"
    if isinstance(owners, Denied):
        return Present.UNKNOWN, str(owners), [doubt(Severity.MEDIUM, f"registered memory: {owners}", fix)]
    total = sum(size for _, size in owners.values())
    if not total:
        return Present.NO, "RDMA netlink lists no registered memory", []
    names = {one.pid: str(one) for one in node.processes.holders}
    most = sorted(owners.items(), key=lambda item: -item[1][1])
    evidence = [f"{names.get(pid, pid or 'kernel')} {amount(size, 'By')}" for pid, (_, size) in most if size]
    return (
        Present.YES,
        f"RDMA netlink lists {amount(total, 'By')} registered",
        [
            Finding(
                Severity.MEDIUM,
                f"what peers may do to {amount(total, 'By')} of registered memory is not known: RDMA "
                "netlink does not tell",
                fix,
                some(evidence),
                certain=False,
            )
        ],
    )
