"""Runs in the guest: RDMA_VERBS_IOCTL as no library sends it. Argument: the rxe device to send it to.

With a context that is open, so that the kernel looks as far into the garbage as it can; and to files that
are no verbs device, or none at all.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from pathlib import Path

RDMA_VERBS_IOCTL = 0xC0181B01
HEADER = struct.Struct("<4HQII")  # struct ib_uverbs_ioctl_hdr
ATTRIBUTE = struct.Struct("<4HQ")  # struct ib_uverbs_attr
DEVICE, QP, MR = 0, 4, 7
RXE = 14  # enum rdma_driver_id
GET_CONTEXT = 3
INVOKE_WRITE, MODIFY_QP, REG_MR, DEREG_MR, CREATE_QP, DESTROY_QP = 0, 26, 9, 13, 24, 27
METHODS = ((DEVICE, INVOKE_WRITE), (DEVICE, GET_CONTEXT), (QP, 0), (QP, 1), (MR, 1), (MR, 4), (MR, 5))
BAD_POINTERS = (0, 8, 0xFFFF_FFFF_FFFF_F000, 0xFFFF_8880_0000_0000, 0x7FFF_FFFF_FFFF, 1 << 63)

libc = ctypes.CDLL(None, use_errno=True)
libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)


def ioctl(descriptor: int, address: int) -> int:
    """0, or the error number."""
    return 0 if libc.ioctl(descriptor, RDMA_VERBS_IOCTL, address) >= 0 else ctypes.get_errno()


def send(descriptor: int, header: tuple[int, ...], attributes: list[tuple[int, ...]], room: int = 0) -> int:
    raw = HEADER.pack(*header) + b"".join(ATTRIBUTE.pack(*attribute) for attribute in attributes)
    buffer = ctypes.create_string_buffer(raw, max(len(raw), room))
    return ioctl(descriptor, ctypes.addressof(buffer))


def uverbs(device: str) -> str:
    (entry,) = [
        entry
        for entry in Path("/sys/class/infiniband_verbs").glob("uverbs*")
        if (entry / "ibdev").read_text().strip() == device
    ]
    return f"/dev/infiniband/{entry.name}"


def main() -> None:
    verbs = os.open(uverbs(sys.argv[1]), os.O_RDWR | os.O_CLOEXEC)
    answer = ctypes.create_string_buffer(16)
    address = ctypes.addressof(answer)
    header = (HEADER.size + 2 * ATTRIBUTE.size, DEVICE, GET_CONTEXT, 2, 0, RXE, 0)
    assert send(verbs, header, [(0, 4, 1, 0, address), (1, 8, 1, 0, address + 8)]) == 0
    null = os.open("/dev/null", os.O_RDWR)
    seen: dict[str, int] = {}
    calls = 0
    for descriptor in (verbs, null, -1, 1 << 30, 0x7FFF_FFFF):
        results = [ioctl(descriptor, pointer) for pointer in BAD_POINTERS]
        for target, method in METHODS:
            for count in (0, 1, 5, 32, 33, 255, 65535):
                length = (HEADER.size + ATTRIBUTE.size * count) & 0xFFFF
                header = (length, target, method, count, 0, RXE, 0)
                for pointer in BAD_POINTERS:
                    attributes = [(number, 0xFFFF, 1, 0, pointer) for number in range(min(count, 40))]
                    results.append(send(descriptor, header, attributes, room=HEADER.size + 16 * 65535))
        for command in (MODIFY_QP, REG_MR, DEREG_MR, CREATE_QP, DESTROY_QP, MODIFY_QP | 1 << 31, 0xFFFF):
            for pointer in BAD_POINTERS:
                header = (HEADER.size + 3 * ATTRIBUTE.size, DEVICE, INVOKE_WRITE, 3, 0, RXE, 0)
                attributes = [(0, 112, 1, 0, pointer), (1, 32, 1, 0, pointer), (2, 8, 1, 0, command)]
                results.append(send(descriptor, header, attributes))
        calls += len(results)
        for result in results:
            name = errno.errorcode.get(result, "0")
            seen[name] = seen.get(name, 0) + 1
    print(calls, seen)


if __name__ == "__main__":
    main()
