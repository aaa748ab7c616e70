"""The account at the end of a trace: what was posted, what came of it, how long it took."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from fabrictap.ext.completions import COMPLETED, LATENCY_SCALE, RECEIVE, REFUSED, SENT, Group
from fabrictap.sources.verbs import wc
from fabrictap.view.text import UNKNOWN, amount, columns, duration, plain

_NS = 10**9
PERCENTILES = (50, 90, 99)


@dataclass(slots=True)
class Sum:
    """Of one queue pair: requests of one operation, or completions of one operation or status."""

    count: int = 0
    bytes: int = 0
    latencies: dict[int, int] = field(default_factory=dict)
    most_ns: int = 0
    least_ns: int = 0
    unmatched: dict[str, int] = field(default_factory=dict)

    def add(self, group: Group, *, datagrams: bool = False) -> None:
        self.count += group.count
        self.bytes += group.payload(datagrams)
        for index, count in group.latencies.items():
            self.latencies[index] = self.latencies.get(index, 0) + count
        for why, count in group.outcomes.items():
            self.unmatched[why] = self.unmatched.get(why, 0) + count
        self.most_ns = max(self.most_ns, group.most_ns)
        if group.least_ns:
            self.least_ns = min(self.least_ns or group.least_ns, group.least_ns)

    def percentile(self, percent: float) -> float | None:
        """Seconds, within 5 %: the middle of a bucket; None where there is no latency."""
        total = sum(self.latencies.values())
        if not total:
            return None
        left = math.ceil(total * percent / 100)
        for index in sorted(self.latencies):
            left -= self.latencies[index]
            if left <= 0:
                middle: float = 2 ** ((index + 0.5) / 2**LATENCY_SCALE)
                return min(max(middle, self.least_ns / _NS), self.most_ns / _NS)
        raise AssertionError


@dataclass(slots=True)
class Summary:
    """``posts`` by (queue pair, operation), ``completions`` by (queue pair, operation or status)."""

    seconds: float
    posts: dict[tuple[str, str], Sum] = field(default_factory=dict)
    refused: dict[tuple[str, str], Sum] = field(default_factory=dict)
    completions: dict[tuple[str, str], Sum] = field(default_factory=dict)
    errors: dict[tuple[str, str], Sum] = field(default_factory=dict)
    control: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    not_shown: int = 0

    @property
    def unmatched(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for one in self.completions.values():
            for why, count in one.unmatched.items():
                found[why] = found.get(why, 0) + count
        return found


def summarize(
    groups: Iterable[Group],
    device: Callable[[int], str | None],
    wanted: Callable[[int, int], bool],
    made: Summary,
    datagrams: Collection[tuple[int, int]] = (),
) -> Summary:
    """Put ``groups`` of the ``wanted`` queue pairs into ``made``; ``datagrams``: those of type UD."""
    for group in groups:
        if not wanted(group.context, group.qpn):
            continue
        shared = "srq" if group.kind == RECEIVE and group.status else ""
        where = f"{plain(device(group.context) or '?')}/{shared}{group.qpn}"
        if group.kind in (SENT, RECEIVE):
            made.posts.setdefault((where, wc.posted(group.operation)), Sum()).add(group)
        elif group.kind == REFUSED:
            made.refused.setdefault((where, "refused"), Sum()).add(group)
        elif group.kind == COMPLETED and group.status:
            made.errors.setdefault((where, wc.status(group.status)), Sum()).add(group)
        elif group.kind == COMPLETED:
            one = made.completions.setdefault((where, wc.completed(group.operation)), Sum())
            one.add(group, datagrams=(group.context, group.qpn) in datagrams)
    return made


def _total(of: dict[tuple[str, str], Sum]) -> int:
    return sum(one.count for one in of.values())


def text(made: Summary) -> list[str]:
    """Lines for people."""
    head = (
        f"in {duration(made.seconds)}: {_total(made.posts):,} posted, "
        f"{_total(made.completions):,} completed, {_total(made.errors):,} completed with an error"
    )
    if made.refused:
        head += f", {_total(made.refused):,} refused"
    lines = ["", head]
    if made.lost:
        lines.append(f"LOST {made.lost:,} records: all numbers here are less than there was")
    if made.not_shown:
        lines.append(f"{made.not_shown:,} lines were not shown (--rate); they are counted here")
    if made.posts:
        rows = [["QP", "POSTED", "COUNT", "BYTES"]]
        rows += [[*key, f"{one.count:,}", amount(one.bytes, "By")] for key, one in sorted(made.posts.items())]
        lines += ["", *columns(rows, (2, 3))]
    if made.completions or made.errors:
        rows = [["QP", "COMPLETED", "COUNT", *(f"P{percent}" for percent in PERCENTILES), "MAX", "RECEIVED"]]
        rows += [_completion(key, one) for key, one in sorted(made.completions.items())]
        rows += [
            [where, f"ERROR {status}", f"{one.count:,}", *[""] * 5]
            for (where, status), one in sorted(made.errors.items())
        ]
        lines += ["", *columns(rows, (2, 3, 4, 5, 6, 7))]
    if made.unmatched:
        parts = ", ".join(f"{count:,} {why}" for why, count in sorted(made.unmatched.items()))
        lines.append(f"completions without a latency: {parts}")
    if made.control:
        parts = ", ".join(f"{count:,} {event}" for event, count in sorted(made.control.items()))
        lines += ["", f"control path: {parts}"]
    return lines


def _completion(key: tuple[str, str], one: Sum) -> list[str]:
    latencies = [duration(one.percentile(percent)) for percent in PERCENTILES]
    most = duration(one.most_ns / _NS) if one.most_ns else UNKNOWN
    received = amount(one.bytes, "By") if key[1] == "recv" else ""
    if key[1] == "recv":
        latencies, most = [""] * len(PERCENTILES), ""
    return [*key, f"{one.count:,}", *latencies, most, received]


def as_json(made: Summary) -> dict[str, Any]:
    """The same for programs. Latencies in seconds."""
    return {
        "event": "summary",
        "seconds": round(made.seconds, 3),
        "posted": [
            {"qp": where, "operation": operation, "count": one.count, "bytes": one.bytes}
            for (where, operation), one in sorted(made.posts.items())
        ],
        "refused": _total(made.refused),
        "completed": [
            {
                "qp": where,
                "operation": operation,
                "count": one.count,
                **({"bytes": one.bytes} if operation == "recv" else {}),
                **{f"p{percent}": one.percentile(percent) for percent in PERCENTILES if one.latencies},
                **({"max": one.most_ns / _NS} if one.most_ns else {}),
                "unmatched": one.unmatched,
            }
            for (where, operation), one in sorted(made.completions.items())
        ],
        "errors": [
            {"qp": where, "status": status, "count": one.count}
            for (where, status), one in sorted(made.errors.items())
        ],
        "control": made.control,
        "lost": made.lost,
        "not_shown": made.not_shown,
    }
