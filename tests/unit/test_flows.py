"""Flows: identity, windows and ends, through the connections that own them."""

import pytest

from fabrictap import catalog
from fabrictap.ledger.connections import Connection, Connections, Coverage
from fabrictap.ledger.flows import FlowId, Flows

SECOND = 10**9
CLIENT = {"gid": "fe80::1", "qpn": 17, "sq_psn": 100, "rq_psn": 200}
SERVER = {"gid": "::ffff:10.0.0.2", "qpn": 18, "sq_psn": 200, "rq_psn": 100}


class Node:
    """One end with a connection; ``life`` moves it through states, one second each."""

    def __init__(self, here, there, capacity=100, window=60, **changes):
        self.flows = Flows(capacity, window * SECOND)
        self.connections = Connections(10, self.flows)
        values = {
            "device": "mlx5_0", "type": "rc", "state": "init", "pid": 1, "process": "app", "created_ns": 0,
            "origin": "probe", "coverage": Coverage("exact"), "port": 1, **here,
            "peer_gid": there["gid"], "peer_qpn": there["qpn"],
        }  # fmt: skip
        self.connection = Connection(**(values | changes))
        self.connections.put(self.connection)
        self.now = 0

    def life(self, *states):
        for state in states:
            self.now += SECOND
            self.connections.advance(self.connection, state, self.now)
        return self

    def end(self, reason="destroyed", after=1):
        self.now += after * SECOND
        self.connections.remove(self.connection, reason, self.now)
        return self.spans()

    def post(self, operation, operations, size):
        self.connection.post(operation, operations, size)

    def roll(self, after):
        self.now += after * SECOND
        self.flows.roll(self.now)

    def spans(self):
        return self.flows.take_finished()


def by_role(spans, name="rdma.flow"):
    return {span.attributes["rdma.flow.role"]: span for span in spans if span.name == name}


# --- identity -------------------------------------------------------------------------------------


def test_both_ends_compute_the_same_trace_of_each_direction():
    client = by_role(Node(CLIENT, SERVER).life("rtr", "rts").end())
    server = by_role(Node(SERVER, CLIENT).life("rtr", "rts").end())
    for sender, receiver in ((client["sender"], server["receiver"]), (server["sender"], client["receiver"])):
        assert sender.trace_id == receiver.trace_id
        assert receiver.parent_span_id == sender.span_id != receiver.span_id
        assert sender.parent_span_id is None
        assert sender.attributes["rdma.flow.identity"] == receiver.attributes["rdma.flow.identity"] == "exact"
    assert client["sender"].trace_id != client["receiver"].trace_id


def test_a_server_that_never_reaches_rts_still_meets_the_clients_trace():
    client = by_role(Node(CLIENT, SERVER).life("rtr", "rts").end())
    server = by_role(Node(SERVER, CLIENT, sq_psn=None).life("rtr").end())
    assert set(server) == {"receiver"}
    assert server["receiver"].trace_id == client["sender"].trace_id
    assert server["receiver"].links == ()


def test_the_spelling_of_a_gid_does_not_matter_and_each_part_of_the_identity_does():
    one = FlowId.of("fe80::1", 17, "::ffff:10.0.0.2", 18, 100)
    assert FlowId.of("fe80:0:0:0:0:0:0:1", 17, "::ffff:0a00:0002", 18, 100) == one
    assert FlowId.of("fe80::1", 17, "::ffff:10.0.0.2", 18, 100 + (1 << 24)) == one
    others = [
        FlowId.of("fe80::3", 17, "::ffff:10.0.0.2", 18, 100),
        FlowId.of("fe80::1", 16, "::ffff:10.0.0.2", 18, 100),
        FlowId.of("fe80::1", 17, "::ffff:10.0.0.3", 18, 100),
        FlowId.of("fe80::1", 17, "::ffff:10.0.0.2", 19, 100),
        FlowId.of("fe80::1", 17, "::ffff:10.0.0.2", 18, 101),
        FlowId.of("::ffff:10.0.0.2", 18, "fe80::1", 17, 100),
    ]
    assert len({one.trace_id, *(other.trace_id for other in others)}) == 7
    assert (len(one.trace_id), len(one.sender_span_id), len(one.receiver_span_id)) == (16, 8, 8)


