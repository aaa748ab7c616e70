"""The byte counters of NVLink and PCIe of a simulated node, as NVML's fast tier has them."""

from __future__ import annotations

from dataclasses import dataclass

from fabrictap import catalog
from fabrictap.ledger.gpus import Gpu
from fabrictap.ledger.providers import NVML, Figure, Providers
from fabrictap.series import AttributeValue, Series, SeriesTable
from fabrictap.sources.nvml import fields
from fabrictap.sources.nvml.batch import Wanted
from fabrictap.sources.nvml.wanted import by_field_values
from fabrictap.sources.simulated.gpus import faulty_gpu, faulty_link
from fabrictap.sources.simulated.profiles import Profile
from fabrictap.sources.simulated.script import WHOLE, Script

_SIDES = (fields.TRANSMIT, fields.RECEIVE)
#: Of 256 bytes on the wire, those that are payload: what gpu.nvlink.raw.io counts is more.
_RAW, _DATA = 288, 256
#: Part of the PCIe bandwidth that GPUs without NVLink exchange gradients at, in percent.
_PEER_TO_PEER = 40


@dataclass(slots=True)
class _Link:
    """One NVLink in one direction. ``speed``: what it moves at a level of all; 0 for one that is not used."""

    channel: str
    speed: int
    data: Series
    raw: Series
    packets: Series | None
    now: int = 0


@dataclass(slots=True)
class _Side:
    """One direction of one GPU. ``total``: its links together."""

    links: list[_Link]
    total: Series | None
    total_now: int
    pcie: Series | None
    pcie_now: int


class Counters:
    """``read`` and then ``fold``, as often as wanted. ``fold`` under the node's lock."""

    def __init__(
        self, profile: Profile, gpus: tuple[Gpu, ...], table: SeriesTable, providers: Providers
    ) -> None:
        self._profile = profile
        self._gpus = gpus
        self._table = table
        self._providers = providers
        self._sides: list[_Side] = []
        self._trains: list[bool] = []
        self._offered: set[Figure] = set()

    def start(self, now_ns: int) -> None:
        """Make the series."""
        for gpu in self._gpus:
            made = {
                (one.figure, side): self._series(one, side, now_ns)
                for one in by_field_values(gpu)
                if self._has(one.figure.metric, one.figure.part)
                for side in _SIDES
            }
            for side in _SIDES:
                links = [
                    _Link(
                        self._channel(gpu, link.number),
                        _speed(gpu, link.number, link.speed or 0, side, self._profile),
                        made[Figure(gpu.id, catalog.NVLINK_IO.name, link.number), side],
                        made[Figure(gpu.id, catalog.NVLINK_RAW_IO.name, link.number), side],
                        made.get((Figure(gpu.id, catalog.NVLINK_PACKETS.name, link.number), side)),
                    )
                    for link in gpu.links
                ]
                total = self._total(gpu, side, now_ns) if links else None
                pcie = made.get((Figure(gpu.id, catalog.GPU_IO.name, fields.PCIE), side))
                self._sides.append(_Side(links, total, 0, pcie, 0))
                self._trains.append(gpu.index in self._profile.trainers)

    def read(self, script: Script) -> None:
        """Take what the counters say now."""
        totals = script.totals
        out, back = self._over_pcie(script)
        for index, side in enumerate(self._sides):
            total = 0
            for link in side.links:
                link.now = totals[link.channel] * link.speed // WHOLE
                total += link.now
            side.total_now = total
            if self._trains[index]:
                side.pcie_now = back if index % 2 else out

    def fold(self, now_ns: int, *, all_of_them: bool) -> None:
        """Put it into the series; ``all_of_them``: also those that nobody wants peaks of."""
        for side in self._sides:
            for link in side.links:
                link.data.observe(link.now, now_ns)
            if side.total is not None:
                side.total.observe(side.total_now, now_ns)
            if side.pcie is not None:
                side.pcie.observe(side.pcie_now, now_ns)
        if all_of_them:
            for side in self._sides:
                for link in side.links:
                    link.raw.observe(link.now * _RAW // _DATA, now_ns)
                    if link.packets is not None:
                        link.packets.observe(link.now // _DATA, now_ns)

    def _over_pcie(self, script: Script) -> tuple[int, int]:
        """Bytes out of and into a GPU that trains: what its adapter sends and receives for it, its part of
        the data that is loaded and of the checkpoint, and, without NVLink, what its peers exchange."""
        profile, network = self._profile, self._profile.network
        share = network.fabric_rate * network.fabric // profile.count
        storage = network.storage_rate // len(profile.trainers)
        both = script.moved("fabric", share)
        if profile.links is None:
            limit = fields.pcie_bandwidth(*profile.pcie) or 0
            both += script.moved("nvlink", limit * _PEER_TO_PEER // 100)
        return both + script.moved("checkpoint", storage), both + script.moved("load", storage)

    def _has(self, metric: str, part: int | str | None) -> bool:
        if metric == catalog.NVLINK_PACKETS.name:
            return self._profile.links is not None and self._profile.links.fifth
        return part != fields.PCIE or self._profile.pcie_counters

    def _channel(self, gpu: Gpu, link: int) -> str:
        faulty = (faulty_gpu(self._profile), faulty_link(self._profile))
        return "nvlink_faulty" if (gpu.index, link) == faulty else "nvlink"

    def _series(self, one: Wanted, side: str, now_ns: int) -> Series:
        (best, *_) = one.candidates
        labels = {**one.attributes, **best.attributes}
        return self._make(best.metric, one.figure, labels, side, now_ns)

    def _total(self, gpu: Gpu, side: str, now_ns: int) -> Series:
        figure = Figure(gpu.id, catalog.GPU_IO.name, fields.NVLINK)
        return self._make(catalog.GPU_IO, figure, {"gpu.interconnect": fields.NVLINK}, side, now_ns)

    def _make(
        self,
        metric: catalog.Metric,
        figure: Figure,
        labels: dict[str, AttributeValue],
        side: str,
        now_ns: int,
    ) -> Series:
        if figure not in self._offered:
            self._offered.add(figure)
            self._providers.offer(NVML, figure, _nothing).available()
        named = {"hw.id": figure.gpu, "fabrictap.provider": NVML, "network.io.direction": side}
        return self._table.series(metric, {**labels, **named}, now_ns)


def _speed(gpu: Gpu, link: int, speed: int, side: str, profile: Profile) -> int:
    """Links do not carry exactly the same; GPUs that do not train nothing."""
    if gpu.index not in profile.trainers:
        return 0
    return speed * (1000 - (gpu.index * 5 + link * 3 + (side == fields.RECEIVE)) % 16) // 1000


def _nothing() -> None:
    """There is no other provider on a simulated node that could take a figure over."""
