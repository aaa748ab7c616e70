"""/proc/PID of processes that are well, hostile, hanging and gone; and pids that come back."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from fabrictap.ledger.processes import read
from fabrictap.ledger.workloads.environ import parse
from fabrictap.ledger.workloads.procfs import MAX_ENVIRON, Reader, parse_start_ticks, parse_uid
from fabrictap.ledger.workloads.resolver import Resolver, clock_ticks
from support import eventually

ID = "9bca8d63d5fa610783847915bcff0ecac1273e5b4bed3f6fa1b07350e0135961"
STAT = "{pid} ({name}) S 1 1 1 0 -1 4194560 1 2 0 0 0 0 0 0 20 0 1 0 {ticks} 1 2 3\n"


class Proc:
    """A tree like /proc, made by the test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.reader = Reader(str(root))

    def put(
        self,
        pid: int,
        cgroup: bytes,
        environ: bytes = b"",
        *,
        ticks: int = 100,
        name: str = "x",
        uid: int = 1000,
    ) -> Path:
        path = self.root / str(pid)
        path.mkdir(exist_ok=True)
        (path / "stat").write_text(STAT.format(pid=pid, name=name, ticks=ticks))
        (path / "cgroup").write_bytes(cgroup)
        (path / "environ").write_bytes(environ)
        (path / "status").write_text(f"Name:\tx\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n")
        return path


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


def test_the_start_of_a_real_process_is_the_one_that_psutil_reads():
    ticks = Reader().start_ticks(os.getpid())
    started = psutil.boot_time() + ticks / os.sysconf("SC_CLK_TCK")
    assert started == pytest.approx(psutil.Process().create_time(), abs=1.5)


def test_a_real_process_and_one_that_has_gone():
    own = Reader().read(os.getpid())
    assert own.start_ticks == Reader().start_ticks(os.getpid())
    assert own.losses == ()
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert Reader().start_ticks(child.pid) is None
    assert Reader().read(child.pid).losses == ("gone",)


def test_a_real_environment_says_the_job_and_is_told_apart_from_the_kernels_word():
    job = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_JOB_UID": str(os.getuid())}
    child = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **job, "SLURM_JOB_USER": "anna"},
    )
    try:
        child.stdout.readline()
        workload = Reader().read(child.pid).workload
    finally:
        child.communicate(b"\n", timeout=10)
    assert (workload.slurm_job, workload.slurm_step, workload.slurm_origin) == ("77", "0", "environment")
    assert (workload.slurm_uid, workload.slurm_user) == (os.getuid(), "anna")


def test_a_name_with_parentheses_and_blanks_does_not_move_the_start(proc: Proc):
    proc.put(5, b"0::/\n", name="a) S 1 (b\n) R 9", ticks=4711)
    assert proc.reader.start_ticks(5) == 4711
    assert parse_start_ticks(b"") is None
    assert parse_start_ticks(b"1 (x) S " + b"1 " * 18 + b"-5 ") is None
    assert parse_uid(b"Name:\tx\nUid:\tx\n") is None


def test_the_cgroup_is_believed_before_the_environment(proc: Proc):
    environ = b"SLURM_JOB_ID=9\0SLURM_JOB_UID=7\0SLURM_JOB_USER=eve\0"
    proc.put(5, b"0::/system.slice/slurmstepd.scope/job_1/step_0/user/task_0\n", environ)
    workload = proc.reader.read(5).workload
    assert (workload.slurm_job, workload.slurm_origin) == ("1", "cgroup")
    assert (workload.slurm_uid, workload.slurm_user) == (1000, None), "the name is for another user id"
    proc.put(5, b"9:cpu:/slurm/uid_7/job_1\n", environ)
    workload = proc.reader.read(5).workload
    assert (workload.slurm_uid, workload.slurm_user) == (7, "eve")


def test_a_pod_is_not_asked_for_its_environment(proc: Proc):
    uid = "2c48913c-b29f-11e7-9350-020968147796"
    path = proc.put(5, f"0::/kubepods/pod{uid}/{ID}\n".encode(), b"SLURM_JOB_ID=9\0")
    (path / "environ").unlink()
    reading = proc.reader.read(5)
    assert (reading.workload.pod_uid, reading.workload.slurm_job, reading.losses) == (uid, None, ())


def test_environments_are_left_alone_where_that_is_asked_for(proc: Proc):
    proc.put(
        5, b"0::/system.slice/slurmstepd.scope/job_1/step_0\n", b"SLURM_JOB_UID=1000\0SLURM_JOB_USER=anna\0"
    )
    assert proc.reader.read(5).workload.slurm_user == "anna"
    workload = Reader(str(proc.root), environment=False).read(5).workload
    assert (workload.slurm_job, workload.slurm_uid, workload.slurm_user) == ("1", 1000, None)


def test_a_huge_environment_is_read_to_its_limit_and_no_variable_is_cut(proc: Proc):
    filler = b"A" * (MAX_ENVIRON - 20) + b"\0"
    proc.put(5, b"0::/\n", b"SLURM_JOB_ID=3\0" + b"B=" + b"\xff" * (1 << 20))
    reading = proc.reader.read(5)
    assert (reading.workload.slurm_job, reading.losses) == ("3", ("environ_truncated",))
    proc.put(5, b"0::/\n", filler + b"SLURM_JOB_ID=1234567\0")
    reading = proc.reader.read(5)
    assert (reading.workload.slurm_job, reading.losses) == (None, ("environ_truncated",))


