"""OTLP over gRPC while the receiver is away, silent or slow."""

import logging
import socket
import threading
import time

from fabrictap.config import Duration
from fabrictap.export import retry
from fabrictap.export.outbox import Outbox, Refused, Request
from otlp_receiver import Receiver, free_port, metrics_stats, put
from support import eventually

pytest_plugins = ["uplink_fixtures"]


def test_requests_wait_for_a_receiver_that_is_away_and_come_in_order(uplink_to, caplog):
    caplog.set_level(logging.INFO)
    port = free_port()
    uplink = uplink_to(port)
    bodies = [b"%d" % number * 1000 for number in range(30)]
    put(uplink, *bodies[:15])
    eventually(lambda: "cannot deliver" in caplog.text, "trouble is said")
    put(uplink, *bodies[15:])
    receiver = Receiver()
    assert receiver.start(f"127.0.0.1:{port}") == port
    eventually(lambda: len(receiver.bodies) == 30, "all requests arrive", 20)
    receiver.stop()
    assert receiver.bodies == bodies
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "UNAVAILABLE" in caplog.records[0].message
    assert "delivered again" in caplog.records[1].message


def test_a_full_queue_drops_the_oldest_and_counts_them(uplink_to):
    port = free_port()
    uplink = uplink_to(port, queue=4)
    put(uplink, *[b"%d" % number for number in range(10)])
    eventually(lambda: metrics_stats(uplink).failed.get("queue_full", 0) >= 10, "the drops are counted")
    receiver = Receiver()
    receiver.start(f"127.0.0.1:{port}")
    assert uplink.flush(20)
    receiver.stop()
    assert receiver.bodies == sorted(receiver.bodies)
    assert receiver.bodies[-4:] == [b"6", b"7", b"8", b"9"]
    assert metrics_stats(uplink).exported + metrics_stats(uplink).failed["queue_full"] == 20


def test_put_does_not_wait_and_close_is_quick_while_a_call_is_under_way(receiver, uplink_to):
    receiver.gate.clear()
    uplink = uplink_to(receiver.port, timeout=Duration(60))
    started = time.monotonic()
    put(uplink, *[b"x" * 1000] * 20)
    assert time.monotonic() - started < 0.5
    assert not uplink.flush(0.2)
    uplink.close()
    assert time.monotonic() - started < 4
    assert sum(metrics_stats(uplink).failed.values()) == 40
    assert not [thread for thread in threading.enumerate() if thread.name == "fabrictap-otlp-metrics"]


def test_a_black_hole_costs_the_timeout_and_nothing_hangs(uplink_to, caplog):
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen(8)
        uplink = uplink_to(hole.getsockname()[1], timeout=Duration(0.2))
        put(uplink, b"a")
        eventually(lambda: "cannot deliver" in caplog.text, "the deadline passes")
        assert "DEADLINE_EXCEEDED" in caplog.text
        started = time.monotonic()
        assert not uplink.flush(0.3)
        uplink.close()
        assert time.monotonic() - started < 4
    assert metrics_stats(uplink).failed == {"shutdown": 2}


def test_what_is_put_after_close_is_counted(receiver, uplink_to):
    uplink = uplink_to(receiver.port)
    uplink.close()
    put(uplink, b"late")
    assert metrics_stats(uplink).failed == {"shutdown": 2}


def test_an_unforeseen_failure_costs_one_request(caplog):
    def deliver(request):
        if request.body == b"bad":
            raise RuntimeError("boom")
        return Refused("known")

    outbox = Outbox("test", 4, deliver)
    outbox.start()
    outbox.put(Request(b"bad", 1))
    outbox.put(Request(b"good", 1))
    assert outbox.flush(5)
    outbox.close()
    assert outbox.stats.failed == {"RuntimeError": 1, "known": 1}


def test_back_off_grows_is_bounded_and_differs_between_agents():
    backoff = retry.Backoff(1.0, 30.0)
    delays = [backoff.next() for _ in range(8)]
    for delay, longest in zip(delays, (1, 2, 4, 8, 16, 30, 30, 30), strict=True):
        assert longest / 2 <= delay <= longest
    backoff.reset()
    assert backoff.next() <= 1.0
    assert retry.Backoff(1.0).next() != retry.Backoff(1.0).next()
