"""Who it was: process -> container -> pod or Slurm job.

``resolver`` reads what /proc and the log directories say of one process, in the thread of the source that
met it. :class:`Workloads` holds what the kubelet says of pods and their devices, and turns a workload
into attributes; it is guarded by the node's lock.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from fabrictap.ledger.workloads.attributes import attributes
from fabrictap.ledger.workloads.budget import AttributeValue, CardinalityBudget
from fabrictap.ledger.workloads.model import NONE, Container, Device, Pod, Workload, named
from fabrictap.ledger.workloads.resolver import Resolver

__all__ = ["NONE", "Container", "Device", "Pod", "Resolver", "Workload", "Workloads", "attributes"]

#: A device -> the containers that have it; several where the device plugin shares it.
Assignments = Mapping[Device, tuple[Container, ...]]


@dataclass(slots=True)
class _Holder:
    """The identity that a process has been given, and for which version of the names."""

    start_ticks: int | None
    name: str | None
    workload: Workload
    version: int
    attributes: dict[str, AttributeValue]


class Workloads:
    """Pods, their containers and devices, and the attributes that series of a process carry."""

    def __init__(self, resolver: Resolver, identities: int) -> None:
        """``identities``: most different attribute sets at a time."""
        self.resolver = resolver
        self.budget = CardinalityBudget(identities)
        #: Assignments and pods that were too many to be read, cumulative.
        self.devices_dropped = 0
        self.devices: dict[Device, tuple[Container, ...]] = {}
        self._pods: Mapping[str, Pod] = {}
        self._containers: Mapping[str, Container] = {}
        #: Changes whenever names of pods or containers do.
        self.version = 0
        self._held: dict[int, _Holder] = {}

    def name(self, pods: Mapping[str, Pod], containers: Mapping[str, Container]) -> None:
        """All pods by uid and all containers by id, as known now; these replace what was known."""
        if pods != self._pods or containers != self._containers:
            self._pods, self._containers = pods, containers
            self.version += 1

    def assign(self, devices: Assignments, dropped: int = 0) -> None:
        """All devices that containers have now; ``dropped``: those that were too many to be read."""
        self.devices = dict(devices)
        self.devices_dropped += dropped

    @property
    def assigned(self) -> int:
        """Pairs of a device and a container that has it."""
        return sum(len(containers) for containers in self.devices.values())

    def owners(self, device_id: str) -> tuple[Container, ...]:
        """The containers that have a device, by the device plugin's id: a GPU's or MIG device's UUID, a PCI
        address. Shares of a time-sliced GPU (UUID::1) count for the GPU."""
        found: dict[Container, None] = {}
        for device, containers in self.devices.items():
            if device.id == device_id or device.id.partition("::")[0] == device_id:
                found.update(dict.fromkeys(containers))
        return tuple(found)

    def complete(self, workload: Workload) -> Workload:
        """``workload`` with the names that have become known since it was read."""
        if workload.pod_uid is None or (
            workload.pod_name is not None and workload.container_name is not None
        ):
            return workload
        pod = self._pods.get(workload.pod_uid)
        container = self._containers.get(workload.container_id or "")
        return named(workload, pod, container)

    def identity(
        self, pid: int, start_ticks: int | None, name: str | None, workload: Workload
    ) -> dict[str, AttributeValue]:
        """What series of this process carry: at most as many different sets as the budget admits."""
        held = self._held.get(pid)
        if (
            held is not None
            and (held.start_ticks, held.name, held.version) == (start_ticks, name, self.version)
            and (held.workload is workload or held.workload == workload)
        ):
            return held.attributes
        full = self.full_identity(pid, name, workload)
        self.forget(pid)
        if len(self._held) >= self.resolver.capacity:
            self.forget(next(iter(self._held)))
        admitted = self.budget.admit(full)
        self._held[pid] = _Holder(start_ticks, name, workload, self.version, admitted)
        return admitted

    def full_identity(self, pid: int, name: str | None, workload: Workload) -> dict[str, AttributeValue]:
        """The same for spans, which need no budget."""
        process: dict[str, AttributeValue] = {"process.pid": pid}
        if name is not None:
            process["process.executable.name"] = name
        return {**process, **attributes(self.complete(workload))}

    def forget(self, pid: int) -> None:
        """The process has ended: its identity is free for another."""
        held = self._held.pop(pid, None)
        if held is not None:
            self.budget.release(held.attributes)

    def sweep(self, alive: Set[int | None]) -> None:
        """Forget the processes that own nothing any more."""
        for pid in self._held.keys() - alive:
            self.forget(pid)
