"""A client of the kernel's RDMA netlink: what RDMA objects exist right now.

:class:`Client` uses dumps only, which need no capability; without CAP_NET_ADMIN the kernel leaves the memory
keys out. The number of entries, the bytes and the time of a dump are bounded.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from fabrictap.sources.rdma_netlink.messages import (
    ATTRIBUTE,
    DEV_INDEX,
    DEV_NAME,
    HEADER,
    NLMSG_DONE,
    NLMSG_ERROR,
    RES_CM_ID,
    RES_CM_ID_ENTRY,
    RES_CTX,
    RES_CTX_ENTRY,
    RES_MR,
    RES_MR_ENTRY,
    RES_QP,
    RES_QP_ENTRY,
    Attributes,
    CmId,
    MalformedError,
    MemoryRegion,
    Owner,
    QueuePair,
    iter_attributes,
    parse_attributes,
    parse_cm_id,
    parse_memory_region,
    parse_messages,
    parse_owner,
    parse_queue_pair,
    raise_for,
    text_of,
    u32_of,
)

NETLINK_RDMA = 20
_NLDEV = 5 << 10

# enum rdma_nldev_command
_GET_DEVICES = 1
_GET_QPS = 10
_GET_CM_IDS = 11
_GET_MRS = 13
_GET_CONTEXTS = 22  # since Linux 5.14

# include/uapi/linux/netlink.h
_NLM_F_REQUEST = 0x1
_NLM_F_ACK = 0x4
_NLM_F_DUMP = 0x300
_NLM_F_DUMP_INTR = 0x10

#: A dump's buffer is at most 32 KiB (netlink_dump, net/netlink/af_netlink.c).
_BUFFER = 1 << 16
#: More than this many objects of one kind on one device are cut off, and said to be.
MAX_ENTRIES = 1 << 16
#: Likewise, of one dump as it comes.
MAX_BYTES = 32 << 20
#: Dumps that the kernel says were inconsistent are taken again so many times.
_ATTEMPTS = 4

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Listing(Generic[_T]):
    """The objects of one kind on one device. ``complete`` is false where some were cut off."""

    entries: list[_T]
    complete: bool


class Client:
    """One netlink socket, opened when it is needed and after every fault. One thread at a time.

    Every method raises OSError: EPROTONOSUPPORT without RDMA in the kernel, EINVAL for a device that
    has gone or a kind of object that the kernel does not list, TimeoutError, :class:`MalformedError`.
    ``timeout`` is the seconds that one dump may take.
    """

    def __init__(self, timeout: float = 5.0) -> None:
        self.timeout = timeout
        self._socket: socket.socket | None = None
        self._sequence = int(time.monotonic() * 1000) & 0xFFFFFFFF

    def devices(self) -> dict[int, str]:
        """Device index -> name."""
        found = {}
        for message in self._dump(_GET_DEVICES, b"")[0]:
            attributes = parse_attributes(message)
            index, name = u32_of(attributes, DEV_INDEX), text_of(attributes, DEV_NAME)
            if index is not None and name:
                found[index] = name
        return found

    def queue_pairs(self, device: int) -> Listing[QueuePair]:
        return self._resources(device, _GET_QPS, RES_QP, RES_QP_ENTRY, parse_queue_pair)

    def memory_regions(self, device: int) -> Listing[MemoryRegion]:
        return self._resources(device, _GET_MRS, RES_MR, RES_MR_ENTRY, parse_memory_region)

    def cm_ids(self, device: int) -> Listing[CmId]:
        return self._resources(device, _GET_CM_IDS, RES_CM_ID, RES_CM_ID_ENTRY, parse_cm_id)

    def contexts(self, device: int) -> Listing[Owner]:
        return self._resources(device, _GET_CONTEXTS, RES_CTX, RES_CTX_ENTRY, parse_owner)

    def ask(self, command: int, request: bytes) -> list[bytes]:
        """One command that is no dump: the payloads of its answers, until the kernel acknowledges it."""
        try:
            return self._exchange(command, request, _NLM_F_REQUEST | _NLM_F_ACK)[0]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _resources(
        self, device: int, command: int, table: int, entry: int, parse: Callable[[Attributes], _T | None]
    ) -> Listing[_T]:
        found: list[_T] = []
        request = ATTRIBUTE.pack(8, DEV_INDEX) + struct.pack("=I", device)
        messages, complete = self._dump(command, request)
        for message in messages:
            for kind, content in iter_attributes(message):
                if kind != table:
                    continue
                for inner, value in iter_attributes(content):
                    parsed = parse(parse_attributes(value)) if inner == entry else None
                    if parsed is not None and len(found) < MAX_ENTRIES:
                        found.append(parsed)
                    elif parsed is not None:
                        complete = False
        return Listing(found, complete)

    def _dump(self, command: int, request: bytes) -> tuple[list[bytes], bool]:
        """The payloads of a dump that the kernel calls consistent, and whether they are all of them."""
        try:
            for _ in range(_ATTEMPTS):
                payloads, complete, interrupted = self._exchange(
                    command, request, _NLM_F_REQUEST | _NLM_F_DUMP
                )
                if not interrupted:
                    return payloads, complete
        except BaseException:
            # what is still under way must not be taken for the answer to the next request
            self.close()
            raise
        raise OSError(errno.EAGAIN, f"RDMA netlink dump {command} changed under way {_ATTEMPTS} times")

    def _exchange(self, command: int, request: bytes, flags: int) -> tuple[list[bytes], bool, bool]:
        """Payloads, whether they are all of them, and whether the kernel calls them inconsistent."""
        if self._socket is None:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_RDMA
            )
            self._socket.bind((0, 0))
        connection = self._socket
        port_id = connection.getsockname()[0]
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        kind = _NLDEV + command
        deadline = time.monotonic() + self.timeout
        connection.settimeout(self.timeout)
        length = HEADER.size + len(request)
        header = HEADER.pack(length, kind, flags, self._sequence, port_id)
        connection.send(header + request)
        payloads: list[bytes] = []
        room = MAX_BYTES
        interrupted = False
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(
                    errno.ETIMEDOUT, f"RDMA netlink dump {command} took over {self.timeout:g} s"
                )
            connection.settimeout(left)
            data, _, received, sender = connection.recvmsg(_BUFFER)
            if received & socket.MSG_TRUNC:
                raise MalformedError("longer than a dump may be")
            # any process may send to our port; only the kernel is port 0
            if sender[0] != 0:
                continue
            for message in parse_messages(data):
                if message.sequence != self._sequence or message.port_id != port_id:
                    continue
                interrupted = interrupted or bool(message.flags & _NLM_F_DUMP_INTR)
                if message.type in (NLMSG_ERROR, NLMSG_DONE):
                    raise_for(message)
                    return payloads, room >= 0, interrupted
                if message.type == kind:
                    room -= len(message.payload)
                    if room >= 0:
                        payloads.append(message.payload)
