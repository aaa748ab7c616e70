"""The C tables under random operations, held against the same in Python."""

from __future__ import annotations

import gc
import random
import struct
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from doubles import raw_records as raw
from fabrictap import catalog
from fabrictap.ext import records
from fabrictap.ext.fold import KeyedFold
from fabrictap.ext.posts import Posts
from fabrictap.ext.records import PostKey
from fabrictap.ext.regions import RegionTable
from fabrictap.ledger.connections import Connection, Connections, Coverage
from fabrictap.ledger.flows import Flows
from fabrictap.ledger.memory import MemoryRegion, MemoryRegions
from fabrictap.series import Series, SeriesTable, in_memory

SECOND = 10**9
SEEDS = range(6)


def series(table: SeriesTable, metric: catalog.Metric, number: int) -> Series:
    return table.series(metric, {"rdma.qp.number": number}, 1)


# --- memory regions -------------------------------------------------------------------------------


def region_sums(model: dict[tuple[str, int], MemoryRegion]) -> Counter[Any]:
    sums: Counter[Any] = Counter()
    for region in model.values():
        key = (region.pid, region.device, region.remote_access, region.remote_atomic)
        sums[(*key, "count")] += 1
        sums[(*key, "bytes")] += region.length
    return sums


@pytest.mark.parametrize("seed", SEEDS)
def test_regions_and_their_sums_are_those_of_a_dictionary(seed):
    chance = random.Random(seed)
    table = MemoryRegions(300)
    model: dict[tuple[str, int], MemoryRegion] = {}
    dropped = 0
    for step in range(6000):
        device, lkey = f"mlx5_{chance.randrange(3)}", chance.randrange(200)
        pid = chance.choice((None, 1, 2, -5, 2**31 - 1))
        what = chance.random()
        if what < 0.55:
            region = MemoryRegion(
                device, lkey, chance.getrandbits(32), pid, chance.choice((None, 0, 2**64 - 1)),
                chance.getrandbits(40), chance.choice((None, 0, 2, 4, 6, 8, 15, 2**32 - 1)),
            )  # fmt: skip
            table.put(region)
            if (device, lkey) in model or len(model) < 300:
                model[(device, lkey)] = region
            else:
                dropped += 1
        elif what < 0.97:
            table.remove(device, lkey)
            model.pop((device, lkey), None)
        elif what < 0.985:
            table.remove_device(device)
            model = {key: it for key, it in model.items() if key[0] != device}
        elif pid is not None:
            table.remove_process(pid)
            model = {key: it for key, it in model.items() if it.pid != pid}
        assert table.get(device, lkey) == model.get((device, lkey))
        if step % 100 == 0:
            assert {(r.device, r.lkey): r for r in table} == model
            assert set(table.keys()) == set(model)
            sums: Counter[Any] = Counter()
            for one in table.sums():
                key = (one.pid, one.device, one.remote_access, one.remote_atomic)
                assert one.count > 0
                sums[(*key, "count")] += one.count
                sums[(*key, "bytes")] += one.bytes
            assert +sums == +region_sums(model)
    assert (len(table), table.dropped) == (len(model), dropped)


def test_a_registration_with_a_key_that_was_used_before_is_another_one():
    table = MemoryRegions(10)
    region = MemoryRegion("mlx5_0", 1, 2, 3, 4, 5, 6)
    table.put(region)
    first = table.get("mlx5_0", 1)
    table.put(region)
    second = table.get("mlx5_0", 1)
    assert first is not None
    assert second is not None
    assert (first, first.serial != second.serial) == (second, True)


def moment(record: records.Record, time_ns: int) -> bytes:
    return struct.pack("<Q", time_ns) + record.raw[8:]


def test_records_are_folded_in_the_order_of_their_times():
    """A key that was given back and taken again: the end is told late, with the time at which it began."""
    table = MemoryRegions(10)
    first = moment(raw.mr(records.MR_REGISTERED, "mlx5_0", 5, length=1), 100)
    again = moment(raw.mr(records.MR_REGISTERED, "mlx5_0", 5, length=2), 300)
    end = moment(raw.mr(records.MR_DEREGISTERED, "mlx5_0", 5), 200)
    table.fold(first + again + end, 0)
    region = table.get("mlx5_0", 5)
    assert region is not None
    assert region.length == 2


