"""The whole agent on a node of stand-ins: what it costs while it samples every second and exports every 10 s.

``fabrictap run`` in a process of its own, with 8 made-up HCAs in a /sys (doubles/sysfs.py) and 256 made-up
connections (doubles/verbs_traffic.py), about 5,000 series; the counters of all connections and the traffic
counters of all ports move every second. It exports to the real Collector. node_exporter is scraped every
second on the same /sys in the same minute. CPU is that of the whole process, less what the stand-in for the
kernel spends in it, which is told. In a minute of its own there are 8 GPUs with 18 NVLinks each as well, read
through the stand-in of NVIDIA's library (doubles/nvml), whose own CPU is in the figure. The limits hold for
both. Then where the memory and the time go, and how both grow with HCAs, GPUs and connections.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import node_exporter
from bench.node_exporter import NodeExporter
from bench.process import Watched
from bench.result import Result, left_out, limit, note
from doubles.nvml import builder, loader
from doubles.nvml.driver import Node as Gpus
from doubles.sysfs import Sysfs
from otelcol import BUILD, Collector, find_collector
from support import eventually

HERE = Path(__file__).parent
HCAS, CONNECTIONS = 8, 256
#: Of the stand-in's profile hgx-h100: 8 GPUs with 18 NVLinks each.
GPUS, GPU_PROFILE, LINK_BYTES_PER_SECOND = 8, "hgx-h100", 20 << 30
LINKS = 18
SECONDS = 60
GPU_SECONDS = 30
#: As (HCAs, GPUs, connections); short.
GROWTH = (
    (1, 0, 0), (4, 0, 0), (16, 0, 0),
    (8, 0, 0), (8, 4, 0), (8, 8, 0), (8, 16, 0),
    (8, 0, 10), (8, 0, 1_000), (8, 0, 10_000), (8, 0, 100_000),
)  # fmt: skip
GROWTH_SECONDS = 10
PRIVATE_LIMIT, RING_LIMIT, THREADS_LIMIT = 64, 32, 8
CPU_GOAL = 0.5
MIB = 1 << 20


@dataclass(frozen=True)
class _Load:
    """What an agent watches, and how often it exports, in seconds."""

    hcas: int
    connections: int
    interval: int
    gpus: int = 0

    def __str__(self) -> str:
        gpus = f", {self.gpus} GPUs x {LINKS} NVLinks" if self.gpus else ""
        return f"agent, {self.hcas} HCAs{gpus}, {self.connections:,} connections (synthetic)"


@dataclass(frozen=True)
class _Use:
    """Of one process over a time: milliseconds of CPU a second, bytes, switches a second."""

    cpu: float
    private: int
    alone: int
    threads: int
    switches: float


@dataclass(frozen=True)
class _Minute:
    agent: _Use
    exporter: _Use | None
    exporter_name: str
    by_thread: dict[str, float]
    by_group: dict[str, int]
    ring: int
    points: int
    stand_in: float


class _Meter:
    """What a process used since this was made."""

    def __init__(self, pid: int) -> None:
        self._process = Watched(pid)
        self._began = time.monotonic()
        self._cpu = self._process.cpu_ns()
        self._switches = self._process.voluntary_switches()
        self._threads = self._process.cpu_by_thread()

    def use(self) -> _Use:
        seconds = time.monotonic() - self._began
        process = self._process
        return _Use(
            (process.cpu_ns() - self._cpu) / 1e6 / seconds,
            process.private_bytes(),
            process.alone_bytes(),
            process.threads(),
            (process.voluntary_switches() - self._switches) / seconds,
        )

    def by_thread(self) -> dict[str, float]:
        """Milliseconds a second."""
        seconds = time.monotonic() - self._began
        now = self._process.cpu_by_thread()
        return {name: (spent - self._threads.get(name, 0.0)) / seconds for name, spent in now.items()}


class _Agent:
    """A running agent_node.py."""

    def __init__(
        self, work: Path, sysfs: Path, load: _Load, endpoint: str, gpus: dict[str, str] | None
    ) -> None:
        """``gpus``: the environment in which it finds them; None without any."""
        self.ring = work / "ring"
        settings = {
            "ring.path": str(self.ring),
            "sources.verbs.enabled": "false",  # the stand-in takes its place
            "sources.infiniband.sysfs": str(sysfs),
            "export.interval": f"{load.interval}s",
            "export.otlp.metrics.endpoint": endpoint,
            "export.otlp.traces.endpoint": endpoint,
            "export.otlp.logs.endpoint": endpoint,
            "state.path": "none",
            "agent.log_level": "warning",
        }
        if gpus is None:
            settings["sources.nvml.enabled"] = "false"
        arguments = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        kept = {
            name: text for name, text in os.environ.items() if not name.startswith(("OTEL_", "FABRICTAP_"))
        }
        self._said = work / "agent.log"
        with self._said.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    HERE / "agent_node.py",
                    str(load.connections),
                    str(load.hcas),
                    str(load.gpus),
                    *arguments,
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=kept | (gpus or {}) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self.pid = self._process.pid

    def check(self) -> None:
        if self._process.poll() is not None:
            raise RuntimeError(f"the agent ended: {self.last_words}")
        if "failed unexpectedly" in self.last_words:
            raise RuntimeError(f"the agent does not work: {self.last_words}")

    @property
    def last_words(self) -> str:
        return self._said.read_text()[-2000:]

    @property
    def connected(self) -> bool:
        """Whether all connections are made: the stand-in says so."""
        return "synthetic connections are made" in self._said.read_text()

    def name_threads(self) -> None:
        os.kill(self.pid, signal.SIGUSR1)

    @property
    def ring_bytes(self) -> int:
        """What the ring's file takes on its file system."""
        return self.ring.stat().st_blocks * 512

    def stop(self) -> float:
        """End it. Returns the seconds of CPU that the stand-in has cost in it."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            said = self._process.communicate(timeout=30)[0]
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise
        found = re.search(r"stand-in seconds: ([0-9.]+)", said)
        return float(found[1]) if found else 0.0


def _every_second(seconds: int, do: Callable[[], None]) -> None:
    began = time.monotonic()
    for number in range(seconds):
        do()
        time.sleep(max(0.0, began + number + 1 - time.monotonic()))


def _lines(collector: Collector) -> list[bytes]:
    """Requests as the Collector wrote them, whole ones, not yet parsed: they may be megabytes."""
    return collector.output.read_bytes().split(b"\n")[:-1] if collector.output.exists() else []


def _points(collector: Collector) -> int:
    """Points of the last export that arrived, which may be several requests: sums have its time."""
    total, last = 0, None
    for line in reversed(_lines(collector)):
        points = [
            point
            for resource in json.loads(line).get("resourceMetrics", ())
            for metric in resource["scopeMetrics"][0]["metrics"]
            for kind in ("sum", "gauge", "exponentialHistogram")
            for point in metric.get(kind, {}).get("dataPoints", ())
        ]
        if not points:  # spans
            continue
        time_ns = max(int(point["timeUnixNano"]) for point in points)
        if last not in (None, time_ns):
            break
        total, last = total + len(points), time_ns
    return total


def _profile(count: int) -> dict[str, Any]:
    """The stand-in's profile with as many GPUs; those beyond its own are the first ones again, elsewhere."""
    profile = loader.load(GPU_PROFILE)
    section = profile["gpus"]
    had, section["count"] = section["count"], count
    for group in ("texts", "values", "fields"):
        for name, value in section.get(group, {}).items():
            if isinstance(value, list):
                section[group][name] = [value[gpu % had] for gpu in range(count)]
    section["values"]["pci_bus"] = [bus + gpu // had for gpu, bus in enumerate(section["values"]["pci_bus"])]
    section["values"]["minor_number"] = list(range(count))
    for name in ("uuid", "serial"):
        section["texts"][name] = section["texts"][name].replace("{index}", "{index:x}")
    return profile


def _gpus(work: Path, count: int) -> tuple[Gpus, dict[str, str]]:
    """GPUs all of whose links are busy, and the environment in which a program finds them."""
    built = builder.build(work / "nvml")
    made = Gpus(built, work / "gpus", new=True)
    loader.apply(made, _profile(count))
    for gpu in range(count):
        for link in range(LINKS):
            made.nvlink(gpu, link, tx_bytes_per_s=LINK_BYTES_PER_SECOND, rx_bytes_per_s=LINK_BYTES_PER_SECOND)
    made.real_clock()
    return made, made.environment(built.library)


def _minute(binary: Path, load: _Load, seconds: int, *, peer: bool) -> _Minute:
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tree = Sysfs(work / "sys", load.hcas)
        collector = Collector(binary, work)
        collector.listen()
        stack.callback(collector.stop)
        exporter = stack.enter_context(NodeExporter(tree.root)) if peer else None
        found = None
        if load.gpus:
            gpus, found = _gpus(work, load.gpus)
            stack.callback(gpus.close)
        agent = _Agent(work, tree.root, load, f"http://127.0.0.1:{collector.port}", found)
        began = time.monotonic()
        stack.callback(agent.stop)

        def settled() -> bool:
            agent.check()
            return agent.connected

        eventually(settled, "all connections are made", 120)
        # Two exports later all series have come, all buffers have the size that they keep.
        time.sleep(2 * load.interval)
        agent.check()
        if not _lines(collector):
            raise RuntimeError(f"nothing has arrived at the Collector: {agent.last_words}")
        agent.name_threads()
        time.sleep(1)
        ours = _Meter(agent.pid)
        theirs = _Meter(exporter.watched.pid) if exporter else None

        def second() -> None:
            tree.advance(1.0)
            if exporter is not None:
                exporter.scrape()
            agent.check()

        _every_second(seconds, second)
        used, threads, groups = ours.use(), ours.by_thread(), Watched(agent.pid).private_by_group()
        their_use, ring, points = theirs.use() if theirs else None, agent.ring_bytes, _points(collector)
        stand_in = agent.stop() / (time.monotonic() - began) * 1000
        return _Minute(
            replace(used, cpu=used.cpu - stand_in),
            their_use,
            f"{node_exporter.NAME} {exporter.version}" if exporter else "",
            threads,
            groups,
            ring,
            points,
            stand_in,
        )


def _imports() -> dict[str, int]:
    """Stage -> bytes of memory that it added (import_memory.py)."""
    said = subprocess.run(
        [sys.executable, HERE / "import_memory.py"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ).stdout
    found: dict[str, int] = json.loads(said)
    return found


def _of_load(minute: _Minute, load: _Load, missing: str, cpu_goal: float | None) -> list[Result]:
    """What the whole costs, held against the peer's and the limits."""
    ours, theirs = minute.agent, minute.exporter
    name = minute.exporter_name or f"{node_exporter.NAME} ({missing})"
    return [
        Result(f"{load}: CPU a second", "ms", ours.cpu, theirs.cpu if theirs else None, name, cpu_goal),
        limit(f"{load}: private memory", "MiB", ours.private / MIB, PRIVATE_LIMIT),
        limit(f"{load}: ring file", "MiB", minute.ring / MIB, RING_LIMIT),
        limit(f"{load}: threads", "", ours.threads, THREADS_LIMIT),
        note(f"{load}: private memory, alone", "MiB", ours.alone / MIB, "where no other Python runs"),
        note(f"{load}: voluntary switches a second", "", ours.switches),
        note(f"{load}: points in an export", "", minute.points),
        note(f"{load}: CPU a second of the stand-in", "ms", minute.stand_in, "not in the first line"),
    ]


def _whole(binary: Path, missing: str) -> list[Result]:
    with_gpus = _Load(HCAS, CONNECTIONS, 10, gpus=GPUS)
    results = []
    if lacking := builder.missing():
        left_out("agent", f"the GPUs: {lacking}")
    else:
        # No counterpart in the peer, which reads ports alone: what they cost is told, the goal is below.
        results = _of_load(
            _minute(binary, with_gpus, GPU_SECONDS, peer=not missing), with_gpus, missing, None
        )
    load = _Load(HCAS, CONNECTIONS, 10)
    minute = _minute(binary, load, SECONDS, peer=not missing)
    ours, theirs = minute.agent, minute.exporter
    results += _of_load(minute, load, missing, CPU_GOAL)
    if theirs is not None:
        results += [
            note("node_exporter: private memory", "MiB", theirs.private / MIB),
            note("node_exporter: voluntary switches a second", "", theirs.switches),
        ]
    for thread, spent in sorted(minute.by_thread.items(), key=lambda item: -item[1]):
        results.append(note(f"agent's CPU: thread {thread}", "ms", spent, "a second, the stand-in included"))
    imports = _imports()
    for stage, added in imports.items():
        results.append(note(f"agent's memory: {stage}", "MiB", added / MIB, "by its import"))
    rest = ours.alone - sum(imports.values())
    results.append(note("agent's memory: what comes after the imports", "MiB", rest / MIB))
    for group, size in sorted(minute.by_group.items(), key=lambda item: -item[1]):
        results.append(note(f"agent's memory: {group}", "MiB", size / MIB, "by mapping"))
    return results


def _growth(binary: Path) -> list[Result]:
    results = []
    lacking = builder.missing()
    if lacking:
        left_out("growth", f"the GPUs: {lacking}")
    for hcas, gpus, connections in GROWTH:
        if gpus and lacking:
            continue
        load = _Load(hcas, connections, 2, gpus=gpus)
        minute = _minute(binary, load, GROWTH_SECONDS, peer=False)
        remark = f"{minute.points:,} points every 2 s"
        results += [
            note(f"{load}: CPU a second", "ms", minute.agent.cpu, remark),
            note(f"{load}: private memory", "MiB", minute.agent.private / MIB, remark),
        ]
    return results


def measure() -> list[Result]:
    binary = find_collector()
    if not binary.is_file():
        left_out("agent", f"no Collector: build it with {BUILD.relative_to(HERE.parents[1])}")
        return []
    missing = node_exporter.missing()
    if missing:
        left_out("agent", f"the peer: {missing}")
    left_out("agent", "probes in the kernel and real counters: verbs and /sys are stand-ins here")
    return _whole(binary, missing)


def measure_growth() -> list[Result]:
    """The part ``growth``: short runs, one after the other."""
    binary = find_collector()
    if not binary.is_file():
        left_out("growth", f"no Collector: build it with {BUILD.relative_to(HERE.parents[1])}")
        return []
    return _growth(binary)
