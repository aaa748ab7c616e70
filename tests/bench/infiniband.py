"""One sample of the infiniband source against one scrape of node_exporter, on the same /sys of 8 HCAs.

The two take turns, once a second as they run on a node, while the counters advance; of ours, the fast samples
of the traffic counters come between, at the pace of a node. CPU is all that the
sample costs until the values are in the series, with the looks for new devices, and all that the scrape
costs node_exporter until the text is out; both are means over all rounds. Further lines say what of ours is
reading and folding, what is looking for devices, ports and files that came or went, and what the fast samples
of the traffic counters between two samples cost, which have no counterpart in a scrape.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from bench import node_exporter
from bench.node_exporter import NodeExporter
from bench.result import Result, left_out, note
from doubles.sysfs import Sysfs
from fabrictap.config import Config, Infiniband
from fabrictap.ledger import Ledger
from fabrictap.series import SeriesTable
from fabrictap.sources.infiniband import source

HCAS = 8
ROUNDS = 30
GROWTH = (1, 2, 4, 8, 16)
GROWTH_ROUNDS = 20
GOAL = 0.25


class _Ours:
    """The source as a runner drives it."""

    def __init__(self, sysfs: Path) -> None:
        self._series = SeriesTable(20_000)
        ledger = Ledger(Config(), self._series.ring)
        self._source = source.Infiniband(Infiniband(sysfs=str(sysfs)), self._series, ledger)
        self._source.open()
        self.sample()

    def sample(self) -> float:
        """Milliseconds of CPU of one sample."""
        began = time.process_time_ns()
        self._source.fold(self._source.sample(), time.time_ns())
        return (time.process_time_ns() - began) / 1e6

    def rest(self, until: float) -> float:
        """Milliseconds of CPU of the fast samples until ``until``, with what it takes to wake up for them."""
        began = time.process_time_ns()
        self._source.rest(until, self._source.fast_interval)
        return (time.process_time_ns() - began) / 1e6

    @property
    def looks_every(self) -> float:
        """Seconds between two looks for devices."""
        return self._source.rescan_interval

    @property
    def series(self) -> int:
        return len(self._series)

    def close(self) -> None:
        self._source.close()


@dataclass(frozen=True)
class _Turns:
    """Milliseconds of each sample, of each second's fast samples and of each scrape; what they deliver."""

    ours: list[float]
    fast: list[float]
    peer: list[float]
    series: int
    values: int
    looks_every: float


def _take_turns(tree: Sysfs, peer: NodeExporter | None) -> _Turns:
    ours = _Ours(tree.root)
    samples, fasts, scrapes, values = [], [], [], 0
    began = time.monotonic()
    for number in range(ROUNDS):
        tree.advance(1.0)
        samples.append(ours.sample())
        if peer is not None:
            before = peer.watched.cpu_ns()
            values = peer.scrape()
            scrapes.append((peer.watched.cpu_ns() - before) / 1e6)
        fasts.append(ours.rest(began + number + 1))
    turns = _Turns(samples, fasts, scrapes, ours.series, values, ours.looks_every)
    ours.close()
    return turns


def measure() -> list[Result]:
    with tempfile.TemporaryDirectory() as work:
        tree = Sysfs(Path(work), HCAS)
        if missing := node_exporter.missing():
            left_out("infiniband", f"the peer: {missing}")
            name = f"{node_exporter.NAME} ({missing})"
            turns = _take_turns(tree, None)
        else:
            with NodeExporter(tree.root) as peer:
                turns = _take_turns(tree, peer)
                name = f"{node_exporter.NAME} {peer.version}, a scrape of {turns.values} values"
    whole, steady = mean(turns.ours), median(turns.ours)
    theirs = mean(turns.peer) if turns.peer else None
    what = f"a sample of {HCAS} HCAs"
    return [
        Result(what, "ms", whole, theirs, name, GOAL),
        note(f"{what}: read and fold", "ms", steady, f"the median sample; {turns.series} series"),
        note(
            f"{what}: look for devices",
            "ms",
            whole - steady,
            f"every {turns.looks_every:g} s, its part of each",
        ),
        note(f"{what}: fast samples of a second", "ms", mean(turns.fast), "traffic counters only"),
        *_growth(),
    ]


def _growth() -> list[Result]:
    results = []
    for hcas in GROWTH:
        with tempfile.TemporaryDirectory() as work:
            tree = Sysfs(Path(work), hcas)
            ours = _Ours(tree.root)
            samples = []
            for _ in range(GROWTH_ROUNDS):
                tree.advance(1.0)
                samples.append(ours.sample())
            remark = f"{ours.series} series, back to back"
            results.append(note(f"read and fold {hcas} HCAs", "ms", median(samples), remark))
            ours.close()
    return results