def test_an_environment_that_hangs_costs_itself_once(proc: Proc):
    path = proc.put(5, f"0::/docker/{ID}\n".encode())
    (path / "environ").unlink()
    os.mkfifo(path / "environ")  # a real open that does not return, as with a memory lock that is held
    before = threading.active_count()
    for _ in range(5):
        began = time.monotonic()
        reading = proc.reader.read(5)
        assert time.monotonic() - began < 5
        assert (reading.workload.container_id, reading.losses) == (ID, ("environ_hung",))
    assert threading.active_count() <= before + 1
    proc.put(6, b"0::/\n", b"SLURM_JOB_ID=3\0")
    assert proc.reader.read(6).losses == ("environ_hung",)
    writer = os.open(path / "environ", os.O_WRONLY)  # it comes back
    os.close(writer)
    eventually(lambda: proc.reader.read(6).workload.slurm_job == "3", "environments are read again")


def test_values_that_slurm_never_sets_are_counted_and_not_believed():
    said = parse(
        b"SLURM_JOB_ID=1;rm\0SLURM_JOB_ID=5\0SLURM_JOB_USER=a\nb\0SLURM_STEP_ID=4294967291\0SLURM_X=1\0"
    )
    assert (said.job, said.user, said.step, said.rejected) == (None, None, "batch", 2)
    assert parse(b"XSLURM_JOB_ID=1\0A=SLURM_JOB_ID=2\0").job is None
    assert parse(b"SLURM_JOBID=8").job == "8"
    rng = random.Random(5)
    for _ in range(3000):
        noise = rng.randbytes(rng.randrange(200)).replace(b"S", b"\0SLURM_JOB_USER=")
        user = parse(noise + b"\0SLURM_JOB_ID=1" + noise).user
        assert user is None or user.isascii()


def test_what_is_kept_is_of_this_process_and_no_other_with_its_pid(proc: Proc):
    now = [0.0]
    resolver = Resolver(2, reader=proc.reader, clock=lambda: now[0])
    proc.put(5, f"0::/docker/{ID}\n".encode(), ticks=100)
    assert resolver.resolve(5).workload.container_id == ID
    # the pid comes back at once as a process of another container
    proc.put(5, f"0::/docker/{'b' * 64}\n".encode(), ticks=101)
    assert resolver.resolve(5).workload.container_id == "b" * 64
    assert resolver.resolve(5).start_ticks == 101
    # and a process that was moved is seen in its new place after a while
    proc.put(5, b"0::/system.slice/slurmstepd.scope/job_1/step_extern\n", ticks=101)
    assert resolver.resolve(5).workload.slurm_job is None
    now[0] = 61.0
    assert resolver.resolve(5).workload.slurm_job == "1"
    for pid in range(10, 20):
        proc.put(pid, b"0::/\n")
        resolver.resolve(pid)
    assert len(resolver) == 2
    assert resolver.resolve(999).start_ticks is None
    assert resolver.losses == {"gone": 1}


def test_a_pid_that_comes_back_within_a_tick_is_another_process_all_the_same(proc: Proc):
    resolver = Resolver(10, reader=proc.reader)
    for container in (ID, "b" * 64):
        proc.put(5, f"0::/docker/{container}\n".encode(), ticks=clock_ticks() + 10_000)
        assert resolver.resolve(5).workload.container_id == container
    assert len(resolver) == 0
    assert Reader().start_ticks(os.getpid()) <= clock_ticks()


def test_a_process_that_ends_while_it_is_read_is_not_mixed_with_its_successor():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    fd = os.open(f"/proc/{child.pid}", os.O_RDONLY | os.O_DIRECTORY)
    try:
        child.communicate(b"\n", timeout=10)
        assert Reader()._read(fd).losses == ("gone",)
    finally:
        os.close(fd)


def test_links_in_the_place_of_files_are_not_followed(proc: Proc, tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"SLURM_JOB_ID=3\0")
    path = proc.put(5, b"0::/\n")
    (path / "environ").unlink()
    (path / "environ").symlink_to(secret)
    reading = proc.reader.read(5)
    assert (reading.workload.slurm_job, reading.losses) == (None, ("environ_malformed",))


def test_an_odd_name_is_one_printable_line_and_counted(proc: Proc, tmp_path: Path):
    proc.put(5, b"0::/system.slice/a\xff.service\n")
    assert proc.reader.read(5).losses == ("name_escaped",)
    program = tmp_path / "evil\n\x1b[2J\udcff"
    shutil.copy("/bin/sleep", program)
    child = subprocess.Popen([program, "60"])
    resolver = Resolver(10)
    try:
        eventually(lambda: read(child.pid, "").name.startswith("evil"), "it runs")
        assert read(child.pid, "", resolver).name == r"evil\n\x1b[2J\xff"
    finally:
        child.kill()
        child.wait()
    assert resolver.losses == {"name_escaped": 1}


def test_any_bytes_in_proc_are_read_without_fault_and_no_descriptor_is_left(proc: Proc):
    rng = random.Random(13)
    words = [
        b"0::/docker/" + ID.encode(),
        b"SLURM_JOB_ID=7",
        b"Uid:\t1000",
        b"5 (x) S 1",
        b"\n",
        b"\0",
        b")",
        b" 1",
    ]
    opened = len([*Path("/proc/self/fd").iterdir()])

    def noise() -> bytes:
        return b"".join(rng.choice([*words, rng.randbytes(5)]) for _ in range(rng.randrange(40)))

    path = proc.put(5, b"")
    for _ in range(400):
        for name in ("stat", "cgroup", "environ", "status"):
            (path / name).write_bytes(noise())
        reading = proc.reader.read(5)
        workload = reading.workload
        assert workload.container_id in (None, ID)
        assert workload.slurm_job is None or workload.slurm_job.isdigit()
        assert reading.start_ticks is None or reading.start_ticks >= 0
    assert len([*Path("/proc/self/fd").iterdir()]) <= opened + 1
