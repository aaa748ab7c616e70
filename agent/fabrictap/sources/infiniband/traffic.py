"""The counters of each port that are reconciled with what was posted."""

from __future__ import annotations

from dataclasses import dataclass

from fabrictap.catalog import NETWORK_IO, NETWORK_PACKETS
from fabrictap.ledger.traffic import Moved, PortTraffic
from fabrictap.series import Series
from fabrictap.sources.infiniband.counters import RETRIES
from fabrictap.sources.infiniband.links import Link
from fabrictap.sources.infiniband.watch import NETDEV, Counter, port_id

_FRAMES = {f"{NETDEV}/tx_packets": "transmit", f"{NETDEV}/rx_packets": "receive"}
_DIRECTIONS = ("transmit", "receive")
_WHAT = ("bytes", "packets", "frames")
_ETHERNET = 18  # header and VLAN tag
_DEFAULT_MTU = 9000
_Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class _Port:
    """A port and the series of its bytes, packets and frames in each direction."""

    link: Link
    hw_id: str
    software: bool
    directions: tuple[tuple[str, tuple[Series | None, ...]], ...]
    retries: tuple[Series, ...]


class TrafficCounters:
    """The series of bytes, packets and frames of each port."""

    def __init__(self) -> None:
        self._series: dict[_Key, Series] = {}
        self._keys: dict[Series, _Key] = {}
        self._software: set[str] = set()
        self._links: tuple[Link, ...] = ()
        #: None where they have changed.
        self._ports: list[_Port] | None = None

    def add(self, counter: Counter, series: Series) -> None:
        """Remember the series of a counter, if it is one of these."""
        attributes = dict(counter.attributes)
        hw_id, direction = str(attributes["hw.id"]), attributes.get("network.io.direction")
        if counter.metric is NETWORK_IO:
            what = "bytes"
            if attributes["rdma.counter.source"] == NETDEV:
                self._software.add(hw_id)
            else:
                self._software.discard(hw_id)
        elif counter.metric is NETWORK_PACKETS:
            what = "packets"
        else:
            name = str(attributes.get("rdma.counter.name") or attributes.get("error.type"))
            if name in _FRAMES:
                what, direction = "frames", _FRAMES[name]
            elif name in RETRIES:
                what, direction = "retries", name
            else:
                return
        key = (hw_id, what, str(direction))
        self._series[key], self._keys[series] = series, key
        self._ports = None

    def discard(self, series: Series) -> None:
        """A counter has gone."""
        key = self._keys.pop(series, None)
        if key is not None:
            del self._series[key]
            self._ports = None

    def readings(self, links: tuple[Link, ...], now_ns: int) -> dict[str, PortTraffic]:
        """What the ports say now; those that do not count both bytes and packets say nothing."""
        if links is not self._links:
            self._links = links
            self._ports = None
        if self._ports is None:
            self._ports = [self._port(link) for link in links]
        found: dict[str, PortTraffic] = {}
        for port in self._ports:
            moved: dict[str, Moved] = {}
            for direction, counters in port.directions:
                size, packets, frames = map(_value, counters)
                if size is not None and packets is not None:
                    moved[direction] = size, packets, frames
            if moved:
                link = port.link
                found[port.hw_id] = PortTraffic(
                    now_ns,
                    link.device.name,
                    link.port.number,
                    link.port.link_layer,
                    port.software,
                    (link.mtu or _DEFAULT_MTU) + _ETHERNET,
                    sum(_value(series) or 0 for series in port.retries),
                    moved,
                )
        return found

    def _port(self, link: Link) -> _Port:
        hw_id = port_id(link.device, link.port)
        directions = tuple(
            (direction, tuple(self._series.get((hw_id, what, direction)) for what in _WHAT))
            for direction in _DIRECTIONS
        )
        retries = tuple(
            series for (port, what, _), series in self._series.items() if (port, what) == (hw_id, "retries")
        )
        return _Port(link, hw_id, hw_id in self._software, directions, retries)


def _value(series: Series | None) -> int | None:
    value = series.value if series is not None else None
    return value if isinstance(value, int) else None
