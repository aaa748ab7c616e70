"""``fabrictap trace`` as a person runs it, on a stand-in provider whose application counts by itself."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from doubles.provider.application import RC, SIGNALED, Application
from doubles.provider.builder import Double
from fabrictap.trace.session import Session
from fabrictap.trace.whom import TraceError, Whom, process
from host.test_discovery import started
from support import eventually

AGENT = str(Path(__file__).parents[2] / "agent")
REM_ACCESS_ERR, WR_FLUSH_ERR, WC_RECV = 10, 5, 128


class Trace:
    """One that runs; ``close`` waits until it has ended by itself."""

    def __init__(self, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fabrictap", "trace", *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": AGENT},
        )  # fmt: skip
        self.out: list[str] = []
        self.said: list[str] = []
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((self.process.stdout, self.out), (self.process.stderr, self.said))
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream, lines: list[str]) -> None:
        for line in stream:
            lines.append(line.rstrip("\n"))

    def ready(self) -> Trace:
        eventually(
            lambda: any("Ctrl-C ends it" in line for line in self.said) or self._ended(), "it is attached", 60
        )
        return self

    def _ended(self) -> bool:
        return self.process.poll() is not None

    def stop(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.close()

    def close(self) -> int:
        code = self.process.wait(60)
        for reader in self._readers:
            reader.join(10)
        assert not any("Traceback" in line for line in self.said), self.said
        return code

    def objects(self) -> list[dict]:
        return [json.loads(line) for line in self.out]


@pytest.fixture
def trace(bpf: None) -> Iterator[Callable[..., Trace]]:
    made: list[Trace] = []

    def start(*arguments: object) -> Trace:
        made.append(Trace(*arguments))
        return made[-1]

    yield start
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


@pytest.fixture
def running(double: Double) -> Iterator[Application]:
    with Application(
        double.driver, environment={"LD_LIBRARY_PATH": str(double.driver.parent)}
    ) as application:
        application.tell("device", "mlx5_0")
        application.tell("context", 0)
        application.tell("qp", 0, 17, RC)
        application.tell("qp", 0, 18, RC)
        application.tell("completes", 1)
        yield application


def work(application: Application) -> None:
    """30 writes in chains of 3, a receive, one refused, one error and what it flushes."""
    application.tell("reset", 0)
    application.send(0, times=10, chain=3, flags=SIGNALED, sges=2, length=1000)
    application.recv(0, length=4096)
    application.tell("complete", 0, 7, 0, WC_RECV, 500, 0)
    assert application.tell("drain", 0) == 31
    application.tell("fail", errno.ENOMEM, 0)
    application.send(0, flags=SIGNALED)
    application.tell("fail", 0, 0)
    application.tell("complete", 0, 8, REM_ACCESS_ERR, 0, 0, 0)
    application.tell("complete", 0, 9, WR_FLUSH_ERR, 0, 0, 0)
    assert application.tell("drain", 0) == 2


def test_a_trace_shows_each_request_and_completion_and_ends_with_a_summary(trace, running):
    traced = trace("--pid", running.pid, "--for", "60s").ready()
    work(running)
    eventually(lambda: any("wr_flush_err" in line for line in traced.out), "the last is shown", 30)
    assert traced.stop() == 0
    assert traced.out[0].split() == ["TIME", "TID", "QP", "EVENT", "OPERATION", "BYTES", "DETAILS"]
    empty = traced.out.index("")
    lines = traced.out[1:empty]
    assert sum(" post " in line and "rdma_write" in line for line in lines) == 31
    assert sum("latency=" in line for line in lines) == 30
    starts = {line.index("wr_id=") for line in lines if "wr_id=" in line}
    assert len(starts) == 1  # columns are aligned
    assert any("chained=2" in line for line in lines)
    assert any("ERROR rem_access_err" in line for line in lines)
    assert any("ERROR ENOMEM" in line for line in lines)
    head = traced.out[empty + 1]
    assert "32 posted, 31 completed, 2 completed with an error, 1 refused" in head
    assert traced.said[-1] == "interrupted"


def test_the_json_of_a_trace_is_what_the_application_did(trace, running):
    traced = trace("--pid", running.pid, "--for", "60s", "--json").ready()
    work(running)
    eventually(lambda: any("wr_flush_err" in line for line in traced.out), "the last is shown", 30)
    assert traced.stop(signal.SIGTERM) == 0
    *happenings, summary = traced.objects()
    posts = [one for one in happenings if one["event"] == "post" and one["operation"] == "rdma_write"]
    assert [one["chained"] for one in posts] == [0, 1, 2] * 10 + [0]
    assert {(one["bytes"], one["sges"], tuple(one["flags"])) for one in posts[:30]} == {
        (2000, 2, ("signaled",))
    }
    assert {one["device"] for one in happenings} == {"mlx5_0"}
    assert summary["event"] == "summary"
    written = {"qp": "mlx5_0/17", "operation": "rdma_write", "count": 31, "bytes": 30 * 2000 + 100}
    assert written in summary["posted"]
    (completed,) = [one for one in summary["completed"] if one["operation"] == "rdma_write"]
    assert (completed["count"], completed["unmatched"]) == (30, {})
    assert 0 < completed["p50"] <= completed["p99"] <= completed["max"]
    (received,) = [one for one in summary["completed"] if one["operation"] == "recv"]
    assert (received["count"], received["bytes"]) == (1, 500)
    assert {one["status"]: one["count"] for one in summary["errors"]} == {
        "rem_access_err": 1,
        "wr_flush_err": 1,
    }
    assert (summary["refused"], summary["lost"]) == (1, 0)


def test_what_is_beyond_the_rate_is_counted_and_not_shown(trace, running):
    traced = trace("--pid", running.pid, "--for", "60s", "--json", "--rate", "10").ready()
    running.tell("reset", 0)
    running.send(0, times=2000, flags=SIGNALED)
    running.tell("drain", 0)
    eventually(lambda: len(traced.out) >= 10, "ten lines", 30)
    assert traced.stop() == 0
    *shown, summary = traced.objects()
    assert summary["not_shown"] + len(shown) == 4000
    assert [one["count"] for one in summary["posted"]] == [2000]
    assert [one["count"] for one in summary["completed"]] == [2000]


def test_a_trace_ends_with_its_process(trace, double):
    with Application(
        double.driver, environment={"LD_LIBRARY_PATH": str(double.driver.parent)}
    ) as application:
        traced = trace("--pid", application.pid, "--for", "60s").ready()
    assert traced.close() == 0
    assert f"process {application.pid} has ended" in traced.said
    assert "0 posted" in traced.out[-1]


def test_a_trace_ends_after_its_time(trace, running):
    assert trace("--pid", running.pid, "--for", "300ms").ready().close() == 0


def test_another_process_is_neither_seen_nor_probed(trace, running, double):
    with started(double) as other:
        for command in (("device", "mlx5_1"), ("context", 0), ("qp", 0, 99, RC), ("completes", 1)):
            other.tell(*command)
        traced = trace("--pid", running.pid, "--for", "60s", "--json").ready()
        other.send(0, times=100, flags=SIGNALED)
        running.send(0, flags=SIGNALED)
        eventually(lambda: traced.out, "a line", 30)
        assert traced.stop() == 0
    assert {one["pid"] for one in traced.objects()[:-1]} == {running.pid}


def test_a_reader_that_goes_away_ends_it(trace, running):
    traced = subprocess.Popen(
        f"{sys.executable} -m fabrictap trace --pid {running.pid} --for 60s | head -n 1",
        shell=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": AGENT},
    )  # fmt: skip
    assert traced.stdout is not None
    assert traced.stderr is not None
    assert traced.stdout.readline().startswith("TIME")

    def gone() -> bool:
        running.send(0, times=10, flags=SIGNALED)
        return traced.poll() is not None

    eventually(gone, "it ends", 30)
    assert "Traceback" not in traced.stderr.read()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--pid", 4194304), "there is no process 4194304"),
        (("--pid", os.getpid()), "uses no RDMA"),
        (("--qp", "mlx5_0"), "expected DEVICE/QPN"),
    ],
)
def test_what_cannot_be_traced_is_one_line(trace, arguments, message):
    traced = trace(*arguments)
    assert traced.close() == 1
    assert traced.out == []
    assert len(traced.said) == 1
    assert message in traced.said[0]


def test_without_root_it_says_so(monkeypatch, bpf):
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with pytest.raises(TraceError, match="tracing takes root"):
        Session(Whom(1, "init", 1))


def test_without_return_probes_it_says_so(bpf, running):
    with pytest.raises(TraceError, match="return probes are not safe"):
        Session(process(running.pid), returns=False)
