"""Requests and completions one by one, from a stand-in provider that completes what is posted to it."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from doubles.provider.application import INLINE, RC, SIGNALED, UD, Application
from doubles.provider.builder import FUNCTIONS, Double
from fabrictap.config import Completions as WindowsConfig
from fabrictap.ext.completions import COMPLETED, RECEIVE, REFUSED, SENT, Completions, Group, Work, decode
from fabrictap.sources.verbs.attach import Attachments
from fabrictap.sources.verbs.probes import ProbesUnavailable, attach_place
from fabrictap.sources.verbs.windows import Window, Windows, close, targets
from fabrictap.sources.verbs.work import Reader, open_probes
from host.tap import Tap
from host.test_data_path import open_devices
from host.test_extended import batch

ALL = 2
#: enum ibv_wc_status
SUCCESS, LOC_PROT_ERR, WR_FLUSH_ERR, REM_ACCESS_ERR, RETRY_EXC_ERR = 0, 4, 5, 10, 12
WC_RECV, WITH_GRH = 128, 1


class Watch:
    """The probes, attached to the stand-in; ``pid``: for that process only, with all that is told of."""

    def __init__(self, double: Double, pid: int = 0, buffer: int = 1 << 22) -> None:
        self.probes = open_probes(buffer, pid=pid, receives=bool(pid), returns=True)
        for place in [double.place(name) for name in FUNCTIONS] + [double.modify_qp(), *double.extended()]:
            assert attach_place(self.probes, place), self.probes.refused
        self.completions = Completions(time.monotonic_ns())
        self.reader = Reader(self.probes, self.completions)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.probes.close()

    def read(self) -> list[Work]:
        found = []
        while fresh := self.reader.read(0):
            found += decode(fresh)
        return found

    def groups(self, kind: int) -> list[Group]:
        self.read()
        return [group for group in self.completions.groups() if group.kind == kind]


@pytest.fixture
def watch(bpf: None, double: Double) -> Iterator[Watch]:
    with Watch(double) as attached:
        yield attached


@pytest.fixture
def watched(bpf: None, double: Double, application: Application) -> Iterator[Watch]:
    """For the application only."""
    with Watch(double, application.pid) as attached:
        yield attached


def ready(application: Application, *types: int, completes: int = 1) -> int:
    """One context with queue pairs 17, 18 ...; its address."""
    (context,) = open_devices(application, "mlx5_0")
    for number, kind in enumerate(types or (RC,)):
        application.tell("qp", 0, 17 + number, kind)
    application.tell("completes", completes)
    return context


def kinds(works: list[Work]) -> list[int]:
    return [work.kind for work in works if work.kind in (SENT, RECEIVE, COMPLETED, REFUSED)]


def test_each_request_and_its_completion_are_told_with_what_they_are(watched, application):
    context = ready(application)
    application.tell("reset", 0)
    application.send(0, chain=2, opcode=2, flags=SIGNALED, sges=3, length=100)
    application.recv(0, chain=2, sges=1, length=64)
    assert application.tell("drain", 0) == 2
    works = watched.read()
    assert kinds(works) == [SENT, SENT, RECEIVE, RECEIVE, COMPLETED, COMPLETED]
    assert {(work.context, work.qpn, work.pid) for work in works[1:7]} == {(context, 17, application.pid)}
    first, second, received, _, done, _ = works[1:7]
    assert (second.wr_id, second.place, second.operation, second.bytes) == (1, 1, 2, 300)
    assert (second.number, second.flags & SIGNALED) == (3, SIGNALED)
    assert (received.operation, received.bytes, received.number) == (128, 64, 1)
    assert (done.wr_id, done.status, done.operation) == (0, SUCCESS, 0)
    assert done.latency_ns == done.time_ns - first.time_ns


def test_every_latency_is_known_when_eight_threads_post_and_one_polls(watch, application):
    ready(application, RC, RC, RC)
    for qp in range(3):
        application.tell("reset", qp)
    assert application.tell("steady", 1, 8, 1500) == 12000
    posted = sum(group.count for group in watch.groups(SENT))
    completed = watch.groups(COMPLETED)
    assert watch.reader.lost == 0
    assert posted == sum(group.count for group in completed) == 12000
    assert [group.outcomes for group in completed] == [{}] * 3
    assert sum(sum(group.latencies.values()) for group in completed) == 12000
    assert [group.outcomes for group in completed] == [{}] * 3


def test_requests_that_are_not_signaled_are_left_out_where_others_are(watch, application):
    ready(application)
    application.tell("reset", 0)
    application.send(0, times=10)  # it may be one of those that signal all
    application.send(0, flags=SIGNALED)
    application.send(0, times=10)
    application.send(0, flags=SIGNALED)
    assert application.tell("drain", 0) == 2
    works = watch.read()
    assert kinds(works) == [SENT] * 12 + [COMPLETED] * 2
    assert [work.latency_ns > 0 for work in works if work.kind == COMPLETED] == [True, True]


def test_a_queue_pair_that_signals_all_has_all_latencies(watch, application):
    ready(application, completes=ALL)
    application.tell("reset", 0)
    for _ in range(5):
        application.send(0, times=20)
        assert application.tell("drain", 0) == 20
    (group,) = watch.groups(COMPLETED)
    assert (group.count, sum(group.latencies.values()), group.outcomes) == (100, 100, {})


def test_what_was_posted_before_is_counted_without_a_latency(bpf, double, application):
    ready(application)
    application.send(0, times=10, flags=SIGNALED)
    with Watch(double) as watch:
        assert application.tell("drain", 0) == 10
        (group,) = watch.groups(COMPLETED)
        assert (group.count, group.latencies, group.outcomes) == (10, {}, {"earlier": 10})


@pytest.mark.parametrize("accepted", [0, 1, 3])
def test_what_the_provider_refuses_is_taken_back(watched, application, accepted):
    ready(application)
    application.tell("reset", 0)
    application.tell("fail", errno.ENOMEM, accepted)
    application.send(0, chain=4, flags=SIGNALED)
    application.tell("fail", 0, 0)
    application.send(0, chain=2, flags=SIGNALED)
    assert application.tell("drain", 0) == accepted + 2
    (refused,) = watched.groups(REFUSED)
    assert (refused.count, refused.status) == (4 - accepted, errno.ENOMEM)
    (completed,) = watched.groups(COMPLETED)
    assert (completed.count, sum(completed.latencies.values())) == (accepted + 2, accepted + 2)


@pytest.mark.parametrize("status", [LOC_PROT_ERR, REM_ACCESS_ERR, RETRY_EXC_ERR])
def test_errors_are_told_by_status(watch, application, status):
    ready(application)
    application.tell("reset", 0)
    application.tell("complete", 0, 5, status, 0, 0, 0)
    for wr_id in range(3):
        application.tell("complete", 0, wr_id, WR_FLUSH_ERR, 0, 0, 0)
    assert application.tell("poll", 0, 16, 1) == 4
    assert {g.status: g.count for g in watch.groups(COMPLETED)} == {status: 1, WR_FLUSH_ERR: 3}


def test_received_bytes_are_those_of_the_completions(watch, application):
    ready(application, RC, UD)
    for length in (1, 100, 1 << 20):
        # Soft-RoCE sets the flag whether there is a header or not.
        application.tell("complete", 0, 0, SUCCESS, WC_RECV, length, WITH_GRH)
        application.tell("complete", 1, 0, SUCCESS, WC_RECV, length + 40, WITH_GRH)
    assert application.tell("poll", 0, 2, 3) == 6
    connected, datagrams = sorted(watch.groups(COMPLETED), key=lambda group: group.bytes)
    assert connected.count == datagrams.count == 3
    assert connected.payload(False) == datagrams.payload(True) == 1 + 100 + (1 << 20)


def test_the_extended_api_is_told_too(watched, application):
    ready(application)
    application.tell("extend", 0)
    batch(application, 0, times=3, messages=2, opcode=0, flags=SIGNALED, sges=2, length=50, setter=1)
    batch(application, 0, times=1, messages=2, opcode=0, flags=SIGNALED, sges=2, length=50, setter=3)
    batch(application, 0, times=1, messages=2, opcode=0, abort=1)
    application.tell("fail", errno.EINVAL, 0)
    batch(application, 0, times=1, messages=3, opcode=0)
    sent = [work for work in watched.read() if work.kind == SENT]
    assert [work.bytes for work in sent][:8] == [100] * 8
    assert [bool(work.flags & INLINE) for work in sent][:8] == [False] * 6 + [True] * 2
    refused = {group.status: group.count for group in watched.groups(REFUSED)}
    assert refused[errno.EINVAL] == 3
    assert errno.ECANCELED in refused


def test_another_process_is_not_told_of(bpf, double, application):
    with Application(double.driver) as other, Watch(double, application.pid) as watch:
        for one in (application, other):
            ready(one)
            one.send(0, times=5, flags=SIGNALED)
            one.tell("drain", 0)
        assert {work.pid for work in watch.read()} == {application.pid}


def test_a_buffer_that_is_full_is_a_counted_loss_and_nothing_is_matched_over_it(bpf, double, application):
    with Watch(double, application.pid, buffer=4096) as watch:
        ready(application)
        application.tell("reset", 0)
        application.send(0, times=200, flags=SIGNALED)
        application.tell("drain", 0)
        works = watch.read()
        assert watch.reader.lost == 402 - len(works)  # with the reset, and that the queue was empty
        assert not any(work.latency_ns for work in works)


def test_without_return_probes_completions_are_refused(bpf):
    with pytest.raises(ProbesUnavailable, match="return probes are not safe"):
        open_probes(1 << 20, returns=False)


# --- windows --------------------------------------------------------------------------------------


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def links() -> int:
    """Attachments of BPF programs that this process holds."""
    found = 0
    for path in Path("/proc/self/fdinfo").iterdir():
        with suppress(OSError):
            found += "link_type:" in path.read_text()
    return found


class Files:
    """The stand-in, counted as the source counts it."""

    def __init__(self, double: Double, application: Application) -> None:
        self.tap = Tap(None)
        self.attachments = Attachments(self.tap.probes, {})
        functions = {name: (double.place(name).offset,) for name in FUNCTIONS}
        file = self.attachments.add(os.open(double.library, os.O_RDONLY), str(double.library), functions)
        assert file is not None
        self.file = file
        self.attachments.use(file, application.pid)
        self.attachments.add(
            os.open(double.libibverbs, os.O_RDONLY),
            str(double.libibverbs),
            {"modify_qp": (double.modify_qp().offset,)},
        )

    def close(self) -> None:
        self.attachments.close()
        self.tap.close()


@pytest.fixture
def files(bpf: None, double: Double, application: Application) -> Iterator[Files]:
    made = Files(double, application)
    yield made
    made.close()


@pytest.fixture
def windows() -> Iterator[Callable[..., Windows]]:
    made: list[Windows] = []

    def make(window: float = 0.2, every: float = 1.0, cost: float = 1.0) -> Windows:
        made.append(Windows(WindowsConfig(window=window, every=every, cost=cost)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def one_window(windows: Windows, files: Files) -> Window:
    def ended() -> bool:
        windows.step(files.attachments)
        found.extend(windows.take())
        return bool(found)

    found: list[Window] = []
    until(ended)
    return found[0]


def test_a_window_sees_what_completes_in_it(files, windows, application):
    ready(application)
    opened = windows(window=0.5)
    until(lambda: opened.step(files.attachments) or opened.open)
    until(lambda: opened.watching)
    application.tell("reset", 0)
    application.send(0, times=50, flags=SIGNALED, length=10)
    assert application.tell("drain", 0) == 50
    window = one_window(opened, files)
    (group,) = [group for group in window.groups if group.kind == COMPLETED]
    assert (window.end, window.problem, window.lost) == ("full", None, 0)
    assert (group.pid, group.count) == (application.pid, 50)
    assert window.devices[group.pid, group.context] == "mlx5_0"
    assert 0.5e9 <= window.ended_ns - window.began_ns < 5e9


def test_outside_of_windows_nothing_is_attached_to_poll_cq(files, windows, application):
    """No link, no program run, and polling costs what it did before."""
    ready(application, completes=0)
    before = links()

    def polling() -> int:
        return min(application.tell("polls", 200_000)["cpu"] for _ in range(5))

    bare = polling()
    opened = windows(window=0.1, every=60)
    until(lambda: opened.step(files.attachments) or opened.open)
    until(lambda: opened.watching)
    assert links() > before
    assert application.tell("polls", 2000)["cpu"] > 0
    window = one_window(opened, files)
    assert window.hits > 0
    until(lambda: not opened.open)
    assert links() == before
    assert opened.hits == window.hits  # what polls now runs nothing
    assert polling() < bare * 1.5 + 1_000_000
    assert opened.hits == window.hits


def test_a_window_ends_early_where_its_probes_cost_too_much(files, windows, application):
    ready(application, completes=0)
    opened = windows(window=30, every=60, cost=0.0001)
    until(lambda: opened.step(files.attachments) or opened.open)
    until(lambda: opened.watching)
    application.tell("polls", 20_000)  # it may take 2,727
    window = one_window(opened, files)
    assert window.end == "cost"
    assert window.ended_ns - window.began_ns < 20e9
    until(lambda: not opened.open)
    assert opened._next - time.monotonic() > 60  # what it took beyond is paid back


def test_whose_posts_are_not_counted_is_not_in_a_window(files, application, double):
    def watched() -> set[int]:
        wanted = targets(files.attachments)
        close(wanted)
        return {target.pid for target in wanted}

    assert watched() == {0}  # all of them
    with Application(double.driver) as other:
        files.attachments.use(files.file, other.pid)
        files.attachments.pause(application.pid)
        assert watched() == set()
        files.attachments.divide(wait=True)
        assert watched() == {other.pid}
        files.attachments.pause(other.pid)
        assert watched() == set()
        assert files.attachments.resume(application.pid)
        assert watched() == {application.pid}


def test_the_busiest_functions_are_let_go_first(files):
    wanted = targets(files.attachments)
    close(wanted)
    assert {target.name for target in wanted[-2:]} == {"post_send", "poll_cq"}


def test_no_window_opens_where_nobody_uses_rdma(bpf, windows):
    opened = windows()
    opened.step([])
    assert not opened.open
    assert opened.take() == []


def test_closing_ends_a_window_and_leaves_nothing(files, windows, application):
    ready(application)
    before = descriptors()
    opened = windows(window=30, every=60)
    until(lambda: opened.step(files.attachments) or opened.open)
    until(lambda: opened.watching)
    began = time.monotonic()
    opened.close()
    assert time.monotonic() - began < 10
    assert descriptors() == before


def test_many_windows_leave_nothing_behind(files, windows, application):
    ready(application)
    opened = windows(window=0.05, every=0.1)
    one_window(opened, files)
    until(lambda: not opened.open)
    before = descriptors()
    for _ in range(5):
        assert one_window(opened, files).problem is None
        until(lambda: not opened.open)
    assert descriptors() == before


def test_stand_in_is_the_one_that_is_polled(double):
    """The probes are put where the application's calls go."""
    symbols = subprocess.run(["nm", "-D", str(double.library)], check=True, capture_output=True, text=True)
    assert {"poll_cq", "post_send"} <= set(symbols.stdout.split())
