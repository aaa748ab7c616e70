"""Records of the control path into connections, flows, memory and contexts."""

from __future__ import annotations

import pytest

from doubles import raw_records as raw
from doubles.verbs_node import DEVICE, HERE, INIT, RTR, RTS, SECOND, THERE, Node, created, destroyed, modified
from fabrictap import catalog
from fabrictap.ext import records
from fabrictap.ledger.connections import Connection, Coverage


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def live(node: Node) -> Node:
    """With queue pair 17 in RTS."""
    node.fold(created(), modified(INIT), modified(RTR), modified(RTS))
    return node


# --- queue pairs ----------------------------------------------------------------------------------


def test_a_queue_pair_lives_from_create_to_destroy_with_a_flow_each_way(live):
    connection = live.connection()
    assert (connection.gid, connection.peer_gid, connection.peer_qpn, connection.mtu) == (
        HERE,
        THERE,
        99,
        4096,
    )
    assert (connection.rq_psn, connection.sq_psn) == (1000, 2000)
    assert (connection.type, connection.state, connection.process) == ("rc", "rts", "app1")
    assert connection.coverage.kind == "exact"
    live.fold(destroyed())
    assert live.connection() is None
    spans = live.spans()
    assert set(spans) == {"sender", "receiver"}
    for span in spans.values():
        assert span.attributes["rdma.flow.close_reason"] == "destroyed"
        assert span.attributes["rdma.flow.identity"] == "exact"


def test_a_modify_that_failed_changed_nothing(node):
    node.fold(created(), modified(INIT), modified(RTR, result=-22))
    connection = node.connection()
    assert (connection.state, connection.peer_gid, connection.receiver) == ("init", None, None)


@pytest.mark.parametrize(
    ("seconds", "kind"),
    # Since when the functions of its ibv_qp_ex are probed, from now; None: they are not.
    [(-1, "exact"), (0.5, "since"), (None, "control_only")],
)
def test_a_queue_pair_of_the_extended_api_is_seen_as_well_as_that_is_probed(node, seconds, kind):
    node.fold(created())
    moment = None if seconds is None else node.now + int((1 + seconds) * SECOND)
    told = raw.qp(records.QP_EXTENDED, DEVICE, 17)
    node.fold(told, extended={} if moment is None else {(DEVICE, 17): moment})
    coverage = node.connection().coverage
    assert coverage.kind == kind
    assert coverage.since_ns == (moment if kind == "since" else None)


def listed(node: Node) -> Connection:
    """What netlink puts into the ledger: neither GIDs nor peer."""
    connection = Connection(DEVICE, 17, "rc", "rts", 1, "app1", node.now, "netlink", Coverage("control_only"))
    assert node.ledger.connections.put(connection)
    return connection


@pytest.mark.parametrize("probe_first", [True, False])
def test_an_older_connection_learns_its_peer_whoever_comes_first_probe_or_netlink(node, probe_first):
    seen = {"gid": HERE, "peer_gid": THERE, "peer_qpn": 99, "mtu": 5}
    answer = raw.qp(records.QP_SNAPSHOT, DEVICE, 17, mask=raw.AV | raw.DEST_QPN, state=RTS, **seen)
    if probe_first:
        node.fold(answer)
        connection = listed(node)
    else:
        connection = listed(node)
        node.fold(answer)
    node.tick(raw.post(17, operations=3))
    assert (connection.gid, connection.peer_gid, connection.peer_qpn) == (HERE, THERE, 99)
    assert connection.coverage.kind == "since"
    assert node.one(catalog.VERBS_OPERATIONS).attributes["rdma.peer.gid"] == THERE


@pytest.mark.parametrize("kind", [0, 1])
def test_management_queue_pairs_are_left_out(node, kind):
    node.fold(created(1, qp_type=kind), modified(RTS, 1, qp_type=kind))
    assert node.connection(1) is None


def test_a_queue_pair_older_than_the_probes_appears_with_its_first_modify(node):
    node.fold(modified(RTR))
    connection = node.connection()
    assert (connection.state, connection.peer_gid) == ("rtr", THERE)
    assert connection.coverage.kind == "since"


def test_a_process_whose_library_is_not_probed_has_control_coverage_only(node):
    node.fold(created(pid=5, comm="other"), modified(RTR, pid=5))
    connection = node.connection()
    assert (connection.process, connection.coverage.kind) == ("other", "control_only")


