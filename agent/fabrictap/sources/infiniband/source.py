"""Hardware counters and link state of every RDMA port, from sysfs.

One file is one counter is one series. See :mod:`fabrictap.sources.infiniband.counters` for which file becomes
which metric and :mod:`fabrictap.sources.infiniband.watch` for what happens to a file that cannot be read.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fabrictap import config
from fabrictap.catalog import NETWORK_LIMIT, NETWORK_UP, Metric
from fabrictap.ledger import Ledger
from fabrictap.ledger.devices import Device, Port
from fabrictap.series import AttributeValue, Series, SeriesTable
from fabrictap.sources import SourceUnavailable
from fabrictap.sources.infiniband.links import Link
from fabrictap.sources.infiniband.sysfs import DeviceTree, scan
from fabrictap.sources.infiniband.traffic import TrafficCounters
from fabrictap.sources.infiniband.watch import Changes, Watch, port_attributes, port_id

_ACTIVE = "active"


@dataclass(frozen=True, slots=True)
class Sample:
    """One pass over all devices; what the counters said is where they were read."""

    links: tuple[Link, ...] = ()
    changes: Changes = field(default_factory=Changes)
    devices: tuple[DeviceTree, ...] = ()


class Infiniband:
    """The source ``infiniband``. See :class:`fabrictap.sources.Source` for who may block where."""

    name = "infiniband"

    def __init__(
        self,
        config: config.Infiniband,
        series: SeriesTable,
        ledger: Ledger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.interval = float(config.interval)
        self.fast_interval = float(config.fast_interval)
        self.deadline = max(5.0, 2 * self.interval)
        self.waited = 0.0
        self.errors: dict[str, int] = {}
        #: Seconds between two looks for devices, ports and files that came or went.
        self.rescan_interval = 5.0
        self._sysfs = config.sysfs
        self._clock = clock
        self._watch = Watch(config.sysfs, ledger.filter, self.errors)
        self._rescan_at: float | None = None
        # what fold has put where
        self._table = series
        self._devices = ledger.devices
        self._ledger_traffic = ledger.traffic
        self._traffic = TrafficCounters()
        self._trees: dict[str, DeviceTree] = {}
        self._shown: tuple[Link, ...] = ()
        self._links: dict[tuple[str, str], Series] = {}

    def open(self) -> None:
        """Look for devices. Raises SourceUnavailable."""
        self._rescan(self._clock())
        if not self._watch.devices:
            raise self._unavailable()

    def sample(self) -> Sample:
        """Read every counter and link once. Raises SourceUnavailable where there is no device."""
        now = self._clock()
        before = self._watch.devices
        if self._rescan_at is None or now >= self._rescan_at:
            self._rescan(now)
        changes = self._watch.read(now)
        devices = self._watch.devices
        if not devices and not before:
            raise self._unavailable()
        # that the last device has gone is a sample, once: fold takes out what it had
        return Sample(self._watch.links(now), changes, devices)

    def fold(self, sample: Sample, now_ns: int) -> None:
        """Put a sample into series and ledger."""
        # what has gone first: a device that came back at once has the same attributes
        for series in sample.changes.stopped:
            self._table.end(series)
            self._traffic.discard(series)
        for watched in sample.changes.started:
            counter = watched.counter
            series = self._table.series(counter.metric, dict(counter.attributes), now_ns)
            self._watch.bind(watched, series)
            self._traffic.add(counter, series)
        self._watch.fold(self._table.ring, now_ns)
        self._ledger_traffic.ports = self._traffic.readings(sample.links, now_ns)
        # The same object while nothing has changed.
        if sample.links is not self._shown:
            self._fold_links(sample.links, now_ns)
            self._fold_devices(sample)
            self._shown = sample.links

    def sample_fast(self) -> None:
        """Read the traffic counters once."""
        self._watch.read_fast()

    def fold_fast(self, now_ns: int) -> None:
        """Put them into their series."""
        self._watch.fold(self._table.ring, now_ns, fast=True)

    def rest(self, until: float, interval: float) -> int:
        """Read the traffic counters every ``interval`` s until ``until``, for their peaks."""
        return self._watch.rest(until, interval)

    def wake(self) -> None:
        """End a ``rest``."""
        self._watch.wake()

    def close(self) -> None:
        """Close every file."""
        self._watch.close()
        self._rescan_at = None

    def _rescan(self, now: float) -> None:
        self._rescan_at = now + self.rescan_interval
        self._watch.rescan(now)

    def _unavailable(self) -> SourceUnavailable:
        root = f"{self._sysfs}/class/infiniband"
        hint = "load a driver such as mlx5_ib, or rdma_rxe with 'rdma link add'"
        try:
            found = scan(self._sysfs, lambda _: False)
        except OSError as error:
            what = "does not exist" if error.errno == errno.ENOENT else f"cannot be read: {error.strerror}"
            return SourceUnavailable(f"no RDMA device: {root} {what}; {hint}")
        if found.denied:
            return SourceUnavailable(
                f"no RDMA device: devices.allow and devices.deny let none of {root} through"
            )
        return SourceUnavailable(f"no RDMA device: {root} is empty; {hint}")

    def _fold_links(self, links: tuple[Link, ...], now_ns: int) -> None:
        wanted: dict[tuple[str, str], tuple[Metric, dict[str, AttributeValue], int]] = {}
        for link in links:
            key = port_id(link.device, link.port)
            attributes = port_attributes(link.device, link.port)
            if link.rate is not None:
                wanted[(NETWORK_LIMIT.name, key)] = (NETWORK_LIMIT, attributes, link.rate)
            if link.state is not None:
                known = {
                    "rdma.port.state": link.state,
                    "hw.model": link.device.model,
                    "hw.firmware_version": link.device.firmware,
                }
                attributes = attributes | {name: value for name, value in known.items() if value is not None}
                wanted[(NETWORK_UP.name, key)] = (NETWORK_UP, attributes, int(link.state == _ACTIVE))
        for name, series in list(self._links.items()):
            # a state is an attribute: another state is another series
            if name not in wanted or series.attributes != wanted[name][1]:
                self._table.end(self._links.pop(name))
        for name, (metric, attributes, value) in wanted.items():
            found = self._links.get(name)
            if found is None:
                found = self._links[name] = self._table.series(metric, attributes, now_ns)
            found.set(value, now_ns)

    def _fold_devices(self, sample: Sample) -> None:
        trees = {device.name: device for device in sample.devices}
        for name in self._trees.keys() - trees.keys():
            self._devices.remove(name)
        for name, tree in trees.items():
            if self._trees.get(name) != tree:
                self._devices.put(_device(tree))
        self._trees = trees
        for link in sample.links:
            known = self._devices.get(link.device.name)
            port = known.ports.get(link.port.number) if known is not None else None
            if port is not None:
                port.state = link.state or "unknown"


def _device(tree: DeviceTree) -> Device:
    ports = {
        port.number: Port(port.number, port.link_layer or "unknown", "unknown", port.netdev, dict(port.gids))
        for port in tree.ports
    }
    return Device(tree.name, tree.driver, tree.model, tree.firmware, tree.node_guid, ports)