def test_devices_are_asked_for_once_and_those_that_are_not_wanted_leave_nothing():
    asked: list[str] = []

    def wanted(device: str) -> bool:
        asked.append(device)
        return device != "bad"

    table = RegionTable(10, wanted)
    batch = b"".join(
        raw.mr(records.MR_REGISTERED, device, lkey).raw
        for lkey in (1, 2)
        for device in ("good", "bad", "x" * 70)
    )
    table.fold(batch, 0)
    table.fold(batch, 0)
    assert asked == ["good", "bad", "x" * 63]
    assert table.keys() == [("good", 1), ("x" * 63, 1), ("good", 2), ("x" * 63, 2)]
    with pytest.raises(ValueError, match="no whole number"):
        table.fold(batch[:-1], 0)


# --- keyed records --------------------------------------------------------------------------------


@pytest.mark.parametrize("key_size", [1, 3, 4, 8, 12, 16, 31, 32])
def test_keyed_records_are_counted_and_summed_as_a_counter_does(key_size):
    chance = random.Random(key_size)
    table = SeriesTable(400)
    capacity = 150
    fold = KeyedFold(table.ring, record_size=64, key_at=9, key_size=key_size, total_at=50, capacity=capacity)
    keys = list({chance.randbytes(key_size) for _ in range(200)})
    known: set[bytes] = set()
    count: Counter[bytes] = Counter()
    total: Counter[bytes] = Counter()
    bound: dict[bytes, tuple[Series, Series]] = {}
    refused = 0
    for now in range(1, 60):
        batch = []
        for key in chance.choices(keys, k=chance.randrange(100)):
            value = chance.getrandbits(30)
            record = bytearray(chance.randbytes(64))
            record[9 : 9 + key_size] = key
            record[50:58] = struct.pack("<Q", value)
            batch.append(bytes(record))
            if key not in known and len(known) == capacity:
                refused += 1
                continue
            known.add(key)
            count[key] += 1
            total[key] += value
        fold.feed(b"".join(batch))
        for key in fold.fold(now):
            assert key in known
            if chance.random() < 0.5:  # the others are told of again when they come again
                number = len(bound)
                bound[key] = (
                    series(table, catalog.VERBS_OPERATIONS, number), series(table, catalog.VERBS_IO, number)
                )  # fmt: skip
                fold.bind(key, *bound[key], now)
    assert (len(fold), fold.refused) == (len(known), refused)
    assert fold.received == sum(count.values()) + refused
    for key, (counted, summed) in bound.items():
        assert (counted.value, summed.value) == (count[key], total[key])
    assert len(bound) > min(len(known) // 2, 10)


def test_what_does_not_fit_the_records_is_refused():
    table = SeriesTable(10)
    for wrong in (
        {"key_at": 60, "key_size": 5},
        {"key_at": 0, "key_size": 0},
        {"key_at": 0, "key_size": 33},
        {"key_at": 0, "key_size": 4, "total_at": 57},
    ):
        with pytest.raises(ValueError, match="bytes at"):
            KeyedFold(table.ring, record_size=64, **wrong)
    fold = KeyedFold(table.ring, record_size=64, key_at=0, key_size=4)
    with pytest.raises(ValueError, match="no whole number"):
        fold.feed(bytes(65))
    for unknown in (b"1234", b"123", b"12345"):
        with pytest.raises(KeyError):
            fold.bind(unknown, None, None, 1)
    with pytest.raises(ValueError, match="another ring"):
        fold.bind(b"1234", series(SeriesTable(10), catalog.VERBS_OPERATIONS, 1), None, 1)


# --- counters of posted work ----------------------------------------------------------------------


class Counters:
    """The table beside a model: what the map says, and what series and connections should have of it."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.table = SeriesTable(2000)
        self.posts = Posts(self.table.ring, 60)
        self.keys = [raw.post(qpn, context=seed)[0] for qpn in range(90)]
        self.map: dict[bytes, int] = {}
        self.told: Counter[bytes] = Counter()
        self.series: dict[bytes, tuple[Series, Series, Series]] = {}
        self.rows: dict[bytes, Connection] = {}
        self.made = 0

    def move(self) -> None:
        for key in self.chance.sample(self.keys, self.chance.randrange(20)):
            if key.raw in self.map or len(self.map) < 60:
                self.map[key.raw] = self.map.get(key.raw, 0) + self.chance.randrange(1, 2**20)

    def take(self) -> None:
        chosen = [key for key in self.keys if key.raw in self.map]
        self.chance.shuffle(chosen)
        values = b"".join(self._value(key) for key in chosen)
        self.posts.take(b"".join(key.raw for key in chosen), values, len(chosen), 3)

    def _value(self, key: PostKey) -> bytes:
        """On three CPUs: all of it on two of them."""
        operations = self.map[key.raw]
        part = operations // 3
        split = [part, 0, operations - part]
        self.chance.shuffle(split)
        return b"".join(raw.post(key.qpn, operations=each, size=64)[1] for each in split)

    def fold(self, now: int) -> None:
        """What is bound goes by itself; of the others some are bound now."""
        for number in self.posts.fold(now):
            key = self.posts.key(number)
            if self.chance.random() < 0.5:
                continue
            if key.raw not in self.series:
                self.made += 1
                self.series[key.raw] = (
                    series(self.table, catalog.VERBS_OPERATIONS, self.made),
                    series(self.table, catalog.VERBS_IO, self.made),
                    series(self.table, catalog.VERBS_MESSAGE_SIZE, self.made),
                )
                counted, moved, sizes = self.series[key.raw]
                self.posts.give_series(number, [counted, moved, None, None, None], sizes)
            row = self.rows.get(key.raw)
            if row is None or row.ended:
                row = Connection("d", key.qpn, "rc", "rts", 1, "a", 0, "probe", Coverage("exact"))
                self.rows[key.raw] = row
            self.posts.attribute(number, row, 2)
            self.posts.tell(number, now)
            self.posts.bind(number, row, 2, True)

    def disturb(self) -> None:
        for row in self.chance.sample(list(self.rows.values()), min(3, len(self.rows))):
            what = self.chance.random()
            if what < 0.2:
                row.unlist(1)
            elif what < 0.5:
                row.state = self.chance.choice(("init", "rts", "err"))
        if self.map and self.chance.random() < 0.3:
            gone = self.chance.choice(list(self.map))
            del self.map[gone]
            self.posts.forget(gone)
            self.series.pop(gone, None)
            self.rows.pop(gone, None)


@pytest.mark.parametrize("seed", SEEDS)
def test_counters_reach_series_and_rows_whatever_happens_between(seed):
    node = Counters(seed)
    for now in range(1, 150):
        node.move()
        node.take()
        node.fold(now)
        node.disturb()
    node.chance.random = lambda: 0.9  # type: ignore[method-assign]  # now all are bound
    for row in node.rows.values():
        row.state = "rts"
    for now in (200, 201):
        for key in node.map:
            node.map[key] += 1
        node.take()
        node.fold(now)
    assert node.posts.fold(202) == []
    assert len(node.posts) == len(node.map) == len(node.series)
    for key, operations in node.map.items():
        counted, moved, sizes = node.series[key]
        assert (counted.value, moved.value) == (operations, operations * 64)
        histogram = sizes.value
        assert (histogram.count, histogram.sum, histogram.buckets) == (
            operations,
            operations * 64,
            [operations],
        )
        assert not node.posts.owes(node.posts.number(key))


def test_a_full_table_refuses_the_newest_counter_and_keeps_the_rest():
    posts = Posts(in_memory(1), 64)
    for qpn in range(100):
        key, value = raw.post(qpn)
        posts.take(key.raw, value, 1, 1)
    assert (len(posts), posts.refused) == (64, 36)
    assert {key.qpn for key, _ in posts.drain()} == set(range(64))
    assert posts.forget(raw.post(3)[0].raw)
    key, value = raw.post(99)
    posts.take(key.raw, value, 1, 1)
    assert [key.qpn for key, _ in posts.drain()] == [99]


def test_a_counter_that_nobody_knows_is_no_counter():
    posts = Posts(in_memory(1), 64)
    for call in (posts.key, posts.raw, posts.unbind, posts.mute, posts.owes, posts.post):
        with pytest.raises(KeyError):
            call(0)
    assert posts.forget(bytes(records.POST_KEY_SIZE)) is False
    for wrong in (b"", bytes(31)):
        with pytest.raises(ValueError, match="a key has 32 bytes"):
            posts.forget(wrong)
    with pytest.raises(ValueError, match="do not hold count entries"):
        posts.take(bytes(32), bytes(records.POST_SIZE), 1, 2)


# --- connections ----------------------------------------------------------------------------------


def test_rows_are_used_again_only_by_others_and_what_has_ended_reads_as_it_was():
    chance = random.Random(1)
    ring = in_memory(10, connections=20)
    connections = Connections(30, Flows(10, SECOND), ring)
    alive: list[Connection] = []
    ended: list[tuple[Connection, dict[str, Any]]] = []
    for step in range(3000):
        if len(alive) < 30 and chance.random() < 0.5:
            made = Connection(
                "mlx5_0", step, "rc", "init", chance.choice((None, 7)), f"app{step}", step + 1, "probe",
                Coverage("since", step + 1), gid="fe80::1", peer_gid=f"fe80::{step:x}", peer_qpn=step,
            )  # fmt: skip
            assert connections.put(made)
            made.post("send", step, 2 * step)
            alive.append(made)
        elif alive:
            gone = alive.pop(chance.randrange(len(alive)))
            connections.remove(gone, "destroyed", step)
            ended.append((gone, {"qpn": gone.qpn}))
    for connection in (*alive, *(one for one, _ in ended)):
        step = connection.qpn
        assert (connection.process, connection.created_ns, connection.peer_qpn) == (
            f"app{step}",
            step + 1,
            step,
        )
        assert connection.posted_totals() == ([("send", step, 2 * step)] if step else [])
        assert connection.ended == (connection not in alive)
    assert {c.qpn for c in connections.of_process(7)} == {c.qpn for c in alive if c.pid == 7}
    assert connections.unlisted > 0
    assert connections.listed == sum(connection.listed for connection in alive) <= 20


def test_a_connection_says_what_it_was_told():
    one = Connection("mlx5_0", 17, "rc", "init", None, "x" * 40, 5, "netlink", Coverage("control_only"))
    assert (one.process, one.pid, one.coverage, one.mtu) == ("x" * 40, None, Coverage("control_only"), None)
    assert (one.gid, one.peer_gid, one.peer_qpn, one.sq_psn, one.rq_psn, one.port) == (None,) * 6
    one.gid, one.peer_gid, one.peer_qpn, one.sq_psn, one.mtu = "::ffff:10.0.0.1", "fe80::2", 0, 0, 4096
    one.coverage = Coverage("since", 9)
    assert (one.gid, one.peer_gid, one.peer_qpn, one.sq_psn, one.rq_psn) == (
        "::ffff:10.0.0.1", "fe80::2", 0, 0, None,
    )  # fmt: skip
    assert (one.mtu, one.coverage) == (4096, Coverage("since", 9))
    for name, wrong in (("state", "gone"), ("gid", "10.0.0.1"), ("peer_gid", "")):
        with pytest.raises(ValueError, match="no "):
            setattr(one, name, wrong)
    assert (one.state, one.gid) == ("init", "::ffff:10.0.0.1")


# --- nothing leaks --------------------------------------------------------------------------------


def life_of_regions() -> None:
    table = MemoryRegions(1000)
    for lkey in range(1000):
        table.put(MemoryRegion("mlx5_0", lkey, 0, lkey, 0, 1, 0))
    assert len(table.sums()) == 1000


def life_of_posts() -> None:
    table = SeriesTable(10)
    posts = Posts(table.ring, 1000)
    for qpn in range(300):
        key, value = raw.post(qpn)
        posts.take(key.raw, value, 1, 1)
    connection = Connection("d", 1, "rc", "rts", 1, "a", 0, "probe", Coverage("exact"))
    for number in posts.fold(1):
        posts.place(number, "mlx5_0")
        posts.bind(number, connection, 2, True)


def life_of_keys() -> None:
    fold = KeyedFold(in_memory(1), record_size=64, key_at=0, key_size=32)
    fold.feed(b"".join(number.to_bytes(64, "little") for number in range(1000)))
    assert len(fold.fold(1)) == 1000


def life_of_connections() -> None:
    connections = Connections(300, Flows(10, SECOND), in_memory(1, connections=300))
    for qpn in range(300):
        made = Connection("d", qpn, "rc", "init", 1, "a", 1, "probe", Coverage("exact"))
        connections.put(made)
        connections.advance(made, "rts", 2)
    for connection in list(connections):
        connections.remove(connection, "destroyed", 3)


@pytest.fixture
def measured() -> Iterator[Callable[[Callable[[], None]], tuple[int, int]]]:
    """(bytes of Python objects, bytes of the process) that 60 lives leave behind after 20."""

    def measure(life: Callable[[], None]) -> tuple[int, int]:
        process = psutil.Process()
        for _ in range(20):
            life()
        gc.collect()
        objects, resident = tracemalloc.get_traced_memory()[0], process.memory_info().rss
        for _ in range(60):
            life()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - objects, process.memory_info().rss - resident

    tracemalloc.start()
    yield measure
    tracemalloc.stop()


@pytest.mark.parametrize("life", [life_of_regions, life_of_posts, life_of_keys, life_of_connections])
def test_a_table_that_ends_leaves_nothing(life, measured):
    objects, resident = measured(life)
    # One table that stays is 60 KiB at least, sixty of them 3.6 MiB.
    assert objects < 100_000
    assert resident < 2 << 20
