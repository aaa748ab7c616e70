"""The recording of the real agent: while it runs, after its end, and after its sudden death."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from command import fabrictap
from support import eventually

SETTINGS = (
    "ring.tick=100ms",
    "ring.span=10s",
    "export.interval=200ms",
    "export.otlp.metrics.enabled=false",
    "export.otlp.traces.enabled=false",
    "sources.verbs.enabled=false",
)


@pytest.fixture
def agent(tmp_path):
    """(start an agent, path of its ring, path of its socket)."""
    tmp_path.chmod(0o755)
    path, metrics = tmp_path / "ring", tmp_path / "metrics.sock"
    started = []

    def start():
        settings = (*SETTINGS, f"ring.path={path}", f"export.prometheus.listen=unix:{metrics}")
        argv = [part for setting in settings for part in ("--set", setting)]
        process = subprocess.Popen(
            [sys.executable, "-m", "fabrictap", "run", *argv],
            stderr=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if not name.startswith("OTEL_")},
        )
        started.append(process)
        eventually(lambda: _state(path, process.pid) == "running", "the agent ticks", 30)
        return process

    yield start, path, metrics
    for process in started:
        process.kill()
        process.wait()


def _files(path):
    lines = fabrictap("recorder", "list", "--json", "--file", path).stdout.splitlines()
    return [json.loads(line) for line in lines]


def _state(path, pid):
    if not path.exists():
        return None
    first = _files(path)[0]
    return first["agent"] if first["pid"] == pid and first["rows"] > 2 else None


def test_an_agent_that_was_killed_has_died_and_its_recording_is_kept_by_the_next(agent):
    start, path, _ = agent
    first = start()
    assert f"running, pid {first.pid}" in fabrictap("snapshot", "--file", path).stdout
    first.send_signal(signal.SIGKILL)
    first.wait()
    done = fabrictap("snapshot", "--file", path)
    assert done.stdout.startswith("agent    DIED")
    assert "fabrictap.series.count" in fabrictap("recorder", "dump", "--file", path).stdout
    assert "the agent died" in fabrictap("flows", "--file", path).stderr
    second = start()
    second.terminate()
    assert second.wait(20) == 0
    assert [(one["agent"], one["pid"]) for one in _files(path)] == [
        ("ended", second.pid),
        ("died", first.pid),
    ]
    events = fabrictap("recorder", "events", "--json", "--file", path).stdout.splitlines()
    names = [json.loads(line)["name"] for line in events]
    assert (names[0], names[-1]) == ("fabrictap.agent.started", "fabrictap.agent.stopped")


def test_the_agent_answers_a_scrape_with_what_its_recording_has(agent):
    start, _, metrics = agent
    process = start()
    eventually(metrics.exists, "the socket is there")

    def scrape():
        client = http.client.HTTPConnection("agent")
        client.sock = socket.socket(socket.AF_UNIX)
        client.sock.settimeout(10)
        client.sock.connect(str(metrics))
        client.request("GET", "/metrics")
        return client.getresponse().read().decode()

    eventually(lambda: "\nfabrictap_series_count " in scrape(), "the agent's own series are there")
    text = scrape()
    assert 'service_name="fabrictap"' in text
    assert 'fabrictap_source_up{fabrictap_source="infiniband"}' in text
    process.terminate()
    assert process.wait(20) == 0
    assert not metrics.exists()
