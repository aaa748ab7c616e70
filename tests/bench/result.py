"""What a measurement says, as a table and as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median


@dataclass(frozen=True)
class Result:
    """``ours`` and ``peer`` are medians of rounds that alternated in one run, in ``unit``.

    ``peer`` is None where the peer is not installed; ``peer_name`` then says so. ``goal`` is the largest
    ratio ours / peer that is good enough, None where the line only informs. What must stay below a fixed
    amount has that amount as its peer (:func:`limit`); what should be larger than the peer's is written the
    other way round, as a cost.
    """

    what: str
    unit: str
    ours: float
    peer: float | None
    peer_name: str
    goal: float | None

    @property
    def ratio(self) -> float | None:
        return None if self.peer is None else self.ours / self.peer

    @property
    def met(self) -> bool | None:
        return None if self.ratio is None or self.goal is None else self.ratio <= self.goal


def limit(what: str, unit: str, ours: float, most: float) -> Result:
    """A line whose goal is an amount, not a peer."""
    return Result(what, unit, ours, most, "the limit", 1.0)


def note(what: str, unit: str, ours: float, remark: str = "") -> Result:
    """A line that only informs; ``remark`` stands where the peer's name does."""
    return Result(what, unit, ours, None, remark, None)


def left_out(part: str, why: str) -> None:
    """Say in one line what a part does not measure here."""
    print(f"{part}: left out: {why}", file=sys.stderr)


def alternate(rounds: int, *measures: Callable[[], float]) -> list[float]:
    """The median of each measure; one of each in every round, so that what disturbs one disturbs all."""
    taken: list[list[float]] = [[] for _ in measures]
    for _ in range(rounds):
        for values, measure in zip(taken, measures, strict=True):
            values.append(measure())
    return [median(values) for values in taken]


def table(results: Sequence[Result]) -> str:
    rows = [("what", "ours", "peer", "ratio", "goal", "", "peer is")]
    for one in results:
        rows.append(
            (
                one.what,
                f"{one.ours:,.4g} {one.unit}",
                "-" if one.peer is None else f"{one.peer:,.4g} {one.unit}",
                "-" if one.ratio is None else f"{one.ratio:.3g}",
                "-" if one.goal is None else f"<= {one.goal:.3g}",
                {True: "met", False: "MISSED", None: "-"}[one.met],
                one.peer_name,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def write(results: Sequence[Result], target: Path) -> None:
    """Replace the lines of these measurements in ``target``; those of others stay."""
    target.parent.mkdir(parents=True, exist_ok=True)
    known = {one["what"]: one for one in json.loads(target.read_text())} if target.exists() else {}
    known |= {one.what: {**asdict(one), "ratio": one.ratio, "met": one.met} for one in results}
    target.write_text(json.dumps(list(known.values()), indent=1) + "\n")
