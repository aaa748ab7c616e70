"""What stands in cells: figures, states, levels, and the styles that go with them."""

from __future__ import annotations

from collections.abc import Mapping

from fabrictap.view import flows, snapshot_gpus
from fabrictap.view.text import UNKNOWN, amount
from fabrictap.view.top import spark
from fabrictap.view.top.findings import Found
from fabrictap.view.top.look import Flow, Link, Port, Rates, Way, added
from fabrictap.view.top.table import Manner

#: OTLP SeverityNumber.
ERROR, _WARNING = 17, 13


def share(part: float | None) -> str:
    return UNKNOWN if part is None else f"{100 * part:.0f}%"


def up(state: bool | None) -> str:
    return {True: "up", False: "DOWN", None: UNKNOWN}[state]


def counts(errors: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {amount(count, '1')}" for name, count in errors.items()) or "none"


def severity(one: Found) -> str:
    if one.ended:
        return "ended"
    return "ERROR" if one.severity >= ERROR else "WARN" if one.severity >= _WARNING else "info"


def heat(links: tuple[Link, ...], how: Manner) -> str:
    """A character for each link: how much of its speed it uses, x where it is down."""
    busiest = max((rate for link in links if (rate := busiest_way(link)) is not None), default=None)
    shown = ""
    for link in links:
        rate, most = busiest_way(link), link.limit or busiest or 1.0
        if link.up is False:
            shown += "x"
        else:
            shown += "?" if rate is None else spark.level(rate / most, ascii_only=how.ascii_only)
    return shown or UNKNOWN


def busiest_way(link: Link) -> float | None:
    rates = [way.rate for way in (link.receive, link.transmit) if way.rate is not None]
    return max(rates, default=None)


def links_down(links: tuple[Link, ...]) -> int:
    """Links that are down while others are up."""
    down = sum(link.up is False for link in links)
    return down if down < len(links) else 0


def both(one: Way, other: Way) -> tuple[Rates, float | None]:
    return added((one.past, other.past)), None


def peak(one: Way, other: Way) -> float | None:
    return max((way.peak for way in (one, other) if way.peak is not None), default=None)


def news(errors: Mapping[str, int]) -> int:
    return sum(count for name, count in errors.items() if name not in snapshot_gpus.NO_NEWS)


def bad(wrong: object) -> str:
    return "bad" if wrong else ""


def dark(way: Way) -> str:
    return "dark" if way.rate else ""


def state_style(state: str) -> str:
    return {"failed": "bad", "degraded": "warn"}.get(state, "")


def port_state(one: Port) -> str:
    return one.state if one.state != UNKNOWN else up(one.up)


def age(one: Flow, now_ns: int) -> float:
    return float(int((flows.end(one.connection, now_ns) - one.connection.created_ns) / 1e9))


def ended_style(one: Found) -> str:
    return "dim" if one.ended else ""