def test_a_queue_pair_of_the_kernel_has_no_process(node):
    node.fold(created(pid=5, flags=raw.KERNEL, comm="kworker"))
    assert (node.connection().pid, node.connection().process) == (None, "[kernel]")


@pytest.mark.parametrize(
    ("before", "flags", "reason"),
    [
        ([], 0, "destroyed"),
        ([], raw.EXITING, "process_exited"),
        ([raw.plain(records.DEVICE_REMOVED, DEVICE)], 0, "device_removed"),
        ([raw.plain(records.DEVICE_REMOVED, DEVICE)], raw.EXITING, "device_removed"),
        ([raw.plain(records.DEVICE_REMOVED, "mlx5_9")], 0, "destroyed"),
        (
            [raw.plain(records.DEVICE_REMOVED, DEVICE), raw.plain(records.CONTEXT_OPENED, DEVICE)],
            0,
            "destroyed",
        ),
    ],
)
def test_a_flow_says_why_it_ended(live, before, flags, reason):
    live.fold(*before, destroyed(flags=flags))
    assert {span.attributes["rdma.flow.close_reason"] for span in live.spans().values()} == {reason}


def test_a_number_that_comes_again_is_a_new_connection(live):
    first = live.connection()
    live.fold(created(pid=2, comm="next"), modified(RTR, pid=2, peer_qpn=55))
    assert live.connection() is not first
    assert live.connection().pid == 2
    assert {span.attributes["rdma.flow.close_reason"] for span in live.spans().values()} == {"vanished"}


def test_numbers_of_different_devices_are_different_queue_pairs(live):
    live.fold(raw.qp(records.QP_DESTROYED, "mlx5_1", 17))
    assert live.connection() is not None


def test_devices_that_are_filtered_out_leave_no_trace_and_their_counters_are_given_back():
    node = Node(deny=["mlx5_*"])
    counter = raw.post(17)
    node.fold(created(), modified(RTR), raw.mr(records.MR_REGISTERED, DEVICE, 5), posts=[(counter, DEVICE)])
    assert node.connection() is None
    assert len(node.ledger.memory) == 0
    assert node.find(catalog.VERBS_OPERATIONS) == []
    assert node.sweep() == []
    node.fold(destroyed())
    assert node.sweep() == [counter[0].raw]


# --- memory and contexts --------------------------------------------------------------------------


def test_memory_lives_from_register_to_deregister(node):
    node.fold(raw.mr(records.MR_REGISTERED, DEVICE, 5, length=4096, access=7))
    region = node.ledger.memory.get(DEVICE, 5)
    assert (region.length, region.rkey, region.pid, region.remote_access) == (4096, 6, 1, "read_write")
    node.fold(raw.mr(records.MR_DEREGISTERED, "mlx5_1", 5))
    assert node.ledger.memory.get(DEVICE, 5) == region
    node.fold(raw.mr(records.MR_DEREGISTERED, DEVICE, 5))
    assert len(node.ledger.memory) == 0


def test_memory_whose_flags_were_not_seen_has_unknown_access(node):
    node.fold(raw.mr(records.MR_REGISTERED, DEVICE, 5, flags=raw.KERNEL))
    region = node.ledger.memory.get(DEVICE, 5)
    assert (region.remote_access, region.address, region.pid) == ("unknown", None, None)


def test_a_context_counts_how_often_it_is_open(node):
    opened, closed = (raw.plain(kind, DEVICE) for kind in (records.CONTEXT_OPENED, records.CONTEXT_CLOSED))
    node.fold(opened, opened, closed)
    assert node.ledger.contexts.get(DEVICE, 1).count == 1
    node.fold(closed, closed)
    assert node.ledger.contexts.get(DEVICE, 1) is None


def test_connection_manager_events_are_counted_by_name_and_error(node):
    happened = [
        raw.cm(records.CM_EVENT, 9), raw.cm(records.CM_EVENT, 9), raw.cm(records.CM_EVENT, 8, status=-111),
        raw.cm(records.CM_SENT, 0), raw.cm(records.CM_EVENT, 77),
    ]  # fmt: skip
    for each in happened:
        node.verbs._connection_manager_fold.events.feed(each)
    node.fold()
    counts = {
        (series.attributes["rdma.cm.event"], series.attributes.get("error.type")): series.value
        for series in node.find(catalog.CM_EVENTS)
    }
    assert counts == {
        ("established", None): 2, ("rejected", "-111"): 1, ("req_sent", None): 1, ("event_77", None): 1,
    }  # fmt: skip
