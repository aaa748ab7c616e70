"""cgroup paths of every runtime into workloads. Each path names the public source that shows it."""

from __future__ import annotations

import random

import pytest

from fabrictap.ledger.workloads import NONE, Workload
from fabrictap.ledger.workloads.cgroup import identify, identify_path, parse
from fabrictap.ledger.workloads.text import clean

UID = "2c48913c-b29f-11e7-9350-020968147796"
ID = "9bca8d63d5fa610783847915bcff0ecac1273e5b4bed3f6fa1b07350e0135961"
POD = f"kubepods-burstable-pod{UID.replace('-', '_')}.slice"

# (where it is shown, path, what it says)
KUBERNETES = [
    (
        "cgroupfs, guaranteed (spiffe/spire, k8s workload attestor tests)",
        f"/kubepods/pod{UID}/{ID}",
        Workload(container_id=ID, pod_uid=UID, qos="guaranteed"),
    ),
    (
        "cgroupfs, besteffort (Qard/container-info, fixtures of GKE)",
        f"/kubepods/besteffort/pod{UID}/{ID}",
        Workload(container_id=ID, pod_uid=UID, qos="besteffort"),
    ),
    (
        "cgroupfs with CRI-O (cri-o, internal/config/cgmgr)",
        f"/kubepods/burstable/pod{UID}/crio-{ID}",
        Workload(container_id=ID, runtime="cri-o", pod_uid=UID, qos="burstable"),
    ),
    (
        "systemd driver, containerd (kubernetes.io, container runtimes: SystemdCgroup)",
        f"/kubepods.slice/kubepods-burstable.slice/{POD}/cri-containerd-{ID}.scope",
        Workload(container_id=ID, runtime="containerd", pod_uid=UID, qos="burstable"),
    ),
    (
        "systemd driver, guaranteed: no class in the name",
        f"/kubepods.slice/kubepods-pod{UID.replace('-', '_')}.slice/cri-containerd-{ID}.scope",
        Workload(container_id=ID, runtime="containerd", pod_uid=UID, qos="guaranteed"),
    ),
    (
        "systemd driver, CRI-O on minikube (spiffe/spire), and crun's own level below it",
        f"/kubepods.slice/kubepods-burstable.slice/{POD}/crio-{ID}.scope/container",
        Workload(container_id=ID, runtime="cri-o", pod_uid=UID, qos="burstable"),
    ),
    (
        "cri-dockerd, the UID not escaped (spiffe/spire)",
        f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID}.slice/docker-{ID}.scope",
        Workload(container_id=ID, runtime="docker", pod_uid=UID, qos="burstable"),
    ),
    (
        "containerd without SystemdCgroup below a systemd kubelet (cilium/tetragon, exec tests)",
        f"/system.slice/containerd.service/{POD}:cri-containerd:{ID}",
        Workload(container_id=ID, runtime="containerd", pod_uid=UID, qos="burstable", slice="system.slice"),
    ),
    (
        "kind: the node is a container itself (spiffe/spire)",
        f"/docker/{'93' * 32}/kubepods/besteffort/pod{UID}/{ID}",
        Workload(container_id=ID, pod_uid=UID, qos="besteffort"),
    ),
    (
        "kind with the systemd driver: kubelet.slice (kubernetes-sigs/kind, cgroupRoot)",
        f"/kubelet.slice/kubelet-kubepods.slice/kubelet-{POD}/cri-containerd-{ID}.scope",
        Workload(container_id=ID, runtime="containerd", pod_uid=UID, qos="burstable"),
    ),
    (
        "seen from a cgroup namespace (spiffe/spire)",
        f"/../../../burstable/pod{UID}/{ID}",
        Workload(container_id=ID, pod_uid=UID, qos="burstable"),
    ),
    (
        "the same, guaranteed: the class cannot be known",
        f"/../../pod{UID}/{ID}",
        Workload(container_id=ID, pod_uid=UID),
    ),
    (
        "the same with the systemd driver and CRI-O (spiffe/spire, kubeedge)",
        f"/../crio-{ID}.scope",
        Workload(container_id=ID, runtime="cri-o"),
    ),
    (
        "static pod: its UID is a hash (spiffe/spire)",
        f"/kubepods/burstable/pod2732ca68f6358eba7703fb6f82a25c94/{ID}",
        Workload(container_id=ID, pod_uid="2732ca68f6358eba7703fb6f82a25c94", qos="burstable"),
    ),
    (
        "no container: the pod's own cgroup",
        f"/kubepods/besteffort/pod{UID}",
        Workload(pod_uid=UID, qos="besteffort"),
    ),
    (
        "CRI-O's monitor is in the pod's cgroup and in no container (cri-o, runtime_oci.go)",
        f"/kubepods.slice/kubepods-burstable.slice/{POD}/crio-conmon-{ID}.scope",
        Workload(pod_uid=UID, qos="burstable"),
    ),
    (
        "systemd in a container of a pod: what is below is the container's own",
        f"/kubepods/besteffort/pod{UID}/{ID}/kubepods/pod{'0' * 32}/{'a' * 64}",
        Workload(container_id=ID, pod_uid=UID, qos="besteffort"),
    ),
]
PLAIN = [
    ("Docker, cgroupfs (docs.docker.com, runmetrics)", f"/docker/{ID}", "docker", None),
    ("Docker, systemd (docs.docker.com, runmetrics)", f"/system.slice/docker-{ID}.scope", "docker", None),
    ("old Docker on Debian (neuvector, cgroup_test.go)", f"/{ID}", None, None),
    (
        "Podman as root (sustainable-computing-io/kepler, container tests)",
        f"/machine.slice/libpod-{ID}.scope",
        "podman",
        None,
    ),
    ("Podman, cgroupfs", f"/libpod_parent/libpod-{ID}", "podman", None),
    (
        "Podman without root",
        f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container",
        "podman",
        "user@1000.service",
    ),
    (
        "Docker without root",
        f"/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{ID}.scope",
        "docker",
        "user@1000.service",
    ),
    (
        "a quadlet: --cgroups=split (containers/podman, libpod)",
        f"/system.slice/web.service/libpod-payload-{ID}",
        "podman",
        "web.service",
    ),
    ("nerdctl", f"/system.slice/nerdctl-{ID}.scope", "containerd", None),
]
SLURM = [
    (
        "cgroup/v2 (slurm.schedmd.com/cgroup_v2.html)",
        "/system.slice/slurmstepd.scope/job_1392969/step_0/user/task_3",
        ("1392969", "0", "3", None),
    ),
    (
        "several slurmd on one node (SchedMD/slurm, cgroup_v2.c: MULTIPLE_SLURMD)",
        "/system.slice/node-1.example_slurmstepd.scope/job_12/step_batch/user/task_special",
        ("12", "batch", "special", None),
    ),
    (
        "pam_slurm_adopt (slurm.schedmd.com/pam_slurm_adopt.html)",
        "/system.slice/slurmstepd.scope/job_42/step_extern/user",
        ("42", "extern", None, None),
    ),
    (
        "slurmstepd of a step is the step's",
        "/system.slice/slurmstepd.scope/job_42/step_0/slurm",
        ("42", "0", None, None),
    ),
    (
        "cgroup/v1 (slurm.schedmd.com/cgroups.html)",
        "/slurm/uid_2101171/job_280678/step_interactive/task_0",
        ("280678", "interactive", "0", 2101171),
    ),
    ("cgroup/v1, named node", "/slurm_n1/uid_0/job_5/step_1", ("5", "1", None, 0)),
    (
        "slurmd in a pod",
        f"/kubepods/pod{UID}/{ID}/system.slice/slurmstepd.scope/job_7/step_0/user/task_0",
        ("7", "0", "0", None),
    ),
]
NOTHING = [
    "/",
    "",
    "/system.slice/slurmstepd.scope/system",
    "/something/pod" + UID + "x/" + ID,
    "/kubepods/pod12345/" + ID[:63],
    f"/system.slice/docker-{ID}x.scope",
    f"/cache/{ID}",
    "/slurm/job_5",
    "/slurm/uid_-1/job_5",
    "/slurm/uid_1/job_99999999999",
]


