"""Hardware against software: what a port moved and nobody on this node asked for is dark traffic.

For each port and direction, in every interval between two readings of the port's counters:

- payload = the port's bytes less the headers of its packets. How much of a packet is header depends on the
  link and is known within bounds; so the payload is, too (``method``).
- attributed = what local processes posted that moves in this direction: sends and writes out, reads in.
- dark = payload that is surely there less all that was attributed until now. A peer that pulls memory out
  with RDMA READ, or that pushes into it with RDMA WRITE, and work queue entries that no library saw make it.
- uncertain = the difference between the bounds: it may be header or payload. So may be what moves while this
  node's own requests are sent again, and the answers with them: no driver tells how many bytes that takes.

Posts are counted when they are posted, packets when they move; so all that was posted before a reading is
taken off what the reading says, and dark is what two readings in a row do not explain: it never has to be
taken back. What was posted and never moved (a queue pair in error) is written off once the port is quiet.
While posts are counted in a part of the time only (sources.verbs.budget), what no post explains is uncertain,
and not dark.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fabrictap import catalog
from fabrictap.ledger import Ledger
from fabrictap.ledger.traffic import PortPosted, PortTraffic
from fabrictap.series import Series, SeriesTable

#: Headers of a packet without its extended transport headers. BTH 12, ICRC 4 (IBTA 9.1); Ethernet 14,
#: IPv4 20, IPv6 or GRH 40, UDP 8 (IBTA annex A17); LRH 8 (IBTA 7.7).
_BASE = 12 + 4
_ROCE_IPV4 = _BASE + 14 + 20 + 8
_ROCE_IPV6 = _BASE + 14 + 40 + 8
_VLAN = 4
_IB_LOCAL = _BASE + 8
_IB_GLOBAL = _IB_LOCAL + 40
#: An acknowledgement or read response has an AETH, that of an atomic an AtomicAckETH besides; a peer's
#: request has at most RETH and immediate data, or an AtomicETH.
_ANSWER, _ATOMIC_ANSWER, _REQUEST = 4, 12, 28
#: Packets with less than this on average are not answers to reads of any size.
_SMALL = 256
#: Readings for which requests that were sent again may still move bytes.
_RETRY_SHOWS = 5
#: Readings without a packet after which what was posted and did not move is written off.
_QUIET = 5
#: For how long after posts went unseen a port may move what they asked for.
_LATER_NS = 2 * 10**9
#: What may always be posted and still on its way.
_ON_ITS_WAY = 16 << 20
#: A reading that waits longer than this for its posts has no other side: the posts are not being read.
_STALE_NS = 30 * 10**9
#: How long it is taken for granted which addresses the connections of a device use.
_ADDRESSES_NS = 5 * 10**9
_IPV4_MAPPED = "::ffff:"


@dataclass(frozen=True, slots=True)
class Balance:
    """One direction of one port since ``since_ns``; cumulative bytes. Payload lies between ``attributed`` +
    ``dark`` and that + ``uncertain``, save for what is still on its way."""

    hw_id: str
    device: str
    port: int
    direction: str
    method: str
    since_ns: int
    attributed: int
    dark: int
    uncertain: int


@dataclass(slots=True)
class _Side:
    since_ns: int
    time_ns: int
    moved: tuple[int, int, int | None]
    posted: PortPosted
    #: Since the start: payload and the extended headers of requests within bounds, what explains them, and
    #: what nothing explains.
    low: int = 0
    high: int = 0
    explained: int = 0
    attributed: int = 0
    dark: int = 0
    #: What nothing explained at the last reading.
    surplus: int = 0
    #: By how much the headers of the last interval were more than its bytes, for low and high: 0 or less.
    owed: tuple[int, int] = (0, 0)
    #: What was posted in the last two intervals.
    recent: tuple[int, int] = (0, 0)
    #: Frames that are no RDMA, and the most that these take in bytes.
    others: int = 0
    other: int = 0
    #: Requests sent again until now, for how many intervals more that may show, and what it made uncertain.
    retries: int = 0
    retrying: int = 0
    resent: int = 0
    quiet: int = 0
    method: str = ""
    series: list[Series] = field(default_factory=list)


class Reconciler:
    """Brought up to date at each tick, under the node's lock."""

    def __init__(self, series: SeriesTable, ledger: Ledger) -> None:
        self._series = series
        self._ledger = ledger
        self._sides: dict[tuple[str, str], _Side] = {}
        #: The newest readings whose posts are not all known yet.
        self._waiting: dict[str, PortTraffic] = {}
        self._families: dict[str, set[bool]] = {}
        self._families_until_ns = 0

    def balances(self) -> list[Balance]:
        """All ports and directions of which both sides are known."""
        found = []
        for (hw_id, direction), side in self._sides.items():
            reading = self._ledger.traffic.ports.get(hw_id)
            if reading is not None:
                found.append(
                    Balance(
                        hw_id,
                        reading.device,
                        reading.port,
                        direction,
                        side.method,
                        side.since_ns,
                        side.attributed,
                        side.dark,
                        side.high - side.low + side.other + side.resent,
                    )
                )
        return found

    def fold(self, now_ns: int) -> None:
        """Take over what sources have read since the last call."""
        traffic = self._ledger.traffic
        for key in [key for key in self._sides if key[0] not in traffic.ports]:
            self._end(key)
        until_ns = traffic.posted_until_ns
        self._look_at_addresses(now_ns)
        for hw_id, reading in traffic.ports.items():
            waiting = self._waiting.setdefault(hw_id, reading)
            if until_ns is None or until_ns < waiting.time_ns:
                if now_ns - waiting.time_ns > _STALE_NS:
                    self._forget(hw_id)
                continue
            del self._waiting[hw_id]
            posted = traffic.posted.get(hw_id, PortPosted())
            for direction in waiting.moved:
                self._reconcile(hw_id, direction, waiting, posted, now_ns)

    def _reconcile(
        self, hw_id: str, direction: str, reading: PortTraffic, posted: PortPosted, now_ns: int
    ) -> None:
        key = (hw_id, direction)
        moved = reading.moved[direction]
        side = self._sides.get(key)
        if side is None or _fell(side, moved, posted):
            # Where the counting begins, or begins anew.
            if side is not None:
                self._end(key)
            self._sides[key] = _Side(reading.time_ns, reading.time_ns, moved, posted, retries=reading.retries)
            return
        if side.time_ns == reading.time_ns:
            return
        # What was posted unseen may move a little later.
        partial = self._ledger.traffic.partial_ns.get(hw_id, 0) >= side.time_ns - _LATER_NS
        side.time_ns = reading.time_ns
        size, packets = moved[0] - side.moved[0], moved[1] - side.moved[1]
        frames = None if moved[2] is None or side.moved[2] is None else moved[2] - side.moved[2]
        out = direction == "transmit"
        asked = (posted.out - side.posted.out) if out else (posted.inwards - side.posted.inwards)
        room = 0 if out else posted.room - side.posted.room
        headers = posted.headers - side.posted.headers if out else 0
        least, most, side.method = self._headers(reading)
        small = size - least * packets < _SMALL * packets
        answers = (_ATOMIC_ANSWER if small else _ANSWER) if out else _REQUEST
        # Since the start, for the two are not read in the same moment.
        side.others += 0 if frames is None else frames - packets
        side.other = max(0, side.others) * reading.frame
        # Bytes of packets that were counted just before them are short of their headers.
        low, high = size - (most + answers) * packets, size - least * packets
        side.low += max(0, low + side.owed[0])
        side.high += max(0, high + side.owed[1])
        side.owed = min(0, low), min(0, high)
        side.attributed += asked
        side.explained += asked + room + headers
        side.recent = (side.recent[1], asked + room)
        side.moved, side.posted = moved, posted
        side.quiet = 0 if packets or asked or room else side.quiet + 1
        surplus = side.low - side.other - side.explained
        side.retrying = _RETRY_SHOWS if reading.retries > side.retries else max(0, side.retrying - 1)
        side.retries = reading.retries
        if surplus > side.dark and (side.retrying or partial):
            side.resent += surplus - side.dark
            side.explained += surplus - side.dark
            surplus = side.dark
        elif surplus > side.dark:
            # What was sent again may be counted only after its bytes: one reading more tells.
            side.dark = max(side.dark, min(surplus, side.surplus))
        else:
            # Old posts must not explain new traffic for ever. Some may still be on their way; those that
            # surely are, because the port has moved less than was posted, stay until it is quiet.
            quiet = side.quiet >= _QUIET
            if quiet or side.explained + side.dark <= side.high:
                allowed = 0 if quiet else max(_ON_ITS_WAY, sum(side.recent))
                side.explained = min(side.explained, max(0, side.low - side.other - side.dark + allowed))
        side.surplus = surplus
        self._show(key, side, reading, now_ns)

    def _headers(self, reading: PortTraffic) -> tuple[int, int, str]:
        """The least and the most that a packet has of headers, and how that is known."""
        if reading.link_layer == "infiniband":
            return _IB_LOCAL, _IB_GLOBAL, "infiniband_headers"
        if not reading.software:
            # Drivers differ in what of the frame they count.
            return _BASE, _ROCE_IPV6 + _VLAN, "roce_headers"
        families = self._families.get(reading.device)
        if families == {True}:
            return _ROCE_IPV4, _ROCE_IPV4, "roce_ipv4_headers"
        if families == {False}:
            return _ROCE_IPV6, _ROCE_IPV6, "roce_ipv6_headers"
        return _ROCE_IPV4, _ROCE_IPV6, "roce_headers"

    def _look_at_addresses(self, now_ns: int) -> None:
        """Of which family each device's connections are (IPv4: True): it says how long their headers are."""
        if now_ns < self._families_until_ns:
            return
        self._families_until_ns = now_ns + _ADDRESSES_NS
        self._families.clear()
        for connection in self._ledger.connections:
            if connection.gid is not None:
                family = connection.gid.startswith(_IPV4_MAPPED)
                self._families.setdefault(connection.device, set()).add(family)

    def _show(self, key: tuple[str, str], side: _Side, reading: PortTraffic, now_ns: int) -> None:
        if not side.series:
            attributes = {
                catalog.HW_ID.name: key[0],
                catalog.HW_PARENT.name: reading.device,
                catalog.IO_DIRECTION.name: key[1],
            }
            side.series = [
                self._series.series(metric, attributes, now_ns, side.since_ns)
                for metric in (catalog.PORT_ATTRIBUTED, catalog.PORT_DARK, catalog.PORT_UNCERTAIN)
            ]
        totals = (side.attributed, side.dark, side.high - side.low + side.other + side.resent)
        for series, total in zip(side.series, totals, strict=True):
            series.set(total, now_ns)

    def _forget(self, hw_id: str) -> None:
        self._waiting.pop(hw_id, None)
        for key in [key for key in self._sides if key[0] == hw_id]:
            self._end(key)

    def _end(self, key: tuple[str, str]) -> None:
        for series in self._sides.pop(key).series:
            self._series.end(series)
        self._waiting.pop(key[0], None)


def _fell(side: _Side, moved: tuple[int, int, int | None], posted: PortPosted) -> bool:
    """Whether a counter of either side was reset."""
    before = side.posted
    return (
        moved[0] < side.moved[0]
        or moved[1] < side.moved[1]
        or (moved[2] or 0) < (side.moved[2] or 0)
        or posted.out < before.out
        or posted.inwards < before.inwards
        or posted.room < before.room
        or posted.headers < before.headers
    )
