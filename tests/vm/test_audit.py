"""An audit in the guest: real devices, a real process with memory that its peer may write, a real agent."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vm.agent import Agent
from vm.harness import Machine
from vm.traffic import listen

#: The checkout's, whatever is installed.
SOURCE = Path(__file__).resolve().parents[2] / "agent"
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


def audit(
    machine: Machine, *arguments: str, code: int = 0, before: list[str] | None = None
) -> dict[str, Any]:
    argv = [*(before or []), sys.executable, "-m", "fabrictap", "audit", "--json", *arguments]
    done = machine.run(argv, 120, env={"PYTHONPATH": str(SOURCE)})
    assert done.rc == code, done.stderr or done.stdout
    found: dict[str, Any] = json.loads(done.stdout)
    found["by"] = {way["key"]: way for way in found["ways"]}
    return found


def findings(found: dict[str, Any], way: str) -> list[dict[str, Any]]:
    return [one for one in found["findings"] if one["way"] == way]


def start(agent: Agent) -> None:
    """The checkout's agent."""
    settings = [word for setting in agent.settings for word in ("--set", setting)]
    argv = [sys.executable, "-m", "fabrictap", "run", *settings]
    agent.process = agent.machine.start(argv, env={"PYTHONPATH": str(SOURCE)})
    agent.until_logged("source verbs delivers", 200)


def _registered(agent: Agent, pid: int) -> bool:
    agent.exported.poll()
    return bool(agent.exported.now("rdma.memory_region.size", pid=pid, access="read_write"))


@pytest.fixture
def agent(machine: Machine) -> Iterator[Agent]:
    watching = Agent(machine, "audit")
    yield watching
    if watching.process is not None and watching.process.rc is None:
        watching.process.kill()


def test_an_open_device_and_registered_memory_are_found_without_an_agent(machine: Machine) -> None:
    idle = audit(machine, "--file", "/run/no-ring", "--fail-on", "high")
    assert idle["by"]["rdma.verbs"]["present"] == "yes"
    assert idle["by"]["rdma.verbs"]["why"] == "rxe0, rxe1; open in 0 processes"
    assert idle["by"]["rdma.verbs"]["observed"] == "not_observed"
    assert (idle["by"]["rdma.one_sided"]["present"], idle["by"]["rdma.odp"]["present"]) == ("no", "unknown")
    # The kernel makes the device node so, and shares the devices among network namespaces.
    (opened,) = [one for one in findings(idle, "rdma.verbs") if "may open RDMA devices" in one["what"]]
    assert {piece.split()[1] for piece in opened["evidence"]} == {"0666"}
    assert any("netns shared" in one["what"] for one in findings(idle, "rdma.containers"))

    server = listen(machine, "rping", "-C", "10000000", "-S", "1000")
    client = server.connect(machine, "rxe1")
    try:
        machine.run(
            f"until rdma resource show mr | grep -q 'pid {client.pid} '; do sleep 0.05; done", 30
        ).check()
        alone = audit(machine, "--file", "/run/no-ring")
        assert alone["by"]["rdma.verbs"]["why"].startswith("rxe0, rxe1; open in 2 processes (lib")
        assert alone["by"]["rdma.one_sided"]["present"] == "yes"
        # Netlink does not tell what peers may do: the worst is assumed, and said to be.
        (memory,) = findings(alone, "rdma.one_sided")
        assert memory["certain"] is False
        assert any(piece.startswith(f"{client.pid}/rping") for piece in memory["evidence"])
        # A user who may not look is told so, and an admission check does not pass.
        lesser = audit(machine, "--file", "/run/no-ring", "--fail-on", "high", code=3, before=NOBODY)
        assert any("hide what they have open" in one["what"] for one in lesser["findings"])
    finally:
        client.kill()
        server.process.kill()


def test_a_running_agent_tells_what_peers_may_do_and_how_well_it_is_observed(
    machine: Machine, agent: Agent
) -> None:
    start(agent)
    ring = f"/run/fabrictap/{agent.name}"
    server = listen(machine, "rping", "-C", "10000000", "-S", "1000")
    client = server.connect(machine, "rxe1")
    try:
        machine.wait_for(lambda: _registered(agent, client.pid), 60, "memory is not listed")
        watched = audit(machine, "--file", ring, "--fail-on", "medium", code=1)
        assert watched["agent"]["state"] == "running", watched["agent"]
        assert watched["by"]["rdma.verbs"]["observed"] == "exact", watched["by"]["rdma.verbs"]
        # Soft-RoCE has no port counters of its own.
        assert watched["by"]["rdma.one_sided"]["observed"] == "estimated"
        (memory,) = [one for one in findings(watched, "rdma.one_sided") if "overwrite" in one["what"]]
        assert memory["certain"] is True
        assert any(
            piece.startswith(f"{client.pid}/rping ") and piece.endswith("on rxe1 (read_write)")
            for piece in memory["evidence"]
        ), memory
    finally:
        client.kill()
        server.process.kill()
    agent.stop()
    assert audit(machine, "--file", ring)["agent"]["state"] == "absent"
    text = machine.run(
        [sys.executable, "-m", "fabrictap", "audit", "--file", ring],
        env={"PYTHONPATH": str(SOURCE), "COLUMNS": "80", "PATH": os.environ["PATH"]},
    ).check()
    assert max(map(len, text.stdout.splitlines())) <= 80
