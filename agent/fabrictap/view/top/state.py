"""What the person at the keyboard has chosen, and what keys do to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fabrictap.view.top import columns
from fabrictap.view.top.table import Column, Order

OVERVIEW, GPUS, LINKS, PORTS, FLOWS, FINDINGS, NODE = PAGES = (
    "overview", "gpus", "links", "ports", "flows", "findings", "node",
)  # fmt: skip
#: Page -> the columns of its table. The overview is sorted and filtered by its flows.
TABLES: dict[str, tuple[Column[Any], ...]] = {
    OVERVIEW: columns.FLOWS,
    GPUS: columns.GPUS,
    LINKS: columns.LINKS,
    PORTS: columns.PORTS,
    FLOWS: columns.FLOWS,
    FINDINGS: columns.FINDINGS,
}
_FASTEST, _SLOWEST = 0.2, 60.0


@dataclass(slots=True)
class State:
    """``offset``: lines scrolled down. ``typing``: a filter is being typed."""

    page: str = OVERVIEW
    orders: dict[str, Order] = field(default_factory=dict)
    filter: str = ""
    typing: bool = False
    bits: bool = False
    paused: bool = False
    help: bool = False
    quit: bool = False
    interval: float = 1.0
    offset: int = 0
    #: Lines of a page, as it was painted last: how far a key scrolls.
    height: int = 10

    def order(self, page: str | None = None) -> Order:
        return self.orders.get(page or self.page, Order())

    def key(self, key: str) -> None:
        """``key``: a character, or a name as in "up"; "interrupt" is Ctrl-C."""
        if key == "interrupt":
            self.quit = True
        elif self.typing:
            self._type(key)
        elif self.help:
            self.help = False
            self.quit = key == "q"
        elif key in _MOVES:
            self.offset = max(0, self.offset + _MOVES[key] * (self.height if key.startswith("page") else 1))
        else:
            self._command(key)

    def _type(self, key: str) -> None:
        if key == "enter":
            self.typing = False
        elif key == "escape":
            self.typing, self.filter = False, ""
        elif key == "backspace":
            self.filter = self.filter[:-1]
        elif len(key) == 1 and key.isprintable() and len(self.filter) < 64:
            self.filter += key
        self.offset = 0

    def _command(self, key: str) -> None:
        if key.isascii() and key.isdigit() and 1 <= int(key) <= len(PAGES):
            self._turn(int(key) - 1)
        elif key in ("tab", "backtab"):
            self._turn(PAGES.index(self.page) + (1 if key == "tab" else -1))
        elif key in ("s", ">", "right", "S", "<", "left"):
            self._sort(1 if key in ("s", ">", "right") else -1)
        elif key in ("+", "-"):
            self.interval = min(_SLOWEST, max(_FASTEST, self.interval * (0.5 if key == "+" else 2)))
        elif key == "r" and self.page in TABLES:
            order = self.order()
            self.orders[self.page] = Order(order.head, not order.reverse)
        elif key in ("home", "end"):
            self.offset = 0 if key == "home" else 1 << 30
        elif key == "escape":
            self.filter, self.offset = "", 0
        elif key == "/":
            self.typing = True
        elif key == "u":
            self.bits = not self.bits
        elif key in ("p", " "):
            self.paused = not self.paused
        elif key in ("?", "h", "f1"):
            self.help = True
        elif key == "q":
            self.quit = True

    def _turn(self, number: int) -> None:
        self.page = PAGES[number % len(PAGES)]
        self.offset = 0

    def _sort(self, step: int) -> None:
        if self.page not in TABLES:
            return
        heads: list[str | None] = [None, *(column.head for column in TABLES[self.page] if column.key)]
        place = heads.index(self.order().head) + step
        self.orders[self.page] = Order(heads[place % len(heads)])
        self.offset = 0


_MOVES = {"up": -1, "k": -1, "down": 1, "j": 1, "pageup": -1, "pagedown": 1}
