"""A node of the NVML stand-in: its GPUs, their counters and their misfortunes, moved by a test.

    built = builder.build(directory)
    node = Node.create(built, directory / "node", "hgx-h100")
    os.environ[builder.VARIABLE] = str(node.path)      # then pynvml.nvmlInit(), in this or another process
    node.nvlink(0, 3, tx_bytes_per_s=20 << 30)
    node.advance(1.0)

Time stands still until ``advance`` moves it, or follows the machine's after ``real_clock``. Every change is
seen by the next call of every process, and wakes calls that hang or wait for events.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from doubles.nvml import builder, cells, loader
from doubles.nvml.cells import Cell

#: Ends the driver version that every node reports, so that nobody takes its numbers for a GPU's.
MARKER = "-fabrictap-double"
ANY = 0xFFFFFFFF
MAX_GPUS = 16
SUCCESS, DRIVER_NOT_LOADED = 0, 9
XID_EVENT = 8
NOT_AVAILABLE = cells.U64
_KINDS = {"compute": 0, "graphics": 1, "mps": 2}
#: NVLink payload and what goes over the wire for it, and bytes per packet: assumptions, nothing measured.
RAW_PER_DATA = (9, 8)
BYTES_PER_PACKET = 256


class _Process(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_uint32),
        ("memory", ctypes.c_uint64),
        ("gpu_instance", ctypes.c_uint32),
        ("compute_instance", ctypes.c_uint32),
    )


@dataclass(frozen=True)
class Process:
    """A process on a GPU: ``memory`` in bytes or NOT_AVAILABLE, instances ANY outside MIG."""

    pid: int
    memory: int
    gpu_instance: int = ANY
    compute_instance: int = ANY


@dataclass(frozen=True)
class ThreadCalls:
    """A thread that called NVML, and how often it called which function."""

    pid: int
    tid: int
    calls: dict[str, int]


class Rule:
    """An error or a hang that is in force until withdrawn, or until its ``with`` block ends."""

    def __init__(self, node: Node, number: int) -> None:
        self._node = node
        self._number = number

    def withdraw(self) -> None:
        """Back to normal; calls that hang on it go on. Safe to repeat."""
        self._node.control.lib.control_unrule(self._node.pointer, self._number)

    def __enter__(self) -> Rule:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.withdraw()


class Node:
    """A node's file and what a test does to it. ``create`` makes one of a profile, ``Node()`` opens one."""

    def __init__(self, built: builder.Built, path: Path, *, new: bool = False) -> None:
        self.path = path
        self.control = cells.Control(built.control)
        make = self.control.lib.control_create if new else self.control.lib.control_open
        address = make(str(path).encode())
        if not address:
            raise OSError(f"{path}: cannot {'create' if new else 'open'} a node there")
        self.pointer = ctypes.c_void_p(address)

    @classmethod
    def create(cls, built: builder.Built, path: Path, profile: str) -> Node:
        """A new node as ``profile`` (a name in profiles/) describes it. ``path`` must not exist."""
        node = cls(built, path, new=True)
        loader.apply(node, loader.load(profile))
        return node

    def close(self) -> None:
        """Unmap it. Libraries that have it mapped keep it."""
        self.control.lib.control_close(self.pointer)

    def environment(self, library: Path) -> dict[str, str]:
        """What a process that is to play in this node needs in its environment."""
        return {builder.VARIABLE: str(self.path), "LD_LIBRARY_PATH": str(library.parent)}

    # Numbers and texts

    def value(self, gpu: int, name: str) -> Cell:
        """A number of a GPU (VALUES in names.h)."""
        return Cell(
            self.control, self.pointer, (cells.VALUES, gpu, self.control.number(cells.VALUES, name), 0)
        )

    def field(self, gpu: int, field: int, link: int = 0) -> Cell:
        """A field id of nvmlDeviceGetFieldValues; ``link`` where the field has a scope."""
        kind = cells.TYPE_UNSIGNED_INT if field in cells.UINT_FIELDS else cells.TYPE_UNSIGNED_LONG_LONG
        return Cell(self.control, self.pointer, (cells.FIELDS, gpu, field, link), kind)

    def link_value(self, gpu: int, link: int, name: str) -> Cell:
        """A number of an NVLink that is no field (LINK_VALUES in names.h)."""
        return Cell(
            self.control, self.pointer, (cells.LINKS, gpu, self.control.number(cells.LINKS, name), link)
        )

    def gpm(self, gpu: int, metric: int) -> Cell:
        """What GPM samples: percentages in thousandths; 255, 256, 261-332 and C2C 100-103 in bytes."""
        return Cell(self.control, self.pointer, (cells.GPM, gpu, metric, 0))

    def mig_value(self, gpu: int, slot: int, name: str) -> Cell:
        """A number of a MIG instance (MIG_VALUES in names.h)."""
        return Cell(self.control, self.pointer, (cells.MIG, gpu, self.control.number(cells.MIG, name), slot))

    def node_value(self, name: str) -> Cell:
        """A number of the node (NODE_VALUES in names.h)."""
        return Cell(self.control, self.pointer, (cells.NODE, 0, self.control.number(cells.NODE, name), 0))

    def gpus(self, count: int) -> None:
        """How many GPUs the node has."""
        self._must(self.control.lib.control_gpus(self.pointer, count), f"{count} GPUs")

    def text(self, gpu: int, name: str, text: str) -> None:
        """A text of a GPU (GPU_TEXTS in names.h)."""
        self._text(cells.GPU_TEXTS, gpu, self.control.number(cells.GPU_TEXTS, name), text)

    def versions(self, driver: str, nvml: str) -> None:
        """What the node says of its software; the driver's ends with MARKER."""
        self._text(
            cells.NODE_TEXTS, 0, self.control.number(cells.NODE_TEXTS, "driver_version"), driver + MARKER
        )
        self._text(cells.NODE_TEXTS, 0, self.control.number(cells.NODE_TEXTS, "nvml_version"), nvml)

    def _text(self, table: int, gpu: int, index: int, text: str) -> None:
        self._must(self.control.lib.control_text(self.pointer, table, gpu, index, text.encode()), text)

    @staticmethod
    def _must(done: bool, what: str) -> None:
        if not done:
            raise ValueError(f"the NVML stand-in has no room for {what}")

    # Time

    @property
    def now_ns(self) -> int:
        """The node's time, ns since 1970."""
        return int(self.control.lib.control_now(self.pointer))

    def advance(self, seconds: float) -> None:
        """Move the node's time on."""
        self.control.lib.control_advance(self.pointer, ctypes.c_uint64(round(seconds * 1e9)))

    def real_clock(self, follow: bool = True) -> None:
        """Let the node's time run as the machine's does, from where it is; or stop it."""
        self.control.lib.control_real_clock(self.pointer, int(follow))

    # Traffic: every view of it that the GPU offers moves together

    def nvlink(
        self, gpu: int, link: int, *, tx_bytes_per_s: float | None = None, rx_bytes_per_s: float | None = None
    ) -> None:
        """Let a link's counters move at these payload rates; None leaves the direction as it is."""
        for up, rate in ((True, tx_bytes_per_s), (False, rx_bytes_per_s)):
            if rate is not None:
                for cell, share in self._nvlink_views(gpu, link, up):
                    if cell.get() is not None:
                        cell.rate(rate * share)

    def set_nvlink(
        self, gpu: int, link: int, *, tx_bytes: int | None = None, rx_bytes: int | None = None
    ) -> None:
        """Make a link's counters say that this much payload went over it; 0 after a reset."""
        for up, count in ((True, tx_bytes), (False, rx_bytes)):
            if count is not None:
                for cell, share in self._nvlink_views(gpu, link, up):
                    if cell.get() is not None:
                        cell.set(int(count * share))

    def _nvlink_views(self, gpu: int, link: int, up: bool) -> list[tuple[Cell, float]]:
        raw = RAW_PER_DATA[0] / RAW_PER_DATA[1]
        return [
            (self.field(gpu, 138 if up else 139, link), 1 / 1024),
            (self.field(gpu, 140 if up else 141, link), raw / 1024),
            (self.field(gpu, 201 if up else 203, link), 1 / BYTES_PER_PACKET),
            (self.field(gpu, 202 if up else 204, link), 1),
            (self.gpm(gpu, 261 + 2 * link + up), 1),
        ]

    def pcie(
        self, gpu: int, *, tx_bytes_per_s: float | None = None, rx_bytes_per_s: float | None = None
    ) -> None:
        """Let the PCIe counters move at these rates, seen from the GPU."""
        for name, rate, counters in (
            ("pcie_tx_kb_per_s", tx_bytes_per_s, (self.field(gpu, 197), self.gpm(gpu, 255))),
            ("pcie_rx_kb_per_s", rx_bytes_per_s, (self.field(gpu, 198), self.gpm(gpu, 256))),
        ):
            if rate is None:
                continue
            if self.value(gpu, name).get() is not None:
                self.value(gpu, name).set(int(rate / 1000))
            for cell in counters:
                if cell.get() is not None:
                    cell.rate(rate)

    def link_active(self, gpu: int, link: int, active: bool) -> None:
        """Take a link down or up. Its counters stay; their rates are the caller's."""
        self.field(gpu, 165, link).set(int(active))

    # Misfortunes

    def lose(self, gpu: int) -> None:
        """The GPU falls off the bus: GPU_IS_LOST until ``find``."""
        self.value(gpu, "lost").set(1)

    def find(self, gpu: int) -> None:
        """The lost GPU is back."""
        self.value(gpu, "lost").set(0)

    def answer(self, function: str, code: int, gpu: int | None = None) -> Rule:
        """Let ``function`` ("*": every one) answer ``code``, on one GPU or wherever it is called."""
        return self._rule(function, gpu, code, 0, 0.0)

    def hang(self, function: str, gpu: int | None = None, seconds: float | None = None) -> Rule:
        """Let calls of ``function`` ("*": every one) hang for real ``seconds``, or until withdrawn."""
        return self._rule(function, gpu, SUCCESS, 1, seconds or 0.0)

    def _rule(self, function: str, gpu: int | None, code: int, hangs: int, seconds: float) -> Rule:
        which = ANY if function == "*" else self.control.number(cells.FUNCTIONS, function)
        number = self.control.lib.control_rule(
            self.pointer,
            which,
            ANY if gpu is None else gpu,
            code,
            hangs,
            ctypes.c_uint64(round(seconds * 1e9)),
        )
        self._must(bool(number), "another rule")
        return Rule(self, number)

    def withdraw_all(self) -> None:
        """Withdraw every rule; calls that hang go on."""
        self.control.lib.control_unrule_all(self.pointer)

    def reset_counters(self, gpu: int) -> None:
        """Every traffic and error counter starts at 0 again, as when a GPU is reset. Their rates stay."""
        scoped = [self.field(gpu, field, link) for field in cells.COUNTERS for link in range(cells.MAX_LINKS)]
        scoped += [
            self.link_value(gpu, link, name)
            for name in ("crc_data_errors", "ecc_data_errors")
            for link in range(cells.MAX_LINKS)
        ]
        plain = [self.gpm(gpu, metric) for metric in cells.GPM_COUNTERS]
        plain += [
            self.value(gpu, name)
            for name in ("ecc_corrected_volatile", "ecc_uncorrected_volatile", "energy_mj")
        ]
        for cell in (*scoped, *plain):
            cell.reset()

    def unload_driver(self, answer: int = DRIVER_NOT_LOADED) -> None:
        """Every call answers ``answer``, nvmlInit DRIVER_NOT_LOADED."""
        self.control.lib.control_driver(self.pointer, 0, answer)

    def load_driver(self) -> None:
        """The driver is back. Who was initialised before is UNINITIALIZED until it calls nvmlInit again."""
        self.control.lib.control_driver(self.pointer, 1, SUCCESS)

    def event(
        self, gpu: int, kind: int, data: int, gpu_instance: int = ANY, compute_instance: int = ANY
    ) -> None:
        """Emit an event of NVML's type ``kind``."""
        self.control.lib.control_event(
            self.pointer, gpu, ctypes.c_uint64(kind), ctypes.c_uint64(data), gpu_instance, compute_instance
        )

    def xid(self, gpu: int, xid: int) -> None:
        """Emit an XID."""
        self.event(gpu, XID_EVENT, xid)

    # Who is on the GPU

    def processes(self, gpu: int, kind: str, processes: Sequence[Process]) -> None:
        """The GPU's list of "compute", "graphics" or "mps" processes, from now on."""
        rows = (_Process * len(processes))(
            *(_Process(p.pid, p.memory, p.gpu_instance, p.compute_instance) for p in processes)
        )
        done = self.control.lib.control_processes(self.pointer, gpu, _KINDS[kind], rows, len(processes))
        self._must(done, f"{len(processes)} processes")

    def add_mig(self, gpu: int, slot: int, uuid: str, **values: int) -> None:
        """Make an instance in ``slot``: what nvmlDeviceGetMigDeviceHandleByIndex is asked for."""
        self._must(self.control.lib.control_mig_generation(self.pointer, gpu, slot), f"MIG slot {slot}")
        self._text(cells.MIG, gpu, slot, uuid)
        for name, value in values.items():
            self.mig_value(gpu, slot, name).set(value)
        self.mig_value(gpu, slot, "present").set(1)

    def remove_mig(self, gpu: int, slot: int) -> None:
        """Destroy the instance: its handle is invalid from now on."""
        self.mig_value(gpu, slot, "present").set(0)

    # What was called

    def calls(self, function: str, gpu: int | None = None) -> int:
        """Calls of ``function`` since the start or ``forget_calls``: all, or those on one GPU."""
        which = ANY if gpu is None else gpu
        return int(
            self.control.lib.control_calls(
                self.pointer, self.control.number(cells.FUNCTIONS, function), which
            )
        )

    def inside(self, function: str) -> int:
        """Calls of ``function`` that hang, or wait for an event, now."""
        return int(
            self.control.lib.control_inside(self.pointer, self.control.number(cells.FUNCTIONS, function))
        )

    def threads(self) -> list[ThreadCalls]:
        """Every thread of every process that ever called, with its calls since ``forget_calls``.

        Raises RuntimeError when there were more than the node has room for: then some calls are nobody's.
        """
        if lost := self.control.lib.control_threads_lost(self.pointer):
            raise RuntimeError(f"{lost} calls came from more threads than the NVML stand-in keeps")
        names = list(self.control.functions())
        counts = (ctypes.c_uint32 * len(names))()
        pid, tid = ctypes.c_int32(), ctypes.c_int32()
        found: list[ThreadCalls] = []
        while self.control.lib.control_thread(
            self.pointer, len(found), ctypes.byref(pid), ctypes.byref(tid), counts
        ):
            calls = {name: count for name, count in zip(names, counts, strict=True) if count}
            found.append(ThreadCalls(pid.value, tid.value, calls))
        return found

    def forget_calls(self) -> None:
        """Count calls from zero again."""
        self.control.lib.control_forget_calls(self.pointer)
