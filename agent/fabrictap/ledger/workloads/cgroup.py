"""A process's cgroup paths into the workload that they name. Pure: text in, :class:`Workload` out.

Whose word a path is: the segments from the root down to a container were made by root (the container
runtime, the kubelet, slurmd, systemd). Below ``user.slice`` and below a container they may be anybody's:
a user may make a cgroup called ``kubepods.slice`` in his own. So a path is read from the root down,
below ``user.slice`` no pod and no Slurm job is believed, and below the container of a pod nothing but a
Slurm job (slurmd in a pod; making cgroups there takes a privileged pod).
"""

from __future__ import annotations

import re
from dataclasses import replace

from fabrictap.ledger.workloads.model import NONE, Workload
from fabrictap.ledger.workloads.text import clean

#: More than PATH_MAX never is a path; more segments than this never are a workload.
_MAX_PATH = 4096
_MAX_SEGMENTS = 64

_UID = r"(?P<uid>[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})"
#: The kubelet's systemd driver: kubepods-burstable-podUID.slice, with - in the UID written as _, and with
#: the names of a cgroup root before it (kubelet-kubepods-... in kind). pkg/kubelet/cm/cgroup_manager_linux.go
_POD_SLICE = re.compile(rf"(?:[A-Za-z0-9_]+-)*kubepods(?:-(?P<qos>burstable|besteffort))?-pod{_UID}\.slice")
#: Its cgroupfs driver: kubepods/burstable/podUID.
_POD_DIRECTORY = re.compile(rf"pod{_UID}")
_QOS = ("burstable", "besteffort")

#: Prefix of a scope or directory -> runtime. containerd's CRI plugin, CRI-O, Docker, Podman (whose
#: ``--cgroups=split`` says libpod-payload), nerdctl.
_RUNTIMES = {
    "cri-containerd": "containerd",
    "containerd": "containerd",
    "nerdctl": "containerd",
    "crio": "cri-o",
    "docker": "docker",
    "libpod": "podman",
    "libpod-payload": "podman",
}
_CONTAINER = re.compile(rf"(?P<prefix>{'|'.join(_RUNTIMES)})-(?P<id>[0-9a-f]{{64}})(?:\.scope)?")
_BARE = re.compile(r"[0-9a-f]{64}")
#: containerd told to use the systemd driver while runc is not: SLICE:cri-containerd:ID in one segment.
_TRIPLE = re.compile(r"(?P<slice>[^/:]*):(?P<prefix>[a-z-]+):(?P<id>[0-9a-f]{64})")
#: The monitor of a container of CRI-O or Podman is a process of the host beside it, not in it.
_MONITOR = re.compile(r"(?:crio|libpod)-conmon-[0-9a-f]{64}(?:\.scope)?")

#: cgroup/v2: [NODE_]slurmstepd.scope/job_1/step_0/user/task_0 (slurm.schedmd.com/cgroup_v2.html);
#: cgroup/v1: slurm[_NODE]/uid_1000/job_1/step_0/task_0 (slurm.schedmd.com/cgroups.html).
_SLURM_SCOPE = re.compile(r"(?:.+_)?slurmstepd\.scope")
_SLURM_ROOT = re.compile(r"slurm(?:_.+)?")
_SLURM_UID = re.compile(r"uid_([0-9]{1,10})")
_SLURM_JOB = re.compile(r"job_([0-9]{1,10})")
_SLURM_STEP = re.compile(r"step_([A-Za-z0-9.+]{1,32})")
_SLURM_TASK = re.compile(r"task_([0-9]{1,10}|special)")


def parse(text: bytes) -> list[str]:
    """The paths of /proc/PID/cgroup, each once; lines that are not ``id:controllers:path`` are left out.

    The unified hierarchy (``0::``) comes first, then systemd's own of version 1, then the controllers'.
    The kernel allows no newline in the name of a cgroup, but any other byte.
    """
    found: dict[str, int] = {}
    for line in text.split(b"\n"):
        number, _, rest = line.partition(b":")
        controllers, colon, raw = rest.partition(b":")
        if not colon or not number.isdigit() or not raw.startswith(b"/") or len(raw) > _MAX_PATH:
            continue
        path = raw.decode("utf-8", errors="backslashreplace").removesuffix(" (deleted)")
        order = 0 if number == b"0" and not controllers else 1 if controllers == b"name=systemd" else 2
        found[path] = min(order, found.get(path, order))
    return sorted(found, key=lambda path: found[path])


def identify(paths: list[str]) -> Workload:
    """What the paths of one process say together: on a hybrid node the hierarchies say different things.

    The unit is the one of the path that names the container: the others still say the runtime's own
    (containerd.service), and for a Slurm job slurmd's, which is nobody's workload.
    """
    said = [identify_path(path) for path in paths]
    if not said:
        return NONE
    place = max(said, key=lambda one: (one.pod_uid is not None, one.container_id is not None))
    job = max(said, key=_slurm_depth)
    if place.container_id is None and place.pod_uid is None:
        place = next((one for one in said if one.unit is not None), said[0])
        if job.slurm_job is not None:
            place = replace(place, unit=None, slice=None)
    return replace(
        place,
        slurm_job=job.slurm_job,
        slurm_step=job.slurm_step,
        slurm_task=job.slurm_task,
        slurm_uid=job.slurm_uid,
        slurm_origin=job.slurm_origin,
    )


