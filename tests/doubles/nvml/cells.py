"""Cells: the numbers of a node, and the C library that reads and writes them."""

from __future__ import annotations

import ctypes
from pathlib import Path

U64 = (1 << 64) - 1
#: Tables of control.c, in its order.
VALUES, FIELDS, LINKS, GPM, MIG, NODE, GPU_TEXTS, NODE_TEXTS, FUNCTIONS = range(9)
TYPE_UNSIGNED_INT, TYPE_UNSIGNED_LONG_LONG = 1, 3
MAX_LINKS = 36
#: Fields that the driver answers as 32 bits; the rest are 64. A reader has to look at valueType anyway.
UINT_FIELDS = frozenset(
    (1, 2, *range(29, 32), *range(84, 96), *range(132, 138), *range(142, 148), *range(164, 173), 199,
     *range(226, 235))
)  # fmt: skip
#: Field ids that count since the GPU's last reset.
COUNTERS = (
    *range(32, 74), 94, *range(96, 132), *range(138, 142), *range(148, 164), 197, 198,
    *range(201, 216), 219, 221, *range(231, 234), *range(235, 251),
)  # fmt: skip
#: GPM metrics whose cells count bytes: C2C, PCIe, NVLink.
GPM_COUNTERS = (*range(100, 104), 255, 256, *range(261, 333))


class Control:
    """libnvml_control.so, and its names by table."""

    def __init__(self, path: Path) -> None:
        self.lib = ctypes.CDLL(str(path))
        self.lib.control_create.restype = self.lib.control_open.restype = ctypes.c_void_p
        self.lib.control_name.restype = ctypes.c_char_p
        self.lib.control_now.restype = self.lib.control_calls.restype = ctypes.c_uint64
        self.lib.control_rule.restype = ctypes.c_uint32
        for name in ("set", "rate", "width", "result", "remove", "get", "text", "gpus", "mig_generation",
                     "processes", "unrule", "thread"):  # fmt: skip
            getattr(self.lib, f"control_{name}").restype = ctypes.c_bool
        self._numbers = {table: self._names(table) for table in range(9)}

    def _names(self, table: int) -> dict[str, int]:
        found: dict[str, int] = {}
        while (name := self.lib.control_name(table, len(found))) is not None:
            found[name.decode()] = len(found)
        return found

    def number(self, table: int, name: str) -> int:
        """The index of ``name``. Raises KeyError with what there is."""
        names = self._numbers[table]
        if name not in names:
            raise KeyError(f"{name}: not one of {', '.join(names)}")
        return names[name]

    def functions(self) -> dict[str, int]:
        return self._numbers[FUNCTIONS]


class Cell:
    """One number of a node. Counters and gauges alike; a percentage of GPM is in thousandths."""

    def __init__(
        self, control: Control, node: ctypes.c_void_p, address: tuple[int, int, int, int], kind: int = 0
    ) -> None:
        self._lib = control.lib
        self._node = node
        self._address = address
        self._kind = kind

    def _call(self, function: str, *arguments: object) -> None:
        if not getattr(self._lib, f"control_{function}")(self._node, *self._address, *arguments):
            raise ValueError(
                f"{function}: no such number (table, GPU, index, scope) {self._address}, or it is not set"
            )

    def set(self, value: int) -> Cell:
        """Make it ``value`` from now on, modulo 2^64. Its rate and width stay."""
        self._call("set", ctypes.c_uint64(value & U64), self._kind)
        return self

    def rate(self, per_second: float) -> Cell:
        """Let it advance ``per_second`` (in steps of a thousandth) from where it is."""
        self._call("rate", ctypes.c_uint64(round(per_second * 1000)))
        return self

    def width(self, bits: int) -> Cell:
        """Let it wrap at 2^bits."""
        self._call("width", bits)
        return self

    def answer(self, code: int) -> Cell:
        """Answer this nvmlReturn_t in place of the number; 0: the number again."""
        self._call("result", code)
        return self

    def remove(self) -> Cell:
        """NOT_SUPPORTED from now on."""
        self._call("remove")
        return self

    def get(self) -> int | None:
        """What it is now; None where nothing was set."""
        value = ctypes.c_uint64()
        there = self._lib.control_get(self._node, *self._address, ctypes.byref(value))
        return value.value if there else None

    def reset(self) -> None:
        """Zero, where something was set."""
        if self.get() is not None:
            self.set(0)
