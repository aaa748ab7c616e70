"""What detectors remember over weeks: who talks to whom, and how much is sent there.

In memory, bounded: ``statefile`` keeps it over restarts. Time is hours and days since the epoch (UTC).
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from fabrictap.insight.policy import network_of

HOURS = 72
#: Whole days that are kept besides the current one.
DAYS = 28
#: Stands for the peers, or workloads, that have no place of their own.
OTHERS = "(others)"
#: Stands for all peers together.
ALL = "*"
MAX_WORKLOADS = 1024
#: Peers and networks of one workload that are told apart.
MAX_PEERS = 256
_HOUR_NS = 3600 * 10**9


def hour_of(now_ns: int) -> int:
    return now_ns // _HOUR_NS


@dataclass(slots=True, eq=False)
class Pair:
    """What one workload has sent to one peer, by hour and by day. ``hour`` is the current one."""

    workload: str
    peer: str
    first_hour: int
    hour: int
    hours: array[int] = field(default_factory=lambda: array("Q", bytes(8 * HOURS)))
    days: array[int] = field(default_factory=lambda: array("Q", bytes(8 * (DAYS + 1))))
    last_active: int = 0

    def roll(self, hour: int) -> None:
        """Go on to ``hour``. A clock that goes back changes nothing: bytes count for the latest hour."""
        if hour <= self.hour:
            return
        for passed in range(max(self.hour + 1, hour - HOURS + 1), hour + 1):
            self.hours[passed % HOURS] = 0
        for passed in range(max(self.hour // 24 + 1, hour // 24 - DAYS), hour // 24 + 1):
            self.days[passed % (DAYS + 1)] = 0
        self.hour = hour

    def add(self, size: int, hour: int) -> None:
        self.roll(hour)
        self.hours[self.hour % HOURS] += size
        self.days[self.hour // 24 % (DAYS + 1)] += size
        self.last_active = self.hour

    @property
    def today(self) -> int:
        return self.days[self.hour // 24 % (DAYS + 1)]

    def past_days(self, count: int) -> list[int]:
        """The last whole days, newest first."""
        today = self.hour // 24
        return [self.days[(today - back) % (DAYS + 1)] for back in range(1, min(count, DAYS) + 1)]

    def past_hours(self, count: int = HOURS - 1) -> list[int]:
        """The last whole hours, newest first."""
        return [self.hours[(self.hour - back) % HOURS] for back in range(1, min(count, HOURS - 1) + 1)]


@dataclass(slots=True, eq=False)
class Known:
    """A workload and its learned peers: GIDs, or networks once they are too many, or anybody."""

    name: str
    first_hour: int
    last_hour: int
    peers: dict[str, int] = field(default_factory=dict)
    networks: dict[str, int] = field(default_factory=dict)
    #: Peers are in more networks than are told apart.
    anybody: bool = False

    def knows(self, gid: str) -> bool:
        return self.anybody or gid in self.peers or (bool(self.networks) and network_of(gid) in self.networks)

    def learn(self, gid: str, hour: int) -> None:
        if self.knows(gid):
            return
        if not self.networks and len(self.peers) < MAX_PEERS:
            self.peers[gid] = hour
            return
        for one in (*self.peers, gid):
            self.networks.setdefault(network_of(one), hour)
        self.peers.clear()
        if len(self.networks) > MAX_PEERS:
            self.networks.clear()
            self.anybody = True


class Remembered:
    """All pairs and workloads. ``capacity``: most pairs. Under the node's lock."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.errors: Counter[str] = Counter()
        self.pairs: dict[tuple[str, str], Pair] = {}
        self.workloads: dict[str, Known] = {}
        self.changed_pairs: set[tuple[str, str]] = set()
        self.changed_workloads: set[str] = set()
        self.removed_pairs: set[tuple[str, str]] = set()
        self.removed_workloads: set[str] = set()
        self._swept_hour = 0

    def workload(self, name: str, hour: int) -> Known:
        """The workload, known from now on. Those that have no place share one."""
        found = self.workloads.get(name)
        if found is None:
            if len(self.workloads) >= MAX_WORKLOADS and name != OTHERS:
                self.errors["full"] += 1
                return self.workload(OTHERS, hour)
            found = self.workloads[name] = Known(name, hour, hour)
            self.removed_workloads.discard(name)
            self.changed_workloads.add(name)
        if hour > found.last_hour:
            found.last_hour = hour
            self.changed_workloads.add(name)
        return found

    def learn(self, known: Known, gid: str, hour: int) -> None:
        if not known.knows(gid):
            known.learn(gid, hour)
            self.changed_workloads.add(known.name)

    def sent(self, workload: str, peer: str, size: int, hour: int) -> None:
        """Count ``size`` bytes from a workload to a peer, and to all its peers together."""
        workload = self.workload(workload, hour).name
        for key in ((workload, peer), (workload, ALL)):
            self._pair(*key, hour).add(size, hour)

    def sweep(self, hour: int) -> None:
        """Once an hour: forget pairs and workloads that have been silent for as long as days are kept."""
        if hour <= self._swept_hour:
            return
        self._swept_hour = hour
        limit = hour - 24 * (DAYS + 1)
        for key in [key for key, pair in self.pairs.items() if pair.last_active < limit]:
            del self.pairs[key]
            self.changed_pairs.discard(key)
            self.removed_pairs.add(key)
        for name in [name for name, known in self.workloads.items() if known.last_hour < limit]:
            del self.workloads[name]
            self.changed_workloads.discard(name)
            self.removed_workloads.add(name)

    def of_workload(self, name: str) -> Iterator[Pair]:
        return (pair for pair in self.pairs.values() if pair.workload == name)

    def _pair(self, workload: str, peer: str, hour: int) -> Pair:
        for key in ((workload, peer), (workload, OTHERS), (OTHERS, OTHERS)):
            found = self.pairs.get(key)
            # The last two have a place beyond the capacity, one for each workload.
            if found is None and (len(self.pairs) < self.capacity or key[1] != peer):
                found = self.pairs[key] = Pair(*key, first_hour=hour, hour=hour)
                self.removed_pairs.discard(key)
                if key[1] != peer:
                    self.errors["full"] += 1
            if found is not None:
                self.changed_pairs.add((found.workload, found.peer))
                return found
        raise AssertionError("there is always a pair for the others")
