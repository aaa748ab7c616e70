"""The counter and link files of all ports, kept open and read again and again.

A file that fails costs its own value: it is left alone for a while, longer each time, and said once.
"""

from __future__ import annotations

import errno
import io
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from fabrictap.catalog import NETWORK_IO, PORT_COUNTER, Metric
from fabrictap.ext import counters
from fabrictap.ext.ring import Ring
from fabrictap.series import AttributeValue, Series
from fabrictap.sources.infiniband.counters import HW_COUNTERS, classify, counts_bytes
from fabrictap.sources.infiniband.sysfs import (
    MAX_TEXT,
    DeviceTree,
    Identity,
    PortTree,
    Scan,
    clean,
    scan,
)

_log = logging.getLogger(__name__)

#: Failures in a row after which a counter is no longer reported, until it can be read again.
FAILED_READS = 3
#: Seconds: some virtual functions fill the kernel log with one line per failing read.
_FIRST_DELAY = 1.0
_LAST_DELAY = 300.0
#: What rdma.counter.name begins with where the interface below a software device counts.
NETDEV = "netdev"
_GONE = frozenset({errno.ENODEV, errno.ENOENT, errno.ENXIO})
_WORDS = {counters.NOT_A_NUMBER: "not_a_number", counters.OVERFLOW: "overflow"}

_T = TypeVar("_T")
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

    @property
    def key(self) -> _Key:
        """Equal for the same file with the same meaning in two scans."""
        return self.path, self.identity, self.attributes


@dataclass(slots=True)
class Backoff:
    """When a file that fails is tried again: after 1 s, doubling to 5 min."""

    failures: int = 0
    retry_at: float = 0.0

    def due(self, now: float) -> bool:
        return not self.failures or now >= self.retry_at

    def fail(self, now: float) -> float:
        """Count a failure. Returns the seconds to wait."""
        delay = min(_FIRST_DELAY * 2.0 ** min(self.failures, 16), _LAST_DELAY)
        self.failures += 1
        self.retry_at = now + delay
        return delay


@dataclass(slots=True, eq=False)
class Watched:
    """A counter and its open file. ``series`` is what it feeds, None while it has not been read."""

    counter: Counter
    backoff: Backoff
    slot: int | None = None
    series: Series | None = None


