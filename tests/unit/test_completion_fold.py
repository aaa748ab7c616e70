"""Windows of completions into series: what was seen, and for how long."""

from __future__ import annotations

import pytest

from doubles.verbs_node import DEVICE, Node, created
from fabrictap import catalog
from fabrictap.ext.completions import COMPLETED, SENT, Group
from fabrictap.series import Histogram
from fabrictap.sources.verbs.windows import Window

SECOND = 10**9
CONTEXT = 0x5000
WRITE, READ, RECV, RECV_WITH_IMM = 1, 2, 128, 129


def group(
    operation: int = WRITE, *, kind: int = COMPLETED, pid: int = 1, qpn: int = 17, **more: object
) -> Group:
    known: dict = {"status": 0, "count": 1, "bytes": 0, "headers": 0, "latency_ns": 0, "least_ns": 0}
    known |= {"most_ns": 0, "outcomes": {}, "latencies": {}} | more
    return Group(context=CONTEXT, pid=pid, qpn=qpn, kind=kind, operation=operation, **known)


def window(
    *groups: Group, at: int = 0, seconds: float = 1.0, device: str | None = DEVICE, **more: object
) -> Window:
    began = at * SECOND
    devices = {(one.pid, one.context): device for one in groups if device is not None}
    known: dict = {"end": "full", "groups": list(groups), "devices": devices} | more
    return Window(began, began + int(seconds * SECOND), **known)


@pytest.fixture
def node() -> Node:
    return Node()


def test_completions_are_counted_by_operation_and_errors_by_status(node):
    for at in (0, 30):
        node.fold(
            windows=[
                window(
                    group(WRITE, count=5),
                    group(READ, count=2, qpn=18),
                    group(WRITE, count=3, qpn=18),
                    group(0, status=10, count=4),
                    group(0, status=99, count=1),
                    group(WRITE, kind=SENT, count=100),
                    at=at,
                )
            ]
        )
    done = node.find(catalog.COMPLETION_OPERATIONS)
    assert {series.attributes["rdma.operation"]: series.value for series in done} == {
        "rdma_write": 16,
        "rdma_read": 4,
    }
    errors = node.find(catalog.COMPLETION_ERRORS)
    assert {series.attributes["rdma.completion.status"]: series.value for series in errors} == {
        "rem_access_err": 8,
        "unknown": 2,
    }
    assert {series.attributes["rdma.qp.number"] for series in errors} == {17}
    assert {series.attributes["process.pid"] for series in (*done, *errors)} == {1}


def test_what_arrived_is_counted_in_bytes(node):
    node.fold(windows=[window(group(RECV, count=2, bytes=300), group(RECV_WITH_IMM, bytes=50))])
    assert node.one(catalog.COMPLETION_RECEIVE_IO).value == 350
    assert node.one(catalog.COMPLETION_OPERATIONS).attributes["rdma.operation"] == "recv"


def test_latencies_of_all_queue_pairs_and_windows_are_one_histogram(node):
    one = group(latencies={-120: 3, -112: 1}, count=4, latency_ns=4 * 40_000)
    two = group(latencies={-120: 2}, qpn=18, count=2, latency_ns=2 * 30_000)
    node.fold(windows=[window(one, two)])
    node.fold(windows=[window(two, at=30)])
    found = node.one(catalog.COMPLETION_LATENCY).value
    assert found == Histogram(8, pytest.approx(280e-6), 0, -120, [7, *[0] * 7, 1], 3)


def test_latencies_that_are_far_apart_are_kept_in_coarser_buckets(node):
    node.fold(windows=[window(group(latencies={-200: 1, -199: 2, 10: 4}, latency_ns=1, count=7))])
    found = node.one(catalog.COMPLETION_LATENCY).value
    assert isinstance(found, Histogram)
    assert (found.scale, found.offset, len(found.buckets)) == (2, -100, 106)
    assert (found.buckets[0], found.buckets[-1], found.count) == (3, 4, 7)


def test_completions_without_a_latency_are_counted_by_reason(node):
    node.fold(windows=[window(group(count=9, outcomes={"earlier": 4, "ambiguous": 5}))])
    found = node.find(catalog.COMPLETION_UNMATCHED)
    assert {s.attributes["rdma.completion.unmatched"]: s.value for s in found} == {
        "earlier": 4,
        "ambiguous": 5,
    }
    assert node.find(catalog.COMPLETION_LATENCY) == []


def test_the_time_that_was_observed_is_told_with_them(node):
    node.fold(windows=[window(seconds=1)])
    assert node.one(catalog.COMPLETION_OBSERVED_TIME).value == 1
    assert node.find(catalog.COMPLETION_OBSERVED_SHARE) == []  # of what time?
    node.fold(windows=[window(at=30, seconds=0.25, end="cost", lost=7)])
    assert node.one(catalog.COMPLETION_OBSERVED_TIME).value == 1.25
    assert node.one(catalog.COMPLETION_OBSERVED_SHARE).value == pytest.approx(1 / 30)
    assert node.one(catalog.COMPLETION_LOST).value == 7
    ends = node.find(catalog.COMPLETION_WINDOWS)
    assert {s.attributes["fabrictap.window.end"]: s.value for s in ends} == {"full": 1, "cost": 1}


def test_a_window_that_failed_observed_nothing(node):
    node.fold(windows=[window(end="failed", problem="no")])
    assert node.find(catalog.COMPLETION_OBSERVED_TIME) == []
    assert node.one(catalog.COMPLETION_WINDOWS).value == 1


def test_before_the_first_window_nothing_is_claimed(node):
    node.fold()
    names = {series.metric.name for series in node.table}
    assert not any(name.startswith(("rdma.completion", "fabrictap.completion")) for name in names)


def test_a_process_that_was_not_seen_has_no_series(node):
    node.instrumented(2)
    node.fold(windows=[window(group(pid=2))])
    assert {s.attributes["process.pid"] for s in node.find(catalog.COMPLETION_OPERATIONS)} == {2}
    assert node.find(catalog.COMPLETION_ERRORS) == []


def test_the_device_of_a_process_that_has_gone_is_that_of_its_connection(node):
    node.fold(created(17))
    node.fold(windows=[window(group(), device=None)])
    assert node.one(catalog.COMPLETION_OPERATIONS).attributes["rdma.device"] == DEVICE
    node.fold(windows=[window(group(qpn=99), device=None)])
    assert node.one(catalog.COMPLETION_OPERATIONS).value == 1


def test_a_device_that_is_not_ours_is_left_out():
    node = Node(deny=["mlx5_*"])
    node.fold(windows=[window(group(), device="mlx5_3"), window(group(count=2), device="rxe0")])
    assert node.one(catalog.COMPLETION_OPERATIONS).value == 2


def test_series_end_with_their_process(node):
    node.instrumented(2)
    node.fold(windows=[window(group(latencies={-120: 1}, latency_ns=9), group(pid=2), group(RECV, bytes=1))])
    node.fold(gone=[1])
    alive = [s for s in node.table if s.metric.name.startswith("rdma.completion") and not s.ended]
    assert {series.attributes["process.pid"] for series in alive} == {2}
    node.fold(gone=[1, 2])
    assert node.verbs._completion_fold._users == {}
    assert node.verbs._completion_fold._latencies == {}
