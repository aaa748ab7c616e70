"""An audit as text of any width, as JSON, and as an exit code."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fabrictap.audit import limits
from fabrictap.audit.facts import Node
from fabrictap.audit.model import Finding, Present, Severity, Way, doubt
from fabrictap.audit.ways import all_ways
from fabrictap.view.text import moment, plain
from fabrictap.view.text import width as columns_of

#: Exit codes. EXPOSED: something as bad as asked, or worse. UNCLEAR: nothing known is, but something that
#: could not be looked at may be.
OK, EXPOSED, UNCLEAR = 0, 1, 3
_OBSERVER = "observation"
_MARK = 9


@dataclass(frozen=True)
class Audit:
    """``findings`` with the key of their way, the worst first; of the same severity, what is certain "
    "first."""

    host: str
    release: str
    time_ns: int
    uid: int
    agent: str
    why: str
    ways: tuple[Way, ...]
    findings: tuple[tuple[str, Finding], ...]


def audit(node: Node, time_ns: int, uid: int) -> Audit:
    ways = all_ways(node)
    found = [(_OBSERVER, one) for one in limits.check(node, ways)]
    found += [(way.key, one) for way in ways for one in way.findings]
    # What may be there is never passed over, whatever its subject says of it.
    found += [
        (way.key, doubt(Severity.LOW, f"{way.name}: {way.why}", "docs/security.md says what decides it"))
        for way in ways
        if way.present is Present.UNKNOWN and all(one.certain for one in way.findings)
    ]
    found.sort(key=lambda pair: (-pair[1].severity, not pair[1].certain))
    watch = node.watch
    return Audit(node.hostname, node.release, time_ns, uid, watch.state, watch.why, tuple(ways), tuple(found))


def exit_code(made: Audit, fail_on: Severity | None) -> int:
    if fail_on is None:
        return OK
    reached = [one for _, one in made.findings if one.severity >= fail_on]
    if any(one.certain for one in reached):
        return EXPOSED
    return UNCLEAR if reached else OK


def as_json(made: Audit) -> dict[str, Any]:
    return {
        "host": made.host,
        "kernel": made.release,
        "time": moment(made.time_ns, 3),
        "uid": made.uid,
        "agent": {"state": made.agent, "why": made.why},
        "ways": [
            {
                "key": way.key,
                "name": way.name,
                "present": way.present.value,
                "why": way.why,
                "observed": None if way.present is Present.NO else way.seen.how.value.replace(" ", "_"),
                "observed_by": way.seen.by or None,
            }
            for way in made.ways
        ],
        "findings": [
            {
                "way": key,
                "severity": one.severity.name.lower(),
                "certain": one.certain,
                "what": one.what,
                "evidence": list(one.evidence),
                "fix": one.fix,
            }
            for key, one in made.findings
        ],
        "counts": counts(made),
    }


def counts(made: Audit) -> dict[str, int]:
    known = [one for _, one in made.findings if one.certain]
    found = {level.name.lower(): sum(one.severity is level for one in known) for level in reversed(Severity)}
    found["unknown"] = len(made.findings) - len(known)
    found["ways_present"] = sum(way.present is Present.YES for way in made.ways)
    found["ways_unknown"] = sum(way.present is Present.UNKNOWN for way in made.ways)
    return found


def lines(made: Audit, room: int) -> Iterator[str]:
    """For people, in ``room`` columns."""
    title = f"fabrictap audit of {made.host}, {moment(made.time_ns)}, Linux {made.release}, uid {made.uid}"
    yield from _wrap(title, room, "", "  ")
    state = {"running": "runs", "absent": "does not run here", "unknown": "is not known to run"}[made.agent]
    yield from _wrap(f"The agent {state}: {made.why}", room, "", "  ")
    yield ""
    yield (
        "Exposed, worst first"
        if made.findings
        else "Exposed: nothing was found, and nothing had to be left out."
    )
    for key, one in made.findings:
        mark = one.severity.name if one.certain else f"? {one.severity.name.lower()}"
        yield from _wrap(one.what, room, f"  {mark:<{_MARK}}", " " * (_MARK + 2), f" [{key}]")
        for piece in one.evidence:
            yield from _wrap(piece, room, f"{'':{_MARK + 2}}- ", " " * (_MARK + 4))
        yield from _wrap(one.fix, room, f"{'':{_MARK + 2}}fix: ", " " * (_MARK + 7))
    if any(not one.certain for _, one in made.findings):
        yield ""
        yield "  ? could not be looked at; the severity is the worst that it could be."
    yield ""
    yield "Ways by which data passes the CPU, and what observes them"
    order = (Present.YES, Present.UNKNOWN, Present.NO)
    for way in sorted(made.ways, key=lambda way: order.index(way.present)):
        yield from _way(way, room)
    yield ""
    number = counts(made)
    levels = ", ".join(f"{number[name]} {name}" for name in ("high", "medium", "low"))
    yield (
        f"{levels}, {number['unknown']} unknown; {number['ways_present']} of {len(made.ways)} ways present"
        + (f", {number['ways_unknown']} may be" if number["ways_unknown"] else "")
    )


def _way(way: Way, room: int) -> Iterator[str]:
    yield from _wrap(f"{way.name}: {way.why}", room, f"  {way.present.value:<{_MARK}}", " " * (_MARK + 4))
    if way.present is not Present.NO and way.seen.by:
        yield from _wrap(
            f"{way.seen.how.value}: {way.seen.by}", room, f"{'':{_MARK + 4}}observed: ", " " * (_MARK + 6)
        )


def _wrap(text: str, room: int, first: str, rest: str, tail: str = "") -> Sequence[str]:
    """``text``, made harmless to a terminal, in lines of at most ``room`` columns."""
    text = plain(text) + tail
    if columns_of(first + text) <= room:
        return [first + text]
    # Wide characters count double; a name of nothing else is the only way to have many.
    wide = columns_of(text) > len(text)
    return textwrap.wrap(
        text,
        room // 2 if wide else room,
        initial_indent=first,
        subsequent_indent=rest,
        break_on_hyphens=False,
    )
