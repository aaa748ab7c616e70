"""What a tick costs with 10, 1,000 and 100,000 live counters and connections, one in a hundred moving.

Three parts of it, as CPU time. A look at each counter of the kernel's map, as it has been copied here, costs
what there is. Folding what has moved into series and connections, and bringing the inventory of queue pairs
up to date, cost what has changed, whatever there is besides.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from itertools import count

from bench.result import Result, alternate, note
from doubles import raw_records as raw
from fabrictap import catalog
from fabrictap.config import Config, Limits
from fabrictap.ext import records
from fabrictap.ext.posts import Posts
from fabrictap.insight.inventory import Inventory
from fabrictap.ledger import Ledger
from fabrictap.ledger.connections import Connection, Coverage
from fabrictap.series import SeriesTable, in_memory

LIVE = (10, 1000, 100_000)
MOVING = 100  # one in so many
CPUS = 2
ROUNDS = 15
#: A hundred times as many are no longer in the processor's cache: that is what may cost more.
GOAL = 4.0
_TOTALS = struct.Struct("<2Q")


class _Counters:
    """``live`` bound counters of as many connections."""

    def __init__(self, live: int) -> None:
        self._live = live
        self._moved = max(1, live // MOVING)
        table = SeriesTable(2 * live + 100, in_memory(2 * live + 100, rows=2, connections=live))
        self._posts = Posts(table.ring, live)
        self._keys = b"".join(raw.post(number)[0].raw for number in range(live))
        self._values = bytearray(records.POST_SIZE * CPUS * live)
        self._clock = count(1)
        self._rows = []
        self._series = []
        self._move(range(live))
        self._take()
        for number in self._posts.fold(1):
            self._bind(table, number)

    def _bind(self, table: SeriesTable, number: int) -> None:
        attributes = {"rdma.qp.number": number}
        series = [
            table.series(metric, attributes, 1) for metric in (catalog.VERBS_OPERATIONS, catalog.VERBS_IO)
        ]
        self._posts.give_series(number, [*series, None, None, None], None)
        row = Connection("mlx5_0", number, "rc", "rts", 1, "a", 1, "probe", Coverage("exact"))
        row.list_in(table.ring, 1)
        self._posts.attribute(number, row, 0)
        self._posts.tell(number, 1)
        self._posts.bind(number, row, 0, True)
        self._rows.append(row)
        self._series.append(series[0])

    def _move(self, numbers: range) -> None:
        for number in numbers:
            at = number * CPUS * records.POST_SIZE
            operations, size = _TOTALS.unpack_from(self._values, at)
            _TOTALS.pack_into(self._values, at, operations + 1, size + 100)

    def _take(self) -> None:
        self._posts.take(self._keys, self._values_now, self._live, CPUS)

    @property
    def _values_now(self) -> bytes:
        return bytes(self._values)

    def _tick(self) -> tuple[float, float]:
        """Microseconds of taking and of folding."""
        now = next(self._clock)
        step = max(1, self._live // self._moved)
        self._move(range(now % step, self._live, step))
        values = self._values_now
        began = time.process_time_ns()
        self._posts.take(self._keys, values, self._live, CPUS)
        taken = time.process_time_ns()
        left = self._posts.fold(now)
        folded = time.process_time_ns()
        if left:
            raise RuntimeError("a bound counter was not folded")
        return (taken - began) / 1000, (folded - taken) / 1000

    def taking(self) -> float:
        return self._tick()[0]

    def folding(self) -> float:
        return self._tick()[1]

    def check(self) -> None:
        """Raises RuntimeError where a series or a row does not say what the map does."""
        for number, (row, series) in enumerate(zip(self._rows, self._series, strict=True)):
            operations, size = _TOTALS.unpack_from(self._values, number * CPUS * records.POST_SIZE)
            if series.value != operations or row.posted_totals() != [("rdma_write", operations, size)]:
                raise RuntimeError(f"counter {number} was not folded rightly")


class _Connections:
    """``live`` queue pairs, in the ledger and exported."""

    def __init__(self, live: int) -> None:
        config = Config(limits=Limits(connections=live))
        self._moved = max(1, live // MOVING)
        table = SeriesTable(2 * live + 100, in_memory(2 * live + 100, rows=2, connections=live))
        self._ledger = Ledger(config, table.ring)
        self._table = table
        self._inventory = Inventory(table, self._ledger)
        self._clock = count(1)
        for qpn in range(live):
            self._ledger.connections.put(
                Connection("mlx5_0", qpn, "ud", "rts", 1, "a", 1, "probe", Coverage("exact"))
            )
        self._inventory.fold(1)
        self._all = list(self._ledger.connections)

    def inventory(self) -> float:
        """Microseconds."""
        now = next(self._clock)
        step = max(1, len(self._all) // self._moved)
        for connection in self._all[now % step :: step]:
            self._ledger.connections.advance(connection, "sqd" if connection.state == "rts" else "rts", now)
        began = time.process_time_ns()
        self._inventory.fold(now)
        spent = (time.process_time_ns() - began) / 1000
        for series in [series for series in self._table if series.ended]:
            self._table.remove(series, now)
        return spent


def _per_moved(live: int, microseconds: float) -> float:
    return microseconds * 1000 / max(1, live // MOVING)


def _measure(live: int) -> tuple[float, float, float]:
    """Medians of taking, folding and the inventory, in microseconds."""

    def alone(measure: Callable[[], float]) -> float:
        (median,) = alternate(ROUNDS, measure)
        return median

    counters = _Counters(live)
    taking, folding = alone(counters.taking), alone(counters.folding)
    counters.check()
    del counters
    return taking, folding, alone(_Connections(live).inventory)


def measure() -> list[Result]:
    results = []
    per_moved = {}
    for live in LIVE:
        taking, folding, inventory = _measure(live)
        moved = max(1, live // MOVING)
        what = f"tick, {live:,} live, {moved:,} moving"
        per_moved[live] = (_per_moved(live, folding), _per_moved(live, inventory))
        results += [
            note(f"{what}: look at each counter", "us", taking, f"{taking * 1000 / live:.3g} ns each"),
            note(f"{what}: fold", "us", folding, f"{per_moved[live][0]:.3g} ns for each that moved"),
            note(f"{what}: inventory", "us", inventory, f"{per_moved[live][1]:.3g} ns for each that changed"),
        ]
    many, few = per_moved[LIVE[2]], per_moved[LIVE[1]]
    peer = f"the same at {LIVE[1]:,} live"
    return [
        *results,
        Result(f"fold, each that moved, {LIVE[2]:,} live", "ns", many[0], few[0], peer, GOAL),
        Result(f"inventory, each that changed, {LIVE[2]:,} live", "ns", many[1], few[1], peer, GOAL),
    ]