def identify_path(path: str) -> Workload:
    """What one path says."""
    segments = [segment for segment in path.split("/") if segment][:_MAX_SEGMENTS]
    pod: tuple[str | None, str | None] = (None, None)
    container: tuple[str | None, str | None] = (None, None)
    slurm = NONE
    unit = slice_ = None
    of_a_user = False
    for index, segment in enumerate(segments):
        parent = segments[index - 1] if index else ""
        of_a_user = of_a_user or segment == "user.slice" or segment.startswith("user@")
        if _MONITOR.fullmatch(segment):
            break
        if not of_a_user and slurm.slurm_job is None:
            slurm = _slurm(segments, index)
            if slurm.slurm_job is not None:
                unit = None
                continue
        if container[0] is not None and pod[0] is not None:
            continue
        here = _pod(segment, parent) if not of_a_user else None
        triple = _TRIPLE.fullmatch(segment)
        if triple is not None and not of_a_user:
            here = _pod(triple["slice"], parent)
        if here is not None:
            pod, container, unit = here, (None, None), None
        found = _container(segment, parent, in_pod=pod[0] is not None)
        if found is not None and (container[0] is None or here is not None):
            container = found
            continue
        if container[0] is None and slurm.slurm_job is None:
            unit, slice_ = _systemd(segment, unit, slice_)
    return replace(
        slurm,
        container_id=container[0],
        runtime=container[1],
        pod_uid=pod[0],
        qos=pod[1],
        unit=unit,
        slice=slice_,
    )


def _pod(segment: str, parent: str) -> tuple[str, str | None] | None:
    """UID and QoS class of the pod whose cgroup ``segment`` is."""
    if (match := _POD_SLICE.fullmatch(segment)) is not None:
        return match["uid"].replace("_", "-"), match["qos"] or "guaranteed"
    match = _POD_DIRECTORY.fullmatch(segment)
    # An agent in a cgroup namespace of its own sees /../../podUID and not what is above.
    if match is None or (parent not in ("kubepods", *_QOS, "..", "")):
        return None
    qos = parent if parent in _QOS else "guaranteed" if parent == "kubepods" else None
    return match["uid"].replace("_", "-"), qos


def _container(segment: str, parent: str, *, in_pod: bool) -> tuple[str, str | None] | None:
    """Id and runtime of the container whose cgroup ``segment`` is."""
    if (match := _CONTAINER.fullmatch(segment)) is not None:
        return match["id"], _RUNTIMES[match["prefix"]]
    if (match := _TRIPLE.fullmatch(segment)) is not None and match["prefix"] in _RUNTIMES:
        return match["id"], _RUNTIMES[match["prefix"]]
    if _BARE.fullmatch(segment) is None:
        return None
    if parent == "docker":
        return segment, "docker"
    # In a pod the cgroupfs driver names the container and no runtime. At the root: old Docker, Amazon ECS.
    return (segment, None) if in_pod or parent in ("", "..", "k8s.io", "ecs") else None


def _slurm(segments: list[str], index: int) -> Workload:
    """The job, step, user and task if Slurm's own cgroup is ``segments[index]``, else nothing."""
    rest = segments[index + 1 :]
    uid = None
    if _SLURM_SCOPE.fullmatch(segments[index]) is None:
        if _SLURM_ROOT.fullmatch(segments[index]) is None or not rest:
            return NONE
        match = _SLURM_UID.fullmatch(rest[0])
        if match is None:
            return NONE
        uid = int(match[1])
        rest = rest[1:]
    if not rest or (job := _SLURM_JOB.fullmatch(rest[0])) is None:
        return NONE
    step = _SLURM_STEP.fullmatch(rest[1]) if len(rest) > 1 else None
    task = None
    if step is not None:
        below = rest[3] if len(rest) > 3 and rest[2] == "user" else rest[2] if len(rest) > 2 else ""
        task = _SLURM_TASK.fullmatch(below)
    return Workload(
        slurm_job=job[1],
        slurm_step=step[1] if step is not None else None,
        slurm_task=task[1] if task is not None else None,
        slurm_uid=uid,
        slurm_origin="cgroup",
    )


def _slurm_depth(workload: Workload) -> int:
    known = (workload.slurm_job, workload.slurm_step, workload.slurm_task, workload.slurm_uid)
    return sum(value is not None for value in known)


def _systemd(segment: str, unit: str | None, slice_: str | None) -> tuple[str | None, str | None]:
    """Unit and slice after one more segment: the first counts, a user's own below user@UID.service."""
    # systemd puts _ before what could be taken for a file of the kernel's (systemd, cg_escape).
    name = segment.removeprefix("_")
    if unit is None or unit.startswith("user@"):
        if name.endswith(".slice"):
            return unit, clean(name) if unit is None else slice_
        if name.endswith((".service", ".scope")):
            return clean(name), slice_
    return unit, slice_
