"""Messages of the kernel's RDMA netlink, turned into plain objects.

Numbers and layouts: include/uapi/rdma/rdma_netlink.h, drivers/infiniband/core/nldev.c. Nothing that
arrives is trusted: every length is checked against what is there.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass

# enum rdma_nldev_attr
DEV_INDEX = 1
DEV_NAME = 2
_PORT_INDEX = 3
RES_QP, RES_QP_ENTRY = 19, 20
_RES_LQPN = 21
_RES_RQPN = 22
_RES_TYPE = 26
_RES_STATE = 27
_RES_PID = 28
_RES_KERN_NAME = 29
RES_CM_ID, RES_CM_ID_ENTRY = 30, 31
_RES_SRC_ADDR = 33
_RES_DST_ADDR = 34
RES_MR, RES_MR_ENTRY = 40, 41
_RES_RKEY = 42
_RES_LKEY = 43
_RES_IOVA = 44
_RES_MRLEN = 45
RES_CTX, RES_CTX_ENTRY = 86, 87

# include/uapi/linux/netlink.h
NLMSG_ERROR = 2
NLMSG_DONE = 3
_NLA_TYPE_MASK = 0x3FFF
HEADER = struct.Struct("=IHHII")
ATTRIBUTE = struct.Struct("=HH")

_AF_IB = 27  # struct sockaddr_ib, include/rdma/ib.h

Attributes = dict[int, bytes]


class MalformedError(OSError):
    """What arrived is not what the protocol allows."""

    def __init__(self, what: str) -> None:
        super().__init__(errno.EBADMSG, f"malformed RDMA netlink message: {what}")


@dataclass(frozen=True, slots=True)
class Message:
    """One netlink message without its header."""

    type: int
    flags: int
    sequence: int
    port_id: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose an object is: a thread (``tid``), a kernel user (``kernel``), or neither where it has exited.

    The kernel notes the thread that made an object, not its process (rdma_restrack_attach_task).
    """

    tid: int | None
    kernel: str | None


@dataclass(frozen=True, slots=True)
class QueuePair:
    """``type`` is enum ib_qp_type, ``state`` enum ib_qp_state. PSNs are left out: some drivers give the
    current ones."""

    qpn: int
    type: int
    state: int
    port: int | None
    peer_qpn: int | None
    owner: Owner


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """Keys are None without CAP_NET_ADMIN. ``length`` in bytes; ``address`` is the IO virtual address."""

    lkey: int | None
    rkey: int | None
    address: int | None
    length: int
    owner: Owner


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address of a connection manager id: a GID of its own, or an IP address as a GID would show it."""

    gid: str
    ip: bool


@dataclass(frozen=True, slots=True)
class CmId:
    """A connection manager id that is bound to a queue pair."""

    qpn: int
    port: int | None
    source: Endpoint | None
    destination: Endpoint | None


def parse_messages(data: bytes) -> Iterator[Message]:
    """Split what one recvmsg delivered. Raises MalformedError."""
    offset = 0
    while offset < len(data):
        if len(data) - offset < HEADER.size:
            raise MalformedError("cut off in a header")
        length, kind, flags, sequence, port_id = HEADER.unpack_from(data, offset)
        if not HEADER.size <= length <= len(data) - offset:
            raise MalformedError(f"length {length} at byte {offset} of {len(data)}")
        yield Message(kind, flags, sequence, port_id, data[offset + HEADER.size : offset + length])
        offset += _aligned(length)


def raise_for(message: Message) -> None:
    """Raise the OSError that an NLMSG_ERROR or NLMSG_DONE carries, if any. Raises MalformedError."""
    if len(message.payload) >= 4:
        (code,) = struct.unpack_from("=i", message.payload)
        if code < 0:
            raise OSError(-code, os.strerror(-code))
    elif message.type == NLMSG_ERROR:
        raise MalformedError("an error without a code")


def iter_attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, content) of each attribute of one level. Raises MalformedError."""
    offset = 0
    while offset < len(data):
        if len(data) - offset < ATTRIBUTE.size:
            raise MalformedError("cut off in an attribute")
        length, kind = ATTRIBUTE.unpack_from(data, offset)
        if not ATTRIBUTE.size <= length <= len(data) - offset:
            raise MalformedError(f"attribute length {length} at byte {offset} of {len(data)}")
        yield kind & _NLA_TYPE_MASK, data[offset + ATTRIBUTE.size : offset + length]
        offset += _aligned(length)


def parse_attributes(data: bytes) -> Attributes:
    """Type -> content; of a type that comes twice the last counts, as in nla_parse."""
    return dict(iter_attributes(data))


def parse_queue_pair(attributes: Attributes) -> QueuePair | None:
    """None for an entry without number, type or state."""
    qpn, kind = u32_of(attributes, _RES_LQPN), _u8(attributes, _RES_TYPE)
    state = _u8(attributes, _RES_STATE)
    if qpn is None or kind is None or state is None:
        return None
    port, peer = u32_of(attributes, _PORT_INDEX), u32_of(attributes, _RES_RQPN)
    # no peer has QP 0, the subnet management interface: the QP is not connected yet
    return QueuePair(qpn, kind, state, port, peer or None, parse_owner(attributes))


def parse_memory_region(attributes: Attributes) -> MemoryRegion | None:
    """None for an entry without a length."""
    length = _u64(attributes, _RES_MRLEN)
    if length is None:
        return None
    return MemoryRegion(
        u32_of(attributes, _RES_LKEY),
        u32_of(attributes, _RES_RKEY),
        _u64(attributes, _RES_IOVA),
        length,
        parse_owner(attributes),
    )


def parse_cm_id(attributes: Attributes) -> CmId | None:
    """None for an id without a queue pair, as a listener's."""
    qpn = u32_of(attributes, _RES_LQPN)
    if not qpn:
        return None
    source = parse_endpoint(attributes.get(_RES_SRC_ADDR, b""))
    destination = parse_endpoint(attributes.get(_RES_DST_ADDR, b""))
    return CmId(qpn, u32_of(attributes, _PORT_INDEX), source, destination)


def parse_owner(attributes: Attributes) -> Owner:
    return Owner(u32_of(attributes, _RES_PID) or None, text_of(attributes, _RES_KERN_NAME) or None)


def parse_endpoint(address: bytes) -> Endpoint | None:
    """A struct sockaddr_in, _in6 or _ib. An IPv4 address is given as RoCE v2 maps it into a GID."""
    if len(address) < 8:
        return None
    (family,) = struct.unpack_from("=H", address)
    if family == socket.AF_INET:
        gid = bytes(10) + b"\xff\xff" + address[4:8]
    elif family in (socket.AF_INET6, _AF_IB) and len(address) >= 24:
        gid = address[8:24]
    else:
        return None
    if not any(address[4:8] if family == socket.AF_INET else gid):
        return None
    return Endpoint(socket.inet_ntop(socket.AF_INET6, gid), family != _AF_IB)


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _u8(attributes: Attributes, kind: int) -> int | None:
    value = attributes.get(kind)
    return value[0] if value is not None and len(value) >= 1 else None


def u32_of(attributes: Attributes, kind: int) -> int | None:
    value = attributes.get(kind)
    return int.from_bytes(value[:4], sys.byteorder) if value is not None and len(value) >= 4 else None


def _u64(attributes: Attributes, kind: int) -> int | None:
    value = attributes.get(kind)
    return int.from_bytes(value[:8], sys.byteorder) if value is not None and len(value) >= 8 else None


def text_of(attributes: Attributes, kind: int) -> str:
    return attributes.get(kind, b"").partition(b"\0")[0].decode("ascii", "replace")
