"""One tick of the fast tier on 8 GPUs with 18 NVLinks each, on the NVML stand-in.

Ours is all that a tick does: the calls, in a thread that can be left behind, and the fold of 592 counters and
32 sums into the ring. The peers make the same calls and leave it at that. The stand-in answers in half a
microsecond. What a driver takes is not in it and was not measured; one line assumes it.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pynvml

from bench.result import Result, alternate
from doubles.nvml import builder
from doubles.nvml.driver import Node
from fabrictap.config import Config
from fabrictap.ext.nvml import Fields
from fabrictap.ledger import Ledger
from fabrictap.series import SeriesTable
from fabrictap.sources.nvml.source import Nvml

ROUNDS, TICKS = 15, 200
GOAL_C, GOAL_PYTHON = 1.25, 0.2
GPUS = 8
#: Assumed time in the driver for one call with 74 fields of 18 links: some 3 us, an ioctl and a lock, a link.
DRIVER_US = 50
HERE = Path(__file__).parent
FIELD_VALUES = "nvmlDeviceGetFieldValues"


class _Field(ctypes.Structure):
    _fields_ = (
        ("id", ctypes.c_uint32),
        ("scope", ctypes.c_uint32),
        ("times", ctypes.c_int64 * 2),
        ("type", ctypes.c_uint32),
        ("status", ctypes.c_int32),
        ("value", ctypes.c_uint64),
    )


def _watching(library: Path, delayed: int) -> Nvml:
    """A source whose fast tier calls ``delayed``, an address."""
    config = Config()
    config.sources.nvml.library = str(library)
    config.sources.nvml.gpm = config.sources.nvml.xid = False
    source = Nvml(config.sources.nvml, SeriesTable(config.limits.series), Ledger(config), "/nowhere")
    source.fast.share = float("inf")
    source.open()
    loaded = source._library
    assert loaded is not None
    found = loaded.address
    loaded.address = lambda name: delayed if name == FIELD_VALUES else found(name)  # type: ignore[method-assign]
    source.fold(source.sample(), time.time_ns())
    for _ in range(3):
        source.sample_fast()
        source.fold_fast(time.time_ns())
    return source


def measure() -> list[Result]:
    with tempfile.TemporaryDirectory() as work:
        built = builder.build(Path(work) / "double")
        node = Node.create(built, Path(work) / "node", "hgx-h100")
        node.real_clock()
        os.environ[builder.VARIABLE] = str(node.path)
        object_ = Path(work) / "loop.so"
        subprocess.run(
            ["cc", "-O2", "-shared", "-fPIC", "-o", str(object_), str(HERE / "nvml_loop.c")], check=True
        )
        bare = ctypes.CDLL(str(object_))
        real = ctypes.cast(getattr(ctypes.CDLL(str(built.library)), FIELD_VALUES), ctypes.c_void_p)
        bare.delay(real, ctypes.c_uint64(0))
        source = _watching(built.library, ctypes.cast(bare.delayed, ctypes.c_void_p).value or 0)
        try:
            return _compare(source, bare, real)
        finally:
            source.close()
            node.close()
            os.environ.pop(builder.VARIABLE)


def _compare(source: Nvml, bare: ctypes.CDLL, real: ctypes.c_void_p) -> list[Result]:
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    calls = [batch.call for batch in source.fast._batches]  # what a tick asks for
    asked = calls[0].fields
    if len(calls) != GPUS or any(not isinstance(call, Fields) or call.fields != asked for call in calls):
        raise RuntimeError("the stand-in is not the node that this measures")
    devices = (ctypes.c_void_p * GPUS)(*(ctypes.cast(handle, ctypes.c_void_p).value for handle in handles))
    fields = (_Field * (GPUS * len(asked)))()
    for index, field in enumerate(fields):
        field.id, field.scope = asked[index % len(asked)]

    def spent(run: Callable[[], None], ticks: int = 1) -> Callable[[], float]:
        def measured() -> float:
            began = time.process_time_ns()
            for _ in range(TICKS // ticks):
                run()
            return (time.process_time_ns() - began) / TICKS / 1000

        return measured

    def ours() -> None:
        source.sample_fast()
        source.fold_fast(0)

    def c() -> None:
        if bare.loop(bare.delayed, devices, GPUS, fields, len(asked), TICKS):
            raise RuntimeError("the bare loop was not answered")

    def python() -> None:
        for handle in handles:
            for value in pynvml.nvmlDeviceGetFieldValues(handle, asked):
                if value.nvmlReturn:
                    raise RuntimeError("nvidia-ml-py was not answered")

    what = f"a tick of {GPUS} GPUs x 18 NVLinks, {GPUS * len(asked)} fields"
    loop = "the same calls in a bare C loop"
    tick, least, wrapped = alternate(ROUNDS, spent(ours), spent(c, TICKS), spent(python))
    bare.delay(real, ctypes.c_uint64(1000 * DRIVER_US))
    slow_tick, slow_least = alternate(ROUNDS, spent(ours), spent(c, TICKS))
    return [
        Result(what, "us CPU", tick, least, loop, None),
        Result(f"{what}, {DRIVER_US} us a call assumed", "us CPU", slow_tick, slow_least, loop, GOAL_C),
        Result(
            f"{what}, beside Python", "us CPU", tick, wrapped, "nvidia-ml-py, one call a GPU", GOAL_PYTHON
        ),
    ]
