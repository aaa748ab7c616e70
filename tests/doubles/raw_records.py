"""Records and counters as the probes write them (probes/include/records.h), packed by hand."""

from __future__ import annotations

import socket
import struct
import time
from typing import Any

from fabrictap.ext import records
from fabrictap.ext.records import PostKey, Record, decode, post_key

EXITING, KERNEL, GID, ACCESS = 1, 2, 4, 8
STATE, AV, PATH_MTU, RQ_PSN, SQ_PSN, DEST_QPN = 1 << 0, 1 << 7, 1 << 8, 1 << 12, 1 << 16, 1 << 20

_HEAD = struct.Struct("<QQIIII16s64s")
_QP = struct.Struct("<IIIIiIIIII16s16s")
_MR = struct.Struct("<QQQIIII")
_CM = struct.Struct("<QIIiIII16s16x")
_AH = struct.Struct("<Q16s")
_UNION = 112
_KEY = struct.Struct("<QQIIIBBBx")
_POST = struct.Struct("<5Q33I4x")
assert _HEAD.size + _UNION == records.RECORD_SIZE
assert max(_QP.size, _MR.size, _AH.size) <= _UNION
assert (_KEY.size, _POST.size) == (records.POST_KEY_SIZE, records.POST_SIZE)
assert _CM.size == records.CM_RECORD_SIZE


def _gid(text: str | None) -> bytes:
    return socket.inet_pton(socket.AF_INET6, text) if text else bytes(16)


def _record(
    kind: int, body: bytes, device: str, *, pid: int = 1, comm: str = "app", flags: int = 0
) -> Record:
    """A record of this moment."""
    head = _HEAD.pack(time.monotonic_ns(), 7, kind, flags, pid, pid, comm.encode(), device.encode())
    (record,) = decode(head + body.ljust(_UNION, b"\0"))
    return record


def qp(
    kind: int, device: str, qpn: int, *, qp_type: int = 2, state: int = 0, mask: int = 0, result: int = 0,
    port: int = 1, peer_qpn: int = 0, rq_psn: int = 0, sq_psn: int = 0, mtu: int = 0,
    gid: str | None = None, peer_gid: str | None = None, flags: int = 0, **head: Any,
) -> Record:  # fmt: skip
    body = _QP.pack(
        qpn, qp_type, state, mask, result, port, peer_qpn, rq_psn, sq_psn, mtu, _gid(gid), _gid(peer_gid)
    )
    return _record(kind, body, device, flags=flags | (GID if gid else 0), **head)


def mr(kind: int, device: str, lkey: int, length: int = 0, access: int | None = None, **head: Any) -> Record:
    body = _MR.pack(0x1000, length, 0x1000, lkey, lkey + 1, access or 0, 0)
    flags = head.pop("flags", 0) | (0 if access is None else ACCESS)
    return _record(kind, body, device, flags=flags, **head)


def cm(kind: int, event: int, status: int = 0, pid: int = 1) -> bytes:
    """A record of the connection manager's own ring buffer."""
    return _CM.pack(time.monotonic_ns(), kind, event, status, pid, pid, 0, b"app")


def ah(identity: int, peer_gid: str, **head: Any) -> Record:
    return _record(records.AH_CREATED, _AH.pack(identity, _gid(peer_gid)), "", **head)


def plain(kind: int, device: str, **head: Any) -> Record:
    return _record(kind, b"", device, **head)


def post(
    qpn: int, operation: int = 2, *, operations: int = 1, size: int = 100, pid: int = 1, context: int = 0xC0,
    queue: int = records.QUEUE_SEND, qp_type: int = 2, peer_qpn: int = 0, handle: int = 0,
    slots: dict[int, int] | None = None,
) -> tuple[PostKey, bytes]:  # fmt: skip
    """One counter and its value: ``operations`` of ``size`` bytes in one SGE each, half of them signaled."""
    sizes = [0] * records.SIZE_SLOTS
    for slot, count in (slots or {max(0, (size - 1).bit_length() + 1) if size else 0: operations}).items():
        sizes[slot] = count
    key = _KEY.pack(context, handle, pid, qpn, peer_qpn, operation, queue, qp_type)
    value = _POST.pack(operations, operations * size, 0, 0, operations // 2, *sizes)
    return post_key(key), value
