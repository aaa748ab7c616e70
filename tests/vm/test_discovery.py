"""Processes that bring their own libraries, as containers do, and what was there before the agent."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Iterator

import pytest

from otlp_json import Reader, Span
from vm import traffic
from vm.agent import Agent
from vm.harness import Machine, Process

# Sleeps between messages, so that the agent gets the emulated CPU too; it runs until it is ended.
ENDLESS = ("-e", "-n", "10000000", "-s", "1024")
LIBRARIES = "/usr/lib/x86_64-linux-gnu"
#: A mount namespace with a copy of libibverbs and its providers on a file system that only it has. A byte at
#: their ends makes them other files than the node's, in content too: nothing that is known of those holds.
IMAGE = f"""
set -e
mount --make-rprivate /
mount -t tmpfs image /var/tmp
cp -L {LIBRARIES}/libibverbs.so.1 /var/tmp/
mkdir /var/tmp/libibverbs
cp -L {LIBRARIES}/libibverbs/*.so /var/tmp/libibverbs/
for library in /var/tmp/*.so* /var/tmp/libibverbs/*; do echo >>$library; done
mount --bind /var/tmp/libibverbs {LIBRARIES}/libibverbs
echo ready
exec sleep infinity
"""


@pytest.fixture
def agent(machine: Machine, request: pytest.FixtureRequest) -> Iterator[Agent]:
    watching = Agent(machine, request.node.name)
    yield watching
    if watching.process is not None and watching.process.rc is None:
        watching.process.kill()


@pytest.fixture(scope="module")
def image(machine: Machine) -> Iterator[Process]:
    """A process in such a mount namespace, which keeps it."""
    holder = machine.start(["unshare", "-m", "bash", "-c", IMAGE])
    machine.wait_for(lambda: "ready" in holder.stdout or holder.rc is not None, 60, "no mount namespace")
    assert holder.rc is None, holder.stderr
    yield holder
    holder.kill()


def inside(image: Process, argv: list[str]) -> str:
    """A command line that becomes ``argv`` in the mount namespace, with the libraries that lie there."""
    entered = ["nsenter", "-m", "-t", str(image.pid), "--", "env", "LD_LIBRARY_PATH=/var/tmp", *argv]
    return f"exec {shlex.join(entered)}"


@contextlib.contextmanager
def connection(machine: Machine, image: Process) -> Iterator[Process]:
    """A client in the image that exchanges messages with a server outside; ended at the end."""
    server = traffic.listen(machine, "ibv_rc_pingpong", *ENDLESS)
    argv = traffic.command(machine, server.tool, server.args, "rxe1", server.port, server=server.device)
    client = machine.start(inside(image, argv))
    try:
        ready = f"rdma resource show qp | grep -q 'state RTS.* pid {client.pid} '"
        machine.run(f"until {ready}; do kill -0 {client.pid} || exit 1; sleep 0.05; done", 30).check()
        yield client
    finally:
        client.kill()
        server.process.kill()


def posted(exported: Reader, pid: int) -> int | float:
    exported.poll()
    return exported.total("rdma.verbs.operations", pid=pid, operation="send")


def flows(exported: Reader, pid: int) -> list[Span]:
    exported.poll()
    return exported.spans_named("rdma.flow", pid=pid)


def test_a_process_with_its_own_libraries_in_its_own_mount_namespace_is_counted_exactly(
    machine: Machine, agent: Agent, image: Process
) -> None:
    agent.start()
    with connection(machine, image) as first:
        machine.wait_for(lambda: posted(agent.exported, first.pid) > 0, 60, f"no posts\n{agent.log}")
        # While it runs its libraries are probed, so that the next is counted from its first post.
        server = traffic.listen(machine, "ib_write_bw", "-n", "200", "-s", "4096")
        argv = traffic.command(machine, server.tool, server.args, "rxe1", server.port, server=server.device)
        client = machine.start(inside(image, argv))
        client.wait(90).check()
        server.process.wait(60).check()
        machine.wait_for(lambda: len(flows(agent.exported, client.pid)) == 2, 60, "no flows")
    exported = agent.stop()
    assert exported.total("rdma.verbs.operations", pid=client.pid, operation="rdma_write") == 200
    assert exported.total("rdma.verbs.io", pid=client.pid, operation="rdma_write") == 200 * 4096
    (span,) = exported.spans_named("rdma.flow", pid=client.pid, role="sender")
    assert span["rdma.flow.rdma_write.io"] == 200 * 4096
    assert span["fabrictap.coverage"] == "exact"
    assert "Traceback" not in agent.log


def test_a_process_with_its_own_libraries_that_is_older_than_the_agent_is_counted_from_then_on(
    machine: Machine, agent: Agent, image: Process
) -> None:
    with connection(machine, image) as client:
        agent.start()
        machine.wait_for(lambda: posted(agent.exported, client.pid) > 0, 60, f"no posts\n{agent.log}")
        exported = agent.exports()
        status = [point for point in exported.now("rdma.qp.status", pid=client.pid) if point.value]
        assert {point["fabrictap.coverage"] for point in status} == {"since"}
    agent.stop()


def test_the_extended_api_is_counted_exactly(machine: Machine, agent: Agent) -> None:
    agent.start()
    # Long enough for the agent to look at the processes while they are there, which it needs to be sure.
    count = 1000
    ran = traffic.perftest(machine, "ibv_rc_pingpong", "-N", "-n", str(count), "-s", "1024")
    machine.wait_for(lambda: len(flows(agent.exported, ran.client_pid)) == 2, 60, "no flows")
    exported = agent.stop()
    for pid in (ran.client_pid, ran.server_pid):
        assert exported.total("rdma.verbs.operations", pid=pid, operation="send") == count
        assert exported.total("rdma.verbs.io", pid=pid, operation="send") == count * 1024
    for span in exported.spans_named("rdma.flow", pid=ran.client_pid):
        assert span["fabrictap.coverage"] == "exact"


def test_the_files_tell_what_the_helper_process_sees(machine: Machine) -> None:
    """On the one provider that has devices here."""
    script = """
import glob, json, os
from fabrictap.sources.verbs import providers, static
from fabrictap.sources.verbs.elf import Elf
report = providers.discover()
seen, told = {}, {}
for place in report.places:
    if place.function in static.OPS:
        seen.setdefault(place.file, {}).setdefault(place.function, []).append(place.offset)
(library,) = {place.file for place in report.places if place.function == "create_ah"}
slots = static.slots(Elf(os.open(library, os.O_RDONLY)))
for path in seen:
    told[path] = static.functions(Elf(os.open(path, os.O_RDONLY)), slots)
extended = len([place for place in report.places if place.function in providers.EXTENDED])
print(json.dumps([seen, told, report.problems, extended]))
"""
    ran = machine.run([sys.executable, "-c", script], timeout=60).check()
    seen, told, problems, extended = json.loads(ran.stdout)
    assert problems == {}
    assert seen == told
    assert [path.rpartition("/")[2].split("-")[0] for path in seen] == ["librxe"]
    assert extended > 10
