"""/proc/PID of one process: when it started and what it belongs to. Bounded in size and in time.

Everything is read below one descriptor of /proc/PID: once the process has ended, it answers ESRCH, even
when another process has the same pid by then. So what is read is of one process, or nothing is.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from fabrictap.ledger.workloads import cgroup, environ
from fabrictap.ledger.workloads.model import NONE, Workload

#: The kernel's own limits: a page for stat and status, PATH_MAX for each of at most 14 hierarchies.
_MAX_STAT = 4096
_MAX_STATUS = 8192
_MAX_CGROUP = 16 * 4096
#: An environment may have megabytes; Slurm's variables of one that has more than this are not looked for.
MAX_ENVIRON = 256 * 1024
#: Reading an environment waits for the process's memory lock, for ever where its owner hangs in the kernel.
_ENVIRON_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Reading:
    """What /proc says of a process. ``start_ticks`` is field 22 of its stat; None where it is gone.

    ``losses`` names what could not be read, in the words of the catalog's fabrictap.workload.loss.reason.
    """

    start_ticks: int | None = None
    workload: Workload = NONE
    losses: tuple[str, ...] = ()


@dataclass
class Reader:
    """Reads below ``root``, environments where ``environment`` is set. From any thread."""

    root: str = "/proc"
    environment: bool = True
    _stuck: list[threading.Thread] = field(default_factory=list)

    def start_ticks(self, pid: int) -> int | None:
        """When ``pid`` started, in clock ticks since boot; None if there is no such process."""
        try:
            fd = os.open(f"{self.root}/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return parse_start_ticks(_read(fd, "stat", _MAX_STAT))
        except OSError:
            return None
        finally:
            os.close(fd)

    def read(self, pid: int) -> Reading:
        """Everything about ``pid``. Raises nothing; blocks no longer than _ENVIRON_SECONDS."""
        try:
            fd = os.open(f"{self.root}/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            return Reading(losses=(_word(error),))
        try:
            return self._read(fd)
        finally:
            os.close(fd)

    def _read(self, fd: int) -> Reading:
        try:
            ticks = parse_start_ticks(_read(fd, "stat", _MAX_STAT))
            text = _read(fd, "cgroup", _MAX_CGROUP)
        except OSError as error:
            return Reading(losses=(_word(error),))
        if ticks is None:
            return Reading(losses=("malformed",))
        workload = cgroup.identify(cgroup.parse(text))
        odd = () if _printable(text) else ("name_escaped",)
        if workload.pod_uid is not None and workload.slurm_job is None:
            return Reading(ticks, workload, odd)
        raw, losses = self._environ(fd) if self.environment else (b"", ())
        said = environ.parse(raw)
        losses += odd + ("environ_rejected",) * said.rejected
        if workload.slurm_job is None and said.job is None:
            return Reading(ticks, workload, losses)
        return Reading(ticks, self._with_slurm(fd, workload, said), losses)

    def _with_slurm(self, fd: int, workload: Workload, said: environ.SlurmVariables) -> Workload:
        """The job's user, whose name only the environment has: believed where its uid agrees."""
        try:
            uid = parse_uid(_read(fd, "status", _MAX_STATUS))
        except OSError:
            uid = None
        if workload.slurm_uid is not None:
            uid = workload.slurm_uid
        workload = replace(
            workload,
            slurm_uid=uid,
            slurm_user=said.user if uid is not None and said.uid == uid else None,
        )
        if workload.slurm_job is None:
            return replace(
                workload,
                slurm_job=said.job,
                slurm_step=said.step,
                slurm_task=said.task,
                slurm_origin="environment",
            )
        return workload

    def _environ(self, fd: int) -> tuple[bytes, tuple[str, ...]]:
        """The environment, empty where it cannot be read, and why."""
        self._stuck = [thread for thread in self._stuck if thread.is_alive()]
        if self._stuck:
            return b"", ("environ_hung",)  # one left behind is enough
        own = os.dup(fd)

        def read() -> bytes:
            try:
                return _read(own, "environ", MAX_ENVIRON + 1)
            finally:
                os.close(own)

        thread, answer = _in_thread(read)
        thread.join(_ENVIRON_SECONDS)
        if thread.is_alive():
            self._stuck.append(thread)
            return b"", ("environ_hung",)
        raw = answer[0] if answer else OSError()
        if isinstance(raw, OSError):
            return b"", (f"environ_{_word(raw)}",)
        if len(raw) > MAX_ENVIRON:
            # the last variable may be cut, and half a number is a number too
            return raw[: raw.rfind(b"\0", 0, MAX_ENVIRON) + 1], ("environ_truncated",)
        return raw, ()


def parse_start_ticks(stat: bytes) -> int | None:
    """Field 22 of /proc/PID/stat (proc(5)). The second, the name, may hold blanks and parentheses."""
    fields = stat[stat.rfind(b")") + 1 :].split()
    if len(fields) < 20 or not fields[19].isdigit() or len(fields[19]) > 20:
        return None
    return int(fields[19])


def parse_uid(status: bytes) -> int | None:
    """The real user id of /proc/PID/status. The name on its first line is escaped by the kernel."""
    for line in status.split(b"\n"):
        if line.startswith(b"Uid:"):
            fields = line.split()
            return (
                int(fields[1]) if len(fields) > 1 and fields[1].isdigit() and len(fields[1]) <= 10 else None
            )
    return None


def _in_thread(call: Callable[[], bytes]) -> tuple[threading.Thread, list[bytes | OSError]]:
    answer: list[bytes | OSError] = []

    def run() -> None:
        try:
            answer.append(call())
        except OSError as error:
            answer.append(error)

    thread = threading.Thread(target=run, name="environ", daemon=True)
    thread.start()
    return thread, answer


def _read(directory: int, name: str, limit: int) -> bytes:
    """At most ``limit`` bytes of a file of /proc/PID. Raises OSError."""
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
    try:
        parts: list[bytes] = []
        while limit > 0 and (part := os.read(fd, min(limit, 65536))):
            parts.append(part)
            limit -= len(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def _printable(text: bytes) -> bool:
    try:
        return text.decode("utf-8").replace("\n", "").isprintable()
    except UnicodeDecodeError:
        return False


def _word(error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ESRCH):
        return "gone"
    return "denied" if error.errno in (errno.EACCES, errno.EPERM) else "malformed"
