"""Hardware against software: what is attributed, what is dark, and what cannot be told."""

from __future__ import annotations

import itertools
import random

import pytest

from fabrictap import catalog
from fabrictap.config import Config
from fabrictap.insight.reconcile import Balance, Reconciler
from fabrictap.ledger import Ledger
from fabrictap.ledger.connections import Connection, Coverage
from fabrictap.ledger.traffic import PortPosted, PortTraffic
from fabrictap.series import SeriesTable

SECOND = 10**9
MTU = 1024
#: Ethernet 14, IPv4 20, UDP 8, BTH 12, ICRC 4.
HEADERS = 58
PORT = "rxe0/1"


class Port:
    """A port of a software device that the test moves, and the reconciler that looks at it."""

    def __init__(self, *, software: bool = True, link_layer: str = "ethernet") -> None:
        self.series = SeriesTable(100)
        self.ledger = Ledger(Config())
        self.reconciler = Reconciler(self.series, self.ledger)
        self.software, self.link_layer = software, link_layer
        self.now = 100 * SECOND
        self.moved = {"transmit": [0, 0, 0], "receive": [0, 0, 0]}
        self.posted = PortPosted()
        self.retries = 0
        connection = Connection(
            "rxe0", 17, "rc", "rts", 1, "app", self.now, "probe", Coverage("exact"), gid="::ffff:10.0.0.1"
        )
        assert self.ledger.connections.put(connection)
        self.tick()

    def move(self, direction: str, payload: int, *, headers: int = 0, packets: int | None = None) -> None:
        """``payload`` in packets of the path MTU, with ``headers`` bytes of extended headers in all."""
        count = packets if packets is not None else -(-payload // MTU)
        side = self.moved[direction]
        side[0] += payload + headers + HEADERS * count
        side[1] += count
        side[2] += count

    def other(self, direction: str, frames: int, size: int) -> None:
        self.moved[direction][0] += frames * size
        self.moved[direction][2] += frames

    def post(self, *, out: int = 0, inwards: int = 0, room: int = 0, headers: int = 0) -> None:
        before = self.posted
        self.posted = PortPosted(
            before.out + out, before.inwards + inwards, before.room + room, before.headers + headers
        )

    def tick(self, *, posts_read: bool = True) -> None:
        """The port is read, and then what was posted."""
        self.now += SECOND
        frames = {
            direction: (size, packets, frames if self.software else None)
            for direction, (size, packets, frames) in self.moved.items()
        }
        self.ledger.traffic.ports = {
            PORT: PortTraffic(self.now, "rxe0", 1, self.link_layer, self.software, 1518, self.retries, frames)
        }
        if posts_read:
            self.ledger.traffic.posted = {PORT: self.posted}
            self.ledger.traffic.posted_until_ns = self.now
        self.reconciler.fold(self.now)

    def balance(self, direction: str) -> Balance:
        (found,) = [one for one in self.reconciler.balances() if one.direction == direction]
        return found


def test_what_a_peer_pulls_out_is_dark_to_the_byte_but_for_the_answers_headers():
    port = Port()
    for _ in range(20):
        port.move("transmit", 64 << 10, headers=2 * 4)
        port.tick()
    port.tick()
    balance = port.balance("transmit")
    stolen = 20 * (64 << 10)
    assert balance.attributed == 0
    assert stolen - 12 * 20 * 64 <= balance.dark <= stolen
    assert balance.dark + balance.uncertain >= stolen
    assert balance.dark > 0.98 * stolen
    assert balance.method == "roce_ipv4_headers"


def test_what_local_processes_post_is_attributed_and_never_dark():
    port = Port()
    for _ in range(50):
        port.post(out=1 << 20, headers=16)
        port.move("transmit", 1 << 20, headers=16)
        port.post(inwards=1 << 20, headers=16)
        port.move("transmit", 0, headers=16, packets=1)
        port.move("receive", 1 << 20, headers=8)
        port.tick()
    for direction in ("transmit", "receive"):
        balance = port.balance(direction)
        assert (balance.attributed, balance.dark) == (50 << 20, 0)


def test_posts_that_move_later_are_not_dark_then():
    port = Port()
    port.post(out=100 << 20, headers=16 * 100)
    for _ in range(100):
        port.tick()
        port.move("transmit", 1 << 20, headers=16)
    port.tick()
    assert port.balance("transmit").dark == 0


def test_a_reading_waits_until_all_that_was_posted_before_it_is_known():
    port = Port()
    port.post(out=1 << 20, headers=16)
    port.move("transmit", 1 << 20, headers=16)
    port.tick(posts_read=False)
    assert port.balance("transmit").dark == 0
    port.tick()
    port.tick()
    assert (port.balance("transmit").attributed, port.balance("transmit").dark) == (1 << 20, 0)


def test_while_no_new_reading_comes_what_was_posted_stays_on_its_way():
    port = Port()
    port.post(inwards=8 << 20)
    port.move("receive", 1 << 20, headers=8)
    port.tick()
    for _ in range(20):
        port.reconciler.fold(port.now)
    port.move("receive", 7 << 20, headers=8)
    for _ in range(3):
        port.tick()
    assert port.balance("receive").dark == 0


def test_headers_that_are_counted_before_their_bytes_are_not_payload_later():
    port = Port()
    for _ in range(50):
        port.post(out=4096, headers=16 * 50)
        port.moved["transmit"][1] += 4
        port.tick()
        port.moved["transmit"][0] += 4096 + 16 * 50 + 4 * HEADERS
        port.moved["transmit"][2] += 4
        port.tick()
        port.tick()
    assert port.balance("transmit").dark == 0


def test_what_is_sent_again_may_be_counted_just_after_its_bytes():
    port = Port()
    port.post(inwards=1 << 20)
    port.move("receive", 1 << 20, headers=8)
    port.move("receive", 1 << 18, headers=8)  # again
    port.tick()
    port.retries += 1
    for _ in range(5):
        port.tick()
    assert port.balance("receive").dark == 0


def test_a_theft_beside_local_traffic_is_seen():
    port = Port()
    stolen = 0
    for _ in range(100):
        port.post(out=1 << 20, headers=16)
        port.move("transmit", 1 << 20, headers=16)
        port.move("transmit", 2 << 20, headers=8)
        stolen += 2 << 20
        port.tick()
    assert 0.9 * stolen < port.balance("transmit").dark <= stolen


def test_what_was_posted_and_never_moved_does_not_hide_a_theft_for_ever():
    port = Port()
    port.post(out=1 << 30)  # to a queue pair that went into error
    for _ in range(10):
        port.tick()
    port.move("transmit", 8 << 20)
    port.tick()
    port.tick()
    assert 0.98 * (8 << 20) < port.balance("transmit").dark <= 8 << 20


def test_other_traffic_of_the_interface_is_uncertain_not_dark():
    port = Port()
    for _ in range(30):
        port.other("transmit", 100, 1514)
        port.tick()
    balance = port.balance("transmit")
    assert balance.dark == 0
    assert balance.uncertain >= 30 * 100 * 1514


def test_what_this_node_sends_again_is_uncertain_not_dark():
    port = Port()
    for _ in range(10):
        port.post(out=1 << 20, headers=16)
        port.move("transmit", 1 << 20, headers=16)
        port.move("transmit", 1 << 18, headers=16)  # again
        port.retries += 3
        port.tick()
    balance = port.balance("transmit")
    assert balance.dark == 0
    assert balance.uncertain >= 10 << 18
    for _ in range(5):
        port.tick()
    port.move("transmit", 1 << 20)  # and a theft after that is seen
    port.tick()
    port.tick()
    assert port.balance("transmit").dark > 0.98 * (1 << 20)


def test_what_arrives_in_posted_receives_is_not_dark_and_what_is_written_past_them_is():
    port = Port()
    port.post(room=32 << 20)
    port.move("receive", 32 << 20)
    port.tick()
    assert port.balance("receive").dark == 0
    for _ in range(20):
        port.move("receive", 4 << 20, headers=16)
        port.tick()
    assert 0.9 * (80 << 20) < port.balance("receive").dark <= 80 << 20


def test_a_counter_that_was_reset_begins_a_new_balance():
    port = Port()
    port.move("transmit", 1 << 20)
    port.tick()
    port.tick()
    before = port.balance("transmit")
    port.moved["transmit"] = [5, 1, 1]
    port.tick()
    port.tick()
    after = port.balance("transmit")
    assert before.dark > 0
    assert (after.dark, after.since_ns > before.since_ns) == (0, True)


def test_without_posts_nothing_is_called_dark():
    port = Port()
    port.ledger.traffic.posted_until_ns = None
    for _ in range(40):
        port.move("transmit", 1 << 20)
        port.tick(posts_read=False)
    assert port.reconciler.balances() == []


def test_a_port_that_goes_takes_its_series_along():
    port = Port()
    port.tick()
    dark = [series for series in port.series if series.metric is catalog.PORT_DARK]
    assert {series.attributes["network.io.direction"] for series in dark} == {"transmit", "receive"}
    port.ledger.traffic.ports = {}
    port.reconciler.fold(port.now)
    assert all(series.ended for series in dark)
    assert port.reconciler.balances() == []


@pytest.mark.parametrize(("software", "link_layer"), [(False, "ethernet"), (False, "infiniband")])
def test_on_hardware_dark_is_bounded_from_below(software: bool, link_layer: str):
    port = Port(software=software, link_layer=link_layer)
    port.move("transmit", 64 << 20)
    port.tick()
    port.tick()
    balance = port.balance("transmit")
    assert 0.9 * (64 << 20) < balance.dark <= 64 << 20
    assert balance.dark + balance.uncertain >= 64 << 20


def test_whatever_happens_dark_is_never_more_than_what_nobody_asked_for_and_never_falls():
    chance = random.Random(7)
    for _ in range(20):
        port = Port()
        stolen, waiting, last = 0, 0, 0
        for _, step in zip(range(300), itertools.count(), strict=False):
            if chance.random() < 0.4:
                size = chance.choice((1, 512, 4096, 1 << 16, 1 << 22))
                port.post(out=size, headers=16)
                waiting += size
            if waiting and chance.random() < 0.7:
                size = min(waiting, chance.choice((4096, 1 << 20, 1 << 23)))
                port.move("transmit", size, headers=16 * -(-size // 4096))
                waiting -= size
            if chance.random() < 0.1:
                size = chance.choice((100, 5000, 1 << 20))
                port.move("transmit", size, headers=4)
                stolen += size
            port.move("transmit", 0, headers=4 * 10, packets=10)  # acknowledgements
            port.tick()
            dark = port.balance("transmit").dark
            assert last <= dark, step
            last = dark
        # Where a message was cut into several requests, their headers beyond the first are not known.
        assert last <= stolen + 16 * 2 * 300


def test_what_nobody_explains_is_uncertain_while_posts_go_uncounted():
    port = Port()
    port.ledger.traffic.partial_ns[PORT] = port.now
    port.move("transmit", 1 << 20)
    port.tick()
    assert port.balance("transmit").dark == 0
    assert port.balance("transmit").uncertain >= 1 << 20
    for _ in range(4):
        port.tick()
    port.move("transmit", 1 << 20)
    for _ in range(2):
        port.tick()
    assert port.balance("transmit").dark > 0.9 * (1 << 20)
