"""Which request a completion completes (ext/completions.h): latencies where they are known, and why not."""

from __future__ import annotations

import random

import pytest

from fabrictap.ext import completions
from fabrictap.ext.completions import (
    COMPLETED,
    EMPTY,
    IDLE_NS,
    OUTCOMES,
    RECEIVE,
    REFUSED,
    RESET,
    RUN,
    SENT,
    Completions,
    Work,
    decode,
    encode,
)

SIGNALED, GRH = 2, 1
WRITE, SEND, READ = 0, 2, 4
WC_SEND, WC_WRITE, WC_READ, WC_RECV = 0, 1, 2, 128
FLUSHED = 5


class Line:
    """A clock and what is recorded along it, of one queue pair unless said otherwise."""

    def __init__(self, **limits: int) -> None:
        self.now = 1_000_000
        self.completions = Completions(self.now, **limits)

    def feed(self, *works: Work, whole: bool = True) -> list[Work]:
        batch = bytearray(b"".join(map(encode, works)))
        self.completions.feed(batch, whole)
        return decode(batch)

    def work(self, kind: int, after: int = 100, **fields: int) -> Work:
        self.now += after
        known = dict.fromkeys(Work._fields, 0) | {"context": 7, "queue": 9, "pid": 1, "tid": 1, "qpn": 17}
        return Work(**{**known, "kind": kind, "time_ns": self.now, **fields})

    def post(self, wr_id: int = 0, flags: int = SIGNALED, **fields: int) -> None:
        self.feed(self.work(SENT, wr_id=wr_id, flags=flags, **fields))

    def done(self, wr_id: int = 0, operation: int = WC_WRITE, **fields: int) -> tuple[int, str | None]:
        """Latency and why there is none."""
        (work,) = self.feed(self.work(COMPLETED, wr_id=wr_id, operation=operation, **fields))
        return work.latency_ns, OUTCOMES[work.outcome]

    def reset(self, **fields: int) -> None:
        self.feed(self.work(RESET, **fields))

    def empty(self, after: int) -> None:
        self.feed(self.work(EMPTY, after, qpn=0))


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def born(line: Line) -> Line:
    """The queue pair was made while it was watched."""
    line.reset()
    return line


def test_a_completion_has_the_time_since_its_request_was_posted(born):
    born.post(5)
    born.now += 1000
    assert born.done(5) == (1100, None)


def test_requests_with_one_wr_id_complete_in_their_order(born):
    posted = []
    for _ in range(100):
        born.post(0)
        posted.append(born.now)
    for at in posted:
        latency, why = born.done(0)
        assert (born.now - latency, why) == (at, None)


def test_requests_that_are_not_signaled_have_no_completion(born):
    for _ in range(10):
        for _ in range(99):
            born.post(0, flags=0)
        born.post(0)
        assert born.done(0) == (100, None)


def test_with_sq_sig_all_each_request_has_one(born):
    for number in range(50):
        born.post(number, flags=0)
    for number in range(50):
        assert born.done(number)[1] is None


def test_a_completion_of_before_the_window_is_not_matched(line):
    assert line.done(3) == (0, "earlier")
    line.post(4)
    assert line.done(3) == (0, "earlier")


def test_wr_ids_that_tell_make_the_fifo_known_after_a_run(line):
    for number in range(5):  # outstanding since before
        assert line.done(number) == (0, "earlier")
        line.post(number + 5)
    why = []
    for number in range(5, 100):
        why.append(line.done(number)[1])
        line.post(number + 5)
    assert why == ["ambiguous"] * RUN + [None] * (95 - RUN)
    assert line.done(100)[0] == 10 * 100 - 100  # posted five rounds before


def test_one_wr_id_for_all_never_makes_it_known_in_the_middle(line):
    """128 outstanding, one posted for each that completes: nothing tells which."""
    for _ in range(1000):
        _, why = line.done(0)
        assert why in ("earlier", "ambiguous")
        line.post(0)


def test_wr_ids_that_are_used_again_while_outstanding_do_not_tell(line):
    for _ in range(3):
        for number in range(4):
            line.post(number)
    for number in range(100):
        assert line.done(number % 4)[1] == "ambiguous"
        line.post(number % 4)


def test_a_queue_that_was_idle_and_empty_is_known(line):
    assert line.done(0) == (0, "earlier")
    line.empty(IDLE_NS + 1000)
    line.post(0)
    assert line.done(0) == (100, None)


def test_a_queue_that_was_not_polled_when_it_was_idle_is_not(line):
    line.done(0)
    line.empty(1000)  # empty right after: one may have been on its way
    line.now += 10 * IDLE_NS
    line.post(0)
    assert line.done(0) == (0, "ambiguous")


def test_what_contradicts_is_counted_and_doubted_until_it_is_known_again(born):
    born.post(1)
    assert born.done(99) == (0, "mismatched")
    born.post(2)
    assert born.done(2) == (0, "ambiguous")
    born.reset()
    born.post(3)
    assert born.done(3)[1] is None


