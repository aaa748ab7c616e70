"""Statistics of RDMA netlink: which queue pairs the hardware counts together, and what it has counted.

Numbers: include/uapi/rdma/rdma_netlink.h; meaning: drivers/infiniband/core/nldev.c (nldev_stat_set_doit,
nldev_stat_get_doit) and counters.c. ``rdma statistic qp set link DEV/PORT auto type,pid on`` sends the same.
"""

from __future__ import annotations

import errno
import struct
import sys
from dataclasses import dataclass

from fabrictap.sources.rdma_netlink.client import Client
from fabrictap.sources.rdma_netlink.messages import (
    ATTRIBUTE,
    DEV_INDEX,
    RES_QP,
    Attributes,
    iter_attributes,
    parse_attributes,
    text_of,
    u32_of,
)

# enum rdma_nldev_command
STAT_SET, STAT_GET = 16, 17
# enum rdma_nldev_attr
PORT_INDEX = 3
RES_TYPE, RES_PID = 26, 28
STAT_MODE, STAT_RES, STAT_AUTO_MODE_MASK = 74, 75, 76
STAT_COUNTER, STAT_COUNTER_ENTRY, STAT_COUNTER_ID = 77, 78, 79
STAT_HWCOUNTERS, STAT_HWCOUNTER_ENTRY = 80, 81
STAT_HWCOUNTER_NAME, STAT_HWCOUNTER_VALUE = 82, 83
#: Since Linux 6.15; before, a kernel refuses it with EINVAL, or knows nothing of it.
STAT_OPCOUNTER_ENABLED = 104
# enum rdma_nl_counter_mode
NONE, AUTO, MANUAL = 0, 1, 2
# enum rdma_nl_counter_mask
BY_TYPE, BY_PID = 1, 2


@dataclass(frozen=True, slots=True)
class Mode:
    """How a port binds queue pairs to counters: NONE, AUTO or MANUAL; ``mask`` of BY_TYPE, BY_PID."""

    mode: int
    mask: int

    @property
    def by_process(self) -> bool:
        return self.mode == AUTO and bool(self.mask & BY_PID)


@dataclass(frozen=True, slots=True)
class Counter:
    """What is counted together: the queue pairs of one type of one process; by the driver's names."""

    number: int
    tid: int | None
    qp_type: int | None
    values: dict[str, int]


class Statistics(Client):
    """The client of RDMA netlink with these commands. Raises OSError as :class:`Client` does."""

    def mode(self, device: int, port: int) -> Mode:
        """How the port counts now; needs no capability."""
        request = _port(device, port) + _u32(STAT_MODE, MANUAL) + _u32(STAT_RES, RES_QP)
        for answer in self.ask(STAT_GET, request):
            attributes = parse_attributes(answer)
            return Mode(u32_of(attributes, STAT_MODE) or 0, u32_of(attributes, STAT_AUTO_MODE_MASK) or 0)
        return Mode(NONE, 0)

    def count_by_process(self, device: int, port: int) -> bool:
        """Queue pairs made from now on are counted by type and process; whether bytes are asked for too.

        EOPNOTSUPP where the driver has no counters, EINVAL where queue pairs are bound already, EPERM without
        CAP_NET_ADMIN.
        """
        request = _port(device, port) + _u32(STAT_RES, RES_QP) + _u32(STAT_MODE, AUTO)
        request += _u32(STAT_AUTO_MODE_MASK, BY_TYPE | BY_PID)
        try:
            self.ask(STAT_SET, request + _attribute(STAT_OPCOUNTER_ENABLED, b"\x01"))
        except OSError as error:
            # The driver, or an older kernel: without its optional counters of bytes it may well do.
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            self.ask(STAT_SET, request)
            return False
        return True

    def count_no_more(self, device: int, port: int) -> None:
        """New queue pairs are counted no more; those that are bound stay so until they end."""
        request = _port(device, port) + _u32(STAT_RES, RES_QP) + _u32(STAT_MODE, AUTO)
        self.ask(STAT_SET, request + _u32(STAT_AUTO_MODE_MASK, 0))

    def counters(self, device: int, port: int) -> list[Counter]:
        """What is counted on a port now."""
        found = []
        messages, _ = self._dump(STAT_GET, _port(device, port) + _u32(STAT_RES, RES_QP))
        for message in messages:
            for kind, content in iter_attributes(message):
                if kind != STAT_COUNTER:
                    continue
                for inner, value in iter_attributes(content):
                    counter = parse_counter(parse_attributes(value)) if inner == STAT_COUNTER_ENTRY else None
                    if counter is not None:
                        found.append(counter)
        return found


def parse_counter(attributes: Attributes) -> Counter | None:
    """None for an entry without a number."""
    number = u32_of(attributes, STAT_COUNTER_ID)
    if number is None:
        return None
    values = {}
    for kind, content in iter_attributes(attributes.get(STAT_HWCOUNTERS, b"")):
        line = parse_attributes(content) if kind == STAT_HWCOUNTER_ENTRY else {}
        name, value = text_of(line, STAT_HWCOUNTER_NAME), line.get(STAT_HWCOUNTER_VALUE, b"")
        if name and len(value) >= 8:
            values[name] = int.from_bytes(value[:8], sys.byteorder)
    kind_of = attributes.get(RES_TYPE, b"")
    return Counter(number, u32_of(attributes, RES_PID) or None, kind_of[0] if kind_of else None, values)


def _port(device: int, port: int) -> bytes:
    return _u32(DEV_INDEX, device) + _u32(PORT_INDEX, port)


def _u32(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=I", value))


def _attribute(kind: int, content: bytes) -> bytes:
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(content), kind) + content + bytes(-len(content) % 4)
