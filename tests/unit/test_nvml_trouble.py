"""The nvml source when GPUs are lost or hang, the driver goes, symbols are missing; and native objects."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from doubles.nvml import builder, real
from doubles.nvml.driver import Node
from fabrictap.catalog import (
    ERRORS,
    GPU_CONFIDENTIAL,
    GPU_FABRIC,
    GPU_IO,
    GPU_MEMORY_USAGE,
    GPU_PRESENT,
    GPU_PROCESSES,
    HW_STATUS,
    NVLINK_IO,
)
from fabrictap.ext import calls as native_calls
from fabrictap.ext import nvml
from fabrictap.ext.calls import Calls
from fabrictap.sources import SourceAbsent, SourceUnavailable
from fabrictap.sources.nvml.patience import Hung, Patience
from support import eventually, require

pytest_plugins = ["nvml_fixtures"]
FIELDS = "nvmlDeviceGetFieldValues"


def impatient(watched):
    """What hangs is given up soon; nothing else is hurried, for it has been called before."""
    watched.source.limit = watched.source.fast.limit = 0.3


def state(watched, gpu):
    (found,) = [name for name, on in watched.values(HW_STATUS, "hw.state", hw__id=gpu).items() if on]
    return found


# --- a lost GPU -----------------------------------------------------------------------------------


def test_a_lost_gpu_costs_its_own_series_and_comes_back(watch):
    watched = watch("hgx-h100")
    watched.start()
    gpu, other = watched.gpu(3), watched.gpu(4)
    watched.node.lose(3)
    watched.fast()
    assert watched.find(GPU_IO, hw__id=gpu) == watched.find(NVLINK_IO, hw__id=gpu) == []
    assert len(watched.find(NVLINK_IO)) == 7 * 36
    watched.slow(10)
    assert watched.find(GPU_MEMORY_USAGE, hw__id=gpu) == []
    assert (state(watched, gpu), state(watched, other)) == ("failed", "ok")
    assert len(watched.find(GPU_PRESENT)) == 8
    available = watched.ledger.providers.availability()
    assert available["nvml", "hw.gpu.memory.usage", "gpu_lost"] == 1
    assert available["nvml", "hw.gpu.memory.usage", None] == 7
    watched.node.find(3)
    watched.slow(10)
    for _ in range(30):
        watched.fast(1.0)
    assert state(watched, gpu) == "ok"
    for direction, field in (("transmit", 138), ("receive", 139)):
        found = watched.values(NVLINK_IO, "gpu.nvlink.link", hw__id=gpu, network__io__direction=direction)
        assert found == {link: 1024 * watched.node.field(3, field, link).get() for link in range(18)}


def test_a_gpu_that_stays_lost_makes_nvml_start_anew_without_a_gap_for_the_others(watch):
    watched = watch("hgx-h100")
    watched.start()
    (series,) = watched.find(GPU_IO, hw__id=watched.gpu(0), gpu__interconnect="pcie",
                             network__io__direction="transmit")  # fmt: skip
    watched.node.lose(3)
    watched.slow(10)
    watched.node.forget_calls()
    watched.slow(61)
    assert watched.node.calls("nvmlShutdown") == watched.node.calls("nvmlInitWithFlags") == 1
    assert not series.ended
    watched.fast()
    assert series.value == watched.node.field(0, 197).get()
    assert state(watched, watched.gpu(3)) == "failed"
    watched.node.forget_calls()
    watched.slow(61)
    assert watched.node.calls("nvmlShutdown") == 0  # the next try is later
    watched.node.find(3)
    watched.slow(61)
    watched.fast()
    watched.fast()
    assert state(watched, watched.gpu(3)) == "ok"
    assert len(watched.find(NVLINK_IO, hw__id=watched.gpu(3))) == 36


# --- calls that hang ------------------------------------------------------------------------------


def test_a_fast_call_that_hangs_costs_its_gpu_and_the_others_go_on(watch):
    watched = watch("hgx-h100")
    watched.start()
    impatient(watched)
    gpu = watched.gpu(2)
    with watched.node.hang(FIELDS, gpu=2):
        watched.fast()
        assert watched.source.fast.stuck == 1
        assert watched.find(NVLINK_IO, hw__id=gpu) == []
        assert len(watched.find(NVLINK_IO)) == 7 * 36
        calls = watched.node.calls(FIELDS, 2)
        for _ in range(600):  # 60 s of the node's time
            watched.fast()
        assert watched.source.fast.stuck == watched.node.inside(FIELDS) == 1
        assert watched.node.calls(FIELDS, 2) == calls  # it is not called again
        way = {"network__io__direction": "receive", "gpu__nvlink__link": 0}
        assert (
            watched.value(NVLINK_IO, hw__id=watched.gpu(7), **way) == 1024 * watched.node.field(7, 139).get()
        )
        watched.slow(10)
        assert state(watched, gpu) == "failed"
        assert watched.ledger.providers.availability()["nvml", "hw.gpu.io", "hung"] == 1
    eventually(lambda: watched.source.fast.stuck == 0, "the call has returned")
    watched.slow(10)
    watched.fast()
    watched.fast()
    assert state(watched, gpu) == "ok"
    assert watched.value(NVLINK_IO, hw__id=gpu, **way) == 1024 * watched.node.field(2, 139).get()


def test_a_slow_call_that_hangs_costs_its_gpu_and_the_others_go_on(watch):
    watched = watch("hgx-h100")
    watched.start()
    impatient(watched)
    gpu = watched.gpu(5)
    with watched.node.hang("nvmlDeviceGetPowerUsage", gpu=5):
        watched.slow(10)
        assert state(watched, gpu) == "failed"
        assert len(watched.find(GPU_MEMORY_USAGE)) == 7
        watched.fast()
        calls = watched.node.calls(FIELDS, 5)
        watched.slow(61)
        watched.fast()
        assert watched.node.calls(FIELDS, 5) == calls
        assert watched.node.inside("nvmlDeviceGetPowerUsage") == 1
        assert watched.source.errors["hung"] == 1
    eventually(lambda: watched.node.inside("nvmlDeviceGetPowerUsage") == 0, "the call has returned")
    eventually(lambda: watched.source._patience.stuck == 0, "its thread has noticed")
    watched.slow(10)
    watched.fast()
    assert state(watched, gpu) == "ok"
    assert len(watched.find(GPU_MEMORY_USAGE)) == 8


def test_a_source_that_is_closed_while_a_call_hangs_leaves_the_library_and_opens_again(watch):
    watched = watch("hgx-h100")
    watched.start()
    impatient(watched)
    hang = watched.node.hang(FIELDS, gpu=0)
    watched.fast()
    watched.node.forget_calls()
    watched.source.close()
    assert watched.node.calls("nvmlShutdown") == 0
    watched.source.open()
    watched.slow()
    assert len(watched.find(GPU_MEMORY_USAGE)) == 7
    hang.withdraw()
    eventually(lambda: watched.source.fast.stuck == 0, "the call has returned")
    eventually(lambda: watched.source._patience.stuck == 0, "and so has the one that looked for GPUs")
    watched.slow(10)
    watched.fast()
    watched.fast()
    assert len(watched.find(NVLINK_IO)) == 8 * 36


def test_when_every_gpu_hangs_the_threads_left_behind_are_as_many_as_gpus(watch):
    watched = watch("hgx-h100")
    watched.start()
    watched.source.limit = watched.source.fast.limit = 0.05
    with watched.node.hang(FIELDS):
        for _ in range(20):
            watched.fast()
        assert watched.source.fast.stuck == 8
        watched.slow(10)
        assert {state(watched, watched.gpu(gpu)) for gpu in range(8)} == {"failed"}
        assert watched.find(GPU_IO) == []
    eventually(lambda: watched.source.fast.stuck == 0, "all calls have returned")


# --- the driver -----------------------------------------------------------------------------------


def test_a_driver_that_is_unloaded_ends_everything_and_comes_back_without_a_restart(watch):
    watched = watch("hgx-h100")
    watched.start()
    watched.node.unload_driver()
    watched.slow(10)
    assert [series for series in watched.table if not series.ended] == []
    assert len(watched.ledger.gpus) == len(watched.ledger.providers) == 0
    with pytest.raises(SourceUnavailable, match="driver_not_loaded"):
        watched.slow(10)
    watched.source.close()
    with pytest.raises(SourceUnavailable, match="modprobe nvidia"):
        watched.source.open()
    watched.source.close()
    watched.node.load_driver()
    watched.start()
    assert len(watched.find(NVLINK_IO)) == 8 * 36
    watched.node.xid(0, 13)

    def counted():
        watched.slow()
        return watched.find(ERRORS, error__type="xid_13")

    eventually(counted, "XIDs are waited for again")


def test_a_driver_that_goes_and_comes_between_two_samples_is_noticed(watch):
    watched = watch("hgx-h100")
    watched.start()
    watched.node.unload_driver()
    watched.node.load_driver()
    watched.fast()
    watched.slow(10)
    with pytest.raises(SourceUnavailable):
        watched.slow(10)
    watched.source.close()
    watched.start()
    assert len(watched.find(NVLINK_IO)) == 8 * 36


def test_a_driver_without_its_library_is_told_in_one_line(watch, tmp_path):
    (tmp_path / "sys/module/nvidia").mkdir(parents=True)
    watched = watch("hgx-h100", library="/nowhere/libnvidia-ml.so.1", sysfs=tmp_path / "sys")
    with pytest.raises(SourceUnavailable, match="which is loaded: /nowhere") as said:
        watched.source.open()
    assert "\n" not in str(said.value)
    assert not isinstance(said.value, SourceAbsent)
    watched.source.close()


def test_a_node_without_a_driver_misses_nothing(watch):
    watched = watch("hgx-h100", library="/nowhere/libnvidia-ml.so.1")
    with pytest.raises(SourceAbsent, match="no NVIDIA driver on this node"):
        watched.source.open()
    watched.source.close()


def test_a_node_without_gpus_says_so(watch):
    watched = watch("hgx-h100")
    watched.node.gpus(0)
    watched.source.open()
    with pytest.raises(SourceUnavailable, match="lists none"):
        watched.slow()


def test_a_library_of_an_old_driver_costs_the_figures_that_it_does_not_have(watch, built_nvml):
    watched = watch("hgx-h100", library=str(built_nvml.legacy))
    watched.start()
    watched.fast(1.1)
    assert watched.find(GPU_FABRIC) == watched.find(GPU_CONFIDENTIAL) == []
    assert len(watched.find(NVLINK_IO)) == 8 * 36
    assert len(watched.find(GPU_MEMORY_USAGE)) == len(watched.find(GPU_PROCESSES)) == 8
    available = watched.ledger.providers.availability()
    assert available["nvml", "gpu.fabric", "function_not_found"] == 8
    assert available["nvml", "gpu.confidential_computing", "function_not_found"] == 8
    assert ("gpm", "gpu.memory.bandwidth.utilization", None) not in available
    assert watched.source.errors == {}


@pytest.mark.parametrize(
    "function",
    [
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetBAR1MemoryInfo",
        "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetNvLinkState",
        "nvmlDeviceGetNvLinkRemotePciInfo_v2",
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlDeviceGetPciInfo_v3",
        "nvmlDeviceGetMigMode",
        "nvmlGpmQueryDeviceSupport",
        "nvmlEventSetCreate",
        FIELDS,
    ],
)
@pytest.mark.parametrize("code", [3, 4, 999])
def test_whatever_one_function_answers_the_source_delivers_the_rest(watch, function, code):
    watched = watch("hgx-h100")
    with watched.node.answer(function, code):
        watched.start()
        assert state(watched, watched.gpu(0)) == "ok"
        assert len(watched.find(GPU_PRESENT)) == 8


def test_a_gpu_that_hides_behind_permissions_is_left_out(watch):
    watched = watch("hgx-h100")
    with watched.node.answer("nvmlDeviceGetHandleByIndex_v2", 4, gpu=1):
        watched.start()
        assert len(watched.find(GPU_PRESENT)) == 7
        assert watched.source.errors == {"no_permission": 1}
    watched.slow(61)
    assert len(watched.find(GPU_PRESENT)) == 8


def test_more_gpus_than_the_limit_are_left_out(watch):
    watched = watch("hgx-h100")
    watched.ledger.gpus.capacity = 3
    watched.start()
    assert len(watched.ledger.gpus) == 3
    assert len(watched.find(NVLINK_IO)) == 3 * 36
    assert watched.ledger.gpus.dropped == 5


# --- natively -------------------------------------------------------------------------------------


@pytest.fixture
def entry(built_nvml, tmp_path, monkeypatch):
    """Address of nvmlDeviceGetFieldValues, of a GPU, and the node; initialised."""
    node = Node.create(built_nvml, tmp_path / "node", "hgx-h100")
    monkeypatch.setenv(builder.VARIABLE, str(node.path))
    library = ctypes.CDLL(str(built_nvml.library))
    assert library.nvmlInit_v2() == 0
    device = ctypes.c_void_p()
    assert library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)) == 0
    yield ctypes.cast(getattr(library, FIELDS), ctypes.c_void_p).value, device.value, node
    library.nvmlShutdown()
    node.close()


def test_native_objects_are_freed(entry):
    function, device, _ = entry
    gc.collect()
    before = nvml.alive() | native_calls.alive()
    calls = Calls(2)
    made = [nvml.Fields(function, device, [(197, 0), (138, 3)], 2) for _ in range(10)]
    assert calls.round(made, 5.0) == 0
    assert all(one.answered and one.status == 0 for one in made)
    now = nvml.alive() | native_calls.alive()
    assert (now["calls"], now["fields"]) == (before["calls"] + 1, before["fields"] + 10)
    calls.close()
    calls.close()
    del made, calls
    gc.collect()
    assert nvml.alive() | native_calls.alive() == before


def test_many_rounds_do_not_grow_the_process_nor_its_threads(entry):
    function, device, _ = entry
    process = psutil.Process()
    calls = Calls(2)
    made = [nvml.Fields(function, device, [(138, link) for link in range(18)]) for _ in range(8)]

    def rounds(count):
        for _ in range(count):
            assert calls.round(made, 5.0) == 0

    rounds(200)
    memory, threads = process.memory_info().rss, process.num_threads()
    rounds(3000)
    assert process.num_threads() == threads
    assert process.memory_info().rss - memory < 1 << 20
    calls.close()


def test_made_and_dropped_again_and_again_nothing_grows(entry):
    function, device, _ = entry
    process = psutil.Process()

    def churn(count):
        for _ in range(count):
            calls = Calls(2)
            assert calls.round([nvml.Fields(function, device, [(197, 0)] * 200, 2)], 5.0) == 0
            calls.close()

    churn(50)
    memory = process.memory_info().rss
    churn(500)
    assert process.memory_info().rss - memory < 2 << 20


def test_as_many_threads_as_allowed_are_left_behind_and_no_more(entry):
    function, device, node = entry
    calls = Calls(2)
    made = [nvml.Fields(function, device, [(197, 0)]) for _ in range(4)]
    with node.hang(FIELDS):
        assert calls.round(made, 0.05) == errno.EBUSY
        assert [one.stuck for one in made] == [True, True, False, False]
        assert calls.stuck == 2
        assert calls.round(made, 0.05) == errno.EBUSY
        assert node.inside(FIELDS) == 2
    eventually(lambda: calls.stuck == 0, "both have returned")
    assert calls.round(made, 5.0) == 0
    assert all(one.answered for one in made)
    calls.close()


def test_what_is_stuck_outlives_its_owner(entry):
    function, device, node = entry
    calls = Calls(2)
    one = nvml.Fields(function, device, [(197, 0)])
    hang = node.hang(FIELDS)
    calls.round([one], 0.05)
    before = nvml.alive()["fields"]
    calls.close()
    del one, calls
    gc.collect()
    assert nvml.alive()["fields"] == before  # the library still writes into it
    hang.withdraw()
    eventually(lambda: node.inside(FIELDS) == 0, "the call has returned")


def test_wrong_arguments_are_refused(entry):
    function, device, _ = entry
    with pytest.raises(ValueError, match="at least one"):
        nvml.Fields(function, device, [])
    with pytest.raises(ValueError, match="nvmlDeviceGetFieldValues"):
        nvml.Fields(0, device, [(1, 0)])
    one = nvml.Fields(function, device, [(1, 0)], 1)
    for bad in (
        lambda: one.bind(1, 0, 1, 64),
        lambda: one.bind(0, 0, 1, 64, 1),
        lambda: one.bind_total(1, 0),
    ):
        with pytest.raises(IndexError):
            bad()
    with pytest.raises(ValueError, match="nvmlGpmMigSampleGet"):
        nvml.Gpm(function, 0, function, device, 1, (1, 2), [10])
    calls = Calls(1)
    calls.close()
    with pytest.raises(RuntimeError):
        calls.round([one], 1.0)


# --- patience -------------------------------------------------------------------------------------


def test_patience_leaves_a_call_behind_and_goes_on_with_another_thread():
    patience = Patience(Calls(1))
    let_go = threading.Event()
    callers = set()

    def call(wait=None):
        callers.add(threading.get_native_id())
        if wait is not None:
            wait.wait()
        return 7

    assert patience.run(call, 5) == 7
    with pytest.raises(Hung) as hung:
        patience.run(lambda: call(let_go), 0.05)
    assert patience.stuck == 1
    with pytest.raises(Hung):  # one may hang, and does
        patience.run(call, 5)
    let_go.set()
    eventually(lambda: hung.value.call.returned, "it has returned")
    assert patience.run(call, 5) == 7
    assert len(callers) == 2
    assert threading.get_native_id() not in callers
    with pytest.raises(ZeroDivisionError):
        patience.run(lambda: 1 // 0, 5)


def test_the_real_library_without_a_driver_says_so_in_one_line():
    path, problem = real.library()
    require("nvml535", path is not None, problem)
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has NVIDIA's driver")
    script = (
        "import sys\n"
        "from fabrictap.sources import SourceUnavailable\n"
        "from fabrictap.sources.nvml.library import Library\n"
        "try: Library(sys.argv[1])\n"
        "except SourceUnavailable as error: print(error)\n"
    )
    # As root the library would make /dev/nvidiactl; a test leaves the machine as it is.
    harmless = ["setpriv", "--bounding-set=-mknod"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*harmless, sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.count("\n") == 1
    assert "Driver Not Loaded; load the NVIDIA driver (modprobe nvidia)" in done.stdout
