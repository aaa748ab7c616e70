"""The policy of the configuration, ready to be asked: which rule a workload has, whom it may talk to."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from fabrictap import catalog
from fabrictap.config import Policy, WorkloadPolicy
from fabrictap.ledger.workloads.selector import matches
from fabrictap.series import AttributeValue

Identity = Mapping[str, AttributeValue]
_MAPPED = ipaddress.ip_network("::ffff:0:0/96")
#: Answers kept; whose identity is not among them is matched again.
_MOST_ANSWERS = 4096
_NO_RULE = WorkloadPolicy()


class Rule:
    """One rule. ``settings`` are as configured; ``stated`` is False for a workload that no rule matches."""

    def __init__(self, settings: WorkloadPolicy, *, stated: bool = True) -> None:
        self.settings = settings
        self.stated = stated
        self._networks = None if settings.peers is None else [_network(peer) for peer in settings.peers]

    def allows(self, gid: str) -> bool | None:
        """Whether the workload may talk to ``gid``; None where the rule leaves it to what was learned."""
        if self._networks is None:
            return None
        address = ipaddress.IPv6Address(gid)
        return any(address in network for network in self._networks)

    def _matches(self, identity: Identity) -> bool:
        return matches(self.settings.match, identity)


class CompiledPolicy:
    """All rules. Immutable: a new policy is a new object."""

    def __init__(self, policy: Policy) -> None:
        self._rules = [Rule(settings) for settings in policy.workloads]
        self._none = Rule(_NO_RULE, stated=False)
        self._tenant_by = policy.tenant_by
        #: Whether any workload has a limit of its own.
        self.restricts_memory = any(rule.settings.exposed_memory is not None for rule in self._rules)
        self.least_queue_pairs = min(
            (rule.settings.queue_pairs for rule in self._rules if rule.settings.queue_pairs is not None),
            default=1 << 30,
        )
        self._answers: dict[frozenset[tuple[str, AttributeValue]], Rule] = {}

    def rule(self, identity: Identity) -> Rule:
        """The first rule that matches."""
        key = frozenset(identity.items())
        found = self._answers.get(key)
        if found is None:
            found = next((rule for rule in self._rules if rule._matches(identity)), self._none)
            if len(self._answers) >= _MOST_ANSWERS:
                self._answers.clear()
            self._answers[key] = found
        return found

    def tenant(self, identity: Identity) -> str | None:
        """The tenant that a workload belongs to; None where the policy does not say."""
        named = self.rule(identity).settings.tenant
        if named is not None or self._tenant_by is None:
            return named
        value = identity.get(self._tenant_by)
        return None if value is None else str(value)


def workload_key(identity: Identity) -> str:
    """What stays the same when a pod, a job or a process is started again (fabrictap.finding.workload)."""
    namespace = identity.get(catalog.K8S_NAMESPACE.name)
    executable = str(identity.get(catalog.PROCESS_EXE.name, "?"))
    if namespace is not None:
        return f"k8s:{namespace}/{identity.get(catalog.K8S_CONTAINER.name, executable)}"
    if (uid := identity.get(catalog.K8S_POD_UID.name)) is not None:
        return f"pod:{uid}"
    if catalog.SLURM_JOB.name in identity:
        user = identity.get(catalog.SLURM_USER.name, identity.get(catalog.SLURM_UID.name, "?"))
        return f"slurm:{user}/{executable}"
    if (container := identity.get(catalog.CONTAINER_ID.name)) is not None:
        return f"container:{container}"
    if (unit := identity.get(catalog.SYSTEMD_UNIT.name)) is not None:
        return f"systemd:{unit}"
    return f"process:{executable}"


def network_of(gid: str) -> str:
    """The network that stands for an address where there are too many: /24 of IPv4, /64 of IPv6 and GIDs."""
    address = ipaddress.IPv6Address(gid)
    if address.ipv4_mapped is not None:
        return str(ipaddress.ip_network(f"{address.ipv4_mapped}/24", strict=False))
    return str(ipaddress.ip_network(f"{address}/64", strict=False))


def _network(text: str) -> ipaddress.IPv6Network:
    network = ipaddress.ip_network(text, strict=False)
    if isinstance(network, ipaddress.IPv6Network):
        return network
    base = int(_MAPPED.network_address) | int(network.network_address)
    return ipaddress.IPv6Network((base, 96 + network.prefixlen))
