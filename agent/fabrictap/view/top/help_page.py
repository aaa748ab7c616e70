"""What the keys do and what the signs mean."""

from __future__ import annotations

from fabrictap.view.top.table import Line, Manner

_KEYS = (
    ("1 ... 7  Tab", "overview, GPUs, NVLinks, ports, flows, findings, node"),
    ("s S  < >  left right", "sort by the next column or the one before"),
    ("r", "turn the order round (in the overview both are about flows)"),
    ("/", "only rows that have this text; Esc ends it"),
    ("up down  k j  PgUp PgDn", "scroll; Home and End"),
    ("u", "bits or bytes a second"),
    ("p  blank", "hold the picture; the recording goes on"),
    ("+ -", "look twice as often, half as often"),
    ("? h F1", "this page"),
    ("q  Ctrl-C", "end"),
)
_SIGNS = (
    ("/s", "over the last tick; PEAK: the largest of the last minute"),
    ("-", "not known, which is not zero"),
    ("LINKS", "each NVLink: how much of its speed is in use; x down, ? unknown"),
    ("DARK", "moved by the port, and no post seen on this node asked for it"),
    ("COVERAGE", "posts seen: exact, since when, estimated (in part), control_only (none)"),
)


def lines(manner: Manner) -> list[Line]:
    made: list[Line] = [[("Keys", "title")]]
    made += [[(f"  {key:<25}", "title"), (what, "")] for key, what in _KEYS]
    made += [[("Signs", "title")]]
    made += [[(f"  {sign:<10}", "title"), (what, "")] for sign, what in _SIGNS]
    made.append(
        [
            (
                "Lines of signs go from the past, left, to now; rates are in "
                + ("bits" if manner.bits else "bytes"),
                "",
            )
        ]
    )
    return made
