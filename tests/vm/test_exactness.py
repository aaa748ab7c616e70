"""Operations, bytes and peers of every tool, held against its arguments and against every packet sent.

Two agents stand for two nodes, one per device; all tools run while both watch, and are judged afterwards.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from otlp_json import Point, Reader
from vm.agent import Agent
from vm.harness import Machine
from vm.traffic import ADDRESSES, Traffic, perftest
from vm.truth import Sent, Truth

GIDS = {device: f"::ffff:{address}" for device, address in ADDRESSES.items()}


@dataclass(frozen=True)
class Scenario:
    """A command line; ``posts``: (end, operation) -> (work requests, bytes) of each of its queue pairs."""

    command: str
    posts: dict[tuple[str, str], tuple[int, int]]
    qps: int = 1


# Truth by arguments: the work requests that the tool must post. What it posts besides (handshakes of -R, the
# receives kept ready) is judged by the packets alone.
SCENARIOS = {
    "ib_write_bw": Scenario("ib_write_bw -n 50 -s 4096", {("client", "rdma_write"): (50, 50 * 4096)}),
    "ib_write_bw 64K": Scenario("ib_write_bw -n 20 -s 65536", {("client", "rdma_write"): (20, 20 * 65536)}),
    "ib_write_bw -q 4": Scenario(
        "ib_write_bw -n 40 -s 2048 -q 4", {("client", "rdma_write"): (40, 40 * 2048)}, qps=4
    ),
    "ib_write_bw -l 8": Scenario(
        "ib_write_bw -n 48 -s 1024 -l 8", {("client", "rdma_write"): (48, 48 * 1024)}
    ),
    "ib_write_bw -R": Scenario("ib_write_bw -n 40 -s 4096 -R", {("client", "rdma_write"): (40, 40 * 4096)}),
    "ib_read_bw": Scenario("ib_read_bw -n 50 -s 4096", {("client", "rdma_read"): (50, 50 * 4096)}),
    "ib_read_bw -q 4 -l 8": Scenario(
        "ib_read_bw -n 48 -s 2048 -q 4 -l 8", {("client", "rdma_read"): (48, 48 * 2048)}, qps=4
    ),
    "ib_read_bw -R": Scenario("ib_read_bw -n 40 -s 4096 -R", {("client", "rdma_read"): (40, 40 * 4096)}),
    "ib_send_bw": Scenario("ib_send_bw -n 50 -s 4096", {("client", "send"): (50, 50 * 4096)}),
    "ib_send_bw -q 4 -l 8": Scenario(
        "ib_send_bw -n 48 -s 2048 -q 4 -l 8", {("client", "send"): (48, 48 * 2048)}, qps=4
    ),
    "ib_send_bw 64K": Scenario("ib_send_bw -n 20 -s 65536", {("client", "send"): (20, 20 * 65536)}),
    "ib_send_bw -R": Scenario("ib_send_bw -n 40 -s 4096 -R", {}),
    "ib_atomic_bw": Scenario("ib_atomic_bw -n 50", {("client", "atomic_fetch_and_add"): (50, 50 * 8)}),
    "ibv_rc_pingpong": Scenario(
        "ibv_rc_pingpong -n 50 -s 1024",
        {("client", "send"): (50, 50 * 1024), ("server", "send"): (50, 50 * 1024)},
    ),
    "ibv_ud_pingpong": Scenario(
        "ibv_ud_pingpong -n 50 -s 1024",
        {("client", "send"): (50, 50 * 1024), ("server", "send"): (50, 50 * 1024)},
    ),
    "rping": Scenario(
        "rping -C 20 -S 1000",
        {("server", "rdma_read"): (20, 20 * 1000), ("server", "rdma_write"): (20, 20 * 1000)},
    ),
}


@dataclass(frozen=True)
class Observed:
    """What both agents exported and what was really sent."""

    server: Reader
    client: Reader
    sent: dict[tuple[str, int], Sent]
    traffic: dict[str, Traffic]

    def end(self, name: str) -> tuple[Reader, str, str]:
        """(export, device, peer's device) of the end ``name``."""
        return (self.server, "rxe0", "rxe1") if name == "server" else (self.client, "rxe1", "rxe0")

    def pid(self, scenario: str, end: str) -> int:
        traffic = self.traffic[scenario]
        return traffic.server_pid if end == "server" else traffic.client_pid


@pytest.fixture(scope="module")
def observed(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Observed:
    truth = Truth(machine, tmp_path_factory.mktemp("truth"))
    server = Agent(machine, "exact-server", device="rxe0").start()
    client = Agent(machine, "exact-client", device="rxe1").start()
    traffic = {}
    for name, scenario in SCENARIOS.items():
        tool, *args = scenario.command.split()
        traffic[name] = perftest(machine, tool, *args)
    return Observed(server.stop(), client.stop(), truth.stop(), traffic)


@pytest.mark.parametrize("name", SCENARIOS)
def test_posts_equal_what_the_tool_was_told_to_post(observed: Observed, name: str) -> None:
    scenario = SCENARIOS[name]
    for (end, operation), expected in scenario.posts.items():
        export, device, _ = observed.end(end)
        pid = observed.pid(name, end)
        points = _points(export, "rdma.verbs.operations", pid, operation)
        assert {point.attributes["rdma.device"] for point in points} == {device}
        moved = dict.fromkeys([point.attributes["rdma.qp.number"] for point in points], 0)
        by_qp = {point.attributes["rdma.qp.number"]: point.value for point in points}
        for point in _points(export, "rdma.verbs.io", pid, operation):
            moved[point.attributes["rdma.qp.number"]] += point.value
        assert len(by_qp) == scenario.qps
        assert {(by_qp[qpn], moved[qpn]) for qpn in by_qp} == {expected}


@pytest.mark.parametrize("name", SCENARIOS)
def test_posts_equal_the_packets_sent(observed: Observed, name: str) -> None:
    checked = 0
    for end in ("server", "client"):
        export, device, peer_device = observed.end(end)
        pid = observed.pid(name, end)
        for point in _points(export, "rdma.verbs.operations", pid):
            operation, qpn = str(point.attributes["rdma.operation"]), int(point.attributes["rdma.qp.number"])
            if operation == "recv":
                continue
            on_the_wire = operation.removesuffix("_with_imm").removesuffix("_with_inv")
            sent = observed.sent[device, qpn]
            assert point.value == sent.messages[on_the_wire], (end, operation, qpn)
            (moved,) = [p.value for p in _points(export, "rdma.verbs.io", pid, operation, qpn)]
            if operation == "rdma_read":
                peer_qpn = int(point.attributes["rdma.peer.qp.number"])
                assert moved == observed.sent[peer_device, peer_qpn].read_responses
            elif not operation.startswith("atomic"):
                assert moved == sent.payload[on_the_wire], (end, operation, qpn)
            checked += 1
    assert checked


@pytest.mark.parametrize("name", SCENARIOS)
def test_peer_is_the_other_end(observed: Observed, name: str) -> None:
    for end in ("server", "client"):
        export, device, peer_device = observed.end(end)
        for point in _points(export, "rdma.verbs.operations", observed.pid(name, end)):
            attributes = point.attributes
            if attributes["rdma.qp.type"] == "ud" and attributes["rdma.operation"] == "recv":
                # Whoever knows the queue pair may send to it: there is no peer to name.
                assert "rdma.peer.gid" not in attributes
                continue
            assert attributes["rdma.peer.gid"] == GIDS[peer_device]
            other = observed.server if end == "client" else observed.client
            there = {p.attributes["rdma.qp.number"] for p in other.find("rdma.qp.status", device=peer_device)}
            there |= {s.attributes["rdma.qp.number"] for s in other.spans_named("rdma.flow")}
            there |= {p.attributes["rdma.qp.number"] for p in other.find("rdma.verbs.operations")}
            assert attributes["rdma.peer.qp.number"] in there
            if attributes["rdma.qp.type"] == "rc":
                assert attributes["rdma.gid"] == GIDS[device]


def test_peer_qpn_is_the_one_that_the_tool_printed(observed: Observed) -> None:
    out = observed.traffic["ib_write_bw -q 4"].client.stdout
    local = [int(q, 16) for q in re.findall(r"local address:.*?QPN 0x([0-9a-f]+)", out)]
    remote = [int(q, 16) for q in re.findall(r"remote address:.*?QPN 0x([0-9a-f]+)", out)]
    assert len(local) == 4
    pid = observed.traffic["ib_write_bw -q 4"].client_pid
    pairs = {
        (p.attributes["rdma.qp.number"], p.attributes["rdma.peer.qp.number"])
        for p in _points(observed.client, "rdma.verbs.operations", pid, "rdma_write")
    }
    assert pairs == set(zip(local, remote, strict=True))


def test_victim_of_a_read_posted_nothing(observed: Observed) -> None:
    pid = observed.traffic["ib_read_bw"].server_pid
    assert not _points(observed.server, "rdma.verbs.operations", pid)
    (span,) = observed.server.spans_named("rdma.flow", pid=pid, role="receiver")
    assert span.attributes["rdma.flow.operations"] == 0


@pytest.mark.parametrize("name", [name for name in SCENARIOS if "ud" not in name])
def test_both_ends_flows_share_a_trace(observed: Observed, name: str) -> None:
    """Also of ib_write_bw, whose server never reaches RTS."""
    traffic = observed.traffic[name]
    received = {
        s.trace_id: s
        for s in observed.server.spans_named("rdma.flow", pid=traffic.server_pid, role="receiver")
    }
    sent = {
        s.trace_id: s for s in observed.client.spans_named("rdma.flow", pid=traffic.client_pid, role="sender")
    }
    assert sent
    assert received.keys() == sent.keys()
    for trace, sender in sent.items():
        receiver = received[trace]
        assert receiver.parent_id == sender.span_id
        assert not sender.parent_id
        for span in (sender, receiver):
            assert span.attributes["rdma.flow.identity"] == "exact"
            assert span.attributes["rdma.flow.sender.gid"] == GIDS["rxe1"]
            assert span.attributes["rdma.flow.receiver.gid"] == GIDS["rxe0"]
            assert span.end_ns > span.start_ns
        ends = ("rdma.flow.sender.qp.number", "rdma.flow.receiver.qp.number", "rdma.flow.start_psn")
        assert [sender.attributes[e] for e in ends] == [receiver.attributes[e] for e in ends]


def test_flow_carries_what_it_moved(observed: Observed) -> None:
    pid = observed.traffic["ib_write_bw 64K"].client_pid
    (span,) = observed.client.spans_named("rdma.flow", pid=pid, role="sender")
    assert span.attributes["rdma.flow.rdma_write.io"] == 20 * 65536
    assert span.attributes["rdma.flow.rdma_write.operations"] == 20
    assert span.attributes["rdma.flow.io"] == 20 * 65536
    assert span.attributes["rdma.flow.close_reason"] == "destroyed"
    assert span.attributes["process.executable.name"] == "ib_write_bw"


def test_nothing_was_lost_and_everything_covered(observed: Observed) -> None:
    for export in (observed.server, observed.client):
        assert {p.value for p in export.find("fabrictap.record.lost")} == {0}
        assert {p.attributes["fabrictap.coverage"] for p in export.find("rdma.verbs.operations")} == {"exact"}


def test_message_sizes_are_the_tools(observed: Observed) -> None:
    pid = observed.traffic["ib_write_bw"].client_pid
    (point,) = _points(observed.client, "rdma.verbs.message.size", pid, "rdma_write")
    assert point.raw.get("scale", 0) == 0
    counts = [int(count) for count in point.raw["positive"]["bucketCounts"]]
    filled = {point.raw["positive"].get("offset", 0) + i: count for i, count in enumerate(counts) if count}
    assert filled == {11: 50}  # 4096 = 2**12 lies in (2**11, 2**12]
    assert point.raw["sum"] == 50 * 4096


def _points(
    export: Reader, name: str, pid: int, operation: str | None = None, qpn: int | None = None
) -> list[Point]:
    wanted: dict[str, str | int] = {"pid": pid}
    if operation is not None:
        wanted["operation"] = operation
    if qpn is not None:
        wanted["qpn"] = qpn
    return export.find(name, **wanted)
