"""What limits observation itself on this node: settings of the kernel, and an agent that is not there."""

from __future__ import annotations

from collections.abc import Iterator

from fabrictap.audit.facts import Denied, Node
from fabrictap.audit.model import Finding, Observed, Present, Severity, Way, doubt


def check(node: Node, ways: list[Way]) -> list[Finding]:
    """Findings about the observer; ``ways`` are what is to be observed."""
    there = [way for way in ways if way.present is not Present.NO]
    found = list(_kernel(node)) if there else []
    return [*_agent(node, ways), *found]


def _agent(node: Node, ways: list[Way]) -> Iterator[Finding]:
    there = [way for way in ways if way.present is Present.YES]
    watch = node.watch
    if watch.state == "running":
        down = sorted(name for name, up in watch.sources.items() if not up)
        if down and there:
            yield Finding(
                Severity.MEDIUM, f"sources of the agent do not deliver: {', '.join(down)}", "fabrictap doctor"
            )
        if watch.lost:
            yield Finding(
                Severity.LOW,
                f"the agent could not keep {watch.lost} records or entries: what it says is not all",
                "fabrictap snapshot (losses); larger limits.* or sources.verbs.event_buffer",
            )
        blind = [way.name for way in there if way.seen.how is Observed.NOT]
        if blind:
            yield Finding(
                Severity.MEDIUM,
                f"{len(blind)} of {len(there)} ways that are there are observed by nothing",
                "see below which; what cannot be watched can be taken away (see the fixes)",
                tuple(blind[:8]),
            )
    elif there and watch.state == "unknown":
        yield doubt(
            Severity.MEDIUM, f"whether an agent observes this node is not known: {watch.why}", "run as root"
        )
    elif there:
        yield Finding(
            Severity.MEDIUM,
            f"no agent runs: nothing observes the {len(there)} ways that are there",
            f"fabrictap run ({watch.why})",
        )


def _kernel(node: Node) -> Iterator[Finding]:
    lockdown = node.read(f"{node.sys}/kernel/security/lockdown", 128)
    if isinstance(lockdown, Denied):
        yield doubt(Severity.LOW, f"kernel lockdown: {lockdown}", "run as root")
    elif lockdown is None:
        if (
            node.names(f"{node.sys}/kernel/security", 64).exists
            and not node.names(f"{node.sys}/kernel/security").names
        ):
            yield doubt(
                Severity.LOW,
                "kernel lockdown is not known: securityfs is not mounted",
                "mount -t securityfs none /sys/kernel/security",
            )
    elif "[confidentiality]" in lockdown:
        yield Finding(
            Severity.MEDIUM,
            "kernel lockdown (confidentiality) refuses BPF programs that read memory: no connection, no "
            "post is seen",
            "lockdown=integrity on the kernel's command line",
        )
    paranoid = node.number(f"{node.proc}/sys/kernel/perf_event_paranoid")
    if paranoid is not None and paranoid > 2:
        yield Finding(
            Severity.LOW,
            f"kernel.perf_event_paranoid={paranoid}: probes need CAP_SYS_ADMIN, CAP_PERFMON is not enough",
            "sysctl kernel.perf_event_paranoid=2, or CAP_SYS_ADMIN for the agent",
        )
    if not node.names(f"{node.sys}/kernel").exists:
        yield doubt(
            Severity.MEDIUM, "what the kernel lets an agent see is not known: no sysfs", "run on the node"
        )
    elif node.mode(f"{node.sys}/kernel/btf/vmlinux") is None:
        yield Finding(
            Severity.MEDIUM,
            "the kernel has no type information (BTF): without its headers and bcc's library connections are "
            "known from netlink only, posts of them all",
            "a kernel with CONFIG_DEBUG_INFO_BTF, or its headers and libbpfcc",
        )
    elif node.mode(f"{node.sys}/kernel/btf/ib_core") is None and node.rdma_devices.names:
        yield Finding(
            Severity.LOW,
            "no type information of ib_core: hooks at the system call only, no kernel users, no older peers",
            "a kernel with CONFIG_DEBUG_INFO_BTF_MODULES (5.11 and later)",
        )