def test_the_operation_must_be_the_requests(born):
    born.post(1, operation=READ)
    assert born.done(1, WC_SEND) == (0, "mismatched")


def test_threads_that_are_recorded_in_another_order_than_they_post_in(born):
    rng = random.Random(3)
    for number in range(300):
        posted = []
        for thread in range(8):
            born.post(number * 8 + thread, tid=thread)
            posted.append((number * 8 + thread, born.now))
        rng.shuffle(posted)
        for wr_id, at in posted:
            latency, why = born.done(wr_id)
            assert (born.now - latency, why) == (at, None)


def test_what_the_provider_refuses_is_taken_back(born):
    born.post(1, tid=1)
    for wr_id in (2, 3):
        born.post(wr_id, tid=2)
    born.post(4, tid=1)
    born.feed(born.work(REFUSED, tid=2, number=1, place=1, status=12))
    assert [born.done(wr_id)[1] for wr_id in (1, 2, 4)] == [None] * 3
    assert born.done(3) == (0, "mismatched")
    (refused,) = [group for group in born.completions.groups() if group.kind == REFUSED]
    assert (refused.count, refused.status) == (1, 12)


def test_errors_are_counted_by_status_and_have_no_latency(born):
    for wr_id in range(3):
        born.post(wr_id)
    assert born.done(0, status=10) == (0, None)
    assert born.done(1, status=FLUSHED) == (0, None)
    assert born.done(2, status=FLUSHED) == (0, None)
    found = {g.status: g.count for g in born.completions.groups() if g.kind == COMPLETED}
    assert found == {10: 1, FLUSHED: 2}


def test_of_receives_the_headers_of_datagrams_are_known(born):
    born.done(0, WC_RECV, bytes=1000)
    born.done(0, WC_RECV, bytes=1040, flags=GRH)
    born.feed(born.work(RECEIVE, operation=128, bytes=4096))
    found = {g.kind: (g.count, g.payload(True), g.payload(False)) for g in born.completions.groups()}
    assert found == {COMPLETED: (2, 2000, 2040), RECEIVE: (1, 4096, 4096)}


def test_nothing_is_matched_over_lost_records(born):
    born.post(1)
    (work,) = born.feed(born.work(COMPLETED, wr_id=1, operation=WC_WRITE), whole=False)
    assert OUTCOMES[work.outcome] == "lost"
    born.post(1)
    assert born.done(1) == (0, "ambiguous")


def test_queue_pairs_and_processes_are_told_apart(line):
    for pid in (1, 2):
        for qpn in (17, 18):
            line.reset(pid=pid, qpn=qpn)
            line.post(qpn + pid, pid=pid, qpn=qpn)
    for pid in (2, 1):
        for qpn in (18, 17):
            assert line.done(qpn + pid, pid=pid, qpn=qpn)[1] is None


def test_tables_have_limits_and_say_what_they_refused():
    line = Line(pairs=64, groups=64, outstanding=64)
    for qpn in range(200):
        line.reset(qpn=qpn)
        line.post(1, qpn=qpn)
        line.done(1, qpn=qpn)
    assert line.completions.refused > 0
    assert len(line.completions.groups()) <= 64


def test_a_request_that_never_completes_is_given_up_in_the_end():
    """More requests than are remembered: nothing is known from there on, until a run."""
    line = Line(outstanding=64)
    line.reset()
    for number in range(65):
        line.post(number)
    assert line.done(0) == (0, "earlier")


def test_latencies_fall_into_the_bucket_whose_bounds_hold_them(born):
    rng = random.Random(1)
    latencies = [round(10 ** rng.uniform(2, 10.5)) for _ in range(300)]
    for latency in latencies:
        born.post(1)
        born.now += latency - 100
        assert born.done(1) == (latency, None)
    (group,) = [group for group in born.completions.groups() if group.kind == COMPLETED]
    expected: dict[int, int] = {}
    for latency in latencies:
        index = next(i for i in range(-240, 64) if latency * 1e-9 <= 2 ** ((i + 1) / 8))
        expected[index] = expected.get(index, 0) + 1
    assert group.latencies == expected
    assert (group.latency_ns, group.least_ns, group.most_ns) == (
        sum(latencies),
        min(latencies),
        max(latencies),
    )


def test_a_batch_that_is_not_whole_records_is_refused(line):
    with pytest.raises(ValueError, match="whole"):
        line.completions.feed(bytearray(completions.WORK_SIZE - 1))


@pytest.mark.parametrize("seed", range(3))
def test_any_bytes_are_taken_without_harm(line, seed):
    rng = random.Random(seed)
    for _ in range(200):
        works = []
        for _ in range(50):
            one = Work._make(rng.randrange(4) for _ in Work._fields)
            works.append(
                one._replace(time_ns=rng.randrange(1 << 40), kind=rng.randrange(9), flags=rng.randrange(4)),
            )
        line.feed(*works, whole=rng.random() > 0.05)
    line.completions.feed(bytearray(rng.randbytes(completions.WORK_SIZE * 1000)))
    for group in line.completions.groups():
        assert sum(group.latencies.values()) <= group.count
