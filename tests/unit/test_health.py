"""fabrictap health: what probes are told, from recordings in every state."""

import os
import signal
import subprocess
import sys
import time

import pytest

import rings
from fabrictap import catalog
from fabrictap.cli import main
from support import eventually

S = 10**9


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ring"


def ticked(path, *, seconds_ago=0.0, sources=(), close=False):
    """A recording whose last tick was then; returns what holds it."""
    now_ns = time.time_ns() - int(seconds_ago * S)
    ring, table = rings.make(path, now_ns=now_ns - S)
    for name, up in sources:
        table.series(catalog.SOURCE_UP, {catalog.SOURCE.name: name}, now_ns - S).set(int(up), now_ns)
    ring.tick(now_ns)
    if close:
        ring.close(now_ns)
    return ring, table


def health(path, capsys, *options):
    code = main(["health", "--file", str(path), *options])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_an_agent_that_ticks_is_healthy_and_its_sources_are_told(path, capsys):
    held = ticked(path, sources=[("verbs", True), ("nvml", False), ("infiniband", True)])
    code, line = health(path, capsys)
    assert code == 0
    assert line.startswith(f"ok: the agent (pid {os.getpid()}) ticked ")
    assert line.endswith("; sources that deliver: infiniband, verbs; not: nvml\n")
    assert health(path, capsys, "--ready")[0] == 0
    del held


def test_one_that_has_not_ticked_for_longer_than_allowed_hangs(path, capsys):
    held = ticked(path, seconds_ago=40)
    code, line = health(path, capsys)
    assert code == 1
    assert line.startswith(f"unhealthy: the agent (pid {os.getpid()}) has not ticked for 4")
    assert health(path, capsys, "--max-age", "1m")[0] == 0
    del held


def test_a_tick_of_the_future_is_not_taken_for_life(path, capsys):
    held = ticked(path, seconds_ago=-3600)
    assert health(path, capsys)[0] == 1
    del held


def test_before_the_first_tick_it_lives_and_is_not_ready(path, capsys):
    ring, _ = rings.make(path)
    assert health(path, capsys) == (0, f"ok: the agent (pid {os.getpid()}) is starting\n")
    assert health(path, capsys, "--ready") == (
        1,
        f"unhealthy: the agent (pid {os.getpid()}) is starting\n",
    )
    del ring


def test_an_agent_that_never_gets_to_its_first_tick_hangs(path, capsys):
    ring, _ = rings.make(path, now_ns=time.time_ns() - 90 * S)
    code, line = health(path, capsys)
    assert (code, line[:10]) == (1, "unhealthy:")
    assert "has not finished its first tick for 1m" in line
    del ring


@pytest.mark.parametrize("sources", [(), (("verbs", False), ("nvml", False))])
def test_without_a_source_that_delivers_it_lives_and_is_not_ready(path, capsys, sources):
    held = ticked(path, sources=sources)
    assert health(path, capsys)[0] == 0
    code, line = health(path, capsys, "--ready")
    assert code == 1
    assert "sources that deliver: none" in line
    del held


def test_one_that_was_stopped_says_so(path, capsys):
    ticked(path, close=True)
    code, line = health(path, capsys)
    assert code == 1
    assert line.startswith("unhealthy: the agent was stopped; it was seen ")


def test_no_recording_is_one_line_and_1(path, capsys):
    code, line = health(path, capsys)
    assert code == 1
    assert line.startswith(f"fabrictap: {path} does not exist: no agent has run here")
    assert line.count("\n") == 1


def test_a_time_without_a_unit_is_a_mistake_of_the_caller(path, capsys):
    held = ticked(path)
    code, line = health(path, capsys, "--max-age", "30")
    assert code == 2
    assert "--max-age" in line
    del held


def test_a_real_agent_is_healthy_hangs_when_stopped_and_is_dead_when_killed(tmp_path):
    ring = tmp_path / "run" / "ring"
    command = [sys.executable, "-m", "fabrictap"]
    off = [f"--set=export.otlp.{signal_name}.enabled=false" for signal_name in ("metrics", "traces", "logs")]
    agent = subprocess.Popen(
        [*command, "run", "--simulate", "l40s", f"--set=ring.path={ring}", *off, "--set=export.interval=1s"],
        stderr=subprocess.DEVNULL,
    )

    def ask(*options):
        asked = subprocess.run(
            [*command, "health", "--file", ring, *options], capture_output=True, text=True, check=False
        )
        return asked.returncode, asked.stdout + asked.stderr

    try:
        eventually(lambda: ask("--ready")[0] == 0, "the agent is ready", 30)
        assert "sources that deliver: simulated" in ask("--ready")[1]
        agent.send_signal(signal.SIGSTOP)
        eventually(lambda: ask("--max-age", "2s")[0] == 1, "it is told that it hangs", 30)
        assert "has not ticked for" in ask("--max-age", "2s")[1]
        agent.kill()
        agent.wait(10)
        assert ask()[0] == 1
        assert ask()[1].startswith("unhealthy: the agent died; it was seen ")
    finally:
        agent.kill()
        agent.wait(10)
