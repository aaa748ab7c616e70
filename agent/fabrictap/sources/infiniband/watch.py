"""The counter and link files of all ports, kept open and read again and again.

A file that fails costs its own value: it is left alone for a while, longer each time, and said once.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from fabrictap.catalog import NETWORK_IO, PORT_COUNTER, Metric
from fabrictap.ext import counters
from fabrictap.ext.ring import Ring
from fabrictap.series import AttributeValue, Series
from fabrictap.sources.infiniband.counters import HW_COUNTERS, RETRIES, classify, counts_bytes
from fabrictap.sources.infiniband.links import Link, Links
from fabrictap.sources.infiniband.sysfs import DeviceTree, Identity, PortTree, Scan, scan
from fabrictap.sources.infiniband.troubles import Backoff, Troubles, word

_log = logging.getLogger(__name__)

#: Failures in a row after which a counter is no longer reported, until it can be read again.
FAILED_READS = 3
#: Seconds between two scans that take nothing of the one before for granted.
_THOROUGH_SECONDS = 60.0
#: What rdma.counter.name begins with where the interface below a software device counts.
NETDEV = "netdev"
_GONE = frozenset({errno.ENODEV, errno.ENOENT, errno.ENXIO})
_Key = tuple[str, Identity, tuple[tuple[str, AttributeValue], ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Counter:
    """One counter file and the series that it feeds. A value counts ``scale`` units.

    The object is the counter's identity as long as its file lives: a device that was removed and made
    again has other counters.
    """

    path: str
    identity: Identity
    metric: Metric
    attributes: tuple[tuple[str, AttributeValue], ...]
    scale: int = 1
    #: Held against the traffic counters, and so read with them whether it moves or not.
    prompt: bool = False

    @property
    def key(self) -> _Key:
        """Equal for the same file with the same meaning in two scans."""
        return self.path, self.identity, self.attributes


@dataclass(slots=True, eq=False)
class Watched:
    """A counter and its open file. ``series`` is what it feeds, None while it has not been read."""

    counter: Counter
    backoff: Backoff
    slot: int | None = None
    series: Series | None = None


@dataclass(slots=True)
class Changes:
    """Counters that can be read now and have no series, and series whose counter has gone or fails."""

    started: list[Watched] = field(default_factory=list)
    stopped: list[Series] = field(default_factory=list)


class Watch:
    """Every counter of the devices that ``wanted`` lets through. One thread at a time.

    ``errors`` counts failed reads by errno name, or by a short word where the content is at fault.
    """

    def __init__(self, sysfs: str, wanted: Callable[[str], bool], errors: dict[str, int]) -> None:
        self.devices: tuple[DeviceTree, ...] = ()
        self._sysfs = sysfs
        self._wanted = wanted
        self._troubles = Troubles(errors)
        self._links = Links(self._troubles)
        self._files = counters.CounterFiles()
        self._counters: dict[_Key, Watched] = {}
        self._of_slot: dict[int, Watched] = {}
        #: Counters that failed last time, or could not be opened.
        self._failing: set[Watched] = set()
        #: Counters whose file is not open, in the order in which they came.
        self._unopened: dict[Watched, None] = {}
        self._changes = Changes()
        self._scan = Scan()
        #: Device -> its tree and the counters that were made of it.
        self._of_device: dict[str, tuple[DeviceTree, dict[_Key, Counter]]] = {}
        self._thorough_at = 0.0

    def rescan(self, now: float, *, thorough: bool = False) -> None:
        """Bring the open files in line with the tree.

        What hardly changes while a device stays, its firmware say, is read again when this is ``thorough``,
        which it is by itself each minute.
        """
        thorough = thorough or now >= self._thorough_at
        if thorough:
            self._thorough_at = now + _THOROUGH_SECONDS
        try:
            found = scan(self._sysfs, self._wanted, None if thorough else self._scan)
        except OSError as error:
            found = Scan()
            if error.errno != errno.ENOENT:
                found.problems.add((f"{self._sysfs}/class/infiniband", word(error.errno or 0)))
        for path, problem in sorted(found.problems - self._scan.problems):
            self._troubles.count(problem)
            _log.warning("%s: %s; left out until that changes", path, problem)
        # An equal tree is the same object, so that what was made of it need not be made again.
        before = {tree.name: tree for tree in self.devices}
        found.devices = [
            known if (known := before.get(tree.name)) is not None and known == tree else tree
            for tree in found.devices
        ]
        self._scan = found
        unchanged = len(before) == len(found.devices) and all(
            before.get(tree.name) is tree for tree in found.devices
        )
        if not unchanged:
            self._take(found.devices)
        for watched in list(self._unopened):
            self._open(watched, now)

    def _take(self, devices: list[DeviceTree]) -> None:
        """Other devices than before: let go of the counters that are not theirs, open theirs."""
        self.devices = tuple(devices)
        wanted: dict[_Key, Counter] = {}
        of_device: dict[str, tuple[DeviceTree, dict[_Key, Counter]]] = {}
        for tree in devices:
            known = self._of_device.get(tree.name)
            if known is None or known[0] is not tree:
                known = tree, {counter.key: counter for counter in counters_of(tree)}
            of_device[tree.name] = known
            wanted |= known[1]
        self._of_device = of_device
        for key in self._counters.keys() - wanted.keys():
            self._drop(self._counters.pop(key))
        for key, counter in wanted.items():
            if key not in self._counters:
                watched = self._counters[key] = Watched(counter, Backoff())
                self._unopened[watched] = None

    def read(self, now: float) -> Changes:
        """Read every counter once. A file that says its device has gone makes it look around first."""
        troubles = self._pass(now)
        if any(status in _GONE for _, status in troubles):
            self.rescan(now, thorough=True)
            troubles = self._pass(now)
        failed = {self._of_slot[slot]: status for slot, status in troubles}
        for watched in self._failing - failed.keys():
            if watched.slot is not None and watched.backoff.due(now):
                self._troubles.succeeded(watched.backoff, watched.counter.path)
                self._failing.discard(watched)
                if watched.series is None:
                    self._changes.started.append(watched)
        for watched, status in failed.items():
            self._failing.add(watched)
            self._troubles.failed(watched.backoff, watched.counter.path, word(status), now)
            if watched.backoff.failures >= FAILED_READS:
                self._stop(watched)
        changes, self._changes = self._changes, Changes()
        changes.started = [watched for watched in changes.started if watched not in failed]
        return changes

    def links(self, now: float) -> tuple[Link, ...]:
        """State, rate and MTU of every port."""
        return self._links.read(self.devices, now)

    def read_fast(self) -> None:
        """Read the traffic counters only; what fails is seen by the next ``read``."""
        self._files.read(fast=True)

    def bind(self, watched: Watched, series: Series) -> None:
        """Let a counter feed ``series``."""
        watched.series = series
        if watched.slot is not None:
            counter = watched.counter
            self._files.bind(watched.slot, series, counter.metric.rates, counter.prompt)

    def fold(self, ring: Ring, now_ns: int, *, fast: bool = False) -> None:
        """Put what was read into the series. Under the node's lock."""
        self._files.fold(ring, now_ns, fast)

    def rest(self, until: float, interval: float) -> int:
        """Read the traffic counters every ``interval`` s until ``until``, a time of CLOCK_MONOTONIC."""
        return self._files.rest(until, interval)

    def wake(self) -> None:
        """End a ``rest`` of another thread."""
        self._files.wake()

    def close(self) -> None:
        """Close every file."""
        self._files.close()
        self._counters.clear()
        self._of_slot.clear()
        self._failing.clear()
        self._unopened.clear()
        self._changes = Changes()
        self._links.close()
        self._scan = Scan()
        self._of_device.clear()
        self._thorough_at = 0.0
        self.devices = ()

    def _open(self, watched: Watched, now: float) -> None:
        if not watched.backoff.due(now):
            return
        try:
            watched.slot = self._files.add(watched.counter.path, watched.counter.scale)
        except OSError as error:
            self._failing.add(watched)
            self._troubles.failed(watched.backoff, watched.counter.path, word(error.errno or 0), now)
            return
        self._of_slot[watched.slot] = watched
        del self._unopened[watched]
        if watched not in self._failing:
            self._changes.started.append(watched)

    def _stop(self, watched: Watched) -> None:
        """Take the series away; whoever folds ends it."""
        if watched.series is not None:
            self._changes.stopped.append(watched.series)
            watched.series = None
        if watched.slot is not None:
            self._files.bind(watched.slot, None, False)

    def _drop(self, watched: Watched) -> None:
        self._stop(watched)
        self._failing.discard(watched)
        self._unopened.pop(watched, None)
        if watched in self._changes.started:
            self._changes.started.remove(watched)
        if watched.slot is not None:
            self._files.remove(watched.slot)
            del self._of_slot[watched.slot]

    def _pass(self, now: float) -> list[tuple[int, int]]:
        """Read all; [(slot, status)] of what could not be read."""
        for watched in self._failing:
            if watched.slot is not None:
                self._files.enable(watched.slot, watched.backoff.due(now))
        self._files.read()
        return self._files.troubles()


