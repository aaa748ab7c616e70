from collections.abc import Mapping
from dataclasses import dataclass, field

from fabrictap.catalog import Metric

NO_SERIES: int
VERSION: int
SEGMENT: int
BUCKETS: int
OPERATIONS: int
COUNTER: int
UPDOWNCOUNTER: int
GAUGE: int
HISTOGRAM: int

@dataclass
class Histogram:
    count: int = 0
    sum: float = 0
    zeros: int = 0
    offset: int = 0
    buckets: list[int] = field(default_factory=list)
    scale: int = 0

class Ring:
    path: str | None
    inbound: int
    outbound: int
    def __init__(
        self,
        fd: int,
        *,
        series: int,
        rows: int,
        tick_ns: int,
        connections: int,
        events: int,
        grace_ns: int,
        now_ns: int,
        inbound: int = 0,
        outbound: int = 0,
        about_size: int = ...,
        path: str | None = None,
    ) -> None: ...
    @property
    def head(self) -> int: ...
    @property
    def allocated(self) -> int: ...
    def describe(self, about: bytes) -> None: ...
    def tick(self, now_ns: int) -> None: ...
    def interval(self, now_ns: int) -> None: ...
    def event(
        self,
        kind: int,
        time_ns: int,
        *,
        severity: int = 9,
        pid: int = 0,
        qpn: int = 0,
        peer_qpn: int = 0,
        value: int = 0,
        device: str = "",
        process: str = "",
        gid: bytes = b"",
        peer_gid: bytes = b"",
        text: str = "",
    ) -> None: ...
    def close(self, now_ns: int) -> None: ...
    def take(
        self,
        kind: int,
        metric: int,
        attributes: bytes,
        rates: bool,
        start_ns: int,
        now_ns: int,
        overflow: bool = False,
    ) -> int: ...
    def end(self, slot: int) -> None: ...
    def release(self, slot: int, now_ns: int) -> None: ...

class Series:
    ring: Ring
    slot: int
    metric: Metric
    encoded: bytes
    ended: bool
    def __init__(self, ring: Ring, slot: int, metric: Metric, encoded: bytes) -> None: ...
    def set(self, value: float | Histogram, now_ns: int) -> None: ...
    def add(self, delta: float, now_ns: int) -> None: ...
    def observe(self, cumulative: int, now_ns: int) -> None: ...
    def record(self, value: float, now_ns: int) -> None: ...
    def end(self) -> None: ...
    @property
    def value(self) -> int | float | Histogram | None: ...
    @property
    def attributes(self) -> dict[str, str | int | bool]: ...
    @property
    def known(self) -> bool: ...
    @property
    def start_ns(self) -> int: ...
    @property
    def time_ns(self) -> int: ...
    @property
    def peak(self) -> float: ...
    @property
    def average(self) -> float: ...

def encode_attributes(attributes: Mapping[str, str | int | float | bool], field: int = 7) -> bytes: ...
def decode_attributes(encoded: bytes) -> dict[str, str | int | bool]: ...
