"""What goes wrong on a node of the NVML stand-in, and what it counts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pynvml as nvml
import pytest

from doubles.nvml import builder
from doubles.nvml.attach import attached
from doubles.nvml.driver import Node
from support import eventually

XID = nvml.nvmlEventTypeXidCriticalError
POWER = "nvmlDeviceGetPowerUsage"


@pytest.fixture
def node(nvml_built: builder.Built, tmp_path: Path) -> Iterator[Node]:
    with attached(nvml_built, tmp_path / "node", "hgx-h100") as made:
        yield made


@pytest.fixture
def pool(node: Node) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads
        node.withdraw_all()  # of a test that failed: nothing may wait for ever
        node.unload_driver()


def device(gpu: int = 0) -> object:
    return nvml.nvmlDeviceGetHandleByIndex(gpu)


def code(call: Callable[[], object]) -> int:
    """The nvmlReturn_t of a call of nvidia-ml-py."""
    try:
        call()
    except nvml.NVMLError as error:
        return int(error.value)
    return 0


def test_a_lost_gpu_answers_so_and_comes_back(node: Node) -> None:
    lost, other = device(0), device(1)
    node.lose(0)
    assert code(lambda: nvml.nvmlDeviceGetFieldValues(lost, [138])) == nvml.NVML_ERROR_GPU_IS_LOST
    assert code(lambda: device(0)) == nvml.NVML_ERROR_GPU_IS_LOST
    assert code(lambda: nvml.nvmlDeviceGetPowerUsage(other)) == 0
    assert nvml.nvmlDeviceGetCount() == 8
    node.find(0)
    assert code(lambda: nvml.nvmlDeviceGetPowerUsage(lost)) == 0


def test_a_call_answers_what_it_is_told_on_the_gpu_it_is_told(node: Node) -> None:
    zero, one = device(0), device(1)
    with node.answer(POWER, nvml.NVML_ERROR_UNKNOWN, gpu=1), node.answer("nvmlDeviceGetCount_v2", 17):
        assert code(lambda: nvml.nvmlDeviceGetPowerUsage(one)) == nvml.NVML_ERROR_UNKNOWN
        assert code(lambda: nvml.nvmlDeviceGetPowerUsage(zero)) == 0
        assert code(lambda: nvml.nvmlDeviceGetTemperature(one, 0)) == 0
        assert code(nvml.nvmlDeviceGetCount) == 17
    assert code(lambda: nvml.nvmlDeviceGetPowerUsage(one)) == 0
    with node.answer("*", nvml.NVML_ERROR_TIMEOUT, gpu=0):
        assert code(lambda: device(0)) == nvml.NVML_ERROR_TIMEOUT
        assert code(lambda: nvml.nvmlDeviceGetPowerUsage(one)) == 0
    with pytest.raises(KeyError, match="nvmlNoSuch"):
        node.answer("nvmlNoSuch", 1)


def test_a_call_hangs_until_it_is_let_go_and_the_others_go_on(node: Node, pool: ThreadPoolExecutor) -> None:
    zero, one = device(0), device(1)
    rule = node.hang("nvmlDeviceGetFieldValues", gpu=0)
    hung = pool.submit(nvml.nvmlDeviceGetFieldValues, zero, [91])
    eventually(lambda: node.inside("nvmlDeviceGetFieldValues") == 1, "the call hangs")
    assert nvml.nvmlDeviceGetFieldValues(one, [91])[0].value.uiVal == 18
    assert not hung.done()
    rule.withdraw()
    assert hung.result(10)[0].value.uiVal == 18
    assert node.inside("nvmlDeviceGetFieldValues") == 0


def test_a_hung_call_sees_what_became_of_its_gpu(node: Node, pool: ThreadPoolExecutor) -> None:
    zero = device(0)
    with node.hang(POWER):
        hung = pool.submit(code, lambda: nvml.nvmlDeviceGetPowerUsage(zero))
        eventually(lambda: node.inside(POWER) == 1, "the call hangs")
        node.lose(0)
    assert hung.result(10) == nvml.NVML_ERROR_GPU_IS_LOST


def test_a_call_hangs_for_a_while(node: Node) -> None:
    zero = device(0)
    with node.hang(POWER, seconds=0.2):
        start = time.monotonic()
        assert nvml.nvmlDeviceGetPowerUsage(zero) == 653000
        assert time.monotonic() - start >= 0.2


def test_an_xid_wakes_who_waits_and_only_for_its_gpu(node: Node, pool: ThreadPoolExecutor) -> None:
    node.xid(2, 13)  # before anybody listens: not for us
    events = nvml.nvmlEventSetCreate()
    nvml.nvmlDeviceRegisterEvents(device(2), XID, events)
    waiting = pool.submit(nvml.nvmlEventSetWait_v2, events, 0xFFFFFFFF)
    eventually(lambda: node.inside("nvmlEventSetWait_v2") == 1, "the thread waits")
    node.xid(1, 31)  # a GPU that it did not ask for
    node.xid(2, 79)
    node.xid(2, 48)
    event = waiting.result(10)
    assert (nvml.nvmlDeviceGetIndex(event.device), event.eventType, event.eventData) == (2, XID, 79)
    assert nvml.nvmlEventSetWait_v2(events, 1000).eventData == 48
    assert code(lambda: nvml.nvmlEventSetWait_v2(events, 10)) == nvml.NVML_ERROR_TIMEOUT
    nvml.nvmlEventSetFree(events)
    assert code(lambda: nvml.nvmlEventSetWait_v2(events, 10)) == nvml.NVML_ERROR_INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("misfortune", "answer"),
    [
        (lambda node: node.lose(0), nvml.NVML_ERROR_GPU_IS_LOST),
        (lambda node: node.unload_driver(), nvml.NVML_ERROR_DRIVER_NOT_LOADED),
    ],
)
def test_who_waits_for_events_learns_that_there_will_be_none(
    node: Node, pool: ThreadPoolExecutor, misfortune: Callable[[Node], None], answer: int
) -> None:
    events = nvml.nvmlEventSetCreate()
    nvml.nvmlDeviceRegisterEvents(device(0), XID, events)
    waiting = pool.submit(code, lambda: nvml.nvmlEventSetWait_v2(events, 0xFFFFFFFF))
    eventually(lambda: node.inside("nvmlEventSetWait_v2") == 1, "the thread waits")
    misfortune(node)
    assert waiting.result(10) == answer


def test_more_events_than_the_queue_holds_lose_the_oldest(node: Node) -> None:
    events = nvml.nvmlEventSetCreate()
    nvml.nvmlDeviceRegisterEvents(device(0), XID, events)
    for number in range(300):
        node.xid(0, number)
    seen = [nvml.nvmlEventSetWait_v2(events, 1000).eventData for _ in range(256)]
    assert seen == list(range(44, 300))
    assert code(lambda: nvml.nvmlEventSetWait_v2(events, 0)) == nvml.NVML_ERROR_TIMEOUT
    nvml.nvmlEventSetFree(events)


def test_events_that_a_gpu_does_not_know_are_refused(nvml_built: builder.Built, tmp_path: Path) -> None:
    with attached(nvml_built, tmp_path / "node", "laptop"):
        events = nvml.nvmlEventSetCreate()
        assert (
            code(lambda: nvml.nvmlDeviceRegisterEvents(device(0), XID, events))
            == nvml.NVML_ERROR_NOT_SUPPORTED
        )
        nvml.nvmlEventSetFree(events)


def test_a_driver_goes_and_comes_back_and_wants_to_be_initialised_again(node: Node) -> None:
    zero = device(0)
    node.unload_driver()
    assert code(lambda: nvml.nvmlDeviceGetPowerUsage(zero)) == nvml.NVML_ERROR_DRIVER_NOT_LOADED
    assert code(nvml.nvmlInit) == nvml.NVML_ERROR_DRIVER_NOT_LOADED
    node.unload_driver(nvml.NVML_ERROR_UNINITIALIZED)
    assert code(nvml.nvmlDeviceGetCount) == nvml.NVML_ERROR_UNINITIALIZED
    node.load_driver()
    assert code(nvml.nvmlDeviceGetCount) == nvml.NVML_ERROR_UNINITIALIZED
    nvml.nvmlInit()
    assert nvml.nvmlDeviceGetPowerUsage(device(0)) == 653000


def test_what_was_initialised_twice_is_shut_down_twice(node: Node) -> None:
    nvml.nvmlInit()
    nvml.nvmlShutdown()
    assert code(nvml.nvmlDeviceGetCount) == 0
    nvml.nvmlShutdown()
    assert code(nvml.nvmlDeviceGetCount) == nvml.NVML_ERROR_UNINITIALIZED
    assert code(nvml.nvmlShutdown) == nvml.NVML_ERROR_UNINITIALIZED


def test_pcie_throughput_takes_its_20_ms_and_holds_nobody_up(node: Node, pool: ThreadPoolExecutor) -> None:
    zero, one = device(0), device(1)
    node.node_value("pcie_sample_ms").set(900)
    slow = pool.submit(nvml.nvmlDeviceGetPcieThroughput, zero, nvml.NVML_PCIE_UTIL_RX_BYTES)
    eventually(lambda: node.calls("nvmlDeviceGetPcieThroughput") == 1, "the call is under way")
    assert nvml.nvmlDeviceGetPowerUsage(one) == 653000
    assert not slow.done()
    assert slow.result(10) == 3_072_000
    node.node_value("pcie_sample_ms").set(20)
    start = time.monotonic()
    assert nvml.nvmlDeviceGetPcieThroughput(zero, nvml.NVML_PCIE_UTIL_TX_BYTES) == 1_536_000
    assert time.monotonic() - start >= 0.02


def test_calls_are_counted_by_function_gpu_and_thread(node: Node) -> None:
    handles = [device(gpu) for gpu in range(8)]
    node.forget_calls()
    ids: list[int] = []

    def tick() -> None:
        ids.append(threading.get_native_id())
        for handle in handles:
            nvml.nvmlDeviceGetFieldValues(handle, [(138, link) for link in range(18)])

    thread = threading.Thread(target=tick)
    thread.start()
    thread.join()
    assert [node.calls("nvmlDeviceGetFieldValues", gpu) for gpu in range(8)] == [1] * 8
    assert node.calls("nvmlDeviceGetHandleByIndex_v2") == 0
    device(3)
    assert [node.calls("nvmlDeviceGetHandleByIndex_v2", gpu) for gpu in (2, 3)] == [0, 1]
    by_thread = {one.tid: one.calls for one in node.threads() if one.calls}
    assert by_thread == {
        ids[0]: {"nvmlDeviceGetFieldValues": 8},
        threading.get_native_id(): {"nvmlDeviceGetHandleByIndex_v2": 1},
    }


def test_many_threads_at_once_lose_no_call(node: Node, pool: ThreadPoolExecutor) -> None:
    handles = [device(gpu) for gpu in range(4)]
    node.forget_calls()

    def work(handle: object) -> None:
        for _ in range(2000):
            nvml.nvmlDeviceGetPowerUsage(handle)

    for job in [pool.submit(work, handle) for handle in handles]:
        job.result(60)
    assert [node.calls(POWER, gpu) for gpu in range(4)] == [2000] * 4
    assert sum(one.calls.get(POWER, 0) for one in node.threads()) == 8000
