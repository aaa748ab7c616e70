"""The ledger as series: what is there, what has gone, and who it belongs to."""

import pytest

from fabrictap import catalog
from fabrictap.config import Config
from fabrictap.insight.inventory import Inventory
from fabrictap.ledger import Ledger
from fabrictap.ledger.connections import Connection, Coverage
from fabrictap.ledger.memory import REMOTE_ATOMIC, REMOTE_READ, MemoryRegion
from fabrictap.ledger.processes import Process
from fabrictap.series import SeriesTable

NOW = 10**18


class House:
    def __init__(self):
        self.table = SeriesTable(1000)
        self.ledger = Ledger(Config())
        self.inventory = Inventory(self.table, self.ledger)

    def fold(self):
        self.inventory.fold(NOW)

    def live(self, metric):
        """attributes -> value of the series of a metric that have not ended."""
        return [(s.attributes, s.value) for s in self.table if s.metric is metric and not s.ended]

    def connect(self, qpn=17, pid=42, state="rts", **more):
        made = Connection("rxe0", qpn, "rc", state, pid, "app", NOW, "probe", Coverage("exact"), **more)
        self.ledger.connections.put(made)
        return made


@pytest.fixture
def house():
    return House()


def test_a_queue_pair_is_one_series_with_what_is_known_and_nothing_else(house):
    house.connect(peer_gid="fe80::2", peer_qpn=9)
    house.fold()
    ((attributes, value),) = house.live(catalog.QP_STATUS)
    assert value == 1
    assert attributes == {
        "process.pid": 42,
        "process.executable.name": "app",
        "rdma.device": "rxe0",
        "rdma.qp.number": 17,
        "rdma.qp.type": "rc",
        "rdma.qp.state": "rts",
        "rdma.peer.gid": "fe80::2",
        "rdma.peer.qp.number": 9,
        "fabrictap.origin": "probe",
        "fabrictap.coverage": "exact",
    }


def test_another_state_is_another_series_and_the_old_one_ends(house):
    connection = house.connect(state="rtr")
    house.fold()
    connection.state = "rts"
    house.fold()
    ((attributes, _),) = house.live(catalog.QP_STATUS)
    assert attributes["rdma.qp.state"] == "rts"
    assert [s.attributes["rdma.qp.state"] for s in house.table if s.ended] == ["rtr"]


def test_a_queue_pair_that_is_gone_has_no_live_series(house):
    connection = house.connect()
    house.fold()
    house.ledger.connections.remove(connection, "destroyed", NOW)
    house.fold()
    assert house.live(catalog.QP_STATUS) == []


def test_an_unchanged_ledger_makes_nothing_new(house):
    house.connect()
    house.fold()
    version = house.table.version
    house.fold()
    assert house.table.version == version


def test_memory_is_summed_by_process_device_and_what_a_peer_may_do(house):
    house.ledger.processes.put(Process(42, "app", 1.0))
    for lkey, pid, access, length in (
        (1, 42, REMOTE_READ, 100),
        (2, 42, REMOTE_READ, 50),
        (3, 42, REMOTE_READ | REMOTE_ATOMIC, 7),
        (4, None, 0, 9),
        (5, 43, None, 8),
    ):
        house.ledger.memory.put(MemoryRegion("rxe0", lkey, lkey, pid, 0, length, access))
    house.fold()

    def told(metric):
        return sorted(
            (
                a.get("process.pid", 0),
                a.get("process.executable.name"),
                a["rdma.memory_region.remote_access"],
                a.get("rdma.memory_region.remote_atomic"),
                value,
            )
            for a, value in house.live(metric)
        )

    assert told(catalog.MR_SIZE) == [
        (0, "[kernel]", "none", False, 9),
        (42, "app", "read", False, 150),
        (42, "app", "read", True, 7),
        (43, None, "unknown", None, 8),
    ]
    assert [row[-1] for row in told(catalog.MR_COUNT)] == [1, 2, 1, 1]


def test_contexts_are_counted_for_each_process(house):
    house.ledger.contexts.opened("rxe0", 42, "probe")
    house.ledger.contexts.opened("rxe0", 42, "probe")
    house.fold()
    assert house.live(catalog.CONTEXT_COUNT) == [
        ({"process.pid": 42, "rdma.device": "rxe0", "fabrictap.origin": "probe"}, 2)
    ]
    house.ledger.contexts.closed("rxe0", 42)
    house.ledger.contexts.closed("rxe0", 42)
    house.fold()
    assert house.live(catalog.CONTEXT_COUNT) == []


def test_every_bounded_table_tells_its_fill_and_what_it_dropped(house):
    house.ledger.connections.capacity = 1
    house.connect(qpn=1)
    house.connect(qpn=2)
    house.fold()
    fill = {a["fabrictap.table"]: value for a, value in house.live(catalog.TABLE_ENTRIES)}
    dropped = {a["fabrictap.table"]: value for a, value in house.live(catalog.TABLE_EVICTED)}
    assert set(fill) == set(dropped) == set(catalog.TABLE.values)
    assert (fill["connections"], dropped["connections"]) == (1, 1)


def test_series_have_only_the_attributes_of_the_catalog(house):
    house.connect(gid="fe80::1", port=1, peer_gid="fe80::2", peer_qpn=9)
    house.ledger.contexts.opened("rxe0", 42, "probe")
    house.ledger.memory.put(MemoryRegion("rxe0", 1, 1, 42, 0, 1, REMOTE_READ))
    house.fold()
    for series in house.table:
        known = {attribute.name: attribute for attribute in series.metric.attributes}
        for name, value in series.attributes.items():
            assert type(value) is known[name].type
            assert not known[name].values or value in known[name].values
