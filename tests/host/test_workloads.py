"""Real processes in real cgroups, and a pid that really comes back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabrictap.config import Config
from fabrictap.ledger import Ledger
from fabrictap.ledger.processes import read
from support import eventually, require

UID = "2c48913c-b29f-11e7-9350-020968147796"
ID = "9bca8d63d5fa610783847915bcff0ecac1273e5b4bed3f6fa1b07350e0135961"
OTHER = "34a2062fd26c805aa8cf814cdfe479322b791f80afb9ea4db02d50375df14b41"


def mounts() -> dict[str, Path]:
    """A writable cgroup hierarchy of each version: v2 the unified one, v1 any that moves nothing else."""
    found = {}
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup2" and os.access(where, os.W_OK):
            found["v2"] = Path(where)
        if kind == "cgroup" and "freezer" in options.split(",") and os.access(where, os.W_OK):
            found["v1"] = Path(where)
    return found


class Cgroups:
    """Cgroups of the test's own, below one directory; removed with the processes in them."""

    def __init__(self, mount: Path) -> None:
        self.root = mount / f"fabrictap-test-{os.getpid()}"
        self._made: list[Path] = []
        self._children: list[subprocess.Popen[bytes]] = []

    def spawn(self, path: str = "", **variables: str) -> subprocess.Popen[bytes]:
        """A process that waits, in the cgroup ``path``."""
        child = subprocess.Popen(
            [sys.executable, "-c", "input()"],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **variables},
        )
        self._children.append(child)
        if path:
            self.move(child.pid, path)
        return child

    def move(self, pid: int, path: str) -> None:
        here = self.root
        for part in ("", *path.strip("/").split("/")):
            here = here / part
            if not here.exists():
                here.mkdir()
                self._made.append(here)
        (here / "cgroup.procs").write_text(str(pid))

    def end(self, child: subprocess.Popen[bytes]) -> None:
        child.kill()
        child.communicate()

    def close(self) -> None:
        for child in self._children:
            self.end(child)
        for path in reversed(self._made):

            def gone(path: Path = path) -> bool:
                try:
                    path.rmdir()
                except OSError:
                    return not path.exists()
                return True

            eventually(gone, f"{path} can be removed")


@pytest.fixture(params=["v1", "v2"])
def cgroups(request: pytest.FixtureRequest) -> Iterator[Cgroups]:
    mount = mounts().get(request.param)
    require(
        f"cgroup-{request.param}",
        mount is not None and os.geteuid() == 0,
        "as root, with a writable cgroup hierarchy of this version mounted",
    )
    assert mount is not None
    made = Cgroups(mount)
    try:
        (made.root).mkdir()
        made._made.append(made.root)
    except OSError as error:
        require(f"cgroup-{request.param}", False, f"as root: {error}")
    yield made
    made.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    config = Config()
    config.sources.kubelet.pods_log_dir = str(tmp_path / "pods")
    return Ledger(config)


def look(ledger: Ledger, pid: int) -> dict[str, str | int | bool]:
    """What a source does with a process that it meets."""
    ledger.processes.put(read(pid, "", ledger.workloads.resolver))
    return ledger.identity(pid)


def test_a_container_of_a_pod_is_named_from_its_cgroup_and_the_log_directories(
    cgroups: Cgroups, ledger: Ledger, tmp_path: Path
):
    (tmp_path / "pods" / f"ml_train-0_{UID}" / "main").mkdir(parents=True)
    (tmp_path / "containers").mkdir()
    (tmp_path / "containers" / f"train-0_ml_main-{ID}.log").symlink_to("/nowhere")
    pod = f"kubepods-burstable-pod{UID.replace('-', '_')}.slice"
    child = cgroups.spawn(f"kubepods.slice/kubepods-burstable.slice/{pod}/cri-containerd-{ID}.scope")
    assert look(ledger, child.pid) == {
        "process.pid": child.pid,
        "process.executable.name": Path(sys.executable).resolve().name,
        "k8s.namespace.name": "ml",
        "k8s.pod.name": "train-0",
        "k8s.pod.uid": UID,
        "k8s.container.name": "main",
        "container.id": ID,
        "container.runtime.name": "containerd",
    }


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"docker/{ID}", {"container.id": ID, "container.runtime.name": "docker"}),
        (f"machine.slice/libpod-{ID}.scope/container", {"container.runtime.name": "podman"}),
        (f"kubepods/besteffort/pod{UID}/{ID}", {"k8s.pod.uid": UID, "container.id": ID}),
        (
            "system.slice/slurmstepd.scope/job_9/step_0/user/task_1",
            {"slurm.job.id": "9", "slurm.step.id": "0", "slurm.job.origin": "cgroup", "slurm.job.uid": 0},
        ),
        ("slurm/uid_7/job_9/step_batch", {"slurm.job.id": "9", "slurm.job.uid": 7}),
        ("system.slice/a b\x1b.service", {"systemd.unit.name": r"a b\x1b.service"}),
    ],
)
def test_runtimes(cgroups: Cgroups, ledger: Ledger, path: str, expected: dict[str, object]):
    assert expected.items() <= look(ledger, cgroups.spawn(path).pid).items()


def test_a_process_of_slurm_without_cgroups_and_a_process_of_nothing(cgroups: Cgroups, ledger: Ledger):
    child = cgroups.spawn(SLURM_JOB_ID="5", SLURM_JOB_UID="0", SLURM_JOB_USER="root")
    assert {"slurm.job.id": "5", "slurm.job.origin": "environment", "slurm.job.user": "root"}.items() <= look(
        ledger, child.pid
    ).items()
    child = cgroups.spawn("anything")
    assert "container.id" not in look(ledger, child.pid)


def test_a_pid_that_comes_back_is_another_workload(cgroups: Cgroups, ledger: Ledger):
    last = Path("/proc/sys/kernel/ns_last_pid")
    require("ns_last_pid", os.access(last, os.W_OK), "as root, on a kernel with CONFIG_CHECKPOINT_RESTORE")
    for _ in range(50):
        first = cgroups.spawn(f"docker/{ID}")
        assert look(ledger, first.pid)["container.id"] == ID
        cgroups.end(first)
        try:
            last.write_text(str(first.pid - 1))
        except PermissionError:
            require("ns_last_pid", False, "as root, on a kernel with CONFIG_CHECKPOINT_RESTORE")
        second = cgroups.spawn(f"docker/{OTHER}")
        if second.pid == first.pid:
            break
        # another process of this machine was faster
        cgroups.end(second)
        ledger.processes.remove(first.pid)
    assert second.pid == first.pid
    assert look(ledger, second.pid)["container.id"] == OTHER
    assert len(ledger.workloads.budget) == 1
    ledger.sweep()
    assert len(ledger.workloads.budget) == 0
