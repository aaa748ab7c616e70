"""What it costs the agent to be looked at: its CPU with nobody reading, and with five ``fabrictap top``.

One agent on the stand-ins of bench/agent.py, which exports to nobody; five readers of its ring that look once
a second, stopped (SIGSTOP) in every other round, so that what disturbs one kind of round disturbs the other.
Readers take no lock of the agent's and send it nothing: what is left is what the processors' caches and
clocks do. CPU is that of the agent's process alone; what one reader costs stands beside it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from bench.process import Watched
from bench.result import Result, left_out, note
from doubles.sysfs import Sysfs
from support import eventually

HERE = Path(__file__).parent
READERS, HCAS, CONNECTIONS = 5, 8, 256
ROUNDS, SECONDS, PAUSE = 16, 4, 1.0
GOAL = 1.05
_OFF = (
    "export.otlp.metrics.enabled=false",
    "export.otlp.traces.enabled=false",
    "export.otlp.logs.enabled=false",
    "sources.verbs.enabled=false",  # the stand-in takes its place
    "sources.nvml.enabled=false",
    "state.path=none",
    "agent.log_level=warning",
)


def _environment() -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("OTEL_", "FABRICTAP_"))}
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _agent(work: Path, sysfs: Path, stack: ExitStack) -> int:
    """Its pid, once it works."""
    ring, log = work / "ring", work / "agent.log"
    settings = (f"ring.path={ring}", f"sources.infiniband.sysfs={sysfs}", *_OFF)
    with log.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, HERE / "agent_node.py", str(CONNECTIONS), str(HCAS), "0"]
            + [word for setting in settings for word in ("--set", setting)],
            stdout=subprocess.DEVNULL,
            stderr=said,
            env=_environment(),
        )
    stack.callback(_end, process)

    def works() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"the agent ended: {log.read_text()[-2000:]}")
        return "synthetic connections are made" in log.read_text()

    eventually(works, "all connections are made", 60)
    return process.pid


def _reader(ring: Path, stack: ExitStack) -> Watched:
    """One that has read its first look, which takes all that is kept."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fabrictap", "top", "--json", "--file", str(ring)],
        stdout=subprocess.PIPE,
        env=_environment(),
    )
    stack.callback(_end, process)
    if process.stdout is None or not process.stdout.readline():
        raise RuntimeError("top --json said nothing")
    # It must not wait for somebody who takes what it says.
    drain = subprocess.Popen(["cat"], stdin=process.stdout, stdout=subprocess.DEVNULL)
    process.stdout.close()
    stack.callback(_end, drain)
    return Watched(process.pid)


def _tell(readers: Iterable[Watched], number: signal.Signals) -> None:
    for reader in readers:
        os.kill(reader.pid, number)


def _round(agent: Watched, tree: Sysfs) -> float:
    """Milliseconds of the agent's CPU a second."""
    began, spent = time.monotonic(), agent.cpu_ns()
    for number in range(SECONDS):
        tree.advance(1.0)
        time.sleep(max(0.0, began + number + 1 - time.monotonic()))
    return (agent.cpu_ns() - spent) / 1e6 / (time.monotonic() - began)


def measure() -> list[Result]:
    left_out("readers", "probes in the kernel and real counters: verbs and /sys are stand-ins here")
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tree = Sysfs(work / "sys", HCAS)
        agent = Watched(_agent(work, tree.root, stack))
        readers = [_reader(work / "ring", stack) for _ in range(READERS)]
        alone, watched, spent = [], [], []
        for _ in range(ROUNDS):
            _tell(readers, signal.SIGSTOP)
            time.sleep(PAUSE)
            alone.append(_round(agent, tree))
            _tell(readers, signal.SIGCONT)
            time.sleep(PAUSE)
            before = [reader.cpu_ns() for reader in readers]
            began = time.monotonic()
            watched.append(_round(agent, tree))
            seconds = time.monotonic() - began
            spent += [
                (reader.cpu_ns() - was) / 1e6 / seconds for reader, was in zip(readers, before, strict=True)
            ]
    what = f"agent, {HCAS} HCAs, {CONNECTIONS} connections (synthetic)"
    return [
        Result(
            f"{what}: CPU a second with {READERS} readers",
            "ms",
            median(watched),
            median(alone),
            "the same agent with nobody reading",
            GOAL,
        ),
        note("one reader (fabrictap top): CPU a second", "ms", median(spent), "a look a second"),
    ]
