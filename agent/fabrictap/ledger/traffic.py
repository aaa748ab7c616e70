"""What each port moved, by its own counters and by what was posted: the two sides that are reconciled."""

from __future__ import annotations

from dataclasses import dataclass, field

#: (bytes, packets, frames): as the port counts them. ``frames`` are those of the network interface below a
#: software device, which carries other traffic too; None for hardware, whose counters are RDMA's alone.
Moved = tuple[int, int, int | None]


@dataclass(frozen=True, slots=True)
class PortTraffic:
    """One reading of a port's counters: direction (transmit, receive) -> Moved, cumulative.

    ``time_ns`` is not before the reading, in nanoseconds since the epoch. ``software``: bytes are those of a
    network interface.
    """

    time_ns: int
    device: str
    port: int
    link_layer: str | None
    software: bool
    #: The largest frame that the interface sends, with its Ethernet header.
    frame: int
    #: How often this node's requests had to be sent again, as far as the driver counts it.
    retries: int
    moved: dict[str, Moved]


@dataclass(frozen=True, slots=True)
class PortPosted:
    """Bytes posted to the queue pairs of a port until now, cumulative.

    ``out``: payload that leaves through it, ``inwards``: that it reads from peers, ``room``: in receive
    buffers, ``headers``: extended transport headers of its own requests.
    """

    out: int = 0
    inwards: int = 0
    room: int = 0
    headers: int = 0


@dataclass(slots=True)
class Traffic:
    """Port (hw.id) -> both sides. ``posted`` has all that was posted before ``posted_until_ns``, and that
    was counted."""

    ports: dict[str, PortTraffic] = field(default_factory=dict)
    posted: dict[str, PortPosted] = field(default_factory=dict)
    posted_until_ns: int | None = None
    #: Port -> when posts to it were counted in part only, the last time.
    partial_ns: dict[str, int] = field(default_factory=dict)
