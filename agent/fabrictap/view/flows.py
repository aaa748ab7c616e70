"""``fabrictap flows``: every RDMA connection of the node, who has it, and what moves on it."""

from __future__ import annotations

import fnmatch
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fabrictap.view import simulated, text
from fabrictap.view.recording import Connection, Recording
from fabrictap.view.text import UNKNOWN, address, amount, duration, moment, plain

_SORTS: dict[str, Callable[[Connection], Any]] = {
    "rate": lambda one: -_sum(one.in_rate, one.out_rate),
    "bytes": lambda one: -_sum(one.in_bytes, one.out_bytes),
    "operations": lambda one: -sum(posted.operations for posted in one.posted.values()),
    "age": lambda one: one.created_ns,
    "pid": lambda one: one.pid or 0,
    "process": lambda one: (one.process, one.pid or 0),
    "device": lambda one: (one.device, one.qpn),
    "peer": lambda one: (one.peer_gid or "", one.peer_qpn or 0),
}
SORTS = tuple(_SORTS)
#: Letters beyond its least that leave a text readable.
_READABLE = 6
_CLEAR = "\x1b[H\x1b[J"


@dataclass(frozen=True)
class Filter:
    """Which connections are wanted. Texts are shell patterns; ``peer`` may be an address or address/qpn."""

    pid: int | None = None
    process: str | None = None
    device: str | None = None
    peer: str | None = None
    state: str | None = None
    type: str | None = None
    coverage: str | None = None
    ended: bool = False

    def wants(self, one: Connection) -> bool:
        return (
            (self.ended or not one.ended)
            and (self.pid is None or one.pid == self.pid)
            and _matches(self.process, one.process)
            and (_matches(self.device, one.device) or _matches(self.device, _port(one)))
            and (self.peer is None or any(_matches(self.peer, name) for name in _peer_names(one)))
            and _matches(self.state, _state(one))
            and _matches(self.type, one.type)
            and _matches(self.coverage, one.coverage)
        )


@dataclass(frozen=True)
class _Column:
    """``rank``: columns of lower ones are shown first when there is no room for all."""

    head: str
    cell: Callable[[Connection, int], str]
    rank: int
    right: bool = False
    #: The narrowest that a text may be cut to.
    least: int | None = None


_COLUMNS = (
    _Column("STATE", lambda one, _: _state(one), 0),
    _Column("TYPE", lambda one, _: one.type, 0),
    _Column("PORT", lambda one, _: plain(_port(one)), 0, least=8),
    _Column("PROCESS", lambda one, _: _process(one), 0, least=12),
    _Column("LOCAL", lambda one, _: f"{address(one.gid)}/{one.qpn}", 6),
    _Column("QPN", lambda one, _: str(one.qpn), 0, right=True),
    _Column("PEER", lambda one, _: _peer(one), 0, least=15),
    _Column("IN/s", lambda one, _: amount(one.in_rate, "By"), 0, right=True),
    _Column("OUT/s", lambda one, _: amount(one.out_rate, "By"), 0, right=True),
    _Column("IN", lambda one, _: amount(one.in_bytes, "By"), 2, right=True),
    _Column("OUT", lambda one, _: amount(one.out_bytes, "By"), 2, right=True),
    _Column("COVERAGE", lambda one, _: _coverage(one), 1),
    _Column("AGE", lambda one, now: duration(int((_end(one, now) - one.created_ns) / 1e9)), 3, right=True),
    _Column("ORIGIN", lambda one, _: one.origin, 7),
    _Column("MTU", lambda one, _: str(one.mtu or UNKNOWN), 8, right=True),
)
#: Fields that stand in JSON as they are.
_JSON = ("device", "port", "qpn", "type", "state", "ended", "pid", "process", "gid", "peer_gid", "peer_qpn")


def select(connections: Iterable[Connection], wanted: Filter, sort: str) -> list[Connection]:
    """The wanted connections, sorted by one of SORTS, those alike by device and number."""
    found = [one for one in connections if wanted.wants(one)]
    found.sort(key=lambda one: (one.device, one.qpn))
    found.sort(key=_SORTS[sort])
    return found


def lines(
    connections: Sequence[Connection],
    now_ns: int,
    room: int | None,
    *,
    header: bool = True,
    operations: bool = False,
) -> list[str]:
    """A table in ``room`` columns, all of it where that is None. Below each, ``operations`` by opcode."""
    shown = [column for column in _COLUMNS if column.head != "QPN"]
    rows = _rows(shown, connections, now_ns)
    if room is not None and _width(rows) > room:
        shown = [column for column in _COLUMNS if column.rank == 0]
        for column in sorted(_COLUMNS, key=lambda column: column.rank):
            if column.rank:
                more = [one for one in _COLUMNS if one in shown or one is column]
                if column.head == "LOCAL":
                    more = [one for one in more if one.head != "QPN"]
                # To know how far the figures can be believed is worth some letters of a name.
                if _width(_rows(more, connections, now_ns), more if column.rank == 1 else ()) <= room:
                    shown = more
        rows = _fit(shown, _rows(shown, connections, now_ns), room)
    right = [index for index, column in enumerate(shown) if column.right]
    table = text.columns(rows, right, 1 if room is not None and _width(rows) > room else 2)
    found = table[:1] if header else []
    for one, line in zip(connections, table[1:], strict=True):
        found.append(line)
        if operations:
            found += [f"    {line}" for line in _operations(one)]
    return found


