"""What comes and goes while an agent watches: late agents, killed processes, links and devices."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from otlp_json import Reader
from vm.agent import Agent
from vm.harness import Machine, Process
from vm.traffic import ADDRESSES, Server, listen, perftest

HERE = Path(__file__).parent
# Sleeps between messages, so that the agent gets the emulated CPU too; it runs until it is ended.
ENDLESS = ("ibv_rc_pingpong", "-e", "-n", "10000000", "-s", "1024")


@contextlib.contextmanager
def connection(machine: Machine) -> Iterator[tuple[Server, Process]]:
    """Server on rxe0, client on rxe1, exchanging messages; ended at the end."""
    server = listen(machine, *ENDLESS)
    client = server.connect(machine, "rxe1")
    try:
        ready = f"rdma resource show qp | grep -q 'state RTS.* pid {client.pid} '"
        machine.run(f"until {ready}; do kill -0 {client.pid} || exit 1; sleep 0.05; done", 30).check()
        yield server, client
    finally:
        client.kill()
        server.process.kill()


@pytest.fixture
def agent(machine: Machine, request: pytest.FixtureRequest) -> Iterator[Agent]:
    watching = Agent(machine, request.node.name.replace("[", "-").replace("]", ""))
    yield watching
    if watching.process is not None and watching.process.rc is None:
        watching.process.kill()


def wait_for(agent: Agent, what: str, found: object) -> Reader:
    """Poll the export until ``found(reader)`` holds."""
    assert callable(found)

    def holds() -> bool:
        agent.exported.poll()
        return bool(found(agent.exported))

    agent.machine.wait_for(holds, 60, what)
    return agent.exported


def test_connection_older_than_the_agent_is_listed_and_counted_from_then_on(
    machine: Machine, agent: Agent
) -> None:
    with connection(machine) as (server, client):
        agent.start()
        exported = wait_for(
            agent,
            "no posts of the client",
            lambda e: e.find("rdma.verbs.operations", pid=client.pid, operation="send"),
        )
        wait_for(
            agent,
            "coverage and peers are not found out",
            lambda e: (
                {
                    (p["fabrictap.coverage"], p.get("rdma.peer.gid"))
                    for p in e.now("rdma.qp.status")
                    if p.value
                }
                == {("since", f"::ffff:{address}") for address in ADDRESSES.values()}
            ),
        )
        for process, device, peer in ((server.process, "rxe0", "rxe1"), (client, "rxe1", "rxe0")):
            (status,) = [p for p in exported.now("rdma.qp.status", pid=process.pid) if p.value]
            assert status["rdma.device"] == device
            assert status["fabrictap.origin"] == "netlink"
            assert status["fabrictap.coverage"] == "since"
            assert status["fabrictap.coverage.since"]
            assert status["rdma.qp.state"] == "rts"
            # The kernel's answer to the agent's own dump names the peer.
            assert status["rdma.peer.gid"] == f"::ffff:{ADDRESSES[peer]}"
            assert status["rdma.gid"] == f"::ffff:{ADDRESSES[device]}"
        (first,) = exported.find("rdma.verbs.operations", pid=client.pid, operation="send")
        assert first["fabrictap.coverage"] == "since"
        assert first["rdma.peer.gid"] == f"::ffff:{ADDRESSES['rxe0']}"
        wait_for(agent, "counts stand still", lambda e: _sends(e, client.pid) > first.value)
    exported = agent.stop()
    sent = exported.spans_named("rdma.flow", pid=client.pid, role="sender")
    assert [span["rdma.flow.identity"] for span in sent] == ["local"]
    assert sent[0]["fabrictap.coverage"] == "since"


@pytest.mark.parametrize("level", ["auto", "syscall"])
def test_killed_process_ends_its_flows_and_series(machine: Machine, agent: Agent, level: str) -> None:
    agent.settings += (f"sources.verbs.control={level}",)
    agent.start()
    with connection(machine) as (_server, client):
        wait_for(agent, "no posts", lambda e: _sends(e, client.pid))
        client.signal(signal.SIGKILL)
        exported = wait_for(
            agent, "flows stay open", lambda e: len(e.spans_named("rdma.flow", pid=client.pid)) == 2
        )
        reasons = {s["rdma.flow.close_reason"] for s in exported.spans_named("rdma.flow", pid=client.pid)}
        assert reasons == {"process_exited"}
        for name in (
            "rdma.qp.status",
            "rdma.verbs.operations",
            "rdma.verbs.io",
            "rdma.memory_region.size",
            "rdma.context.count",
        ):
            wait_for(agent, f"{name} goes on", lambda e, name=name: not e.now(name, pid=client.pid))
            assert exported.find(name, pid=client.pid)
        (span,) = exported.spans_named("rdma.flow", pid=client.pid, role="sender")
        assert span["rdma.flow.send.operations"] == _sends(exported, client.pid)
    agent.stop()


def test_link_that_goes_down_and_comes_back(machine: Machine, agent: Agent) -> None:
    agent.start()
    wait_for(agent, "port is not up", lambda e: _up(e) == {1})
    try:
        machine.run("ip link set d0 down").check()
        wait_for(agent, "port stays up", lambda e: _up(e) == {0})
    finally:
        machine.devices()
    wait_for(agent, "port stays down", lambda e: _up(e) == {1})
    traffic = perftest(machine, "ib_write_bw", "-n", "20", "-s", "4096")
    wait_for(
        agent,
        "not counted after the link came back",
        lambda e: e.total("rdma.verbs.io", pid=traffic.client_pid) == 20 * 4096,
    )
    agent.stop()


def test_device_that_is_removed_and_made_again(machine: Machine, agent: Agent) -> None:
    agent.start()
    try:
        with connection(machine) as (server, _client):
            wait_for(agent, "no posts", lambda e: _sends(e, server.process.pid))
            # rxe of this kernel cannot take a device from its users: the command waits until they are gone.
            deleting = machine.start(["rdma", "link", "delete", "rxe0"])
            wait_for(
                agent, "removal is not seen", lambda e: "leaving" in agent.log or deleting.rc is not None
            )
            server.process.kill()
            assert deleting.wait(60).rc == 0
            exported = wait_for(
                agent,
                "flows stay open",
                lambda e: len(e.spans_named("rdma.flow", pid=server.process.pid)) == 2,
            )
            spans = exported.spans_named("rdma.flow", pid=server.process.pid)
            assert {span["rdma.flow.close_reason"] for span in spans} == {"device_removed"}
            wait_for(agent, "its port goes on", lambda e: not e.now("hw.network.up", hw_parent="rxe0"))
            wait_for(agent, "its queue pairs go on", lambda e: not e.now("rdma.qp.status", device="rxe0"))
            assert exported.now("hw.network.up", hw_parent="rxe1")
    finally:
        machine.devices()
    wait_for(agent, "the new device is not seen", lambda e: _up(e) == {1})
    traffic = perftest(machine, "ib_write_bw", "-n", "20", "-s", "4096")
    wait_for(
        agent,
        "not counted on the new device",
        lambda e: e.total("rdma.verbs.io", pid=traffic.client_pid) == 20 * 4096,
    )
    agent.stop()
    assert "Traceback" not in agent.log


@pytest.mark.parametrize("level", ["fexit", "kprobe", "syscall"])
def test_every_hook_level_gives_the_same(machine: Machine, agent: Agent, level: str) -> None:
    agent.settings += (f"sources.verbs.control={level}",)
    agent.start()
    traffic = perftest(machine, "ib_write_bw", "-n", "30", "-s", "4096")
    wait_for(agent, "flows", lambda e: len(e.spans_named("rdma.flow", pid=traffic.client_pid)) == 2)
    exported = agent.stop()
    attached = exported.find("fabrictap.probe.attached")
    methods = {p["fabrictap.probe.method"] for p in attached if p.value}
    # The system calls are tracepoints, as are those of the connection manager.
    assert methods == {level, "tracepoint", "uprobe"} - {"syscall"}
    assert any(p["fabrictap.probe"].startswith(f"{level}_") for p in attached)
    assert not [p for p in attached if not p.value]
    (span,) = exported.spans_named("rdma.flow", pid=traffic.client_pid, role="sender")
    assert span["rdma.flow.identity"] == "exact"
    assert span["rdma.flow.rdma_write.io"] == 30 * 4096
    assert span["rdma.path_mtu"] == 1024
    assert span["rdma.gid"] == f"::ffff:{ADDRESSES['rxe1']}"
    assert span["rdma.peer.gid"] == f"::ffff:{ADDRESSES['rxe0']}"
    # Each end has derived the same trace from what it knows itself.
    (received,) = exported.spans_named("rdma.flow", pid=traffic.server_pid, role="receiver")
    assert received["rdma.flow.identity"] == "exact"
    assert received.trace_id == span.trace_id
    assert received["rdma.flow.close_reason"] == span["rdma.flow.close_reason"] == "destroyed"
    for pid in (traffic.client_pid, traffic.server_pid):
        assert not exported.now("rdma.qp.status", pid=pid)
        assert not exported.now("rdma.memory_region.size", pid=pid)


@pytest.mark.parametrize("level", ["fexit", "kprobe", "syscall"])
def test_remotely_accessible_memory_has_an_owner(machine: Machine, agent: Agent, level: str) -> None:
    agent.settings += (f"sources.verbs.control={level}",)
    agent.start()
    # The connection manager is watched from the first tick on.
    wait_for(
        agent,
        "the connection manager is not watched",
        lambda e: any(
            p["fabrictap.probe"] == "tracepoint_cm_event"
            for p in e.now("fabrictap.probe.attached")
            if p.value
        ),
    )
    server = listen(machine, "rping", "-C", "10000000", "-S", "1000")
    client = server.connect(machine, "rxe1")
    try:
        exported = wait_for(
            agent,
            "memory is not listed",
            lambda e: e.now("rdma.memory_region.size", pid=client.pid, access="read_write"),
        )
        (size,) = exported.now("rdma.memory_region.size", pid=client.pid, access="read_write")
        assert size.value >= 1000
        assert size["rdma.device"] == "rxe1"
        assert size["process.executable.name"] == "rping"
        wait_for(
            agent,
            "no event of the connection manager",
            lambda e: e.total("rdma.cm.events", rdma_cm_event="established"),
        )
    finally:
        client.kill()
        server.process.kill()
    wait_for(agent, "memory stays", lambda e: not e.now("rdma.memory_region.size", pid=client.pid))
    agent.stop()


def test_malformed_verbs_ioctls_disturb_nothing_at_level_syscall(machine: Machine, agent: Agent) -> None:
    agent.settings += ("sources.verbs.control=syscall",)
    agent.start()
    program = machine.put(HERE / "malformed_ioctls.py")
    with connection(machine) as (_server, client):
        wait_for(agent, "no posts", lambda e: _sends(e, client.pid))
        sending = machine.start([sys.executable, program, "rxe1"])
        assert sending.wait(60).rc == 0
        exported = agent.exports()
        assert not exported.find("rdma.qp.status", pid=sending.pid)
        assert not exported.find("rdma.memory_region.size", pid=sending.pid)
        (status,) = [p for p in exported.now("rdma.qp.status", pid=client.pid) if p.value]
        assert status["rdma.qp.state"] == "rts"
    traffic = perftest(machine, "ib_write_bw", "-n", "20", "-s", "4096")
    wait_for(agent, "flows", lambda e: len(e.spans_named("rdma.flow", pid=traffic.client_pid)) == 2)
    exported = agent.stop()
    (span,) = exported.spans_named("rdma.flow", pid=traffic.client_pid, role="sender")
    assert span["rdma.flow.identity"] == "exact"
    assert span["rdma.flow.rdma_write.io"] == 20 * 4096
    assert "Traceback" not in agent.log


def test_without_the_control_path_netlink_knows_the_connections(machine: Machine, agent: Agent) -> None:
    agent.settings += ("sources.verbs.control=off", "sources.rdma_netlink.interval=1s")
    agent.start()
    with connection(machine) as (_server, client):
        exported = wait_for(
            agent, "connection is not listed", lambda e: e.now("rdma.qp.status", pid=client.pid)
        )
        (status,) = exported.now("rdma.qp.status", pid=client.pid)
        assert status["fabrictap.origin"] == "netlink"
        wait_for(agent, "no posts", lambda e: _sends(e, client.pid))
    wait_for(agent, "connection stays", lambda e: not e.now("rdma.qp.status", pid=client.pid))
    agent.stop()


def _sends(exported: Reader, pid: int) -> int | float:
    return exported.total("rdma.verbs.operations", pid=pid, operation="send")


def _up(exported: Reader) -> set[int | float | None]:
    return {point.value for point in exported.now("hw.network.up", hw_parent="rxe0")}
