"""Looks as lines of a given size: the overview, and a page for each table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fabrictap.view import snapshot, text
from fabrictap.view.text import duration, moment
from fabrictap.view.top import cells, help_page, spark, state
from fabrictap.view.top.look import Look, Way, total
from fabrictap.view.top.state import State
from fabrictap.view.top.table import Line, Manner, Order, arrange, clip, lines

#: The smallest terminal that has room for something.
LEAST_WIDTH, LEAST_HEIGHT = 72, 12
#: Overview: (page with all of it, rows that it has at least where it has so many).
_SECTIONS: tuple[tuple[str, int], ...] = (
    (state.GPUS, 2),
    (state.PORTS, 2),
    (state.FLOWS, 3),
    (state.FINDINGS, 2),
)
_EMPTY = {
    state.GPUS: "no GPU seen",
    state.LINKS: "no NVLink seen",
    state.PORTS: "no RDMA port seen",
    state.FLOWS: "no RDMA connection seen",
    state.FINDINGS: "nothing found: that is, nothing that a detector knows",
}


def frame(
    look: Look, chosen: State, width: int, height: int, manner: Manner, *, news: str = ""
) -> list[Line]:
    """The whole screen: exactly ``height`` lines."""
    if width < LEAST_WIDTH or height < LEAST_HEIGHT:
        return _too_small(width, height)
    head = _head(look, width, manner)
    room = height - len(head) - 1
    chosen.height = max(1, room - 1)
    if chosen.help:
        body = help_page.lines(manner)
    elif chosen.page == state.OVERVIEW:
        body = _overview(look, chosen, width, room, manner)
    else:
        body = _page(look, chosen, width, manner)
    fixed = 1 if chosen.page in state.TABLES and chosen.page != state.OVERVIEW and not chosen.help else 0
    if chosen.page == state.OVERVIEW:
        chosen.offset = 0
    chosen.offset = min(chosen.offset, max(0, len(body) - room))
    shown = body[:fixed] + body[fixed + chosen.offset :][: room - fixed]
    shown = [_cut(line, width, manner) for line in shown]
    shown += [[] for _ in range(room - len(shown))]
    return [*head, *shown, _foot(look, chosen, width, manner, news=news, hidden=len(body) - room)]


def plain(look: Look, chosen: State, width: int, manner: Manner) -> list[str]:
    """All of it, without a limit to the lines: for --once."""
    shown = _head(look, width, manner)
    if chosen.page == state.OVERVIEW:
        for name, _ in _SECTIONS:
            shown += [[], *_table(look, name, chosen, width, manner)]
    else:
        shown += [[], *_page(look, chosen, width, manner)]
    return ["".join(part for part, _ in _cut(line, width, manner)).rstrip() for line in shown]


def rows_of(look: Look, page: str) -> Sequence[Any]:
    """What the table of ``page`` lists."""
    found: dict[str, Sequence[Any]] = {
        state.GPUS: look.gpus,
        state.LINKS: look.links,
        state.PORTS: look.ports,
        state.FLOWS: look.flows,
        state.FINDINGS: look.findings,
    }
    return found[page]


def _head(look: Look, width: int, manner: Manner) -> list[Line]:
    age = "no tick yet" if look.life.age is None else f"tick {duration(round(look.life.age, 1))} ago"
    left = f" fabrictap top  {manner.safe(look.node) or text.UNKNOWN}  {look.life.state}, {age}"
    clock = f"{moment(look.time_ns)[11:]} "
    left = clip(left, width - len(clock) - 1, manner)
    title = [(_padded(left, width - len(clock)) + clock, "bar")]
    made: list[Line] = [title]
    if look.life.state != "running":
        seen = moment(look.life.last_tick_ns or look.life.created_ns)
        made.append([(f"STALE: {_gone(look)}; seen last {seen}", "bad")])
    if look.simulated:
        made.append([("SIMULATED NODE: all of this is made up, nothing was measured", "warn")])
    if look.unreadable:
        made.append([(f"{look.unreadable} records could not be read", "warn")])
    return [*made, *_sums(look, width, manner)]


def _gone(look: Look) -> str:
    return {
        "stalled": f"the agent has not ticked for {duration(look.life.age)}",
        "ended": "the agent has ended",
        "died": "no agent writes this file: it died, or this is a copy",
    }[look.life.state]


def _sums(look: Look, width: int, manner: Manner) -> list[Line]:
    """What the node moves in all, one line for GPUs and one for ports."""
    made: list[Line] = []
    whole = [gpu for gpu in look.gpus if not gpu.label.endswith("m")]
    if whole:
        made.append(
            _sum_line(
                (
                    ("NVLink in", total([gpu.nvlink_receive for gpu in whole]), ""),
                    ("out", total([gpu.nvlink_transmit for gpu in whole]), ""),
                    ("PCIe in", total([gpu.pcie_receive for gpu in whole]), ""),
                    ("out", total([gpu.pcie_transmit for gpu in whole]), ""),
                ),
                width,
                manner,
            )
        )
    if look.ports:
        dark_out = total([port.dark_transmit for port in look.ports])
        made.append(
            _sum_line(
                (
                    ("RDMA   in", total([port.receive for port in look.ports]), ""),
                    ("out", total([port.transmit for port in look.ports]), ""),
                    ("dark in", total([port.dark_receive for port in look.ports]), "dark"),
                    ("out", dark_out, "bad" if dark_out.rate else "dark"),
                ),
                width,
                manner,
            )
        )
    return made


def _sum_line(parts: Sequence[tuple[str, Way, str]], width: int, manner: Manner) -> Line:
    """A name, a rate and, where there is room, a sparkline for each; names are alike in all lines."""
    room = (width - sum(len(name) + 14 for name, _, _ in parts)) // len(parts)
    line: Line = []
    for name, way, style in parts:
        rate = manner.rate(way.rate) + ("/s" if way.rate is not None else "")
        picture = spark.line(way.past, room, None, ascii_only=manner.ascii_only) if room >= 4 else ""
        line += [(f"{name} {rate:>10} ", style), (picture, style or "past"), (" " if picture else "", "")]
    return line


def _table(
    look: Look, page: str, chosen: State, width: int, manner: Manner, *, most: int | None = None
) -> list[Line]:
    """At most ``most`` lines, heads and a word about what is left out included."""
    # The overview's own order and filter are those of its flows.
    mine = chosen.page == page or (chosen.page == state.OVERVIEW and page == state.FLOWS)
    order = chosen.order() if mine else Order()
    table = state.TABLES[page]
    rows = arrange(table, rows_of(look, page), order, chosen.filter if mine else "", manner)
    if not rows:
        said = "nothing matches" if mine and chosen.filter else _EMPTY[page]
        return [[(f"{page.upper()}: {said}", "dim")]]
    more = 0
    if most is not None and len(rows) > most - 1:
        kept = max(1, most - 2)
        more, rows = len(rows) - kept, rows[:kept]
    made = lines(table, rows, width, manner, order)
    if more:
        made.append([(f"  and {more} more: key {state.PAGES.index(page) + 1}", "dim")])
    return made


def _overview(look: Look, chosen: State, width: int, room: int, manner: Manner) -> list[Line]:
    """Every section has its least; what is left goes round among those that have more."""
    wanted = [max(1, len(rows_of(look, name)) + 1) for name, _ in _SECTIONS]
    given = [min(want, least + 1) for want, (_, least) in zip(wanted, _SECTIONS, strict=True)]
    while sum(given) < room and any(have < want for have, want in zip(given, wanted, strict=True)):
        for place, want in enumerate(wanted):
            if given[place] < want and sum(given) < room:
                given[place] += 1
    made: list[Line] = []
    # Where there is room, a blank line parts the sections.
    part = sum(given) + len(_SECTIONS) - 1 <= room
    for (name, _), most in zip(_SECTIONS, given, strict=True):
        if made and part:
            made.append([])
        made += _table(look, name, chosen, width, manner, most=most)
    return made[:room]


def _page(look: Look, chosen: State, width: int, manner: Manner) -> list[Line]:
    if chosen.page in state.TABLES:
        return _table(look, chosen.page, chosen, width, manner)
    agent = look.picture["agent"]
    ticks = f"{look.picture['rows']} ticks of {duration(look.picture['tick'])}"
    made: list[Line] = [
        [("AGENT", "title")],
        [(f"  fabrictap {manner.safe(look.version)}, pid {look.life.pid}, since {agent['since']}", "")],
        [(f"  {manner.safe(agent['file'])}: {ticks}", "")],
    ]
    for title, said in (
        ("MEMORY REGISTERED", snapshot.memory_lines(look.picture["memory"])),
        ("LOSSES", snapshot.loss_lines(look.picture["losses"])),
        ("SOURCES", _source_lines(look.picture["sources"])),
        (
            "RESOURCE",
            text.columns(
                [[str(name), str(value)] for name, value in sorted(look.resource.items())] or [["none"]]
            ),
        ),
    ):
        made += [[], [(title, "title")], *([(f"  {manner.safe(line)}", "")] for line in said)]
    return made


def _source_lines(sources: Sequence[dict[str, Any]]) -> list[str]:
    return text.columns([[source["source"], cells.up(source["up"])] for source in sources] or [["none seen"]])


def _foot(look: Look, chosen: State, width: int, manner: Manner, *, news: str, hidden: int) -> Line:
    if chosen.typing:
        said = f" filter: {manner.safe(chosen.filter)}_   Enter keeps it, Esc ends it"
        return [(_padded(clip(said, width, manner), width), "bar")]
    parts = [
        news and manner.safe(news),
        "PAUSED" if chosen.paused else "",
        f"filter {manner.safe(chosen.filter)!r}" if chosen.filter else "",
        f"{chosen.page} {state.PAGES.index(chosen.page) + 1}/{len(state.PAGES)}",
        f"lines {chosen.offset + 1}-" if hidden > 0 and chosen.page != state.OVERVIEW else "",
        f"{len(look.gpus)} GPUs, {len(look.ports)} ports, {len(look.flows)} flows",
        f"every {duration(chosen.interval)}",
    ]
    keys = "  ? help  q quit "
    room = width - len(keys)
    said = clip(" " + "  ".join(part for part in parts if part), room, manner)
    return [(_padded(said, room) + keys, "bar")]


def _padded(said: str, width: int) -> str:
    return said + " " * (width - text.width(said))


def _too_small(width: int, height: int) -> list[Line]:
    said = f"{width}x{height} is too small: {LEAST_WIDTH}x{LEAST_HEIGHT} at least"
    words: list[Line] = [[(said[at : at + width], "")] for at in range(0, len(said), max(1, width))]
    return (words + [[] for _ in range(height)])[:height]


def _cut(line: Line, width: int, manner: Manner) -> Line:
    """The line in ``width`` columns."""
    made: Line = []
    for part, style in line:
        wide = text.width(part)
        if wide > width:
            made.append((clip(part, width, manner), style))
            break
        made.append((part, style))
        width -= wide
    return made
