"""Whether two descriptors are one file, seen through different mounts, as a container's overlay shows it."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct

_PAGE = mmap.PAGESIZE
#: Frame number in an entry of /proc/self/pagemap; 0 without CAP_SYS_ADMIN.
_FRAME = (1 << 55) - 1


def same_pages(one: int, other: int) -> bool:
    """Whether two descriptors are views of one file: their first pages are the same memory.

    Where the kernel does not tell frames (without CAP_SYS_ADMIN), equal content of the first page is taken
    for it: the callers have compared inode and size.
    """
    if min(os.fstat(one).st_size, os.fstat(other).st_size) < _PAGE:
        return False
    with (
        mmap.mmap(one, _PAGE, mmap.MAP_SHARED, mmap.PROT_READ) as first,
        mmap.mmap(other, _PAGE, mmap.MAP_SHARED, mmap.PROT_READ) as second,
    ):
        if first[:] != second[:]:  # reads both, so that they are in memory
            return False
        frames = [_frame(first), _frame(second)]
    return frames[0] == frames[1]


def _frame(page: mmap.mmap) -> int:
    # A read-only mapping gives no writable buffer, which ctypes wants for an address.
    address = _address(page)
    with open("/proc/self/pagemap", "rb", 0) as table:  # noqa: PTH123 - seeks
        table.seek(address // _PAGE * 8)
        (entry,) = struct.unpack("<Q", table.read(8))
    return int(entry) & _FRAME


def _address(page: mmap.mmap) -> int:
    view = ctypes.py_object(page)
    buffer = _Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(view, ctypes.byref(buffer), 0)
    try:
        return int(buffer.buf)
    finally:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))


class _Buffer(ctypes.Structure):
    """Py_buffer."""

    _fields_ = (
        ("buf", ctypes.c_void_p), ("obj", ctypes.py_object), ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t), ("readonly", ctypes.c_int), ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p), ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p), ("internal", ctypes.c_void_p),
    )  # fmt: skip
