"""The budget on real queue pairs: on an emulated processor probes are so dear that perftest exceeds it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from otlp_json import Reader, Span
from vm import traffic
from vm.agent import PROGRAM, Agent
from vm.harness import Machine

POSTS = ("-n", "30000", "-s", "512")


@pytest.fixture
def agent(machine: Machine, request: pytest.FixtureRequest) -> Iterator[Agent]:
    watching = Agent(machine, request.node.name, "sources.verbs.data=budget")
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
    server = traffic.listen(machine, "ib_write_bw", *POSTS)
    client = server.connect(machine, "rxe1")
    machine.wait_for(
        lambda: "more than the budget allows" in agent.log or client.rc is not None, 90, "nobody was let go"
    )
    seen = machine.run(f"{PROGRAM} flows --file /run/fabrictap/{agent.name} --coverage estimated --json", 60)
    client.wait(200).check()
    server.process.wait(60).check()
    agent.exports()
    exported = agent.stop()
    assert f"process {client.pid} posts" in agent.log
    span = sender(exported, client.pid)
    assert span["fabrictap.coverage"] == "estimated"
    assert 0 < span["fabrictap.coverage.fraction"] < 1
    counted = span.get("rdma.flow.rdma_write.operations")
    assert counted is not None
    assert 0 < counted < 30000
    assert exported.total("fabrictap.budget.decisions", decision="reduced") >= 1
    assert exported.total("fabrictap.probe.hit.cost", entry="emulated") > 0
    assert '"coverage_fraction": 0.' in seen.check().stdout
