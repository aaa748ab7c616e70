"""Draining a BPF ring buffer: CPU time of the consumer for each record of 64 bytes that it folds.

A BPF program puts bursts of the same records into a ring buffer of 1 MiB; the consumer keeps a count and a
sum of bytes for each of the keys. The consumers, each in a process of its own, take turns: libbpf with a
callback in C, which is the least that can be done; bcc with a callback in Python, as its documentation has
it; and ours.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from bench.result import Result, alternate, left_out
from bench.ring import kernel_headers
from bench.worker import Worker

HERE = Path(__file__).parent / "ring"
#: As in record.h.
BURST, KEYS = 4096, 48
BURSTS = 16
ROUNDS = 9
SYSTEM_PYTHON = Path("/usr/bin/python3")
BARE, BCC = "libbpf with a callback in C", "bcc with a callback in Python"
BARE_GOAL, BCC_GOAL = 7.0, 1 / 60


def _missing() -> str:
    if os.geteuid() != 0:
        return "BPF programs take root: sudo make bench B=ringbuffer"
    if shutil.which("cc") is None or shutil.which("clang") is None:
        return "no compiler: apt-get install build-essential clang"
    return ""


def _bcc_missing() -> str:
    """bcc comes as a package of the system's Python, not from PyPI."""
    if not SYSTEM_PYTHON.exists():
        return f"no {SYSTEM_PYTHON}"
    found = subprocess.run([SYSTEM_PYTHON, "-c", "import bcc"], capture_output=True, check=False)
    return "" if found.returncode == 0 else "no bcc: apt-get install --no-install-recommends python3-bpfcc"


def _compile(work: Path) -> tuple[Path, Path]:
    """(BPF object, consumer in C)."""
    multiarch = f"/usr/include/{os.uname().machine}-linux-gnu"
    architecture = {"x86_64": "x86", "aarch64": "arm64"}[platform.machine()]
    burst, bare = work / "burst.bpf.o", work / "bare"
    subprocess.run(
        ["clang", "-g", "-O2", "-target", "bpf", f"-D__TARGET_ARCH_{architecture}", f"-I{multiarch}", "-c",
         HERE / "burst.bpf.c", "-o", burst],
        check=True,
    )  # fmt: skip
    libraries = ("-lbpf", "-lelf", "-lz")
    subprocess.run(["cc", "-O2", "-Wall", "-Werror", HERE / "bare.c", "-o", bare, *libraries], check=True)
    return burst, bare


def _bcc_command(work: Path) -> tuple[list[str | Path], dict[str, str]]:
    command: list[str | Path] = [SYSTEM_PYTHON, HERE / "with_bcc.py"]
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    if not kernel_headers.installed():
        environment |= kernel_headers.write(work / "kernel")
        command += kernel_headers.compiler_flags()
    return command, environment


def _expected() -> list[list[int]]:
    """What a round must come to, [count, bytes] of each key: burst.bpf.c's arithmetic."""
    of_burst = [range(key, BURST, KEYS) for key in range(KEYS)]
    return [[len(each) * BURSTS, sum(64 + i for i in each) * BURSTS] for each in of_burst]


def _per_record(worker: Worker) -> float:
    """Nanoseconds. Raises RuntimeError when a record was lost or counted wrongly."""
    answer: Any = worker.ask(BURSTS)
    if answer["sums"] != _expected():
        raise RuntimeError("a consumer of the ring buffer did not count what was put into it")
    return float(answer["cpu_ns"]) / (BURST * BURSTS)


def measure() -> list[Result]:
    if missing := _missing():
        left_out("ringbuffer", missing)
        return []
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        work = Path(made)
        burst, bare_program = _compile(work)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        workers = [
            stack.enter_context(Worker([sys.executable, HERE / "with_fabrictap.py", burst], environment)),
            stack.enter_context(Worker([bare_program, burst])),
        ]
        if missing := _bcc_missing():
            left_out("ringbuffer", f"bcc: {missing}")
        else:
            command, environment = _bcc_command(work)
            workers.append(stack.enter_context(Worker(command, environment)))
        ours, bare, *others = alternate(ROUNDS, *(partial(_per_record, worker) for worker in workers))
    what = "fold a record of 64 bytes from a BPF ring buffer"
    return [
        Result(what, "ns", ours, bare, BARE, BARE_GOAL),
        Result(f"{what} (2)", "ns", ours, others[0] if others else None, BCC, BCC_GOAL),
    ]
