"""The helper process of :mod:`fabrictap.sources.verbs.providers`: prints one JSON report and exits.

It runs apart from the agent because it loads every installed provider library and opens every device.
Offsets are those of the public 64-bit ABI of libibverbs (struct ibv_context, struct ibv_device).
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

from fabrictap.sources.verbs.providers import EXPORTED, EXTENDED

_OPS = {"poll_cq": 96, "post_srq_recv": 168, "post_send": 208, "post_recv": 216}
_DEVICE_NAME = 24
#: struct ibv_context: its size; its member abi_compat, which says that a struct verbs_context is around it;
#: and create_qp_ex, which stands before it there.
_CONTEXT_SIZE, _ABI_COMPAT, _CREATE_QP_EX = 328, 320, -56
_EXTENDED_ABI = (1 << 64) - 1
#: enum ibv_qp_init_attr_mask
_WITH_PD, _WITH_SEND_OPERATIONS = 1 << 0, 1 << 6
#: enum ibv_qp_create_send_ops_flags: WRITE, WRITE_WITH_IMM, SEND, SEND_WITH_IMM, READ, the two atomics,
#: LOCAL_INV, BIND_MW, SEND_WITH_INV are bits 0 to 9.
_SEND = 0b1100
#: enum ibv_qp_type -> what to ask for, the most first. RC, UC, UD.
_QUEUE_PAIRS = (
    (2, (0x3FF, 0x27F, 0x7F, 0x1F, _SEND)),
    (3, (0x38F, 0x20F, 0x0F, _SEND)),
    (4, (_SEND, 0b100)),
)


def _executable_mappings() -> list[tuple[int, int, int, str, int, str]]:
    """(start, end, file offset, device, inode, path) of this process's executable file mappings."""
    found = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        fields = line.split(None, 5)
        if len(fields) > 5 and "x" in fields[1] and fields[5].startswith("/"):
            start, end = (int(part, 16) for part in fields[0].split("-"))
            found.append((start, end, int(fields[2], 16), fields[3], int(fields[4]), fields[5]))
    return found


def _place(function: str, address: int) -> dict[str, Any] | None:
    for start, end, offset, device, inode, path in _executable_mappings():
        if start <= address < end:
            return {
                "function": function,
                "file": path,
                "device": device,
                "inode": inode,
                "offset": address - start + offset,
            }
    return None


def _word(address: int) -> int:
    return ctypes.c_uint64.from_address(address).value


def main() -> int:
    places: list[dict[str, Any]] = []
    problems: dict[str, str] = {}
    try:
        verbs = ctypes.CDLL("libibverbs.so.1", use_errno=True)
    except OSError as error:
        print(json.dumps({"places": [], "problems": {"libibverbs.so.1": str(error)}, "pid": os.getpid()}))
        return 0
    verbs.ibv_get_device_list.restype = ctypes.POINTER(ctypes.c_void_p)
    verbs.ibv_open_device.restype = ctypes.c_void_p
    verbs.ibv_open_device.argtypes = [ctypes.c_void_p]
    verbs.ibv_close_device.argtypes = [ctypes.c_void_p]

    exported = {name: _place(name, address) for name, address in _exported(verbs).items()}
    places += [found for found in exported.values() if found is not None]
    own = exported["create_ah"]

    def take(function: str, address: int, device: str) -> None:
        found = _place(function, address)
        if found is None:
            problems[device] = f"{function} points into no file"
        elif own is not None and (found["device"], found["inode"]) == (own["device"], own["inode"]):
            pass  # what a provider leaves out, libibverbs answers itself (dummy_ops.c): nothing is posted
        elif found not in places:
            places.append(found)

    count = ctypes.c_int(0)
    devices = verbs.ibv_get_device_list(ctypes.byref(count))
    for index in range(count.value if devices else 0):
        device = devices[index]
        if not device:
            break
        name = ctypes.string_at(device + _DEVICE_NAME).decode("utf-8", "replace")
        context = verbs.ibv_open_device(device)
        if not context:
            problems[name] = f"ibv_open_device: {os.strerror(ctypes.get_errno())}"
            continue
        for function, offset in _OPS.items():
            take(function, _word(context + offset), name)
        for function, address in _extended(verbs, context):
            take(function, address, name)
        verbs.ibv_close_device(context)
    print(json.dumps({"places": places, "problems": problems, "pid": os.getpid()}))
    return 0


def _exported(verbs: ctypes.CDLL) -> dict[str, int]:
    """Addresses of what is probed in libibverbs itself. ibv_qp_to_qp_ex is newer than the other (v24)."""
    found = {}
    for name, symbol in EXPORTED.items():
        function = getattr(verbs, symbol, None)
        address = ctypes.cast(function, ctypes.c_void_p).value if function is not None else None
        if address:
            found[name] = address
    return found


def _extended(verbs: ctypes.CDLL, context: int) -> list[tuple[str, int]]:
    """The functions of the extended API, from queue pairs that are made for this and never connected.

    Providers choose them by the type of the queue pair (mlx5 has three sets), and refuse operations that the
    device does not have: the most is asked for first.
    """
    create = ctypes.c_void_p()
    if _word(context + _ABI_COMPAT) == _EXTENDED_ABI and _word(context - 8) >= _CONTEXT_SIZE - _CREATE_QP_EX:
        create.value = _word(context + _CREATE_QP_EX)
    to_extended = getattr(verbs, "ibv_qp_to_qp_ex", None)
    if not create.value or to_extended is None:
        return []
    make = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(create.value)
    to_extended.restype, to_extended.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    for name in ("ibv_alloc_pd", "ibv_create_cq"):
        getattr(verbs, name).restype = ctypes.c_void_p
    verbs.ibv_create_cq.argtypes = [
        ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int,
    ]  # fmt: skip
    for name in ("ibv_alloc_pd", "ibv_dealloc_pd", "ibv_destroy_cq", "ibv_destroy_qp"):
        getattr(verbs, name).argtypes = [ctypes.c_void_p]
    found: list[tuple[str, int]] = []
    domain = verbs.ibv_alloc_pd(context)
    completions = verbs.ibv_create_cq(context, 1, None, None, 0) if domain else None
    for kind, operations in _QUEUE_PAIRS if completions else ():
        for send_operations in operations:
            attributes = ctypes.create_string_buffer(136)
            struct.pack_into("<QQ", attributes, 8, completions, completions)
            struct.pack_into("<6I", attributes, 32, 1, 1, 1, 1, 0, kind)
            struct.pack_into("<IQ", attributes, 60, _WITH_PD | _WITH_SEND_OPERATIONS, domain)
            struct.pack_into("<Q", attributes, 128, send_operations)
            pair = make(context, ctypes.addressof(attributes))
            if not pair:
                continue
            extended = to_extended(pair)
            if extended:
                found += [(name, a) for name, at in EXTENDED.items() if (a := _word(extended + at))]
            verbs.ibv_destroy_qp(pair)
            break
    if completions:
        verbs.ibv_destroy_cq(completions)
    if domain:
        verbs.ibv_dealloc_pd(domain)
    return found


if __name__ == "__main__":
    sys.exit(main())
