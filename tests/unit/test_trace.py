"""Lines and summary of ``fabrictap trace``, and whom it finds."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from fabrictap.ext.completions import (
    COMPLETED,
    EMPTY,
    OUTCOMES,
    RECEIVE,
    REFUSED,
    SENT,
    Completions,
    Group,
    Work,
    encode,
)
from fabrictap.sources.rdma_netlink.client import Client, Listing
from fabrictap.sources.rdma_netlink.messages import Owner, QueuePair
from fabrictap.sources.verbs import wc
from fabrictap.trace import lines, summary, whom
from fabrictap.trace.summary import Sum, Summary
from fabrictap.trace.whom import TraceError

NOON = 1_700_000_000 * 10**9  # 22:13:20 UTC


def work(kind: int, **fields: int) -> Work:
    known = dict.fromkeys(Work._fields, 0) | {"time_ns": 123_456_789, "tid": 7, "pid": 7, "qpn": 17}
    return Work(**{**known, "kind": kind, **fields})


def shown(one: Work, device: str | None = "mlx5_0") -> str:
    found = lines.of_work(one, device, NOON)
    assert found is not None
    json.dumps(found)
    return lines.line(found)


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (
            work(SENT, operation=0, bytes=65536, wr_id=0xFF, number=2, flags=2 | 8, place=3),
            "mlx5_0/17 post rdma_write 65536 wr_id=0xff sges=2 signaled,inline chained=3",
        ),
        (
            work(SENT, operation=2, bytes=9, number=1, peer_qpn=99),
            "mlx5_0/17 post send 9 wr_id=0x0 sges=1 peer_qpn=99",
        ),
        (work(SENT, operation=99, flags=1 << 20), "mlx5_0/17 post unknown 0 wr_id=0x0 sges=0 0x100000"),
        (work(RECEIVE, operation=128, bytes=4096, number=1), "mlx5_0/17 post recv 4096 wr_id=0x0 sges=1"),
        (
            work(RECEIVE, operation=128, bytes=1, status=1, qpn=3),
            "mlx5_0/srq3 post recv 1 wr_id=0x0 sges=0",
        ),
        (
            work(COMPLETED, operation=1, latency_ns=44_200),
            "mlx5_0/17 completion rdma_write wr_id=0x0 latency=44.2us",
        ),
        (
            work(COMPLETED, operation=0, outcome=OUTCOMES.index("ambiguous")),
            "mlx5_0/17 completion send wr_id=0x0 latency unknown: ambiguous",
        ),
        (
            work(COMPLETED, operation=128, bytes=1000, flags=2, outcome=1),
            "mlx5_0/17 completion recv 1000 wr_id=0x0 imm",
        ),
        (
            work(COMPLETED, status=10, vendor_error=0x88, wr_id=5),
            "mlx5_0/17 completion wr_id=0x5 ERROR rem_access_err vendor_error=0x88",
        ),
        (work(COMPLETED, status=200), "mlx5_0/17 completion wr_id=0x0 ERROR unknown vendor_error=0x0"),
        (
            work(REFUSED, number=4, status=12),
            "mlx5_0/17 refused ERROR ENOMEM (Cannot allocate memory): 4 of those just posted",
        ),
    ],
)
def test_a_line_says_what_was_done(one, expected):
    time, tid, *rest = shown(one).split()
    assert (time, tid, " ".join(rest)) == ("22:13:20.123456", "7", expected)


def test_lines_are_in_columns():
    drawn = [lines.titles(), shown(work(SENT, number=1)), shown(work(COMPLETED, operation=2, latency_ns=5))]
    assert (
        len({line.index(mark) for line, mark in zip(drawn, ("DETAILS", "wr_id", "wr_id"), strict=True)}) == 1
    )


def test_a_name_that_would_move_the_cursor_is_escaped():
    assert "\x1b" not in shown(work(SENT), "mlx\x1b[2J")
    assert shown(work(SENT), None).split()[2] == "?/17"


def test_what_is_of_no_interest_is_no_line():
    assert lines.of_work(work(EMPTY), "mlx5_0", 0) is None


def group(kind: int = COMPLETED, **fields: object) -> Group:
    known: dict = dict.fromkeys(
        (
            "context",
            "pid",
            "qpn",
            "operation",
            "status",
            "count",
            "bytes",
            "headers",
            "latency_ns",
            "least_ns",
            "most_ns",
        ),
        0,
    )
    return Group(**{**known, "kind": kind, "outcomes": {}, "latencies": {}, **fields})


def test_percentiles_are_those_of_the_latencies_within_their_bucket():
    completions = Completions(0)
    completions.feed(bytearray(encode(work(6, time_ns=1))))
    for number in range(1, 1001):
        completions.feed(bytearray(encode(work(SENT, time_ns=10**7, wr_id=number, flags=2))))
        done = work(COMPLETED, time_ns=10**7 + number * 1000, wr_id=number, operation=1)
        completions.feed(bytearray(encode(done)))
    made = Sum()
    for one in completions.groups():
        if one.kind == COMPLETED:
            made.add(one)
    for percent in (1, 50, 90, 99, 100):
        assert made.percentile(percent) == pytest.approx(percent * 10e-6, rel=0.05)
    assert Sum().percentile(50) is None


def test_the_summary_has_every_count_and_says_what_is_missing():
    groups = [
        group(SENT, operation=0, count=1200, bytes=1 << 20, qpn=17),
        group(RECEIVE, operation=128, count=3, bytes=300, qpn=2, status=1),
        group(REFUSED, count=2, status=12, qpn=17),
        group(
            operation=1, count=1000, qpn=17, outcomes={"earlier": 4}, latencies={-120: 996}, most_ns=40_000
        ),
        group(operation=128, count=3, bytes=77, qpn=17),
        group(status=12, count=5, qpn=17),
        group(SENT, operation=0, count=1, qpn=99),
    ]
    made = Summary(10.0, lost=3, not_shown=7, control={"reg_mr": 2})
    summary.summarize(groups, lambda _: "mlx5_0", lambda _, qpn: qpn != 99, made)
    text = "\n".join(summary.text(made))
    assert "in 10s: 1,203 posted, 1,003 completed, 5 completed with an error, 2 refused" in text
    assert "LOST 3 records" in text
    assert "7 lines were not shown" in text
    assert "completions without a latency: 4 earlier" in text
    assert "control path: 2 reg_mr" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["mlx5_0/17", "rdma_write", "1,200", "1.00", "MiB"] in rows
    assert ["mlx5_0/srq2", "recv", "3", "300", "B"] in rows
    assert ["mlx5_0/17", "ERROR", wc.status(12), "5"] in rows
    found = json.loads(json.dumps(summary.as_json(made)))
    assert (found["lost"], found["refused"], found["errors"]) == (
        3,
        2,
        [{"qp": "mlx5_0/17", "status": "retry_exc_err", "count": 5}],
    )


def test_the_summary_of_nothing_is_one_line():
    assert summary.text(Summary(1.0)) == [
        "",
        "in 1s: 0 posted, 0 completed, 0 completed with an error",
    ]


# --- whom -----------------------------------------------------------------------------------------


class Netlink(Client):
    def __init__(self, *pairs: QueuePair, error: OSError | None = None) -> None:
        super().__init__()
        self.pairs, self.error = pairs, error

    def devices(self) -> dict[int, str]:
        if self.error is not None:
            raise self.error
        return {3: "mlx5_0"}

    def queue_pairs(self, device: int) -> Listing[QueuePair]:
        assert device == 3
        return Listing(list(self.pairs), True)


def pair(tid: int | None, kernel: str | None = None) -> QueuePair:
    return QueuePair(17, 2, 3, 1, None, Owner(tid, kernel))


def test_a_connection_is_traced_in_the_process_of_the_thread_that_made_it():
    made: list[int] = []
    ready, done = threading.Event(), threading.Event()

    def thread() -> None:
        made.append(threading.get_native_id())
        ready.set()
        done.wait(30)

    one = threading.Thread(target=thread)
    one.start()
    ready.wait(30)
    try:
        found = whom.connection("mlx5_0/17", Netlink(pair(made[0])))
        with pytest.raises(TraceError, match=f"--pid {os.getpid()}"):
            whom.process(made[0])
    finally:
        done.set()
        one.join()
    assert (found.pid, found.device, found.qpn) == (os.getpid(), "mlx5_0", 17)
    assert found.alive


@pytest.mark.parametrize(
    ("text", "netlink", "message"),
    [
        ("17", Netlink(), "expected DEVICE/QPN"),
        ("mlx5_0/x", Netlink(), "expected DEVICE/QPN"),
        ("mlx5_9/17", Netlink(), "there is no RDMA device mlx5_9"),
        ("mlx5_0/17", Netlink(), "has no queue pair 17"),
        ("mlx5_0/17", Netlink(pair(None, "nvme_rdma")), "the kernel's"),
        ("mlx5_0/17", Netlink(pair(None)), "has gone"),
        ("mlx5_0/17", Netlink(error=OSError(93, "Protocol not supported")), "Protocol not supported"),
    ],
)
def test_a_connection_that_cannot_be_traced_says_why(text, netlink, message):
    with pytest.raises(TraceError, match=message):
        whom.connection(text, netlink)


def test_a_process_that_uses_no_rdma_is_not_traced():
    with pytest.raises(TraceError, match="own process"):
        whom.check_uses_rdma(whom.process(os.getpid()))
    with pytest.raises(TraceError, match="uses no RDMA"):
        whom.check_uses_rdma(whom.process(os.getppid()))


# --- the operator's page --------------------------------------------------------------------------


def test_the_sample_of_the_operators_page_is_what_it_prints():
    page = (Path(__file__).parents[2] / "docs" / "operator.md").read_text()
    sample = page.partition("$ fabrictap trace --pid 4711 --for 10s\n")[2].partition("```")[0].splitlines()

    def at(microsecond: int, kind: int, **fields: int) -> Work:
        when = 1_795_423_940 * 10**9 + microsecond * 1000  # 08:52:20
        return work(kind, time_ns=when, tid=4711, pid=4711, **fields)

    works = [
        at(186420, SENT, bytes=65536, number=2, flags=2),
        at(186421, SENT, bytes=65536, number=2, flags=2, wr_id=1, place=1),
        at(186608, SENT, operation=4, bytes=8, number=1, flags=10, wr_id=2),
        at(186749, COMPLETED, operation=1, latency_ns=329_000),
        at(186750, COMPLETED, operation=1, latency_ns=329_000, wr_id=1),
        at(186952, COMPLETED, status=10, vendor_error=0x88, wr_id=2),
    ]
    modified = {
        "time_ns": 1_795_423_939 * 10**9 + 186_420_000, "event": "modify_qp", "pid": 4711, "tid": 4711,
        "device": "mlx5_0", "qpn": 17, "type": "rc", "state": "rts", "sq_psn": 235940,
    }  # fmt: skip
    drawn = ["tracing trainer (4711) for 10s; Ctrl-C ends it", lines.titles(), lines.line(modified)]
    for one in works:
        found = lines.of_work(one, "mlx5_0", 0)
        assert found is not None
        drawn.append(lines.line(found))
    made = Summary(10.0, control={"modify_qp": 1})
    latencies = {-93: 2}
    groups = [
        group(SENT, operation=0, count=2, bytes=131072, qpn=17),
        group(SENT, operation=4, count=1, bytes=8, qpn=17),
        group(operation=1, count=2, qpn=17, latencies=latencies, least_ns=329_000, most_ns=329_000),
        group(status=10, count=1, qpn=17),
    ]
    drawn += summary.text(summary.summarize(groups, lambda _: "mlx5_0", lambda *_: True, made))
    assert drawn == sample
