"""One pass over the counters of a large node: 8 HCAs with 50 files each, kept descriptors against open."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from bench.result import Result, alternate
from fabrictap.ext.counters import OK, CounterFiles

HCAS, FILES = 8, 50
ROUNDS, PASSES = 21, 20
GOAL = 0.1


def _tree(root: Path) -> list[Path]:
    paths = []
    for hca in range(HCAS):
        directory = root / f"mlx5_{hca}" / "ports" / "1" / "hw_counters"
        directory.mkdir(parents=True)
        for number in range(FILES):
            path = directory / f"counter_{number}"
            path.write_text(f"{(hca + 1) * 10**12 + number}\n")
            paths.append(path)
    return paths


def measure() -> list[Result]:
    with tempfile.TemporaryDirectory() as work:
        paths = _tree(Path(work))
        kept = CounterFiles()
        for path in paths:
            kept.add(path)
        names = [str(path) for path in paths]

        def ours() -> float:
            began = time.process_time_ns()
            for _ in range(PASSES):
                kept.read()
            spent = time.process_time_ns() - began
            values, statuses = kept.results()
            if set(statuses) != {OK} or values != python():
                raise RuntimeError("the two did not read the same")
            return spent / PASSES / 1000

        def with_results() -> float:
            began = time.process_time_ns()
            for _ in range(PASSES):
                kept.read()
                kept.results()
            return (time.process_time_ns() - began) / PASSES / 1000

        def python() -> list[int]:
            found = []
            for name in names:
                with open(name, "rb") as file:  # noqa: PTH123 - the fastest that plain Python has
                    found.append(int(file.read()))
            return found

        def peer() -> float:
            began = time.process_time_ns()
            for _ in range(PASSES):
                python()
            return (time.process_time_ns() - began) / PASSES / 1000

        read, values, opened = alternate(ROUNDS, ours, with_results, peer)
        kept.close()
    what = f"read {HCAS} x {FILES} counter files"
    return [
        Result(what, "us", read, opened, "open, read, close in Python", GOAL),
        Result(
            f"{what}, values as Python objects", "us", values, opened, "open, read, close in Python", None
        ),
    ]
