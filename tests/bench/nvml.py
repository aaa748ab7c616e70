"""One read of the fast tier on 8 GPUs with 18 NVLinks each, on the NVML stand-in.

Ours is all that it takes: the thread that sleeps until its time, can be left behind and makes the calls,
what it adds up of 592 counters and 16 sums, and a tenth of the fold of all that into the ring, after ten
reads. The fold is in the main thread, as in the agent, which is awake for its tick anyway: its own wake-up
is not counted, and the interpreter has been at work just before. The bare C loop sleeps until the same times
with clock_nanosleep, makes the same calls and keeps the values. CPU time, with the wake-ups and, in a line
of its own, without: there our thread and the loop run freely. Reads are 10 ms apart, not 100, so that it
does not take minutes.

The stand-in answers a call in half a microsecond. What a driver takes is not in it and was not measured; one
line assumes it.
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

from bench.result import Result, alternate, note
from doubles.nvml import builder
from doubles.nvml.driver import Node
from fabrictap.config import Config, Duration
from fabrictap.ext.nvml import Fields
from fabrictap.ledger import Ledger
from fabrictap.series import SeriesTable
from fabrictap.sources.nvml.source import Nvml

ROUNDS = 25
#: Reads in a round and between two folds; seconds between them.
READS, FOLD_EVERY, PERIOD = 50, 10, 0.01
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
    config.sources.nvml.fast_interval = Duration(PERIOD)
    source = Nvml(config.sources.nvml, SeriesTable(config.limits.series), Ledger(config), "/nowhere")
    source.fast._longest = PERIOD  # whatever it costs
    source.open()
    loaded = source._library
    assert loaded is not None
    found = loaded.address
    loaded.address = lambda name: delayed if name == FIELD_VALUES else found(name)  # type: ignore[method-assign]
    source.fold(source.sample(), time.time_ns())
    for _ in range(5):
        source.tick(time.time_ns())
        time.sleep(5 * PERIOD)
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

    def cpu(run: Callable[[], int]) -> Callable[[], float]:
        """Microseconds of CPU; ``run`` returns by how many reads."""

        def measured() -> float:
            began = time.process_time_ns()
            reads = run()
            return (time.process_time_ns() - began) / reads / 1000

        return measured

    def ours() -> float:
        before, spent = source._calls.look()[1], time.process_time_ns()
        awake = time.thread_time_ns()
        ticks = 0
        for _ in range(READS // FOLD_EVERY):
            time.sleep(FOLD_EVERY * PERIOD)
            sorted(range(200), key=lambda number: -number)
            began = time.thread_time_ns()
            source.tick(time.time_ns())
            ticks += time.thread_time_ns() - began
        spent = time.process_time_ns() - spent - (time.thread_time_ns() - awake) + ticks
        return spent / (source._calls.look()[1] - before) / 1000

    def c(period: float, reads: int = READS) -> Callable[[], int]:
        def loop() -> int:
            period_ns = ctypes.c_uint64(int(period * 1e9))
            if bare.loop(bare.delayed, devices, GPUS, fields, len(asked), reads, period_ns):
                raise RuntimeError("the bare loop was not answered")
            return reads

        return loop

    def python() -> int:
        for handle in handles:
            for value in pynvml.nvmlDeviceGetFieldValues(handle, asked):
                if value.nvmlReturn:
                    raise RuntimeError("nvidia-ml-py was not answered")
        return 1

    def paused(run: Callable[[], float]) -> Callable[[], float]:
        """Measured while our thread makes no reads."""

        def measured() -> float:
            source.fast.pause()
            spent = run()
            source.tick(time.time_ns())
            time.sleep(2 * PERIOD)
            return spent

        return measured

    def freely() -> int:
        """Our thread alone, as fast as it can."""
        source._calls.keep(calls, 1.0, 1e-9)
        before = source._calls.look()[1]
        time.sleep(FOLD_EVERY * PERIOD)
        reads = source._calls.look()[1] - before
        source.fast.pause()
        return reads

    def fold() -> float:
        """The fold's share in a read."""
        source._calls.round(calls, 1.0)
        began = time.process_time_ns()
        source.fast.fold(time.time_ns())
        return (time.process_time_ns() - began) / FOLD_EVERY / 1000

    what = f"a read of {GPUS} GPUs x 18 NVLinks, {GPUS * len(asked)} fields"
    loop = "the same calls in a bare C loop"
    free = 1000
    read, least, wrapped, alone, folded, least_alone = alternate(
        ROUNDS, ours, paused(cpu(c(PERIOD))), paused(cpu(python)), paused(cpu(freely)), paused(fold),
        paused(cpu(c(0, free))),
    )  # fmt: skip
    bare.delay(real, ctypes.c_uint64(1000 * DRIVER_US))
    slow, slow_least = alternate(ROUNDS // 3, ours, paused(cpu(c(PERIOD))))
    return [
        Result(what, "us CPU", read, least, f"{loop} that sleeps as long", GOAL_C),
        Result(f"{what}, without waking up", "us CPU", alone + folded, least_alone, loop, GOAL_C),
        Result(f"{what}, {DRIVER_US} us a call assumed", "us CPU", slow, slow_least, loop, GOAL_C),
        Result(
            f"{what}, beside Python", "us CPU", read, wrapped, "nvidia-ml-py, one call a GPU", GOAL_PYTHON
        ),
        note(f"{what}: the fold's part", "us CPU", folded, "in both lines above"),
    ]
