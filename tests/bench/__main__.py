"""Measurements against peers: ``make bench``, or a part: ``make bench B=counters``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from bench import (
    agent,
    budget,
    completions,
    counters,
    detectors,
    export,
    exposition,
    fold,
    infiniband,
    nvml,
    ringbuffer,
    uprobe,
    volume,
)
from bench.result import Result, table, write

PARTS: dict[str, Callable[[], list[Result]]] = {
    "uprobe": uprobe.measure,
    "completions": completions.measure,
    "budget": budget.measure,
    "counters": counters.measure,
    "infiniband": infiniband.measure,
    "ringbuffer": ringbuffer.measure,
    "fold": fold.measure,
    "nvml": nvml.measure,
    "export": export.measure,
    "exposition": exposition.measure,
    "detectors": detectors.measure,
    "agent": agent.measure,
    "growth": agent.measure_growth,
    "volume": volume.measure,
}
OUTPUT = Path(__file__).parents[2] / "build" / "bench.json"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench B='PART ...'", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parts = parser.parse_args().parts or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    for part in parts:
        results = PARTS[part]()
        if results:
            print(f"{part}\n{table(results)}\n", flush=True)
            write(results, OUTPUT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
