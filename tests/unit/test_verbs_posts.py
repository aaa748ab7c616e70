"""Counters of posted work into series and flows, joined to their connections."""

from __future__ import annotations

import pytest

from doubles import raw_records as raw
from doubles.verbs_node import (
    DEVICE,
    ERR,
    HERE,
    INIT,
    RECV,
    RESET,
    RTR,
    RTS,
    THERE,
    Node,
    created,
    destroyed,
    modified,
)
from fabrictap import catalog
from fabrictap.ext import records
from fabrictap.series import Histogram


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def live(node: Node) -> Node:
    """With queue pair 17 in RTS."""
    node.fold(created(), modified(INIT), modified(RTR), modified(RTS))
    return node


# --- posts ----------------------------------------------------------------------------------------


def test_posts_become_series_with_connection_process_and_peer(live):
    live.tick(raw.post(17, operations=4, size=1000))
    live.tick(raw.post(17, operations=6, size=1000))
    series = live.one(catalog.VERBS_IO)
    assert series.value == 6000
    assert series.attributes == {
        "process.pid": 1, "process.executable.name": "app1", "rdma.device": DEVICE, "rdma.qp.number": 17,
        "rdma.qp.type": "rc", "rdma.operation": "send", "rdma.gid": HERE, "rdma.peer.gid": THERE,
        "rdma.peer.qp.number": 99, "fabrictap.coverage": "exact", "network.io.direction": "transmit",
    }  # fmt: skip
    assert live.one(catalog.VERBS_OPERATIONS).value == 6
    assert live.one(catalog.VERBS_SIGNALED).value == 3
    sizes = live.one(catalog.VERBS_MESSAGE_SIZE).value
    assert isinstance(sizes, Histogram)
    # 1000 lies in (2**9, 2**10].
    assert (sizes.count, sizes.sum, sizes.offset, sizes.buckets) == (6, 6000, 9, [6])


def test_size_slots_that_wrapped_count_on(live):
    live.tick(raw.post(17, operations=10, slots={1: 2**32 - 1, 0: 5}))
    live.tick(raw.post(17, operations=12, slots={1: 1, 0: 5}))
    sizes = live.one(catalog.VERBS_MESSAGE_SIZE).value
    assert (sizes.zeros, sizes.buckets[0], sizes.count) == (5, 2**32 + 1, 2**32 + 6)


def test_the_last_posts_land_in_the_flow_that_ends_and_its_series_end(live):
    live.tick(raw.post(17, operations=4, size=10))
    last = raw.post(17, operations=9, size=10)
    live.fold(destroyed(), posts=[(last, DEVICE)])
    sender = live.spans()["sender"].attributes
    assert (sender["rdma.flow.send.operations"], sender["rdma.flow.io"]) == (9, 90)
    series = live.one(catalog.VERBS_OPERATIONS)
    assert (series.value, series.ended) == (9, True)
    assert all(found.ended for found in live.find(catalog.VERBS_MESSAGE_SIZE))
    assert live.sweep() == [last[0].raw]
    assert live.sweep() == []


def test_the_last_posts_land_in_a_flow_that_ends_in_error(live):
    """As rdma_cm ends them all: the queue pair goes to ERR first and is destroyed later."""
    live.fold(modified(ERR), posts=[(raw.post(17, operations=9, size=10), DEVICE)])
    assert live.spans()["sender"].attributes["rdma.flow.send.operations"] == 9
    series = live.one(catalog.VERBS_OPERATIONS)
    assert (series.value, series.ended) == (9, False)


def test_a_number_that_comes_again_starts_its_series_anew(live):
    live.fold(destroyed(), posts=[(raw.post(17, operations=9), DEVICE)])
    live.sweep()
    live.spans()
    live.fold(created(), modified(INIT), modified(RTR), modified(RTS))
    live.tick(raw.post(17, operations=2))
    assert live.one(catalog.VERBS_OPERATIONS).value == 2
    live.fold(destroyed())
    assert live.spans()["sender"].attributes["rdma.flow.send.operations"] == 2


@pytest.mark.parametrize("tick_between", [True, False])
def test_receives_posted_at_init_wait_for_the_peer_and_belong_to_its_flow(node, tick_between):
    receives = raw.post(17, RECV, queue=records.QUEUE_RECEIVE, operations=500, size=4096)
    node.fold(created(), modified(INIT))
    if tick_between:
        for _ in range(5):
            node.tick(receives)
        assert node.find(catalog.VERBS_OPERATIONS) == []
        node.fold(modified(RTR), posts=[])
    else:
        node.fold(modified(RTR), posts=[(receives, DEVICE)])
    series = node.one(catalog.VERBS_OPERATIONS)
    assert (series.value, series.attributes["rdma.peer.gid"]) == (500, THERE)
    assert node.one(catalog.VERBS_RECEIVE_CAPACITY).value == 500 * 4096
    assert node.find(catalog.VERBS_IO) == []
    node.fold(destroyed())
    receiver = node.spans()["receiver"].attributes
    assert (receiver["rdma.flow.recv.operations"], receiver["rdma.flow.io"]) == (500, 0)


def test_posts_seen_before_their_queue_pair_wait_for_it(node):
    node.tick(raw.post(17, operations=3))
    node.tick()
    assert node.find(catalog.VERBS_OPERATIONS) == []
    node.fold(created(), modified(INIT), modified(RTR), modified(RTS), posts=[])
    series = node.one(catalog.VERBS_OPERATIONS)
    assert (series.value, series.attributes["rdma.peer.qp.number"]) == (3, 99)


