from dataclasses import dataclass
from typing import NamedTuple

WORK_SIZE: int
SENT: int
RECEIVE: int
COMPLETED: int
EMPTY: int
REFUSED: int
RESET: int
MATCHED: int
NOT_MATCHED: int
OUTCOMES: tuple[str | None, ...]
LATENCY_SCALE: int
IDLE_NS: int
RUN: int

class Work(NamedTuple):
    time_ns: int
    context: int
    queue: int
    wr_id: int
    bytes: int
    latency_ns: int
    pid: int
    tid: int
    qpn: int
    flags: int
    status: int
    vendor_error: int
    number: int
    place: int
    peer_qpn: int
    kind: int
    operation: int
    qp_type: int
    outcome: int

@dataclass(frozen=True)
class Group:
    context: int
    pid: int
    qpn: int
    kind: int
    operation: int
    status: int
    count: int
    bytes: int
    headers: int
    outcomes: dict[str, int]
    latency_ns: int
    least_ns: int
    most_ns: int
    latencies: dict[int, int]
    def payload(self, datagrams: bool) -> int: ...

def decode(batch: bytes | bytearray) -> list[Work]: ...
def encode(work: Work) -> bytes: ...

class Completions:
    def __init__(
        self, began_ns: int, pairs: int = 4096, groups: int = 4096, outstanding: int = 262144
    ) -> None: ...
    @property
    def refused(self) -> int: ...
    def feed(self, batch: bytearray, whole: bool = True) -> None: ...
    def groups(self) -> list[Group]: ...
