"""The RDMA ports of a simulated node: their counters and links, as the source ``infiniband`` has them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from fabrictap.catalog import NETWORK_LIMIT, NETWORK_UP, Metric
from fabrictap.ledger.devices import Device, Devices, Port
from fabrictap.ledger.traffic import PortTraffic, Traffic
from fabrictap.series import AttributeValue, Series, SeriesTable
from fabrictap.sources.infiniband.counters import COUNTERS, HW_COUNTERS, File
from fabrictap.sources.infiniband.sysfs import DeviceTree, PortTree
from fabrictap.sources.infiniband.watch import Counter, counters_of, port_attributes, port_id
from fabrictap.sources.nvml.figures import Live
from fabrictap.sources.simulated.applications import (
    fabric_gid,
    pull_port,
    storage_device,
    storage_gid,
    training_port,
)
from fabrictap.sources.simulated.profiles import Profile
from fabrictap.sources.simulated.script import (
    PORT_ARMED,
    PORT_DOWN,
    PORT_INIT,
    PORT_LOST,
    Script,
)

#: Files of a port, as mlx5 has them; the four of traffic first.
_TRAFFIC = ("port_xmit_data", "port_rcv_data", "port_xmit_packets", "port_rcv_packets")
_COUNTERS = (
    *_TRAFFIC,
    "port_xmit_wait",
    "port_xmit_discards",
    "port_rcv_errors",
    "symbol_error",
    "link_downed",
    "link_error_recovery",
    "local_link_integrity_errors",
)
_HW_COUNTERS = (
    "out_of_sequence",
    "packet_seq_err",
    "local_ack_timeout_err",
    "out_of_buffer",
    "rx_read_requests",
    "rx_write_requests",
)
#: Congestion of RoCE: notifications sent and handled, packets marked on the way.
_ROCE = ("np_cnp_sent", "np_ecn_marked_roce_packets", "rp_cnp_handled")
_MTU = 4096
_FRAME = 9018
#: Headers of a packet that a port counts: LRH, BTH, ICRC; or Ethernet, IPv4, UDP, BTH, ICRC.
_IB_HEADERS, _ROCE_HEADERS = 24, 58
_RETH = 16
#: Packets that one acknowledgement is for; bytes of a message of the fabric, of storage, of a pull.
_ACKNOWLEDGED = 16
_MESSAGE = 512 << 10
_PULL_MESSAGE = 1 << 20


def faulty_port(profile: Profile) -> int:
    """Number of the device of the fabric whose link is lost."""
    return min(3, profile.network.fabric - 1)


def trees(profile: Profile) -> tuple[DeviceTree, ...]:
    """The adapters, as sysfs would show them."""
    network = profile.network
    return (
        *(
            _tree(profile, f"mlx5_{number}", number, network.infiniband, fabric_gid(profile, 1, number))
            for number in range(network.fabric)
        ),
        _tree(profile, storage_device(profile), network.fabric, False, storage_gid(1)),
    )


def _tree(profile: Profile, name: str, number: int, infiniband: bool, gid: str) -> DeviceTree:
    hw_counters = _HW_COUNTERS + (() if infiniband else _ROCE)
    port = PortTree(
        number=1,
        path="",
        identity=(0, number),
        link_layer="infiniband" if infiniband else "ethernet",
        netdev=f"ib{number}" if infiniband else f"rdma{number}",
        gids={0: gid},
        files=(
            *(File(COUNTERS, one) for one in _COUNTERS),
            *(File(HW_COUNTERS, one) for one in hw_counters),
        ),
        statistics=None,
    )
    return DeviceTree(
        name=name,
        path="",
        identity=(0, number),
        driver="mlx5_core",
        model=f"{profile.network.model} (simulated)",
        firmware=profile.network.firmware,
        node_guid=f"5369:6d00:0001:{number + 1:04x}",
        ports=(port,),
        files=(),
    )


@dataclass(slots=True)
class _Port:
    """``values``: file -> what it says; ``fast``: those whose peaks are wanted."""

    device: DeviceTree
    port: PortTree
    rate: int
    values: dict[str, int] = field(default_factory=dict)
    series: list[tuple[str, int, Series]] = field(default_factory=list)
    fast: list[tuple[str, int, Series]] = field(default_factory=list)
    state: str = "active"

    @property
    def hw_id(self) -> str:
        return port_id(self.device, self.port)


class Ports:
    """``read`` and then ``fold``, as often as wanted. ``fold`` under the node's lock."""

    def __init__(self, profile: Profile, table: SeriesTable, devices: Devices, traffic: Traffic) -> None:
        self._profile = profile
        self._table = table
        self._devices = devices
        self._traffic = traffic
        network = profile.network
        rates = [network.fabric_rate] * network.fabric + [network.storage_rate]
        self._ports = [
            _Port(tree, tree.ports[0], rate) for tree, rate in zip(trees(profile), rates, strict=True)
        ]
        self._links = Live(table)
        self._trained = {training_port(profile, index) for index in profile.trainers}

    def start(self, now_ns: int) -> None:
        """Make the series and put the devices into the ledger."""
        for one in self._ports:
            self._devices.put(_device(one.device))
            for counter in counters_of(one.device):
                series = self._table.series(counter.metric, dict(counter.attributes), now_ns)
                entry = (_file(counter), counter.scale, series)
                (one.fast if counter.metric.rates else one.series).append(entry)

    def read(self, script: Script) -> None:
        """Take what the counters say now."""
        for number, one in enumerate(self._ports):
            if number < self._profile.network.fabric:
                self._read_fabric(number, one, script)
            else:
                self._read_storage(one, script)

    def fold(self, now_ns: int, *, all_of_them: bool) -> None:
        """Put it into the series; ``all_of_them``: also those that nobody wants peaks of."""
        for one in self._ports:
            for name, scale, series in one.fast:
                series.observe(one.values[name] * scale, now_ns)
            if all_of_them:
                for name, scale, series in one.series:
                    series.observe(one.values.get(name, 0) * scale, now_ns)
        if all_of_them:
            self._links.write(
                [value for one in self._ports for value in _link(one)],
                now_ns,
            )
            self._traffic.ports = {one.hw_id: _traffic(one, now_ns) for one in self._ports}
            for one in self._ports:
                known = self._devices.get(one.device.name)
                if known is not None:
                    known.ports[one.port.number].state = one.state

    def _read_fabric(self, number: int, one: _Port, script: Script) -> None:
        gradients = script.moved("fabric", one.rate) if number in self._trained else 0
        pulled = script.moved("pull", one.rate) if number == pull_port(self._profile) else 0
        # Requests have a RETH in one packet of each message: what this node writes, and what a peer reads.
        written, asked = gradients // _MESSAGE, pulled // _PULL_MESSAGE
        acknowledged = gradients // _MTU // _ACKNOWLEDGED
        out = gradients // _MTU + pulled // _MTU + acknowledged
        back = gradients // _MTU + asked + acknowledged
        _put_traffic(
            one, gradients + pulled + _RETH * written, out, gradients + _RETH * (written + asked), back
        )
        values = one.values
        values["port_xmit_wait"] = script.moved("fabric", 21_000)
        values["rx_write_requests"] = written
        values["rx_read_requests"] = asked
        values["out_of_sequence"] = script.moved("fabric", 2)
        if one.port.link_layer == "ethernet":
            _put_congestion(one, script.moved("fabric", 140))
        if number == faulty_port(self._profile):
            now = script.now_ns
            lost = PORT_LOST.times(now)
            values["link_downed"] = lost
            values["symbol_error"] = 12 * lost
            values["local_ack_timeout_err"] = 32 * lost
            values["packet_seq_err"] = 4 * PORT_LOST.ended(now)
            one.state = (
                "down"
                if PORT_DOWN.on(now)
                else "init"
                if PORT_INIT.on(now)
                else "armed"
                if PORT_ARMED.on(now)
                else "active"
            )

    def _read_storage(self, one: _Port, script: Script) -> None:
        loaded = script.moved("load", one.rate) + script.moved("reads", one.rate)
        requests = script.moved("load", one.rate) // (1 << 20) + script.moved("reads", one.rate) // (64 << 10)
        written = script.moved("checkpoint", one.rate)
        said = script.moved("checkpoint", one.rate // (1 << 14))
        messages = written // (4 << 20)
        out = written // _MTU + said // 256 + requests
        back = loaded // _MTU + written // _MTU // _ACKNOWLEDGED
        _put_traffic(one, written + said + _RETH * (messages + requests), out, loaded, back)
        _put_congestion(one, script.moved("load", 90))


def _put_traffic(one: _Port, out: int, packets_out: int, back: int, packets_back: int) -> None:
    """``out`` and ``back``: bytes without the headers that every packet has."""
    headers = _IB_HEADERS if one.port.link_layer == "infiniband" else _ROCE_HEADERS
    one.values["port_xmit_data"] = (out + headers * packets_out) // 4
    one.values["port_rcv_data"] = (back + headers * packets_back) // 4
    one.values["port_xmit_packets"] = packets_out
    one.values["port_rcv_packets"] = packets_back


def _put_congestion(one: _Port, marked: int) -> None:
    one.values["np_ecn_marked_roce_packets"] = marked
    one.values["np_cnp_sent"] = marked // 3
    one.values["rp_cnp_handled"] = marked // 4


def _file(counter: Counter) -> str:
    return counter.path.rpartition("/")[2]


def _link(one: _Port) -> Iterator[tuple[Metric, dict[str, AttributeValue], int]]:
    attributes = port_attributes(one.device, one.port)
    yield NETWORK_LIMIT, attributes, one.rate
    known: dict[str, AttributeValue] = {
        "rdma.port.state": one.state,
        "hw.model": one.device.model or "",
        "hw.firmware_version": one.device.firmware or "",
    }
    yield NETWORK_UP, attributes | known, int(one.state == "active")


def _traffic(one: _Port, now_ns: int) -> PortTraffic:
    values = one.values
    return PortTraffic(
        now_ns,
        one.device.name,
        one.port.number,
        one.port.link_layer,
        software=False,
        frame=_FRAME,
        retries=0,
        moved={
            "transmit": (4 * values["port_xmit_data"], values["port_xmit_packets"], None),
            "receive": (4 * values["port_rcv_data"], values["port_rcv_packets"], None),
        },
    )


def _device(tree: DeviceTree) -> Device:
    ports = {
        port.number: Port(port.number, port.link_layer or "unknown", "active", port.netdev, dict(port.gids))
        for port in tree.ports
    }
    return Device(tree.name, tree.driver, tree.model, tree.firmware, tree.node_guid, ports)
