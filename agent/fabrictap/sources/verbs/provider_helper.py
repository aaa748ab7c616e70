"""The helper process of :mod:`fabrictap.sources.verbs.providers`: prints one JSON report and exits.

It runs apart from the agent because it loads every installed provider library and opens every device.
Offsets are those of the public 64-bit ABI of libibverbs (struct ibv_context, struct ibv_device).
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

_OPS = {"post_srq_recv": 168, "post_send": 208, "post_recv": 216}
_DEVICE_NAME = 24


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
        print(json.dumps({"places": [], "problems": {"libibverbs.so.1": str(error)}}))
        return 0
    verbs.ibv_get_device_list.restype = ctypes.POINTER(ctypes.c_void_p)
    verbs.ibv_open_device.restype = ctypes.c_void_p
    verbs.ibv_open_device.argtypes = [ctypes.c_void_p]
    verbs.ibv_close_device.argtypes = [ctypes.c_void_p]

    create_ah = ctypes.cast(verbs.ibv_create_ah, ctypes.c_void_p).value
    own = _place("create_ah", create_ah) if create_ah else None
    if own is not None:
        places.append(own)
    # Newer than the others (rdma-core v24): a library without it has no extended API either.
    extended = getattr(verbs, "ibv_qp_to_qp_ex", None)
    address = ctypes.cast(extended, ctypes.c_void_p).value if extended is not None else None
    if address and (found := _place("qp_to_qp_ex", address)):
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
            found = _place(function, _word(context + offset))
            if found is None:
                problems[name] = f"{function} points into no file"
            elif own is not None and (found["device"], found["inode"]) == (own["device"], own["inode"]):
                pass  # what a provider leaves out, libibverbs answers itself (dummy_ops.c): nothing is posted
            elif found not in places:
                places.append(found)
        verbs.ibv_close_device(context)
    print(json.dumps({"places": places, "problems": problems}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
