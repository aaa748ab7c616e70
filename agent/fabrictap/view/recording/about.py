"""The about section of a ring: what the numbers in the file stand for."""

from __future__ import annotations

import msgspec

from fabrictap.ext import ring


class Agent(msgspec.Struct, frozen=True):
    version: str = "unknown"
    pid: int = 0


class MetricName(msgspec.Struct, frozen=True):
    """One metric; ``kind`` as in the catalog (Counter, UpDownCounter, Gauge, Histogram)."""

    name: str
    unit: str = ""
    kind: str = ""
    description: str = ""
    rates: bool = False


class EventName(msgspec.Struct, frozen=True):
    name: str
    description: str = ""


class About(msgspec.Struct, frozen=True):
    """Indices in these lists stand in the file; fields that are not known here are passed over."""

    metrics: list[MetricName]
    agent: Agent = Agent()
    boot_id: str | None = None
    resource: dict[str, str | int | float | bool] = {}
    events: list[EventName] = []
    operations: list[str] = []
    inbound: list[str] = []
    qp_types: list[str] = []
    qp_states: list[str] = []
    coverages: list[str] = []
    origins: list[str] = []


#: ft_kind -> the catalog's word.
KINDS = {
    ring.COUNTER: "Counter",
    ring.UPDOWNCOUNTER: "UpDownCounter",
    ring.GAUGE: "Gauge",
    ring.HISTOGRAM: "Histogram",
}


def parse(text: bytes) -> About:
    """Raises ValueError with a message for the operator."""
    try:
        return msgspec.json.decode(text, type=About)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"its description cannot be read: {error}") from None
