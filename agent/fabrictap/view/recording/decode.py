"""Records of the ring, unpacked, into what they mean. Raises ValueError for what cannot be."""

from __future__ import annotations

import math
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from fabrictap.ext import layout, ring
from fabrictap.ext.ring import Histogram
from fabrictap.view.recording.about import About
from fabrictap.view.recording.records import Connection, Event, HistogramCell, Posted

_LARGEST_MTU = 16
#: Opcodes that move nothing by themselves: posted buffers, and what stays in the adapter.
_NO_TRAFFIC = frozenset({"recv", "local_inv", "bind_mw"})
_BLIND = "control_only"
_IN_PART = "estimated"


def number(bits: int, real: bool) -> int | float:
    """Eight bytes that were unpacked as an integer, as what they are."""
    return float(struct.unpack("=d", struct.pack("=q", bits))[0]) if real else bits


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def text(raw: bytes) -> str:
    """A field filled up with NUL."""
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace")


def gid(raw: bytes) -> str | None:
    """In IPv6 notation; all zero stands for one that is not known."""
    return socket.inet_ntop(socket.AF_INET6, raw) if any(raw) else None


def histogram(values: tuple[Any, ...], at: Mapping[str, int]) -> tuple[Histogram, HistogramCell]:
    """(the histogram, what came to it since the last row)."""
    used, buckets = values[at["used"]], at["buckets"]
    if used > ring.BUCKETS:
        raise ValueError("more buckets than there are")
    count, total = values[at["count"]], finite(values[at["sum"]]) or 0.0
    made = Histogram(
        count,
        total,
        values[at["zeros"]],
        values[at["offset"]],
        list(values[buckets : buckets + used]),
        values[at["scale"]],
    )
    return made, HistogramCell(
        count - values[at["row_count"]], total - (finite(values[at["row_sum"]]) or 0.0)
    )


def connection(row: int, values: tuple[Any, ...], at: Mapping[str, int], about: About) -> Connection:
    known, pid, exponent = values[at["known"]], values[at["pid"]], values[at["mtu_exponent"]]
    coverage = _name(about.coverages, values[at["coverage"]])
    first = at["posted"]
    posted = {}
    for opcode, operation in enumerate(about.operations[: ring.OPERATIONS]):
        operations, moved = values[first + 2 * opcode : first + 2 * opcode + 2]
        if operations or moved:
            posted[operation] = Posted(operations, moved)
    fraction = finite(values[at["fraction"]]) if coverage == _IN_PART else None
    seen = coverage != _BLIND and fraction != 0
    inbound = sum(one.bytes for name, one in posted.items() if name in about.inbound)
    outbound = sum(
        one.bytes for name, one in posted.items() if name not in about.inbound and name not in _NO_TRAFFIC
    )
    return Connection(
        row=row,
        ended=values[at["state"]] == layout.ENDED,
        device=text(values[at["device"]]),
        port=values[at["port"]] or None,
        qpn=values[at["qpn"]],
        type=_name(about.qp_types, values[at["type"]]),
        state=_name(about.qp_states, values[at["qp_state"]]),
        pid=pid if known & layout.HAS_PID else None,
        process=text(values[at["process"]]),
        gid=gid(values[at["gid"]]),
        peer_gid=gid(values[at["peer_gid"]]),
        peer_qpn=values[at["peer_qpn"]] if known & layout.HAS_PEER_QPN else None,
        mtu=1 << exponent if 0 < exponent <= _LARGEST_MTU else None,
        coverage=coverage,
        since_ns=values[at["since_ns"]] or None,
        fraction=fraction,
        origin=_name(about.origins, values[at["origin"]]),
        created_ns=values[at["created_ns"]],
        ended_ns=values[at["ended_ns"]] or None,
        posted=posted if seen else {},
        in_bytes=inbound if seen else None,
        out_bytes=outbound if seen else None,
        in_rate=finite(values[at["in_rate"]]) if seen else None,
        out_rate=finite(values[at["out_rate"]]) if seen else None,
    )


def event(values: tuple[Any, ...], at: Mapping[str, int], about: About) -> Event:
    kind = values[at["kind"]]
    return Event(
        number=values[at["number"]],
        time_ns=values[at["time_ns"]],
        name=about.events[kind].name if kind < len(about.events) else f"event {kind}",
        severity=values[at["severity"]],
        pid=values[at["pid"]] or None,
        qpn=values[at["qpn"]],
        peer_qpn=values[at["peer_qpn"]],
        value=values[at["value"]],
        device=text(values[at["device"]]),
        process=text(values[at["process"]]),
        gid=gid(values[at["gid"]]),
        peer_gid=gid(values[at["peer_gid"]]),
        text=text(values[at["text"]]),
    )


def _name(names: Sequence[str], index: int) -> str:
    if index >= len(names):
        raise ValueError("an index beyond its list")
    return names[index]