def port_id(device: DeviceTree, port: PortTree) -> str:
    """The catalog's hw.id of a port."""
    return f"{device.name}/{port.number}"


def port_attributes(device: DeviceTree, port: PortTree) -> dict[str, AttributeValue]:
    """The attributes that every series of a port has; what is not known is left out."""
    known = {
        "hw.id": port_id(device, port),
        "hw.name": port.netdev,
        "hw.parent": device.name,
        "rdma.link_layer": port.link_layer,
    }
    return {name: value for name, value in known.items() if value is not None}


def counters_of(device: DeviceTree) -> Iterator[Counter]:
    """Every counter of a device: of its ports, of itself, and of the interface below a software device."""
    for port in device.ports:
        common = tuple(port_attributes(device, port).items())
        meanings = classify(port.files)
        netdev = port.statistics is not None and not counts_bytes(meanings.values())
        # In the order in which they are read: bytes before the packets that tell their headers, so that what
        # moves between two reads is not taken for payload (insight/reconcile.py).
        if netdev:
            for name, direction in (("tx_bytes", "transmit"), ("rx_bytes", "receive")):
                sides = (("network.io.direction", direction), ("rdma.counter.source", "netdev"))
                yield Counter(f"{port.statistics}/{name}", port.identity, NETWORK_IO, common + sides)
        for file, meaning in meanings.items():
            path = f"{port.path}/{file.group}/{file.name}"
            attributes = common + meaning.attributes
            prompt = file.name in RETRIES
            yield Counter(path, port.identity, meaning.metric, attributes, meaning.scale, prompt)
        if netdev:
            for name in ("tx_packets", "rx_packets"):
                named = (("rdma.counter.name", f"{NETDEV}/{name}"),)
                path = f"{port.statistics}/{name}"
                yield Counter(path, port.identity, PORT_COUNTER, common + named, prompt=True)
    # older efa shows the counters of its port on the device as well: counted once, as the port's
    taken = frozenset(file.name for port in device.ports for file in port.files if file.group == HW_COUNTERS)
    for file, meaning in classify(device.files, traffic=False, taken=taken).items():
        path = f"{device.path}/{file.group}/{file.name}"
        yield Counter(
            path,
            device.identity,
            meaning.metric,
            (("hw.id", device.name), *meaning.attributes),
            meaning.scale,
        )
