"""Whether return probes are safe on this kernel, tried on a process of our own.

Since Linux 6.11 a uretprobe on x86-64 enters the kernel by a system call of its own (uretprobe, 335), which
the probed process makes without knowing. Until 6.14, and in stable releases without that fix, seccomp filters
the call like any other: a process whose filter does not know it, as those of container runtimes do not, is
killed where the probed function returns. A release number does not tell, for distributions backport; so a
child puts such a filter on itself and returns from a probed function.

As a program (``python -m``): that child.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import subprocess
import sys

from fabrictap.ext.bpf import BpfError, Object

_log = logging.getLogger(__name__)
#: The first release with the system call.
_FIRST = (6, 11)
_TIMEOUT_SECONDS = 10.0
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
#: include/uapi/linux/filter.h: load the number of the call; 335 (uretprobe) and 336 (uprobe) fail with EPERM.
_FILTER = (
    (0x20, 0, 0, 0),
    (0x15, 1, 0, 335),
    (0x15, 0, 1, 336),
    (0x06, 0, 0, 0x00050001),
    (0x06, 0, 0, 0x7FFF0000),
)


class _Instruction(ctypes.Structure):
    """struct sock_filter."""

    _fields_ = (
        ("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32),
    )  # fmt: skip


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("len", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction)))


def safe(objects: str) -> bool:
    """``objects``: path of verbs_data.bpf.o. False too where it could not be tried."""
    release = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2] if part.isdigit())
    if platform.machine() != "x86_64" or release < _FIRST:
        return True
    problem = _try(objects)
    if problem is not None:
        _log.warning(
            "return probes are not used: %s. Posts are counted at the entry, those that the provider refuses "
            "too, and datagrams without their peer",
            problem,
        )
    return problem is None


def _try(objects: str) -> str | None:
    """What speaks against them; None if nothing does."""
    child = subprocess.Popen(
        [sys.executable, "-m", "fabrictap.sources.verbs.returns"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",  # -m looks for modules where the process is first
    )
    link = None
    try:
        assert child.stdout is not None
        place = child.stdout.readline().decode("utf-8", "replace").split(" ", 1)
        if len(place) != 2:
            return "the process on which they are tried does not start"
        probe = Object(objects)
        for name in probe.programs():
            # It finds no entry for this call, and does nothing.
            probe.autoload(name, name == "wr_complete_return")
        probe.load()
        link = probe.attach_uprobe(
            "wr_complete_return", place[1].rstrip("\n"), int(place[0]), True, child.pid
        )
        child.communicate(b"\n", _TIMEOUT_SECONDS)
    except (BpfError, OSError, ValueError, subprocess.TimeoutExpired) as error:
        return f"they could not be tried: {error}"
    finally:
        child.kill()
        child.wait()
        if link is not None:
            link.close()
    if child.returncode < 0:
        return "this kernel kills processes with a seccomp filter for them (mended in Linux 6.14)"
    return None if child.returncode == 0 else "the process on which they are tried failed"


def main() -> int:
    from fabrictap.sources.verbs.provider_helper import _place  # noqa: PLC0415 - of the child only

    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.cast(libc.getppid, ctypes.c_void_p).value
    found = _place("getppid", address) if address else None
    if found is None:
        return 1
    filters = (_Instruction * len(_FILTER))(*(_Instruction(*one) for one in _FILTER))
    program = _Program(len(_FILTER), filters)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return 1
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0):
        return 1
    sys.stdout.write(f"{found['offset']} {found['file']}\n")
    sys.stdout.flush()
    sys.stdin.readline()
    return 0 if libc.getppid() == os.getppid() else 1


if __name__ == "__main__":
    sys.exit(main())