def test_the_identity_is_fixed_forever():
    # Nodes of different versions of fabrictap must agree: this value may never change.
    flow = FlowId.of("fe80::1", 17, "fe80::2", 18, 100)
    assert (flow.trace_id.hex(), flow.sender_span_id.hex(), flow.receiver_span_id.hex()) == (
        "9b28a79b1f6b8bbe241df0b04403b117",
        "b8fcdfc9f7ab284b",
        "e5eee49377343ab1",
    )


@pytest.mark.parametrize("unknown", ["gid", "peer_gid", "peer_qpn", "rq_psn"])
def test_a_connection_that_is_not_fully_known_gets_a_trace_of_its_own(unknown):
    spans = [by_role(Node(SERVER, CLIENT, **{unknown: None}).life("rtr").end())["receiver"] for _ in range(2)]
    assert spans[0].trace_id != spans[1].trace_id
    assert {span.attributes["rdma.flow.identity"] for span in spans} == {"local"}
    assert {span.parent_span_id for span in spans} == {None}
    assert None not in spans[0].attributes.values()


# --- life -----------------------------------------------------------------------------------------


def test_receiving_begins_with_rtr_and_sending_with_rts():
    spans = by_role(Node(CLIENT, SERVER).life("init", "rtr", "rts").end())
    assert (spans["receiver"].start_ns, spans["sender"].start_ns) == (2 * SECOND, 3 * SECOND)
    assert spans["receiver"].end_ns == spans["sender"].end_ns == 4 * SECOND


def test_the_directions_of_a_connection_link_to_each_other():
    spans = by_role(Node(CLIENT, SERVER).life("rtr", "rts").end())
    for one, other in (("sender", "receiver"), ("receiver", "sender")):
        assert spans[one].links == ((spans[other].trace_id, spans[other].span_id),)


@pytest.mark.parametrize("kind", ["ud", "raw_packet", "driver"])
def test_only_connected_queue_pairs_have_flows(kind):
    assert Node(CLIENT, SERVER, type=kind).life("rtr", "rts").end() == []


@pytest.mark.parametrize("reason", catalog.RDMA_FLOW_CLOSE_REASON.values)
def test_every_reason_to_end_is_told(reason):
    node = Node(CLIENT, SERVER).life("rtr", "rts")
    if reason in ("error", "reset"):
        node.life({"error": "err", "reset": "reset"}[reason])
        spans = node.spans()
        assert node.end("destroyed") == []
    else:
        spans = node.end(reason)
    assert [span.attributes["rdma.flow.close_reason"] for span in spans] == [reason, reason]


def test_a_queue_pair_that_is_reset_and_used_again_has_new_flows():
    node = Node(CLIENT, SERVER).life("rtr", "rts", "reset", "init", "rtr", "rts")
    assert len(node.spans()) == 2
    assert len(node.end()) == 2
    assert len(node.flows) == 0


def test_close_all_ends_what_lives_and_closing_again_does_nothing():
    node = Node(CLIENT, SERVER).life("rtr", "rts")
    node.flows.close_all("agent_stopped", node.now)
    assert len(node.spans()) == 2
    assert node.end() == []


def test_a_clock_that_steps_back_gives_no_negative_span():
    node = Node(CLIENT, SERVER).life("rtr", "rts")
    node.connections.remove(node.connection, "destroyed", 0)
    assert all(span.end_ns >= span.start_ns for span in node.spans())


# --- what moved -----------------------------------------------------------------------------------


def test_posts_are_counted_by_the_direction_that_their_payload_takes():
    node = Node(CLIENT, SERVER).life("rtr", "rts")
    node.post("rdma_write", 2, 200)
    node.post("send", 1, 50)
    node.post("rdma_read", 3, 3000)
    node.post("recv", 10, 40960)
    node.post("local_inv", 5, 0)
    spans = by_role(node.end())
    moved = {
        role: {key: value for key, value in span.attributes.items() if key.endswith((".io", ".operations"))}
        for role, span in spans.items()
    }
    assert moved["sender"] == {
        "rdma.flow.rdma_write.operations": 2,
        "rdma.flow.rdma_write.io": 200,
        "rdma.flow.send.operations": 1,
        "rdma.flow.send.io": 50,
        "rdma.flow.operations": 3,
        "rdma.flow.io": 250,
    }
    assert moved["receiver"] == {
        "rdma.flow.rdma_read.operations": 3,
        "rdma.flow.rdma_read.io": 3000,
        "rdma.flow.recv.operations": 10,
        "rdma.flow.operations": 13,
        "rdma.flow.io": 3000,
    }


