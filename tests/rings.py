"""Ring files for tests, made by the real writer."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import time
from pathlib import Path

from fabrictap import ringfile
from fabrictap.ext import layout
from fabrictap.ext.ring import Ring
from fabrictap.ledger import names
from fabrictap.series import SeriesTable

OPERATIONS, COVERAGES = names.OPERATIONS, names.COVERAGES
RESOURCE = {"service.name": "fabrictap", "host.name": "node1"}
S = 10**9


def about(**more):
    """The about section as the agent writes it."""
    return json.dumps(json.loads(ringfile.about(RESOURCE, names.LISTS)) | more).encode()


def make(
    path, *, series=64, rows=16, connections=8, events=8, tick_ns=S, now_ns=None, grace_ns=0, described=True
):
    """(ring, table) of a new file at ``path``."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    memory = Ring(
        descriptor,
        series=series,
        rows=rows,
        tick_ns=tick_ns,
        connections=connections,
        events=events,
        grace_ns=grace_ns,
        now_ns=time.time_ns() if now_ns is None else now_ns,
        **ringfile.directions(OPERATIONS),
        about_size=1 << 16,
        path=str(path),
    )
    if described:
        memory.describe(about())
    return memory, SeriesTable(series, memory)


def header(path):
    """The header of a ring file, read by hand."""
    raw = Path(path).read_bytes()[: layout.SIZES["header"]]
    return {
        name: struct.unpack_from("=" + form, raw, offset)[0]
        for name, (offset, form) in layout.FIELDS["header"].items()
    }


def poke(path, structure, at, **values):
    """Write fields of the structure at offset ``at`` of a file."""
    with Path(path).open("r+b") as file:
        for name, value in values.items():
            offset, form = layout.FIELDS[structure][name]
            file.seek(at + offset)
            parts = value if isinstance(value, tuple) else (value,)
            file.write(struct.pack("=" + form, *parts))


def put_connection(path, row, **values):
    """Write a row of the table of connections as the agent does."""
    head = header(path)
    fields = {
        "sequence": 2,
        "state": layout.LIVE,
        "type": names.QP_TYPES.index("rc"),
        "qp_state": names.QP_STATES.index("rts"),
        "coverage": COVERAGES.index("exact"),
        "origin": 0,
        "port": 1,
        "mtu_exponent": 12,
        "known": layout.HAS_PEER_QPN | layout.HAS_PID,
        "qpn": 17 + row,
        "peer_qpn": 99,
        "pid": os.getpid(),
        "created_ns": time.time_ns() - 60 * S,
        "device": b"mlx5_0",
        "process": b"trainer",
        "gid": bytes(10) + b"\xff\xff" + bytes((10, 9, 0, 1)),
        "peer_gid": bytes(10) + b"\xff\xff" + bytes((10, 9, 0, 2)),
    } | values
    if isinstance(posted := fields.get("posted"), dict):
        counts = [0] * 32
        for operation, (operations, size) in posted.items():
            index = OPERATIONS.index(operation)
            counts[2 * index : 2 * index + 2] = operations, size
        fields["posted"] = tuple(counts)
    poke(path, "connection", head["connections_at"] + row * layout.SIZES["connection"], **fields)
    poke(path, "header", 0, connections_used=max(head["connections_used"], row + 1))
