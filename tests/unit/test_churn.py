"""Queue pairs come and go by the thousand: nothing grows, nothing is lost, what has no room is counted."""

from __future__ import annotations

import gc

import psutil

from doubles.churn import Churn
from fabrictap import catalog
from fabrictap.config import Limits

WIDTH = 50


def test_what_thousands_of_queue_pairs_posted_is_counted_once_and_leaves_nothing_behind():
    churn = Churn(Limits(series=2000, connections=4 * WIDTH))
    process = psutil.Process()
    for _ in range(20):
        churn.live(WIDTH)
    gc.collect()
    warm, allocated = process.memory_info().rss, churn.table.ring.allocated
    for _ in range(80):
        churn.live(WIDTH)
    gc.collect()
    assert churn.seen == churn.posted
    assert churn.posted.operations == 5 * 100 * WIDTH
    assert (churn.table.refused, churn.ledger.connections.dropped, churn.ledger.connections.unlisted) == (
        0,
        0,
        0,
    )
    assert churn.verbs._posts.refused == 0
    assert (len(churn.ledger.connections), len(churn.ledger.flows), len(churn.verbs._posts)) == (0, 0, 0)
    # 4,000 queue pairs of some 20 KiB of objects each would be 80 MiB.
    assert process.memory_info().rss - warm < 4 << 20
    assert churn.table.ring.allocated - allocated < 1 << 20


def test_what_has_no_room_is_counted_and_the_totals_stay_right():
    generations, connections = 20, 20
    churn = Churn(Limits(series=150, connections=connections))
    for _ in range(generations):
        churn.live(WIDTH)
    # Each of a queue pair's first four records would have made its connection.
    assert churn.ledger.connections.dropped == 4 * generations * (WIDTH - connections)
    assert churn.table.refused > 0
    for metric, seen, posted in (
        (catalog.VERBS_OPERATIONS, churn.seen.operations, churn.posted.operations),
        (catalog.VERBS_IO, churn.seen.bytes, churn.posted.bytes),
    ):
        assert 0 < seen < posted
        assert seen + churn.overflow(metric) == posted
    # Flows are told of the connections that had room.
    assert churn.seen.flow_operations == churn.posted.flow_operations * connections // WIDTH
