"""Which figures the fast tier wants of a GPU, and by which numbers it may have them."""

from __future__ import annotations

from collections.abc import Iterator

from fabrictap.catalog import (
    GPU_IO,
    GPU_MEMORY_BANDWIDTH,
    GPU_THROUGHPUT,
    NVLINK_IO,
    NVLINK_PACKETS,
    NVLINK_RAW_IO,
    NVLINK_THROUGHPUT,
)
from fabrictap.ledger.gpus import Gpu
from fabrictap.ledger.providers import Figure
from fabrictap.series import AttributeValue
from fabrictap.sources.nvml import fields
from fabrictap.sources.nvml.batch import Candidate, Wanted
from fabrictap.sources.nvml.devices import link_attributes
from fabrictap.sources.nvml.fields import C2C, NVLINK, PCIE, Pair


def by_field_values(gpu: Gpu) -> list[Wanted]:
    """What nvmlDeviceGetFieldValues has; keys are (field id, scope id)."""
    found = []
    for link in gpu.links:
        labels = link_attributes(gpu, link)
        for metric in (NVLINK_IO, NVLINK_RAW_IO, NVLINK_PACKETS):
            pairs = (pair for pair in fields.LINK_PAIRS if pair.metric is metric)
            found.append(
                Wanted(
                    Figure(gpu.id, metric.name, link.number),
                    tuple(_field_pair(pair, link.number) for pair in pairs),
                    labels,
                    summed=metric is NVLINK_IO,
                )
            )
    found.append(
        Wanted(
            Figure(gpu.id, GPU_IO.name, PCIE),
            (_field_pair(fields.PCIE_PAIR, 0),),
            {"gpu.interconnect": PCIE},
        )
    )
    return found


def by_gpm(gpu: Gpu) -> Iterator[Wanted]:
    """What GPM samples of the whole GPU have; keys are metric ids."""
    yield memory_bandwidth(gpu.id, {})
    pair = fields.GPM_PCIE_PAIR
    yield Wanted(
        Figure(gpu.id, GPU_IO.name, PCIE),
        (Candidate(GPU_IO, pair.sides, newer=True),),
        {"gpu.interconnect": PCIE},
    )
    for interconnect in (NVLINK, PCIE, C2C):
        sides = tuple((d, number) for (over, d), number in fields.GPM_RATES.items() if over == interconnect)
        rate = Candidate(GPU_THROUGHPUT, sides, fields.MIB, gauge=True, newer=interconnect == C2C)
        attributes = {"gpu.interconnect": interconnect}
        yield Wanted(Figure(gpu.id, GPU_IO.name, interconnect), (rate,), attributes, rate=True)
    for link in gpu.links:
        labels = link_attributes(gpu, link)
        figure = Figure(gpu.id, NVLINK_IO.name, link.number)
        pair = fields.gpm_link_pair(link.number)
        counter = Candidate(NVLINK_IO, pair.sides, attributes=_counter(pair), newer=True)
        yield Wanted(figure, (counter,), labels, summed=True)
        sides = fields.gpm_link_rates(link.number)
        newer = any(number > fields.GPM_FIRST_RELEASE for _, number in sides)
        rate = Candidate(NVLINK_THROUGHPUT, sides, fields.MIB, gauge=True, newer=newer)
        yield Wanted(figure, (rate,), labels, rate=True)


def memory_bandwidth(hw_id: str, attributes: dict[str, AttributeValue]) -> Wanted:
    """Memory bandwidth of a GPU or of a GPU instance."""
    candidate = Candidate(GPU_MEMORY_BANDWIDTH, ((None, fields.GPM_DRAM),), 0.01, gauge=True)
    return Wanted(Figure(hw_id, GPU_MEMORY_BANDWIDTH.name), (candidate,), attributes)


def _field_pair(pair: Pair, scope: int) -> Candidate:
    sides = tuple((direction, (field, scope)) for direction, field in pair.sides)
    newer = any(field > fields.FIELDS_R535 for _, field in pair.sides)
    return Candidate(pair.metric, sides, pair.scale, pair.bits, attributes=_counter(pair), newer=newer)


def _counter(pair: Pair) -> dict[str, AttributeValue]:
    return {} if pair.counter is None else {"gpu.nvlink.counter": pair.counter}
