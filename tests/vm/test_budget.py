"""The budget on real queue pairs: on an emulated processor probes are so dear that perftest exceeds it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from otlp_json import Reader, Span
from vm import traffic
from vm.agent import PROGRAM, Agent
from vm.harness import Machine

# Until it is ended.
ENDLESS = ("-n", "5000000", "-s", "512")


@pytest.fixture
def agent(machine: Machine, request: pytest.FixtureRequest) -> Iterator[Agent]:
    # So little that it is exceeded however slow the machine is.
    settings = ("sources.verbs.data=budget", "sources.verbs.budget.node=0.0005")
    watching = Agent(machine, request.node.name, *settings)
    yield watching
    if watching.process is not None and watching.process.rc is None:
        watching.process.kill()


def sender(exported: Reader, pid: int) -> Span:
    (span,) = exported.spans_named("rdma.flow", pid=pid, role="sender")
    return span


def test_a_process_that_posts_too_often_is_counted_in_part_and_told_so(
    machine: Machine, agent: Agent
) -> None:
    agent.start()
    server = traffic.listen(machine, "ib_write_bw", *ENDLESS)
    client = server.connect(machine, "rxe1")
    try:
        machine.wait_for(
            lambda: f"process {client.pid} posts" in agent.log or client.rc is not None,
            90,
            "nobody was let go",
        )
        agent.exports()
        ring = f"/run/fabrictap/{agent.name}"
        seen = machine.run(f"{PROGRAM} flows --file {ring} --coverage estimated --json", 60).check()
    finally:
        client.kill()
        server.process.kill()
    agent.exports()
    exported = agent.stop()
    assert "more than the budget allows: counted for a part of the time" in agent.log
    (told,) = [one for one in map(json.loads, seen.stdout.splitlines()) if one["pid"] == client.pid]
    assert 0 <= told["coverage_fraction"] < 1
    span = sender(exported, client.pid)
    assert span["fabrictap.coverage"] == "estimated"
    assert 0 < float(span["fabrictap.coverage.fraction"]) < 1
    assert int(span["rdma.flow.rdma_write.operations"]) > 0
    assert exported.total("fabrictap.budget.decisions", fabrictap_budget_decision="reduced") >= 1
    assert exported.total("fabrictap.probe.hit.cost", fabrictap_probe_entry="emulated") > 0
    assert exported.find("fabrictap.coverage.ratio", pid=client.pid)
