"""The counters of each port that are reconciled with what was posted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fabrictap.catalog import NETWORK_IO, NETWORK_PACKETS
from fabrictap.ledger.traffic import Moved, PortTraffic
from fabrictap.series import Series
from fabrictap.sources.infiniband.watch import NETDEV, Counter, port_id

if TYPE_CHECKING:
    from fabrictap.sources.infiniband.source import Link

_FRAMES = {f"{NETDEV}/tx_packets": "transmit", f"{NETDEV}/rx_packets": "receive"}
#: Counters of drivers that move when a request of this node is sent again (mlx5: Documentation/networking/
#: device_drivers/ethernet/mellanox/mlx5/counters.rst and "Understanding mlx5 Linux Counters"; rdma_rxe:
#: rxe_hw_counters.c): acknowledgement timeouts, sequence and receiver-not-ready NAKs that came in.
_RETRIES = frozenset(
    {
        "local_ack_timeout_err",
        "packet_seq_err",
        "implied_nak_seq_err",
        "rnr_nak_retry_err",
        "roce_adp_retrans",
        "completer_retry_err",
        "rcvd_seq_err",
        "rcvd_rnr_err",
    }
)
_DIRECTIONS = ("transmit", "receive")
_ETHERNET = 18  # header and VLAN tag
_DEFAULT_MTU = 9000
_Key = tuple[str, str, str]


class TrafficCounters:
    """The series of bytes, packets and frames of each port."""

    def __init__(self) -> None:
        self._series: dict[_Key, Series] = {}
        self._keys: dict[Series, _Key] = {}
        self._software: set[str] = set()

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
            elif name in _RETRIES:
                what, direction = "retries", name
            else:
                return
        key = (hw_id, what, str(direction))
        self._series[key], self._keys[series] = series, key

    def discard(self, series: Series) -> None:
        """A counter has gone."""
        key = self._keys.pop(series, None)
        if key is not None:
            del self._series[key]

    def readings(self, links: Iterable[Link], now_ns: int) -> dict[str, PortTraffic]:
        """What the ports say now; those that do not count both bytes and packets say nothing."""
        found: dict[str, PortTraffic] = {}
        for link in links:
            hw_id = port_id(link.device, link.port)
            moved: dict[str, Moved] = {}
            for direction in _DIRECTIONS:
                size, packets, frames = (
                    self._value(hw_id, what, direction) for what in ("bytes", "packets", "frames")
                )
                if size is not None and packets is not None:
                    moved[direction] = size, packets, frames
            retries = sum(self._value(hw_id, "retries", name) or 0 for name in _RETRIES)
            if moved:
                found[hw_id] = PortTraffic(
                    now_ns,
                    link.device.name,
                    link.port.number,
                    link.port.link_layer,
                    hw_id in self._software,
                    (link.mtu or _DEFAULT_MTU) + _ETHERNET,
                    retries,
                    moved,
                )
        return found

    def _value(self, hw_id: str, what: str, direction: str) -> int | None:
        series = self._series.get((hw_id, what, direction))
        value = series.value if series is not None else None
        return value if isinstance(value, int) else None
