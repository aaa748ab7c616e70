"""What there is to see on the node at one moment. Bytes, bytes per second, shares of 1; None is not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from fabrictap.view import simulated
from fabrictap.view.recording import Connection, Life
from fabrictap.view.top.findings import Found

Rates = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Way:
    """One direction: the rate of the last tick, the largest of the last minute, and those tick by tick."""

    rate: float | None = None
    peak: float | None = None
    past: Rates = ()


NOWHERE = Way()


@dataclass(frozen=True, slots=True)
class Port:
    name: str
    interface: str
    state: str
    up: bool | None
    limit: float | None
    receive: Way
    transmit: Way
    dark_receive: Way
    dark_transmit: Way
    errors: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Link:
    """One NVLink. ``gpu`` is the GPU's number, as text; ``remote`` what is at the other end."""

    gpu: str
    number: int
    up: bool | None
    remote: str
    limit: float | None
    receive: Way
    transmit: Way
    errors: int


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, or a MIG device, whose ``label`` is its GPU's number with a mark."""

    id: str
    label: str
    model: str
    state: str
    busy: float | None
    memory: float | None
    used: float | None
    dram: float | None
    nvlink_receive: Way
    nvlink_transmit: Way
    pcie_receive: Way
    pcie_transmit: Way
    power: float | None
    temperature: float | None
    errors: Mapping[str, int]
    links: tuple[Link, ...]


@dataclass(frozen=True, slots=True)
class Flow:
    connection: Connection
    #: Namespace and pod, job or unit; empty where it has none or it is not known.
    workload: str
    past: Rates


@dataclass(frozen=True, slots=True)
class Look:
    """``time_ns``: of the look, or of the last tick where the agent is gone. ``picture``: the rest of it, as
    ``fabrictap snapshot --json`` has it."""

    time_ns: int
    life: Life
    version: str
    resource: Mapping[str, Any]
    ports: tuple[Port, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    flows: tuple[Flow, ...] = ()
    findings: tuple[Found, ...] = ()
    picture: Mapping[str, Any] = field(default_factory=dict)
    unreadable: int = 0

    @property
    def node(self) -> str:
        return str(self.resource.get("host.name", ""))

    @property
    def simulated(self) -> bool:
        return simulated.is_simulated(self.resource)

    @property
    def links(self) -> tuple[Link, ...]:
        return tuple(link for gpu in self.gpus for link in gpu.links)


def total(ways: Sequence[Way]) -> Way:
    """The sum of several ways; what is not known counts only where nothing is.

    Peaks of several need not be of the same moment: the largest tick is what is known of their sum.
    """
    past = added([way.past for way in ways])
    rates = [way.rate for way in ways if way.rate is not None]
    peak = max((value for value in past if value is not None), default=None)
    return Way(sum(rates) if rates else None, peak, past)


def added(pasts: Sequence[Rates]) -> Rates:
    """Tick by tick, the newest at the end; those that are shorter began later."""
    newest = zip_longest(*(reversed(past) for past in pasts))
    made = [
        sum(known) if (known := [value for value in tick if value is not None]) else None for tick in newest
    ]
    return made[::-1]
