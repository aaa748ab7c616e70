"""Small pictures made of characters: a line of ticks, a level."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

_BLOCKS = "▁▂▃▄▅▆▇█"
#: The same for terminals without Unicode.
_ASCII = "_.-=+*#@"


def level(share: float | None, *, ascii_only: bool) -> str:
    """One character for a share of 1; a blank where it is not known."""
    if share is None:
        return " "
    levels = _ASCII if ascii_only else _BLOCKS
    return levels[max(0, min(len(levels) - 1, int(share * len(levels))))]


def line(past: Sequence[float | None], width: int, most: float | None, *, ascii_only: bool) -> str:
    """The newest ``width`` ticks, at the right; ``most`` is full height, the largest of them where None."""
    newest = list(islice(reversed(past), width))[::-1]
    top = most or max((value for value in newest if value is not None), default=0.0) or 1.0
    shown = "".join(level(None if value is None else value / top, ascii_only=ascii_only) for value in newest)
    return shown.rjust(width)
