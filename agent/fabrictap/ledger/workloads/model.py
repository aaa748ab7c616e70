"""What a workload is: the container, pod, Slurm job or systemd unit that a process belongs to."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Workload:
    """Whose process it is. What is not known is None; a process of no workload has all None.

    ``runtime`` is docker, containerd, cri-o or podman, and None where the path does not tell (containerd
    and Docker look the same under the cgroupfs driver). ``qos`` is guaranteed, burstable or besteffort.
    ``slurm_origin`` is ``cgroup`` where the kernel says so, ``environment`` where only the process does.
    """

    container_id: str | None = None
    runtime: str | None = None
    pod_uid: str | None = None
    qos: str | None = None
    pod_name: str | None = None
    namespace: str | None = None
    container_name: str | None = None
    slurm_job: str | None = None
    slurm_step: str | None = None
    slurm_task: str | None = None
    slurm_uid: int | None = None
    slurm_user: str | None = None
    slurm_origin: str | None = None
    #: Unit and slice of systemd, as ``systemctl`` writes them (escapes kept).
    unit: str | None = None
    slice: str | None = None


#: Belongs to nothing that is known.
NONE = Workload()


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod on this node. ``uid`` of a static pod is the hash that the kubelet uses on the node."""

    uid: str
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Container:
    """A container of a pod, as its log or the kubelet names it. ``pod_uid`` is None where they do not say."""

    namespace: str
    pod: str
    name: str
    pod_uid: str | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """A device that the kubelet gave to a container.

    ``resource`` is the extended resource (nvidia.com/gpu, nvidia.com/mig-1g.10gb, rdma/hca) or, with
    Dynamic Resource Allocation, the driver (gpu.nvidia.com). ``id`` is the device plugin's own id, or
    POOL/DEVICE.
    """

    resource: str
    id: str
    dynamic: bool = False


def named(workload: Workload, pod: Pod | None, container: Container | None) -> Workload:
    """``workload`` with the names of its pod and container; a container of another pod names nothing."""
    if pod is not None:
        workload = replace(workload, namespace=pod.namespace, pod_name=pod.name)
        if container is not None and (container.namespace, container.pod) != (pod.namespace, pod.name):
            return workload
    if container is None or container.pod_uid not in (None, workload.pod_uid):
        return workload
    return replace(
        workload, namespace=container.namespace, pod_name=container.pod, container_name=container.name
    )
