"""A stand-in for the kernel's end of RDMA netlink with an mlx5 that counts by process. No hardware has been
asked: what it accepts, refuses and answers is written after drivers/infiniband/core/{nldev,counters}.c.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass, field

NONE, AUTO, MANUAL = 0, 1, 2
PORT_ID = 4711


def attribute(kind: int, value: int | bytes | str, size: int = 4) -> bytes:
    if isinstance(value, int):
        value = value.to_bytes(size, "little")
    elif isinstance(value, str):
        value = value.encode() + b"\0"
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


@dataclass
class Counted:
    """A counter that the driver keeps: whose, and what it says."""

    tid: int
    qp_type: int
    values: dict[str, int]


@dataclass
class Port:
    mode: int = NONE
    mask: int = 0
    optional: bool = False
    counters: dict[int, Counted] = field(default_factory=dict)
    #: A driver without counters for queue pairs.
    supported: bool = True


class Kernel:
    """In the place of the client's socket. ``optional``: knows the attribute of Linux 6.15."""

    def __init__(
        self, devices: dict[str, dict[int, Port]], *, optional: bool = True, capable: bool = True
    ) -> None:
        self.devices = devices
        self.optional = optional
        self.capable = capable
        #: What was set: (device, port, mask).
        self.set: list[tuple[str, int, int]] = []
        self._waiting: list[bytes] = []

    def send(self, request: bytes) -> None:
        length, kind, flags, sequence, port_id = struct.unpack_from("=IHHII", request)
        assert length == len(request)
        assert kind >> 10 == 5
        try:
            answers = self._answer(kind & 1023, dump=flags & 0x300 == 0x300, given=_attributes(request[16:]))
            error = 0
        except OSError as refusal:
            answers, error = [], -(refusal.errno or errno.EIO)
        parts = [struct.pack("=IHHII", 16 + len(a), kind, 2, sequence, port_id) + a for a in answers]
        last = 3 if flags & 0x300 == 0x300 and not error else 2
        ending = struct.pack("=i", error) + request[:16]
        parts.append(struct.pack("=IHHII", 16 + len(ending), last, 0, sequence, port_id) + ending)
        self._waiting = [b"".join(parts)]

    def recvmsg(self, size: int) -> tuple[bytes, list[object], int, tuple[int, int]]:
        if not self._waiting:
            raise TimeoutError("timed out")
        data = self._waiting.pop(0)
        assert len(data) <= size
        return data, [], 0, (0, 0)

    def getsockname(self) -> tuple[int, int]:
        return PORT_ID, 0

    def settimeout(self, seconds: float) -> None:
        assert seconds > 0

    def close(self) -> None:
        pass

    def _answer(self, command: int, *, dump: bool, given: dict[int, bytes]) -> list[bytes]:
        names = list(self.devices)
        if command == 1 and dump:
            return [attribute(1, index) + attribute(2, name) for index, name in enumerate(names)]
        name = names[_u32(given, 1)]
        number = _u32(given, 3)
        if number not in self.devices[name]:
            raise OSError(errno.EINVAL, "no such port")
        port = self.devices[name][number]
        if _u32(given, 75) != 19:  # RDMA_NLDEV_ATTR_STAT_RES: RDMA_NLDEV_ATTR_RES_QP
            raise OSError(errno.EINVAL, "not of queue pairs")
        head = attribute(1, names.index(name)) + attribute(2, name) + attribute(3, number)
        if command == 17 and dump:
            entries = b"".join(self._entry(n, counter) for n, counter in port.counters.items())
            return [head + attribute(77, entries)] if entries else []
        if command == 17:
            assert 74 in given
            return [
                head + attribute(74, port.mode) + (attribute(76, port.mask) if port.mode == AUTO else b"")
            ]
        assert command == 16
        self._set(name, number, port, given)
        return [head]

    def _set(self, name: str, number: int, port: Port, given: dict[int, bytes]) -> None:
        if not self.capable:
            raise OSError(errno.EPERM, "RDMA_NLDEV_CMD_STAT_SET is RDMA_NL_ADMIN_PERM")
        if 104 in given and not self.optional:
            raise OSError(errno.EINVAL, "attribute type 104 > maxtype")
        if not port.supported:
            raise OSError(errno.EOPNOTSUPP, "no hstats")
        assert _u32(given, 74) == AUTO
        mask = _u32(given, 76)
        if mask and port.counters and port.mode != NONE:
            raise OSError(errno.EINVAL, "Turning on auto mode is not allowed when there is bound QP")
        if not mask and port.mode != AUTO:
            raise OSError(errno.EINVAL, "not in auto mode")
        self.set.append((name, number, mask))
        port.mask = mask
        port.optional = bool(mask) and 104 in given
        port.mode = AUTO if mask else MANUAL if port.counters else NONE

    def _entry(self, number: int, counter: Counted) -> bytes:
        lines = b"".join(
            attribute(81, attribute(82, name) + attribute(83, value, 8))
            for name, value in counter.values.items()
        )
        return attribute(
            78,
            attribute(3, 1)
            + attribute(79, number)
            + attribute(26, counter.qp_type, 1)
            + attribute(28, counter.tid)
            + attribute(19, attribute(20, attribute(21, 77)))
            + attribute(80, lines),
        )


def _attributes(data: bytes) -> dict[int, bytes]:
    found, at = {}, 0
    while at < len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        found[kind] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def _u32(given: dict[int, bytes], kind: int) -> int:
    return int.from_bytes(given[kind], "little") if kind in given else 0