def test_a_flow_whose_posts_cannot_be_seen_says_no_number():
    node = Node(CLIENT, SERVER, coverage=Coverage("control_only")).life("rtr", "rts")
    span = by_role(node.end())["sender"]
    assert span.attributes["fabrictap.coverage"] == "control_only"
    assert "rdma.flow.io" not in span.attributes


def test_windows_are_children_that_together_have_what_the_flow_moved():
    node = Node(CLIENT, SERVER).life("rtr", "rts")
    for size in (100, 0, 30):
        node.post("rdma_write", 1, size)
        node.roll(60)
    node.post("rdma_write", 1, 7)
    spans = [span for span in node.end(after=5) if span.sender]
    *windows, flow = spans
    assert [span.name for span in spans] == ["rdma.flow.window"] * 4 + ["rdma.flow"]
    assert [window.attributes["rdma.flow.io"] for window in windows] == [100, 0, 30, 7]
    assert flow.attributes["rdma.flow.io"] == 137
    assert {window.parent_span_id for window in windows} == {flow.span_id}
    assert {window.trace_id for window in windows} == {flow.trace_id}
    assert len({window.span_id for window in windows}) == 4
    assert [window.start_ns for window in windows[1:]] == [window.end_ns for window in windows[:-1]]
    assert (windows[0].start_ns, windows[-1].end_ns) == (flow.start_ns, flow.end_ns)


def test_a_flow_that_is_shorter_than_a_window_has_none():
    node = Node(CLIENT, SERVER).life("rtr", "rts")
    node.roll(30)
    assert [span.name for span in node.end()] == ["rdma.flow", "rdma.flow"]


def test_what_is_posted_between_reset_and_ready_counts_for_the_new_flow_alone():
    node = Node(CLIENT, SERVER).life("rtr", "rts")
    node.post("send", 1, 10)
    node.life("reset")
    assert by_role(node.spans())["sender"].attributes["rdma.flow.io"] == 10
    node.life("init", "rtr", "rts")
    node.post("send", 1, 5)
    assert by_role(node.end())["sender"].attributes["rdma.flow.io"] == 5


def test_spans_have_no_attribute_that_the_catalog_does_not_know():
    node = Node(CLIENT, SERVER, mtu=4096, coverage=Coverage("since", SECOND)).life("rtr", "rts")
    for operation in catalog.RDMA_OPERATION.values:
        node.post(operation, 1, 1)
    node.roll(61)
    patterns = {
        f"rdma.flow.{operation}.{what}"
        for operation in catalog.RDMA_OPERATION.values
        for what in ("io", "operations")
    }
    known = {
        span.name: patterns | {attribute.name for attribute in span.attributes} for span in catalog.spans()
    }
    for span in node.end():
        assert set(span.attributes) <= known[span.name]
        assert "rdma.flow.local_inv.operations" not in span.attributes


# --- limits ---------------------------------------------------------------------------------------


def test_finished_spans_are_bounded_the_oldest_go_and_are_counted():
    node = Node(CLIENT, SERVER, capacity=3).life("rtr", "rts")
    node.roll(60)
    node.roll(60)
    assert (node.flows.waiting, node.flows.dropped) == (3, 1)
    assert len(node.end()) == 3
    assert node.flows.waiting == 0


def test_a_full_table_refuses_the_newest_connection_and_counts_it():
    flows = Flows(10, SECOND)
    connections = Connections(1, flows)
    made = [
        Connection("mlx5_0", qpn, "rc", "init", 1, "app", 0, "probe", Coverage("exact")) for qpn in (1, 2)
    ]
    assert [connections.put(connection) for connection in made] == [True, False]
    assert connections.dropped == 1
    assert list(connections) == made[:1]
