"""What a counted post_send costs its caller: one work request with one SGE, CPU time per call.

The peers are a uprobe that does nothing, at the same instruction, and bpftrace's count() and sum() there.
The function is the stand-in's (tests/doubles/provider); all are attached in turn, in one process.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.result import Result, alternate
from doubles.provider import builder
from doubles.provider.application import RC, Application
from doubles.provider.builder import Double
from fabrictap.ext.bpf import Object
from fabrictap.sources.verbs.probes import Probes, attach_place, load_data

# Many short rounds: a machine that is busy with something else drifts within seconds.
ROUNDS = 31
CALLS = 20_000
EMPTY_GOAL, BPFTRACE_GOAL = 1.6, 1.15
#: A call that no uprobe stops takes some nanoseconds, one that a uprobe stops at least so many times that.
_PROBED = 20


def _compile_empty(directory: Path) -> Path:
    target = directory / "empty.bpf.o"
    multiarch = f"/usr/include/{os.uname().machine}-linux-gnu"
    source = Path(__file__).parent / "empty.bpf.c"
    subprocess.run(
        ["clang", "-g", "-O2", "-target", "bpf", f"-I{multiarch}", "-c", source, "-o", target], check=True
    )
    return target


def _per_call(application: Application) -> float:
    application.tell("time", CALLS // 20)
    return application.tell("time", CALLS)["cpu"] / CALLS


@contextmanager
def _bpftrace(double: Double, application: Application, action: str) -> Iterator[None]:
    """bpftrace at post_send. What it says at its end is proof that it counted."""
    bare = min(application.tell("time", 10_000)["cpu"] / 10_000 for _ in range(3))
    script = f"uprobe:{double.library}:post_send {{ {action} }}"
    running = subprocess.Popen(
        # Whoever runs this in the background ignores SIGINT, and so would it.
        ["env", "--default-signal=INT", "bpftrace", "-e", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        while min(application.tell("time", 10_000)["cpu"] / 10_000 for _ in range(3)) < bare * _PROBED:
            if running.poll() is not None:
                raise RuntimeError(f"bpftrace ended: {running.communicate()[0]}")
        yield
    finally:
        running.send_signal(signal.SIGINT)  # upon which it prints its maps
        said = running.communicate()[0]
    if "@n" not in said:
        raise RuntimeError(f"bpftrace counted nothing: {said}")


def measure() -> list[Result]:
    for missing in (
        "" if os.geteuid() == 0 else "uprobes take root: sudo make bench B=uprobe",
        builder.missing(),
    ):
        if missing:
            print(f"uprobe: left out: {missing}", file=sys.stderr)
            return []
    with tempfile.TemporaryDirectory() as work:
        double = builder.build(Path(work))
        empty = Object(str(_compile_empty(Path(work))))
        empty.load()
        data = load_data(1 << 20, 1 << 16, subtract=False)
        returning = load_data(1 << 20, 1 << 16)
        with Application(double.driver, [max(os.sched_getaffinity(0))]) as application:
            application.tell("device", "bench0")
            application.tell("context", 0)
            application.tell("qp", 0, 17, RC)
            return _measure(double, empty, data, returning, application)


def _measure(
    double: Double, empty: Object, data: Probes, returning: Probes, application: Application
) -> list[Result]:
    place = double.place("post_send")

    def bare() -> float:
        return _per_call(application)

    def with_empty() -> float:
        link = empty.attach_uprobe("empty", place.file, place.offset)
        try:
            return _per_call(application)
        finally:
            link.close()

    def with_probes(probes: Probes) -> float:
        attach_place(probes, place)
        try:
            return _per_call(application)
        finally:
            probes.close()

    def with_ours() -> float:
        return with_probes(data)

    def with_return() -> float:
        return with_probes(returning)

    def with_bpftrace(action: str) -> Callable[[], float]:
        def measure() -> float:
            with _bpftrace(double, application, action):
                return _per_call(application)

        return measure

    what = "post_send counted, 1 WR with 1 SGE"
    if shutil.which("bpftrace") is None:
        plain, nothing, ours, twice = alternate(ROUNDS, bare, with_empty, with_ours, with_return)
        argument = length = None
        absent = " (not installed: apt-get install bpftrace)"
    else:
        plain, nothing, ours, twice, argument, length = alternate(
            ROUNDS, bare, with_empty, with_ours, with_return,
            with_bpftrace("@n = count(); @b = sum(arg1);"),
            with_bpftrace("@n = count(); @b = sum(*(uint32*)(*(uint64*)(arg1 + 16) + 8));"),
        )  # fmt: skip
        absent = ""
    lost = {
        reason: count for probes in (data, returning) for reason, count in probes.losses().items() if count
    }
    if lost:
        raise RuntimeError(f"the probe that was measured lost posts: {lost}")
    return [
        Result(what, "ns", ours, nothing, "empty uprobe", EMPTY_GOAL),
        Result(
            f"{what} (2)", "ns", ours, argument, f"bpftrace count() + sum(argument){absent}", BPFTRACE_GOAL
        ),
        Result(f"{what} (3)", "ns", ours, length, f"bpftrace count() + sum(SGE length){absent}", None),
        Result(f"{what} (4)", "ns", ours, plain, "no uprobe", None),
        Result(f"{what}, less what is refused", "ns", twice, nothing, "empty uprobe", None),
    ]