@dataclass(slots=True)
class _Text:
    """A small file that is kept open, closed with the object."""

    file: io.FileIO | None = None
    backoff: Backoff = field(default_factory=Backoff)


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
        self._errors = errors
        self._files = counters.CounterFiles()
        self._counters: dict[_Key, Watched] = {}
        self._of_slot: dict[int, Watched] = {}
        #: Counters that failed last time, or could not be opened.
        self._failing: set[Watched] = set()
        self._changes = Changes()
        self._texts: dict[str, _Text] = {}
        self._problems: set[tuple[str, str]] = set()

    def rescan(self, now: float) -> None:
        """Bring the open files in line with the tree."""
        try:
            found = scan(self._sysfs, self._wanted)
        except OSError as error:
            found = Scan()
            if error.errno != errno.ENOENT:
                found.problems.add((f"{self._sysfs}/class/infiniband", _word(error.errno or 0)))
        for path, word in sorted(found.problems - self._problems):
            self._count(word)
            _log.warning("%s: %s; left out until that changes", path, word)
        self._problems = found.problems
        self.devices = tuple(found.devices)
        wanted = {counter.key: counter for device in self.devices for counter in counters_of(device)}
        for key in self._counters.keys() - wanted.keys():
            self._drop(self._counters.pop(key))
        for key, counter in wanted.items():
            watched = self._counters.get(key)
            if watched is None:
                watched = self._counters[key] = Watched(counter, Backoff())
            self._open(watched, now)
        ports = {port.path for device in self.devices for port in device.ports}
        self._texts = {path: it for path, it in self._texts.items() if path.rpartition("/")[0] in ports}

    def read(self, now: float) -> Changes:
        """Read every counter once. A file that says its device has gone makes it look around first."""
        troubles = self._pass(now)
        if any(status in _GONE for _, status in troubles):
            self.rescan(now)
            troubles = self._pass(now)
        failed = {self._of_slot[slot]: status for slot, status in troubles}
        for watched in self._failing - failed.keys():
            if watched.slot is not None and watched.backoff.due(now):
                self._succeeded(watched.backoff, watched.counter.path)
                self._failing.discard(watched)
                if watched.series is None:
                    self._changes.started.append(watched)
        for watched, status in failed.items():
            self._failing.add(watched)
            self._failed(watched.backoff, watched.counter.path, _word(status), now)
            if watched.backoff.failures >= FAILED_READS:
                self._stop(watched)
        changes, self._changes = self._changes, Changes()
        changes.started = [watched for watched in changes.started if watched not in failed]
        return changes

    def read_fast(self) -> None:
        """Read the traffic counters only; what fails is seen by the next ``read``."""
        self._files.read(fast=True)

    def bind(self, watched: Watched, series: Series) -> None:
        """Let a counter feed ``series``."""
        watched.series = series
        if watched.slot is not None:
            self._files.bind(watched.slot, series, watched.counter.metric.rates)

    def fold(self, ring: Ring, now_ns: int, *, fast: bool = False) -> None:
        """Put what was read into the series. Under the node's lock."""
        self._files.fold(ring, now_ns, fast)

    def text(self, path: str, parse: Callable[[str], _T | None], now: float) -> _T | None:
        """The parsed content of a small file; None where it cannot be had now."""
        text = self._texts.setdefault(path, _Text())
        backoff = text.backoff
        if not backoff.due(now):
            return None
        try:
            if text.file is None:
                # O_NONBLOCK: what only looks like a file of sysfs, a FIFO say, must not hold the reader.
                flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
                text.file = os.fdopen(os.open(path, flags), "rb", buffering=0)
            value = parse(clean(os.pread(text.file.fileno(), MAX_TEXT, 0)))
        except OSError as error:
            text.file = None
            self._failed(backoff, path, _word(error.errno or 0), now)
            return None
        if value is None:
            self._failed(backoff, path, "not_understood", now)
        else:
            self._succeeded(backoff, path)
        return value

    def mtu(self, statistics: str, now: float) -> int | None:
        """The MTU of the interface whose counters are in ``statistics``."""
        return self.text(f"{statistics.rpartition('/')[0]}/mtu", _parse_number, now)

    def close(self) -> None:
        """Close every file."""
        self._files.close()
        self._counters.clear()
        self._of_slot.clear()
        self._failing.clear()
        self._changes = Changes()
        self._texts.clear()
        self._problems.clear()
        self.devices = ()

    def _open(self, watched: Watched, now: float) -> None:
        if watched.slot is not None or not watched.backoff.due(now):
            return
        try:
            watched.slot = self._files.add(watched.counter.path, watched.counter.scale)
        except OSError as error:
            self._failing.add(watched)
            self._failed(watched.backoff, watched.counter.path, _word(error.errno or 0), now)
            return
        self._of_slot[watched.slot] = watched
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

    def _failed(self, backoff: Backoff, path: str, word: str, now: float) -> None:
        self._count(word)
        delay = backoff.fail(now)
        if backoff.failures == 1:
            _log.warning("%s: cannot be read: %s; tried again in %g s, then more rarely", path, word, delay)

    def _succeeded(self, backoff: Backoff, path: str) -> None:
        if backoff.failures:
            backoff.failures = 0
            _log.info("%s: can be read again", path)

    def _count(self, word: str) -> None:
        self._errors[word] = self._errors.get(word, 0) + 1


def _parse_number(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 10 else None


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
        for file, meaning in meanings.items():
            path = f"{port.path}/{file.group}/{file.name}"
            yield Counter(path, port.identity, meaning.metric, common + meaning.attributes, meaning.scale)
        if port.statistics is not None and not counts_bytes(meanings.values()):
            for name in ("tx_packets", "rx_packets"):
                named = (("rdma.counter.name", f"{NETDEV}/{name}"),)
                yield Counter(f"{port.statistics}/{name}", port.identity, PORT_COUNTER, common + named)
            for name, direction in (("tx_bytes", "transmit"), ("rx_bytes", "receive")):
                attributes = (("network.io.direction", direction), ("rdma.counter.source", "netdev"))
                yield Counter(f"{port.statistics}/{name}", port.identity, NETWORK_IO, common + attributes)
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


def _word(status: int) -> str:
    return _WORDS.get(status) or errno.errorcode.get(status, f"errno_{status}")