@pytest.mark.parametrize(("where", "path", "expected"), KUBERNETES, ids=[case[0] for case in KUBERNETES])
def test_pods(where: str, path: str, expected: Workload):
    said = identify_path(path)
    assert (said.container_id, said.runtime, said.pod_uid, said.qos, said.unit) == (
        expected.container_id,
        expected.runtime,
        expected.pod_uid,
        expected.qos,
        None,
    )


@pytest.mark.parametrize(("where", "path", "runtime", "unit"), PLAIN, ids=[case[0] for case in PLAIN])
def test_containers_without_a_pod(where: str, path: str, runtime: str | None, unit: str | None):
    said = identify_path(path)
    assert (said.container_id, said.runtime, said.unit) == (ID, runtime, unit)
    assert said.pod_uid is said.slurm_job is None


@pytest.mark.parametrize(("where", "path", "expected"), SLURM, ids=[case[0] for case in SLURM])
def test_slurm(where: str, path: str, expected: tuple[str | None, ...]):
    said = identify_path(path)
    assert (said.slurm_job, said.slurm_step, said.slurm_task, said.slurm_uid) == expected
    assert said.slurm_origin == "cgroup"
    assert said.unit is None
    assert (said.pod_uid is not None) == ("pod" in path)


@pytest.mark.parametrize("path", NOTHING)
def test_what_is_no_workload(path: str):
    said = identify_path(path)
    assert said.container_id is said.pod_uid is said.slurm_job is None