def test_posts_whose_queue_pair_nobody_tells_of_are_exported_all_the_same(node):
    for _ in range(3):
        node.tick(raw.post(17, operations=3))
    series = node.one(catalog.VERBS_OPERATIONS)
    assert (series.value, series.attributes["fabrictap.coverage"]) == (3, "since")
    assert "rdma.peer.gid" not in series.attributes


def test_datagrams_are_told_apart_by_the_peer_behind_their_address_handle(node):
    node.fold(created(qp_type=4), modified(RTS, qp_type=4), raw.ah(7, THERE), raw.ah(8, "fe80::3"))
    peers = [(7, 900), (8, 900), (8, 901), (12345, 902)]
    node.tick(*(
        raw.post(17, operations=number, qp_type=4, handle=handle, peer_qpn=peer)
        for number, (handle, peer) in enumerate(peers, 1)
    ))  # fmt: skip
    found = {
        (series.attributes.get("rdma.peer.gid"), series.attributes["rdma.peer.qp.number"]): series.value
        for series in node.find(catalog.VERBS_OPERATIONS)
    }
    assert found == {(THERE, 900): 1, ("fe80::3", 900): 2, ("fe80::3", 901): 3, (None, 902): 4}


def test_a_shared_receive_queue_ends_with_its_process(live):
    shared = raw.post(1, RECV, queue=records.QUEUE_SHARED_RECEIVE, qp_type=0, operations=64)
    own = raw.post(1, RECV, queue=records.QUEUE_RECEIVE, operations=2)
    live.tick(shared)
    series = live.one(catalog.VERBS_OPERATIONS, rdma_qp_type="srq")
    assert series.value == 64
    live.fold(destroyed(1), posts=[(own, DEVICE)])  # a queue pair with the number of the handle
    assert not series.ended
    live.sweep()
    live.tick(gone=[1])
    assert series.ended
    assert live.sweep() == [shared[0].raw]
    assert live.ledger.processes.get(1) is None


def test_datagrams_to_one_peer_by_two_address_handles_are_one_series(node):
    node.fold(created(qp_type=4), modified(RTS, qp_type=4), raw.ah(7, THERE), raw.ah(8, THERE))
    posts = [raw.post(17, operations=3, qp_type=4, handle=handle, peer_qpn=900) for handle in (7, 8)]
    node.tick(*posts)
    assert node.one(catalog.VERBS_OPERATIONS).value == 6
    node.fold(destroyed(qp_type=4), posts=[])
    assert node.one(catalog.VERBS_OPERATIONS).ended
    assert not node.verbs._post_fold._users
    assert sorted(node.sweep()) == sorted(key.raw for key, _ in posts)


def test_posts_of_a_device_that_is_not_known_yet_are_kept_for_later(live):
    unknown = raw.post(17, operations=3)
    live.tick(unknown, device=None)
    assert live.find(catalog.VERBS_OPERATIONS) == []
    live.tick(raw.post(17, operations=5))
    assert live.one(catalog.VERBS_OPERATIONS).value == 5
    live.tick(gone=[1])
    assert live.sweep() == [unknown[0].raw]


def test_a_queue_pair_that_is_reset_and_connected_anew_counts_for_its_new_peer(live):
    live.tick(raw.post(17, operations=5))
    old = live.one(catalog.VERBS_OPERATIONS)
    live.fold(modified(RESET), posts=[(raw.post(17, operations=6), DEVICE)])
    assert (old.value, old.ended) == (6, True)
    assert (live.connection().peer_gid, live.connection().sq_psn) == (None, None)
    live.fold(modified(INIT), modified(RTR, peer_gid="fe80::77"), modified(RTS))
    live.tick(raw.post(17, operations=9))
    new = live.one(catalog.VERBS_OPERATIONS, rdma_peer_gid="fe80::77")
    assert new.value == 3
    assert new.start_ns > old.start_ns
    assert live.one(catalog.VERBS_IO, rdma_peer_gid="fe80::77").value == 300
    assert old.value == 6


def test_a_queue_pair_that_is_reset_and_destroyed_leaves_no_empty_series(live):
    live.tick(raw.post(17, operations=5))
    live.fold(modified(RESET), destroyed(), posts=[])
    assert [series.value for series in live.find(catalog.VERBS_OPERATIONS)] == [5]


def test_probes_loaded_anew_count_from_zero_in_new_series(live):
    live.tick(raw.post(17, operations=9))
    before = live.one(catalog.VERBS_OPERATIONS)
    live.verbs.close()
    live.tick(raw.post(17, operations=2), anew=True)
    assert before.ended
    assert before.attributes["fabrictap.coverage"] == "exact"
    # What was posted while nothing was attached is not in it.
    after = live.one(catalog.VERBS_OPERATIONS, **{"fabrictap.coverage": "since"})
    assert after.value == 2
    assert live.sweep() == []


def test_losses_are_exported_by_reason(node):
    node.fold(losses={"table_full": 3, "buffer_full": 0})
    found = {s.attributes["fabrictap.loss.reason"]: s.value for s in node.find(catalog.LOST)}
    assert found == {"table_full": 3, "buffer_full": 0}
