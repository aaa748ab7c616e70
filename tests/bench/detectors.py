"""Detectors on generated days: how many alarms are right, how much is found, and what a look costs.

The scenarios are made up (tests/findings_scenarios.py): they say whether detectors do what they are meant to,
not how a cluster's own traffic would fare.
"""

from __future__ import annotations

import time
from collections import Counter

from bench.result import Result, limit, note
from fabrictap.insight import detection
from findings_node import Node, pod, told
from findings_scenarios import SCENARIOS

_SEEDS = 3
_CONNECTIONS = 16384
_LOOKS = 40


def measure() -> list[Result]:
    return [*_quality(), *_cost()]


def _quality() -> list[Result]:
    right, wrong, missed = Counter[str](), Counter[str](), Counter[str]()
    for scenario, kinds in told(SCENARIOS, _SEEDS):
        right.update(kinds & scenario.tells)
        wrong.update(kinds - scenario.tells)
        missed.update(scenario.tells - kinds)
    lines = []
    for kind in sorted({*right, *wrong, *missed}):
        said, should = right[kind] + wrong[kind], right[kind] + missed[kind]
        if said:
            lines.append(
                note(f"{kind}: precision", "", right[kind] / said, f"{right[kind]} of {said} alarms")
            )
        if should:
            lines.append(
                note(f"{kind}: recall", "", right[kind] / should, f"{right[kind]} of {should} cases")
            )
    runs = _SEEDS * len(SCENARIOS)
    return [
        *lines,
        limit(f"false alarms in {runs} generated runs", "kinds", wrong.total(), 1),
        limit("cases missed in them", "kinds", missed.total(), 1),
    ]


def _cost() -> list[Result]:
    node = Node(limits={"connections": _CONNECTIONS})
    links = []
    for pid in range(128):
        links += node.start(pid + 1, pod(f"p-{pid}"), _CONNECTIONS // 128)
    took = []
    for _ in range(_LOOKS):
        for connection in links:
            connection.post("rdma_write", 10, 1 << 20)
        began = time.thread_time()
        node.look()
        took.append(time.thread_time() - began)
    steady = sorted(took[8:])
    return [
        limit(
            f"one look of all detectors, {_CONNECTIONS} busy connections: median",
            "ms",
            steady[len(steady) // 2] * 1e3,
            25,
        ),
        note("the longest of them", "ms", steady[-1] * 1e3, f"slices of {detection.SLICE} connections"),
    ]