@pytest.mark.parametrize(
    ("path", "unit", "slice_"),
    [
        ("/system.slice/sshd.service", "sshd.service", "system.slice"),
        ("/system.slice/system-serial\\x2dgetty.slice/serial-getty@ttyS0.service", None, None),
        ("/init.scope", "init.scope", None),
        ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope", "user-1000.slice"),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/editor.service",
            "editor.service",
            "user-1000.slice",
        ),
        # systemd, cg_escape: a name that a controller could have is escaped with _
        ("/system.slice/_cpu.service", "cpu.service", "system.slice"),
        ("/system.slice/app.service/worker-1.scope", "app.service", "system.slice"),
    ],
)
def test_systemd_units(path: str, unit: str | None, slice_: str | None):
    said = identify_path(path)
    if unit is None:
        assert said.unit == "serial-getty@ttyS0.service"
        assert said.slice == "system-serial\\x2dgetty.slice"
    else:
        assert (said.unit, said.slice) == (unit, slice_)


def test_a_user_cannot_pass_for_a_pod_or_a_job():
    own = "/user.slice/user-1000.slice/user@1000.service/app.slice"
    assert identify_path(f"{own}/kubepods/burstable/pod{UID}/{ID}").pod_uid is None
    assert identify_path(f"{own}/kubepods.slice/{POD}/crio-{ID}.scope").pod_uid is None
    assert identify_path(f"{own}/slurmstepd.scope/job_1/step_0").slurm_job is None
    assert identify_path(f"/docker/{ID}/docker/{'b' * 64}").container_id == ID


def test_version_1_and_hybrid_hierarchies_are_one_answer():
    # A Docker host in hybrid mode: the unified hierarchy knows the runtime's own unit only.
    text = (
        f"12:freezer:/docker/{ID}\n11:cpuset,cpu:/docker/{ID}\n"
        f"1:name=systemd:/docker/{ID}\n0::/system.slice/containerd.service\n"
    )
    assert identify(parse(text.encode())) == Workload(container_id=ID, runtime="docker")
    # Slurm's cgroup/v1: hierarchies differ in depth, systemd's own says slurmd's unit.
    text = (
        "10:devices:/slurm/uid_7/job_8/step_0/task_1\n9:freezer:/slurm/uid_7/job_8/step_0\n"
        "8:cpu:/\n1:name=systemd:/system.slice/slurmd.service\n0::/system.slice/slurmd.service\n"
    )
    assert identify(parse(text.encode())) == Workload(
        slurm_job="8", slurm_step="0", slurm_task="1", slurm_uid=7, slurm_origin="cgroup"
    )


def test_lines_that_are_no_lines_and_cgroups_that_are_gone():
    assert parse(b"") == parse(b"\n\n::\n:::\nx:y:/z\n1:cpu\n0::relative\n") == []
    assert parse(b"0::/a:b:c\n") == ["/a:b:c"]
    assert parse(b"0::/" + b"x" * 5000) == []
    assert identify(parse(f"0::/docker/{ID} (deleted)\n".encode())).container_id == ID
    assert identify([]) == NONE


def test_hostile_names_become_one_printable_line():
    said = identify(parse(b"0::/system.slice/a\xff\x1b[31m\r\t\xe2\x80\xae.service\n"))
    assert said.unit == r"a\xff\x1b[31m\r\t\u202e.service"
    assert len(clean("x" * 10_000)) == 256
    assert clean("\n" * 10_000).endswith("...")
    assert clean("\udcff", 10) == r"\udcff"


def test_any_bytes_are_read_without_fault():
    rng = random.Random(7)
    words = [b"kubepods", b"pod" + UID.encode(), ID.encode(), b"slurm", b"uid_1", b"job_2", b"step_x", b".."]
    words += [
        b"user.slice",
        b"docker-" + ID.encode() + b".scope",
        b"a.service",
        b"\xff\xfe",
        b":",
        b"\0",
        b"",
    ]
    for _ in range(20_000):
        line = b"/".join(rng.choice(words) for _ in range(rng.randrange(12)))
        if rng.random() < 0.5:
            cut = rng.randrange(len(line) + 1)
            line = line[:cut] + rng.randbytes(3) + line[cut:]
        said = identify(parse(b"0::/" + line + b"\n"))
        for value in (said.unit, said.slice):
            assert value is None or (value.isprintable() and len(value) <= 256)
        assert said.container_id in (None, ID)
