"""The columns of each table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fabrictap.view import flows, snapshot_gpus, text
from fabrictap.view.text import UNKNOWN, amount
from fabrictap.view.top.cells import (
    ERROR,
    age,
    bad,
    both,
    counts,
    dark,
    ended_style,
    heat,
    links_down,
    news,
    peak,
    port_state,
    severity,
    share,
    state_style,
    up,
)
from fabrictap.view.top.findings import Found
from fabrictap.view.top.look import Flow, Gpu, Link, Port, Rates
from fabrictap.view.top.table import Column, Manner, Style

T = TypeVar("T")
Number = float | None


def _rate(head: str, rate: Callable[[T], Number], rank: int = 0, style: Style[T] = None) -> Column[T]:
    return Column(head, lambda one, how: how.rate(rate(one)), rate, rank, right=True, down=True, style=style)


def _share(head: str, part: Callable[[T], Number], rank: int = 0) -> Column[T]:
    return Column(head, lambda one, _: share(part(one)), part, rank, right=True, down=True)


def _amount(
    head: str, value: Callable[[T], Number], unit: str, rank: int, style: Style[T] = None
) -> Column[T]:
    return Column(
        head, lambda one, _: amount(value(one), unit), value, rank, right=True, down=True, style=style
    )


def _name(
    head: str,
    name: Callable[[T], str],
    rank: int = 0,
    least: int | None = None,
    *,
    key: Callable[[T], Any] | None = None,
    end: bool = False,
    style: Style[T] = None,
) -> Column[T]:
    """A text that somebody else has chosen; empty where it is not known."""

    def cell(one: T, how: Manner) -> str:
        return how.safe(name(one)) or UNKNOWN

    return Column(head, cell, key or name, rank, least=least, end=end, style=style)


def _ticks(
    head: str, past: Callable[[T], tuple[Rates, Number]], rank: int, style: Style[T] = None
) -> Column[T]:
    return Column(head, rank=rank, past=past, style=style)


GPUS: tuple[Column[Gpu], ...] = (
    Column("GPU", lambda one, _: one.label, lambda one: (len(one.label), one.label)),
    _name("STATE", lambda one: one.state, 1, style=lambda one: state_style(one.state)),
    _share("BUSY", lambda one: one.busy),
    _share("MEM", lambda one: one.used),
    _share("DRAM", lambda one: one.dram, 4),
    Column(
        "LINKS",
        lambda one, how: heat(one.links, how),
        lambda one: links_down(one.links),
        3,
        down=True,
        style=lambda one: "bad" if links_down(one.links) else "past",
    ),
    _rate("NVLINK IN/s", lambda one: one.nvlink_receive.rate),
    _rate("NVL OUT/s", lambda one: one.nvlink_transmit.rate),
    _ticks("NVLINK", lambda one: both(one.nvlink_receive, one.nvlink_transmit), 2),
    _rate("PCIE IN/s", lambda one: one.pcie_receive.rate),
    _rate("PCI OUT/s", lambda one: one.pcie_transmit.rate),
    _ticks("PCIE", lambda one: both(one.pcie_receive, one.pcie_transmit), 5),
    _rate("NVL PEAK/s", lambda one: peak(one.nvlink_receive, one.nvlink_transmit), 8),
    _rate("PCI PEAK/s", lambda one: peak(one.pcie_receive, one.pcie_transmit), 8),
    _amount("POWER", lambda one: one.power, "W", 6),
    _amount("TEMP", lambda one: one.temperature, "C", 6),
    _name(
        "ERRORS",
        lambda one: snapshot_gpus.errors_of(one.errors),
        1,
        6,
        key=lambda one: -news(one.errors),
        style=lambda one: "warn" if news(one.errors) else "",
    ),
    _name("MODEL", lambda one: one.model, 9, 11),
    _name("ID", lambda one: one.id, 10, 12),
)

LINKS: tuple[Column[Link], ...] = (
    Column("GPU", lambda one, _: one.gpu, lambda one: (len(one.gpu), one.gpu, one.number)),
    Column("LINK", lambda one, _: str(one.number), lambda one: one.number, right=True),
    _name("STATE", lambda one: up(one.up), style=lambda one: bad(one.up is False)),
    _rate("SPEED/s", lambda one: one.limit, 4),
    _rate("IN/s", lambda one: one.receive.rate),
    _ticks("IN", lambda one: (one.receive.past, one.limit), 1),
    _rate("OUT/s", lambda one: one.transmit.rate),
    _ticks("OUT", lambda one: (one.transmit.past, one.limit), 1),
    _rate("IN PEAK/s", lambda one: one.receive.peak, 5),
    _rate("OUT PEAK/s", lambda one: one.transmit.peak, 5),
    _amount("ERRORS", lambda one: one.errors, "1", 2, lambda one: "warn" if one.errors else ""),
    _name("TO", lambda one: one.remote, 3, 12),
)

PORTS: tuple[Column[Port], ...] = (
    _name("PORT", lambda one: one.name, least=8),
    _name("STATE", port_state, 1, style=lambda one: bad(one.up is False)),
    _name("IFACE", lambda one: one.interface, 6, 5),
    _rate("SPEED/s", lambda one: one.limit, 5),
    _rate("IN/s", lambda one: one.receive.rate),
    _ticks("IN", lambda one: (one.receive.past, one.limit), 2),
    _rate("OUT/s", lambda one: one.transmit.rate),
    _ticks("OUT", lambda one: (one.transmit.past, one.limit), 2),
    _rate("IN PEAK/s", lambda one: one.receive.peak, 7),
    _rate("OUT PEAK/s", lambda one: one.transmit.peak, 7),
    _rate("DARK IN/s", lambda one: one.dark_receive.rate, 0, lambda one: dark(one.dark_receive)),
    _rate("DARK OUT/s", lambda one: one.dark_transmit.rate, 0, lambda one: bad(one.dark_transmit.rate)),
    _ticks("DARK", lambda one: both(one.dark_receive, one.dark_transmit), 4, lambda _: "dark"),
    _name(
        "ERRORS",
        lambda one: counts(one.errors),
        3,
        6,
        key=lambda one: -sum(one.errors.values()),
        style=lambda one: "warn" if one.errors else "",
    ),
)

FLOWS: tuple[Column[Flow], ...] = (
    _name("PORT", lambda one: flows.port(one.connection), 0, 8),
    _name(
        "PROCESS",
        lambda one: flows.process(one.connection),
        0,
        11,
        key=lambda one: (one.connection.process, one.connection.pid or 0),
    ),
    _name("WORKLOAD", lambda one: one.workload, 1, 9, key=lambda one: one.workload or None, end=True),
    _name(
        "PEER",
        lambda one: flows.peer(one.connection),
        0,
        13,
        key=lambda one: (one.connection.peer_gid or "", one.connection.peer_qpn or 0),
        end=True,
    ),
    _rate("IN/s", lambda one: one.connection.in_rate),
    _rate("OUT/s", lambda one: one.connection.out_rate),
    Column(
        "RATE",
        key=lambda one: flows.busy(one.connection),
        past=lambda one: (one.past, None),
        rank=2,
        down=True,
    ),
    _name("COVERAGE", lambda one: flows.coverage(one.connection), 3),
    _name(
        "STATE",
        lambda one: flows.state(one.connection),
        5,
        style=lambda one: bad(one.connection.state in ("err", "sqe")),
    ),
    _name("TYPE", lambda one: one.connection.type, 5),
    _amount("IN", lambda one: one.connection.in_bytes, "By", 4),
    _amount("OUT", lambda one: one.connection.out_bytes, "By", 4),
    Column(
        "AGE",
        lambda one, how: text.duration(age(one, how.now_ns)),
        lambda one: -one.connection.created_ns,
        6,
        right=True,
        down=True,
    ),
    Column("QPN", lambda one, _: str(one.connection.qpn), lambda one: one.connection.qpn, 7, right=True),
    Column(
        "MTU",
        lambda one, _: str(one.connection.mtu or UNKNOWN),
        lambda one: one.connection.mtu,
        8,
        right=True,
    ),
)

FINDINGS: tuple[Column[Found], ...] = (
    _name(
        "LEVEL",
        severity,
        key=lambda one: (one.ended, -one.severity),
        style=lambda one: "dim" if one.ended else "bad" if one.severity >= ERROR else "warn",
    ),
    _name("FINDING", lambda one: one.kind, style=ended_style),
    Column(
        "SINCE",
        lambda one, _: text.moment(one.since_ns)[11:19] if one.since_ns else UNKNOWN,
        lambda one: one.since_ns or None,
        1,
        down=True,
    ),
    _name("PROCESS", lambda one: "/".join(filter(None, (str(one.pid or ""), one.process))), 4, 10),
    _name("DEVICE", lambda one: one.device, 4),
    _name("PEER", lambda one: one.peer or "", 5, 13),
    _name("WHAT", lambda one: one.text, 0, 20, style=ended_style),
)
