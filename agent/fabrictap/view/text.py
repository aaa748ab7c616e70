"""Text for people: amounts with their units, times, columns; what could harm a terminal is escaped."""

from __future__ import annotations

import math
import os
import sys
import unicodedata
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import lru_cache

#: What stands for a value that is not known.
UNKNOWN = "-"
_BINARY = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_DECIMAL = ("", "k", "M", "G", "T", "P", "E")


def plain(text: str) -> str:
    """``text`` with everything that is not a visible character escaped: a process chooses its own name."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(one if one.isprintable() else _escape(one) for one in text)


def _escape(one: str) -> str:
    code = ord(one)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def width(text: str) -> int:
    """Columns that ``text`` takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1
        for one in text
    )


def clip(text: str, most: int) -> str:
    """``text`` in at most ``most`` columns, the end cut off."""
    if width(text) <= most:
        return text
    while text and width(text) > most - 1:
        text = text[:-1]
    return f"{text}…"


@lru_cache(maxsize=1 << 16)
def amount(value: float | None, unit: str) -> str:
    """``value`` in a UCUM unit: bytes in powers of 1024, others of 1000; counts without their noun."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    base, noun, tail = _parts(unit)
    if base == "By":
        number, prefix = _scaled(value, 1024, _BINARY)
        return f"{number} {prefix}B{tail}"
    if base == "s" and not tail:
        return duration(value)
    number, prefix = _scaled(value, 1000, _DECIMAL)
    return f"{number} {prefix}{noun}{tail}".replace(f" {tail}", tail) if prefix or noun or tail else number


@lru_cache(maxsize=256)
def _parts(unit: str) -> tuple[str, str, str]:
    """(unit, what of it stands behind a number, "/s" where it is one for each second)."""
    base, slash, per = unit.partition("/")
    return base, "" if base.startswith("{") or base == "1" else base, f"/{per}" if slash else ""


def _scaled(value: float, step: int, prefixes: Sequence[str]) -> tuple[str, str]:
    size, index, magnitude, last = float(value), 0, abs(value), len(prefixes) - 1
    while magnitude >= step - 0.5 and index < last:
        size /= step
        magnitude = abs(size)
        index += 1
    if magnitude >= 100 or (index == 0 and size == int(size)):
        return f"{size:.0f}", prefixes[index]
    if index == 0 and magnitude < 0.01:
        return f"{size:.2g}", ""
    return f"{size:.1f}" if magnitude >= 10 else f"{size:.2f}", prefixes[index]


def duration(seconds: float | None) -> str:
    """As in 250us, 1.5s, 2m03s, 4h10m, 3d04h."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 60:
        for scale, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "us")):
            if seconds >= scale:
                return f"{seconds / scale:.3g}{unit}"
        return "0s" if seconds == 0 else f"{seconds / 1e-9:.3g}ns"
    whole = int(seconds)
    for scale, unit, below, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= scale:
            return f"{whole // scale}{unit}{whole % scale // below:02}{name}"
    raise AssertionError


def moment(time_ns: int | None, digits: int = 0) -> str:
    """Nanoseconds since the epoch as RFC 3339 in UTC, with ``digits`` (0 or 3) of a second."""
    if time_ns is None:
        return UNKNOWN
    try:
        when = datetime.fromtimestamp(time_ns / 1e9, tz=timezone.utc)
    except (OverflowError, ValueError, OSError):
        return UNKNOWN
    return when.isoformat(timespec="milliseconds" if digits else "seconds").replace("+00:00", "Z")


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = (), gap: int = 2) -> list[str]:
    """Lines with aligned columns; those numbered in ``right`` stand at their right."""
    padded = []
    for index, column in enumerate(zip(*rows, strict=True)):
        widths = list(map(len if all(map(str.isascii, column)) else width, column))
        wide = max(widths)
        fills = [" " * (wide - own) for own in widths]
        pairs = zip(fills, column, strict=True) if index in right else zip(column, fills, strict=True)
        padded.append(map("".join, pairs))
    between = " " * gap
    return [between.join(cells).rstrip() for cells in zip(*padded, strict=True)]


def room(least: int = 80) -> int | None:
    """Columns of the terminal; None where the output goes elsewhere and COLUMNS does not say."""
    given = os.environ.get("COLUMNS", "")
    if given.isascii() and given.isdigit() and int(given) > 0:
        return max(least, int(given))
    try:
        return max(least, os.get_terminal_size(sys.stdout.fileno()).columns)
    except (OSError, ValueError):
        return None


def address(gid: str | None) -> str:
    """A GID, as an IPv4 address where it is one."""
    if gid is None:
        return UNKNOWN
    mapped = gid.removeprefix("::ffff:")
    return mapped if "." in mapped else gid


def share(value: float) -> str:
    """A share as a percentage that is neither nothing nor all where it is not: ``0.02 %``, ``<0.01 %``."""
    percent = 100 * value
    if 0 < percent < 0.01:
        return "<0.01 %"
    if 99.9 < percent < 100:
        return ">99.9 %"
    return f"{percent:.3g} %"