def as_json(one: Connection) -> dict[str, Any]:
    """One connection for programs: bytes and bytes per second, times in RFC 3339; null is not known."""
    return {
        **{name: getattr(one, name) for name in _JSON},
        "mtu": one.mtu,
        "coverage": one.coverage,
        "coverage_fraction": one.fraction,
        "coverage_since": None if one.since_ns is None else moment(one.since_ns, 3),
        "origin": one.origin,
        "created": moment(one.created_ns, 3),
        "ended_at": None if one.ended_ns is None else moment(one.ended_ns, 3),
        "in_bytes": one.in_bytes,
        "out_bytes": one.out_bytes,
        "in_bytes_per_second": one.in_rate,
        "out_bytes_per_second": one.out_rate,
        "posted": {name: asdict(posted) for name, posted in one.posted.items()},
    }


def main(
    open_recording: Callable[[], Recording],
    wanted: Filter,
    *,
    sort: str,
    watch: float | None,
    header: bool,
    operations: bool,
    json_: bool,
) -> int:
    """Print once, or every ``watch`` seconds until interrupted."""
    while True:
        with open_recording() as recording:
            life, now_ns = recording.alive(), time.time_ns()
            connections, resource = recording.connections(), recording.about.resource
        # What a dead agent saw last did not move since then.
        seen_ns = now_ns if life.alive else life.last_tick_ns or life.created_ns
        shown = select(connections, wanted, sort)
        if json_:
            output = [
                json.dumps(
                    {
                        "time": moment(now_ns, 3),
                        "agent": life.state,
                        "simulated": simulated.is_simulated(resource),
                        **as_json(one),
                    }
                )
                for one in shown
            ]
        else:
            output = [
                *simulated.lines(resource),
                *lines(shown, seen_ns, text.room(), header=header, operations=operations),
            ]
            if not life.alive:
                print(
                    f"the agent {_gone(life.state)}; this is what it saw last, {moment(seen_ns)}",
                    file=sys.stderr,
                )
            elif life.state == "stalled":
                print(f"the agent has not ticked for {duration(life.age)}", file=sys.stderr)
        if watch is not None and not json_ and sys.stdout.isatty():
            print(_CLEAR, end="")
        print("\n".join(output), flush=True, end="\n" if output else "")
        if watch is None:
            return 0
        time.sleep(watch)


def _gone(state: str) -> str:
    return "has ended" if state == "ended" else "died"


def _rows(shown: Sequence[_Column], connections: Sequence[Connection], now_ns: int) -> list[list[str]]:
    return [
        [column.head for column in shown],
        *([column.cell(one, now_ns) for column in shown] for one in connections),
    ]


def _width(rows: Sequence[Sequence[str]], cut: Sequence[_Column] = ()) -> int:
    """Columns that the table takes; where the texts of ``cut`` may be cut, but not to the shortest."""
    widths = [max(map(text.width, column)) for column in zip(*rows, strict=True)]
    for index, column in enumerate(cut):
        if column.least is not None:
            widths[index] = min(widths[index], column.least + _READABLE)
    return sum(widths) + (1 if cut else 2) * (len(widths) - 1)


def _fit(shown: Sequence[_Column], rows: list[list[str]], room: int) -> list[list[str]]:
    """Cut the widest text columns until the table fits, with one blank between columns if need be."""
    widths = [max(map(text.width, column)) for column in zip(*rows, strict=True)]
    while sum(widths) + len(widths) - 1 > room:
        loose = [i for i, column in enumerate(shown) if column.least is not None and widths[i] > column.least]
        if not loose:
            break
        widths[max(loose, key=lambda index: widths[index] - (shown[index].least or 0))] -= 1
    return [
        [
            _clip(cell, wide, column) if column.least is not None else cell
            for cell, wide, column in zip(row, widths, shown, strict=True)
        ]
        for row in rows
    ]


def _clip(cell: str, wide: int, column: _Column) -> str:
    """Of a peer, the number is never what is cut."""
    if column.head != "PEER":
        return text.clip(cell, wide)
    head, slash, number = cell.rpartition("/")
    return text.clip(head, wide - len(slash + number)) + slash + number


def _operations(one: Connection) -> list[str]:
    if one.in_bytes is None:
        return ["operations are not seen"]
    rows = [
        [name, amount(posted.operations, "1"), amount(posted.bytes, "By")]
        for name, posted in sorted(one.posted.items(), key=lambda item: -item[1].operations)
    ]
    return text.columns(rows, (1, 2)) if rows else ["nothing posted"]


def _matches(pattern: str | None, value: str) -> bool:
    return pattern is None or fnmatch.fnmatchcase(value, pattern)


def _port(one: Connection) -> str:
    return f"{one.device}/{one.port}" if one.port else one.device


def _state(one: Connection) -> str:
    return "ended" if one.ended else one.state


def _process(one: Connection) -> str:
    name = plain(one.process) or UNKNOWN
    return name if one.pid is None else f"{one.pid}/{name}"


def _peer(one: Connection) -> str:
    if one.peer_gid is None and one.peer_qpn is None:
        return UNKNOWN
    return f"{address(one.peer_gid)}/{UNKNOWN if one.peer_qpn is None else one.peer_qpn}"


def _peer_names(one: Connection) -> tuple[str, ...]:
    return address(one.peer_gid), one.peer_gid or "", _peer(one)


def _coverage(one: Connection) -> str:
    if one.coverage == "since" and one.since_ns is not None:
        return f"since {moment(one.since_ns)[11:19]}"
    if one.fraction is not None:
        return f"estimated {text.share(one.fraction)}"
    return one.coverage


def _end(one: Connection, now_ns: int) -> int:
    return max(one.created_ns, min(one.ended_ns or now_ns, now_ns))


def _sum(one: float | None, other: float | None) -> float:
    """Not known comes after nothing."""
    return -1.0 if one is None and other is None else (one or 0) + (other or 0)
