"""Tables that fit: columns by rank, texts that give way, sparklines that take what is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fabrictap.view import text
from fabrictap.view.top import spark
from fabrictap.view.top.look import Rates

T = TypeVar("T")
#: The style of a row's cell, where it has one.
Style = Callable[[T], str] | None
#: (text, style) side by side. Styles are those of screen.STYLES.
Line = list[tuple[str, str]]
#: Sparklines: the narrowest, one that is good to look at, the widest.
_SPARK, _SPARK_GOOD, _SPARK_MOST = 8, 24, 60
#: Texts have no more than this before sparklines are good.
_TEXT = 26
#: Columns of this rank and beyond are shown where sparklines are good besides.
_LUXURY = 6


@dataclass(frozen=True, slots=True)
class Manner:
    """How things are written. ``now_ns``: the moment that ages count from."""

    bits: bool = False
    ascii_only: bool = False
    now_ns: int = 0

    def rate(self, value: float | None) -> str:
        """Bytes per second; the head of the column says /s."""
        if value is None or not self.bits:
            return text.amount(value, "By")
        return text.amount(value * 8, "bit/s").removesuffix("/s")

    def safe(self, name: str) -> str:
        return text.steady(name, ascii_only=self.ascii_only)


@dataclass(frozen=True, slots=True)
class Column(Generic[T]):
    """``rank``: those of lower ones come first. ``key``: what it is sorted by, the largest first if ``down``.

    ``least``: the narrowest that a text may be cut to, its beginning kept or its ``end``. ``past``: a
    sparkline in place of ``cell``, of these ticks and this full height.
    """

    head: str
    cell: Callable[[T, Manner], str] = lambda _, __: ""
    key: Callable[[T], Any] | None = None
    rank: int = 0
    right: bool = False
    down: bool = False
    least: int | None = None
    end: bool = False
    past: Callable[[T], tuple[Rates, float | None]] | None = None
    style: Style[T] = None


@dataclass(frozen=True, slots=True)
class Order:
    """``head`` of the column that rows are sorted by, None as they come."""

    head: str | None = None
    reverse: bool = False


def arrange(
    columns: Sequence[Column[T]], rows: Sequence[T], order: Order, wanted: str, manner: Manner
) -> list[T]:
    """The rows one of whose cells has the text ``wanted``, in that order; not known comes last."""
    found = list(rows)
    if wanted:
        needle = wanted.casefold()
        found = [
            row for row in found if any(needle in column.cell(row, manner).casefold() for column in columns)
        ]
    by = next((column for column in columns if column.head == order.head and column.key), None)
    if by is not None and by.key is not None:
        key = by.key
        known = [(key(row), row) for row in found]
        ranked = [pair for pair in known if pair[0] is not None]
        ranked.sort(key=lambda pair: pair[0], reverse=by.down != order.reverse)
        found = [row for _, row in ranked] + [row for value, row in known if value is None]
    return found


def lines(
    columns: Sequence[Column[T]], rows: Sequence[T], width: int, manner: Manner, order: Order | None = None
) -> list[Line]:
    """The line of heads and one for each row, none wider than ``width``."""
    shown, cells, widths, gap = _fit(columns, rows, width, manner, order)
    made: list[Line] = []
    for index, row in enumerate(cells):
        line: Line = []
        for place, (column, cell, wide) in enumerate(zip(shown, row, widths, strict=True)):
            style = "title"
            said = cell
            if index:
                style = column.style(rows[index - 1]) if column.style else ""
                if column.past is not None:
                    style = style or "past"
                    said = _spark(column, rows[index - 1], wide, manner)
            cut = clip(said, wide, manner, end=column.end and index > 0)
            fill = " " * (wide - text.width(cut))
            between = " " * gap if place else ""
            line += [
                (between, "title" if not index else ""),
                (fill + cut if column.right else cut + fill, style),
            ]
        made.append(line)
    return made


def clip(cell: str, most: int, manner: Manner, *, end: bool = False) -> str:
    """In ``most`` columns: the beginning is kept, or the ``end``, and a mark says what is missing."""
    if text.width(cell) <= most:
        return cell
    mark = "~" if manner.ascii_only else "…"
    if most <= 1:
        return mark[:most]
    kept = cell
    while text.width(kept) > most - 1:
        kept = kept[1:] if end else kept[:-1]
    return mark + kept if end else kept + mark


def _fit(
    columns: Sequence[Column[T]], rows: Sequence[T], width: int, manner: Manner, order: Order | None
) -> tuple[list[Column[T]], list[list[str]], list[int], int]:
    """(columns that have room, their cells with the heads first, their widths, blanks between)."""
    cells = {
        column.head: [_head(column, order, manner), *(column.cell(row, manner) for row in rows)]
        for column in columns
    }
    natural = {
        column.head: max(_SPARK if column.past else 0, *map(text.width, cells[column.head]))
        for column in columns
    }
    # What no row has takes no room.
    useful = [
        column
        for column in columns
        if not column.rank
        or column.past
        or any(cell not in ("", text.UNKNOWN) for cell in cells[column.head][1:])
    ]

    def room(chosen: Sequence[Column[T]], rank: int) -> int:
        """What these columns take at least, for one of ``rank`` to be worth it."""
        spark_width = _SPARK_GOOD if rank >= _LUXURY else _SPARK
        short = (
            spark_width
            if one.past
            else min(natural[one.head], max(one.least, text.width(cells[one.head][0])) + 4)
            if one.least
            else natural[one.head]
            for one in chosen
        )
        return sum(short) + len(chosen) - 1

    shown = [column for column in useful if not column.rank]
    for column in sorted(useful, key=lambda one: one.rank):
        if column.rank:
            more = [one for one in useful if one in shown or one is column]
            if room(more, column.rank) > width:
                break
            shown = more
    widths = [min(natural[column.head], _TEXT) if column.least else natural[column.head] for column in shown]
    gap = 2 if sum(widths) + 2 * (len(shown) - 1) <= width else 1
    free = width - gap * (len(shown) - 1)
    while sum(widths) > free:
        loose = [
            place for place, one in enumerate(shown) if one.least is not None and widths[place] > one.least
        ]
        if not loose:
            break
        widths[max(loose, key=lambda place: widths[place] - (shown[place].least or 0))] -= 1
    for most in (_SPARK_GOOD, None, _SPARK_MOST):
        limits = [natural[one.head] if most is None else most if one.past else 0 for one in shown]
        _grow(widths, free, limits)
    return shown, [list(row) for row in zip(*(cells[one.head] for one in shown), strict=True)], widths, gap


def _grow(widths: list[int], free: int, most: Sequence[int]) -> None:
    """Let columns have what is free, the narrowest first, up to ``most`` each."""
    while sum(widths) < free:
        growing = [place for place, wide in enumerate(widths) if wide < most[place]]
        if not growing:
            break
        widths[min(growing, key=lambda place: widths[place])] += 1


def _head(column: Column[T], order: Order | None, manner: Manner) -> str:
    if order is None or column.head != order.head:
        return column.head
    marks = "^v" if manner.ascii_only else "▲▼"
    return column.head + marks[column.down != order.reverse]


def _spark(column: Column[T], row: T, width: int, manner: Manner) -> str:
    if column.past is None:
        return ""
    past, most = column.past(row)
    return spark.line(past, width, most, ascii_only=manner.ascii_only)
