"""Completions of real RDMA in a window of the agent and in ``fabrictap trace``, against the programs' counts.

One agent with one window, then a trace of each program, in the running VM.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from doubles.provider import builder
from fabrictap.sources.verbs import wc
from otlp_json import Reader
from support import require
from vm import traffic
from vm.agent import PROGRAM, Agent
from vm.harness import Machine

SOURCE = Path(__file__).parent / "completer.c"
REM_ACCESS_ERR, RETRY_EXC_ERR, RNR_RETRY_EXC_ERR, WR_FLUSH_ERR = 10, 12, 13, 5
#: enum ibv_wc_opcode -> rdma.operation, as far as the completer has them.
OPERATIONS = {"0": "send", "1": "rdma_write", "2": "rdma_read", "128": "recv"}
WINDOW_SECONDS = 25


class Completer:
    """completer.c in the guest."""

    def __init__(self, machine: Machine, device: str) -> None:
        why = builder.missing()
        require("compiler", not why, why)
        binary, self._commands = machine.share / "completer", "/tmp/completer.commands"
        subprocess.run(["cc", "-O2", str(SOURCE), "-libverbs", "-o", str(binary)], check=True)
        index = traffic.gid_index(machine, device)
        self._machine = machine
        self.process = machine.start(
            f"mkfifo {self._commands}; exec {binary} {device} {index} <>{self._commands}"
        )
        self._answers = 0
        self._answer()

    def tell(self, command: str) -> Any:
        self._machine.run(f"echo {command} >{self._commands}").check()
        return self._answer()

    def _answer(self) -> Any:
        self._answers += 1
        process = self.process
        self._machine.wait_for(
            lambda: process.stdout.count("\n") >= self._answers or process.rc is not None,
            60,
            "the completer does not answer",
        )
        assert process.rc is None, process.stderr
        return json.loads(process.stdout.splitlines()[self._answers - 1])


class Trace:
    """``fabrictap trace`` in the guest."""

    def __init__(self, machine: Machine, *whom: object) -> None:
        argv = [str(PROGRAM), "trace", *map(str, whom), "--for", "5m", "--json", "--rate", "100000"]
        self.process = machine.start(argv)
        machine.wait_for(
            lambda: "Ctrl-C ends it" in self.process.stderr or self.process.rc is not None,
            90,
            "the trace does not begin",
        )
        assert self.process.rc is None, self.process.stderr

    def end(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """What happened, and the summary; of one that ends by itself."""
        result = self.process.wait(90)
        assert result.rc == 0, result.stderr
        *happenings, summary = [json.loads(line) for line in result.stdout.splitlines()]
        return happenings, summary

    def interrupt(self, machine: Machine) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        machine.run(["kill", "-INT", str(self.process.pid)]).check()
        return self.end()


@dataclass(frozen=True)
class Seen:
    """By the agent in its window, by the traces afterwards, and by the programs themselves in both."""

    exported: Reader
    in_window: dict[str, Any]
    pid: int
    truth: dict[str, Any]
    happenings: list[dict[str, Any]]
    summary: dict[str, Any]
    of_connection: list[dict[str, Any]]
    sent: dict[str, Any]
    written: dict[str, Any]
    write_server_pid: int


def run_all(completer: Completer) -> None:
    """40 writes, 10 reads, 20 sends; four kinds of failure, each with three requests behind it; 3 writes."""
    for command in ("connect", "write 40 4096", "read 10 8192", "send 20 1000"):
        completer.tell(command)
    for command in ("rkey", "lkey", "nobody", "flush", "connect", "write 3 100"):
        completer.tell(command)


@pytest.fixture(scope="module")
def seen(machine: Machine) -> Seen:
    agent = Agent(
        machine,
        "completions",
        "agent.log_level=debug",
        "sources.verbs.data=full",
        f"sources.verbs.completions.window={WINDOW_SECONDS}s",
        "sources.verbs.completions.every=1h",
        "sources.verbs.completions.cost=1.0",
    ).start()
    completer = Completer(machine, "rxe0")
    pid = completer.process.pid
    agent.until_logged("a window is open")
    run_all(completer)
    in_window = completer.tell("counts")
    assert "the window has ended" not in agent.log  # all of it was in one
    agent.until_logged("the window has ended", 3 * WINDOW_SECONDS)

    trace = Trace(machine, "--pid", pid)
    run_all(completer)
    truth = completer.tell("counts")
    happenings, summary = trace.interrupt(machine)
    (qpn,) = {one["qpn"] for one in happenings[-16:] if one.get("operation") == "rdma_write"}
    connection = Trace(machine, "--qp", f"rxe0/{qpn}")
    completer.tell("write 5 64")
    of_connection, _ = connection.interrupt(machine)
    completer.process.kill()

    tools = {}
    for tool, arguments in (("ib_send_bw", ()), ("ib_write_bw", ("-b",))):
        server = traffic.listen(machine, tool, "-n", "200", "-s", "4096", *arguments)
        watching = Trace(machine, "--pid", server.process.pid)
        server.connect(machine, "rxe1").wait(60).check()
        server.process.wait(60).check()
        tools[tool] = (watching.end()[1], server.process.pid)
    (sent, _), (written, write_server_pid) = tools["ib_send_bw"], tools["ib_write_bw"]
    agent.exports()
    twice = {
        "completed": {key: count - in_window["completed"][key] for key, count in truth["completed"].items()},
        "errors": {key: count - in_window["errors"][key] for key, count in truth["errors"].items()},
        "received": truth["received"] - in_window["received"],
    }
    return Seen(
        agent.stop(), in_window, pid, twice, happenings, summary, of_connection, sent, written,
        write_server_pid,
    )  # fmt: skip


def by_operation(truth: dict[str, Any]) -> dict[str, int]:
    return {OPERATIONS[opcode]: count for opcode, count in truth["completed"].items()}


def by_status(truth: dict[str, Any]) -> dict[int, int]:
    return {int(status): count for status, count in truth["errors"].items()}


def test_the_program_met_each_kind_of_error(seen: Seen) -> None:
    assert {REM_ACCESS_ERR, RETRY_EXC_ERR, RNR_RETRY_EXC_ERR, WR_FLUSH_ERR} <= by_status(seen.truth).keys()
    assert by_operation(seen.truth) == {"rdma_write": 43, "rdma_read": 10, "send": 20, "recv": 20}


def test_a_trace_has_every_request_and_completion(seen: Seen) -> None:
    assert seen.summary["lost"] == 0
    completed: dict[str, int] = {}
    for one in seen.summary["completed"]:
        completed[one["operation"]] = completed.get(one["operation"], 0) + one["count"]
        assert one["unmatched"] == {}
        assert one["qp"].startswith("rxe0/")
    assert completed == by_operation(seen.truth)
    received = sum(one.get("bytes", 0) for one in seen.summary["completed"])
    assert received == seen.truth["received"] == 20 * 1000
    posted: dict[str, list[int]] = {}
    for one in seen.summary["posted"]:
        have = posted.setdefault(one["operation"], [0, 0])
        have[0] += one["count"]
        have[1] += one["bytes"]
    assert posted["rdma_read"] == [10, 10 * 8192]
    assert posted["rdma_write"] == [43 + 3 * 4, 40 * 4096 + 3 * 100 + 3 * 4 * 64]
    assert posted["send"] == [20 + 4, 20 * 1000 + 4 * 64]


def test_a_trace_has_every_error_by_its_status(seen: Seen) -> None:
    counted: dict[str, int] = {}
    for one in seen.summary["errors"]:
        counted[one["status"]] = counted.get(one["status"], 0) + one["count"]
    assert counted == {wc.status(number): count for number, count in by_status(seen.truth).items()}


def test_a_latency_is_the_time_between_its_lines(seen: Seen) -> None:
    posts = {one["wr_id"]: one for one in seen.happenings if one["event"] == "post"}
    done = [one for one in seen.happenings if one["event"] == "completion" and "latency_ns" in one]
    assert len(done) == 43 + 10 + 20
    for one in done:
        assert one["latency_ns"] == one["time_ns"] - posts[one["wr_id"]]["time_ns"]


def test_a_trace_has_the_control_path(seen: Seen) -> None:
    assert seen.summary["control"]["create_qp"] == 12
    assert seen.summary["control"]["destroy_qp"] == 12
    assert seen.summary["control"]["modify_qp"] == 36
    states = [one["state"] for one in seen.happenings if one["event"] == "modify_qp"]
    assert states[:2] == ["init", "init"]
    assert states.count("rts") == 12


def test_a_trace_of_a_connection_has_that_one_only(seen: Seen) -> None:
    posts = [one for one in seen.of_connection if one["event"] == "post"]
    assert len(posts) == 5
    assert len({(one["device"], one["qpn"]) for one in seen.of_connection}) == 1
    assert len([one for one in seen.of_connection if one["event"] == "completion"]) == 5


def test_a_window_has_the_same(seen: Seen) -> None:
    pid = seen.pid
    points = seen.exported.find("rdma.completion.operations", pid=pid)
    found = {point.attributes["rdma.operation"]: point.value for point in points}
    assert found == by_operation(seen.in_window)
    errors: dict[str, int] = {}
    for point in seen.exported.find("rdma.completion.errors", pid=pid):
        status = str(point.attributes["rdma.completion.status"])
        errors[status] = errors.get(status, 0) + point.value
    assert errors == {wc.status(number): count for number, count in by_status(seen.in_window).items()}
    assert seen.exported.total("rdma.completion.receive.io", pid=pid) == 20 * 1000
    latencies = seen.exported.find("rdma.completion.latency", pid=pid)
    counts = {point.attributes["rdma.operation"]: int(point.raw["count"]) for point in latencies}
    assert counts == {"rdma_write": 43, "rdma_read": 10, "send": 20}
    for point in latencies:
        assert 0 < point.raw["sum"] < 60
    assert seen.exported.find("rdma.completion.unmatched", pid=pid) == []
    (observed,) = seen.exported.find("fabrictap.completion.observed.time")
    assert WINDOW_SECONDS <= observed.value < WINDOW_SECONDS + 20
    assert seen.exported.total("fabrictap.completion.lost") == 0


def test_what_perftest_received_is_in_its_trace(seen: Seen) -> None:
    (received,) = [one for one in seen.sent["completed"] if one["operation"] == "recv"]
    assert (received["count"], received["bytes"], seen.sent["lost"]) == (200, 200 * 4096, 0)


def test_of_what_perftest_wrote_all_that_is_signaled_has_a_latency(seen: Seen) -> None:
    """One wr_id for all of them: known because the trace was there before the queue pair."""
    (posted,) = [one for one in seen.written["posted"] if one["operation"] == "rdma_write"]
    (completed,) = [one for one in seen.written["completed"] if one["operation"] == "rdma_write"]
    assert (posted["count"], posted["bytes"]) == (200, 200 * 4096)
    pid = seen.write_server_pid
    assert completed["count"] == seen.exported.total("rdma.verbs.signaled", pid=pid) > 0
    assert completed["unmatched"] == {}
    assert 0 < completed["p50"] <= completed["max"] < 60
