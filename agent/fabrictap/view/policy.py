"""A policy proposed from what was observed: a recording, or what detectors remember. For a person to read."""

from __future__ import annotations

import glob
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field

import yaml

from fabrictap import catalog
from fabrictap.config import Policy, Size, WorkloadPolicy, policy_as_written
from fabrictap.insight.policy import network_of, workload_key
from fabrictap.insight.remembered import ALL, DAYS, Remembered
from fabrictap.view.recording import Recording

#: More peers than these become networks.
_MOST_PEERS = 16
#: A budget is so many times the most that was seen in a day.
_ROOM = 3
_NAMES = {metric.name for metric in (catalog.QP_STATUS, catalog.VERBS_IO)}


@dataclass(slots=True)
class Observed:
    """What one workload did. ``peers``: GIDs and networks; ``day``: most bytes to one peer in a day."""

    peers: set[str] = field(default_factory=set)
    day: int = 0
    anybody: bool = False


def from_memory(remembered: Remembered) -> dict[str, Observed]:
    """What detectors remember, by workload."""
    found: dict[str, Observed] = {}
    for name, known in remembered.workloads.items():
        found[name] = Observed({*known.peers, *known.networks}, 0, known.anybody)
    for pair in remembered.pairs.values():
        observed = found.setdefault(pair.workload, Observed())
        if pair.peer != ALL:
            observed.day = max(observed.day, pair.today, *pair.past_days(DAYS))
            if ":" in pair.peer:
                observed.peers.add(pair.peer)
    return found


def from_recording(recording: Recording) -> dict[str, Observed]:
    """Who talked to whom in a recording; it is too short to say how much a day has."""
    found: dict[str, Observed] = {}
    for series in recording.series(lambda metric: metric.name in _NAMES):
        peer = series.attributes.get(catalog.RDMA_PEER_GID.name)
        if isinstance(peer, str):
            found.setdefault(workload_key(series.attributes), Observed()).peers.add(peer)
    return found


def propose(observed: dict[str, Observed]) -> Policy:
    """A rule for each workload that can be matched again after a restart."""
    rules = []
    for name in sorted(observed):
        match, one = _match(name), observed[name]
        if match is None:
            continue
        rules.append(
            WorkloadPolicy(
                match=match,
                peers=None if one.anybody else _peers(one.peers),
                egress_budget=_budget(one.day),
            )
        )
    return Policy(workloads=rules)


def text(policy: Policy, source: str) -> str:
    """The policy as a part of a configuration file."""
    head = (
        f"# Proposed from {source}: what was seen, not what is right. Read it, widen it, and remove what\n"
        "# should not be, before it is used.\n"
    )
    return head + yaml.safe_dump({"policy": policy_as_written(policy)}, sort_keys=False, allow_unicode=False)


def _match(workload: str) -> dict[str, str] | None:
    """The attributes that tell a workload, from its name (insight.policy.workload_key)."""
    kind, _, rest = workload.partition(":")
    first, _, second = (glob.escape(part) for part in rest.partition("/"))
    if kind == "k8s":
        return {catalog.K8S_NAMESPACE.name: first, catalog.K8S_CONTAINER.name: second}
    if kind == "slurm":
        by = catalog.SLURM_UID if first.isdigit() else catalog.SLURM_USER
        return {by.name: first, catalog.PROCESS_EXE.name: second}
    if kind == "systemd":
        return {catalog.SYSTEMD_UNIT.name: glob.escape(rest)}
    if kind == "process":
        return {catalog.PROCESS_EXE.name: glob.escape(rest)}
    return None


def _peers(peers: Iterable[str]) -> list[str]:
    networks = {peer for peer in peers if "/" in peer}
    single = {peer for peer in peers if "/" not in peer}
    if len(single) > _MOST_PEERS:
        networks |= {network_of(peer) for peer in single}
        single = set()
    return [*sorted(networks), *sorted(_plain(peer) for peer in single)]


def _plain(gid: str) -> str:
    mapped = ipaddress.IPv6Address(gid).ipv4_mapped
    return gid if mapped is None else str(mapped)


def _budget(day: int) -> Size | None:
    """Room above the most of a day, in whole GiB or MiB."""
    if not day:
        return None
    unit = 1 << 30 if day * _ROOM >= 1 << 30 else 1 << 20
    return Size(-(-day * _ROOM // unit) * unit)
