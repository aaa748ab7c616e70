"""Slow egress: weeks of a simulated clock, what is remembered of them, and the file that keeps it."""

import os
import random
import sqlite3
from pathlib import Path

import pytest

from fabrictap import catalog
from fabrictap.insight.detectors.egress import Egress
from fabrictap.insight.detectors.peers import Peers
from fabrictap.insight.remembered import (
    ALL,
    DAYS,
    HOURS,
    MAX_PEERS,
    MAX_WORKLOADS,
    OTHERS,
    Remembered,
    hour_of,
)
from fabrictap.insight.statefile import StateFile
from fabrictap.ledger.workloads import Workload
from findings_house import DAY, HOUR, MIDNIGHT, GiB, House, MiB, rules

MINUTE = HOUR // 60
STEP = 20 * MINUTE
TRAIN = Workload(
    container_id="c" * 64, pod_uid="u1", pod_name="t-0", namespace="train", container_name="main"
)
BACKUP = "::ffff:10.0.9.9"
THIEF = "::ffff:10.66.6.6"


class Weeks(House):
    """One workload; ``pass_days`` lets a function say what is sent in each step, by peer."""

    def __init__(self, *detectors, **settings):
        super().__init__(*(detectors or (Egress(),)), **settings)
        self.process(1, "app", TRAIN)
        self.to = {}

    def send(self, peer, size):
        if peer not in self.to:
            self.to[peer] = self.connect(len(self.to) + 1, 1, peer=peer)
        self.to[peer].post("rdma_write", 1 + size // MiB, size)

    def pass_days(self, days, sends):
        made = []
        for _ in range(int(days * DAY / STEP)):
            sends(self, (self.now - MIDNIGHT) / HOUR)
            made += self.look(step=STEP)
        return made


def training(house, hour):
    """Some gigabytes in working hours to the same two peers, more on some days than on others."""
    if 8 <= hour % 24 < 20:
        for peer in ("::ffff:10.0.0.2", "::ffff:10.0.0.3"):
            house.send(peer, int(random.Random(f"{peer}{hour}").uniform(0.5, 1.5) * GiB))


def nightly(size):
    def backup(house, hour):
        training(house, hour)
        if 2 <= hour % 24 < 2.3:
            house.send(BACKUP, size)

    return backup


def trickle(rate_per_minute, then=training):
    def leak(house, hour):
        then(house, hour)
        house.send(THIEF, rate_per_minute * (STEP // MINUTE))

    return leak


def to(records, peer):
    return [record for record in records if record.attributes.get("rdma.peer.gid") == peer]


def test_a_megabyte_a_minute_to_a_new_peer_is_found_on_the_first_day_and_is_one_finding():
    house = Weeks()
    assert house.pass_days(10, training) == []
    first = house.pass_days(1, trickle(1_000_000))
    (record,) = to(first, THIEF)
    told = record.attributes
    assert told["fabrictap.finding.kind"] == "slow_egress"
    assert (told["process.pid"], told["fabrictap.finding.workload"]) == (1, "k8s:train/main")
    assert told["fabrictap.finding.baseline"] == 0
    later = [
        r.attributes["fabrictap.finding.state"] for r in to(house.pass_days(14, trickle(1_000_000)), THIEF)
    ]
    # At most once a day again.
    assert 10 <= later.count("continuing") <= 15


def test_a_megabyte_a_minute_from_the_first_hour_of_a_workload_is_found_as_a_trickle():
    house = Weeks()
    made = house.pass_days(4, trickle(1_000_000))
    (record, *_) = to(made, THIEF)
    assert "about 57.2 MiB in every hour" in record.body
    assert record.time_ns - MIDNIGHT < 3.2 * DAY


@pytest.mark.parametrize("rate", [300_000, 100_000])
def test_pacing_below_the_limit_of_a_day_is_found_over_longer_times(rate):
    house = Weeks()
    house.pass_days(8, training)
    made = to(house.pass_days(28, trickle(rate)), THIEF)
    assert made, "never found"


def test_a_nightly_backup_that_the_policy_allows_is_never_a_finding_and_the_same_elsewhere_is():
    daily = 1_440_000_000
    policy = rules(
        {
            "match": {"k8s.namespace.name": "train"},
            "peers": ["10.0.9.9", "10.0.0.0/24"],
            "egress_budget": 60 * GiB,
        }
    )
    house = Weeks(policy=policy)
    assert house.pass_days(28, nightly(daily)) == []
    house = Weeks()
    house.pass_days(10, training)
    assert to(house.pass_days(2, nightly(daily)), BACKUP)


def test_a_backup_that_always_was_there_is_learned():
    assert Weeks().pass_days(28, nightly(1_440_000_000)) == []


def test_a_budget_is_judged_from_the_first_day():
    house = Weeks(policy=rules({"egress_budget": GiB}))
    (record,) = house.pass_days(1, trickle(1_000_000, then=lambda house, hour: None))
    assert record.attributes["fabrictap.finding.threshold"] == GiB


def test_an_established_peer_that_gets_many_times_more_is_told():
    house = Weeks()
    house.pass_days(14, nightly(GiB))

    assert to(house.pass_days(1, nightly(30 * GiB)), BACKUP)


def test_dark_egress_that_is_paced_below_the_fast_threshold_is_found_the_same_day():
    house = Weeks()

    def dark(house, hour):
        training(house, hour)
        house.balance.dark += 90_000 * (STEP // 10**9) // 10  # 90 kB in ten seconds, threshold 1 MiB

    (record, *_) = house.pass_days(1, dark)
    assert record.attributes["fabrictap.finding.workload"] == "dark:mlx5_0/1"


def test_connections_that_live_for_less_than_a_look_are_counted():
    house = Weeks()
    house.pass_days(8, training)
    made = []
    for number in range(60):
        for qpn in range(10):
            connection = house.connect(1000 + 10 * number + qpn, 1, peer=THIEF)
            connection.post("send", 10, MiB)
            house.end(connection)
        made += house.look(step=MINUTE)
    assert to(made, THIEF)
    assert house.detectors._detectors[0]._counted.keys() == set(house.to.values())


def test_what_comes_in_and_receive_buffers_are_no_egress():
    house = Weeks()
    house.pass_days(8, training)
    connection = house.connect(99, 1, peer=THIEF)
    for operation in ("rdma_read", "recv", "local_inv", "atomic_fetch_and_add"):
        connection.post(operation, 1, 100 * GiB)
    assert house.look(3, step=MINUTE) == []


# --- what is remembered -------------------------------------------------------------------------


def test_days_and_hours_roll_on_and_a_clock_that_goes_back_changes_nothing():
    remembered = Remembered(10)
    hour = hour_of(MIDNIGHT)
    remembered.sent("w", "p", 5, hour)
    remembered.sent("w", "p", 7, hour + 24)
    remembered.sent("w", "p", 1, hour - 100)
    pair = remembered.pairs["w", "p"]
    assert (pair.today, pair.past_days(3)) == (8, [5, 0, 0])
    assert pair.past_hours(24)[-1] == 5
    pair.roll(hour + 24 * 1000)
    assert sum(pair.hours) == sum(pair.days) == 0


def test_ten_thousand_peers_and_workloads_stay_within_the_limits_and_no_byte_is_lost():
    remembered = Remembered(500)
    for number in range(10_000):
        remembered.sent("w", f"::{number:x}", 10, 1000)
        remembered.learn(remembered.workload("w", 1000), f"fe80:{number:x}::1", 1000)
    assert len(remembered.pairs) <= 502
    assert sum(p.today for p in remembered.pairs.values() if p.peer != ALL) == 100_000
    assert remembered.pairs["w", ALL].today == 100_000
    known = remembered.workloads["w"]
    assert known.anybody
    assert len(known.peers) + len(known.networks) <= MAX_PEERS
    for number in range(5_000):
        remembered.sent(f"w{number}", "p", 10, 1000)
    assert len(remembered.workloads) <= MAX_WORKLOADS + 1
    assert len(remembered.pairs) <= 500 + MAX_WORKLOADS + 2
    assert remembered.errors["full"] > 0


def test_many_peers_become_networks_and_then_one_of_them_is_known():
    remembered = Remembered(10)
    known = remembered.workload("w", 1)
    for number in range(MAX_PEERS + 1):
        remembered.learn(known, f"::ffff:10.0.{number % 3}.{number % 250}", 1)
        remembered.learn(known, f"::ffff:10.1.{number % 3}.{number % 250}", 1)
    assert sorted(known.networks) == sorted(f"10.{a}.{b}.0/24" for a in (0, 1) for b in range(3))
    assert known.knows("::ffff:10.0.2.251")
    assert not known.knows("::ffff:10.2.2.1")


def test_spread_over_ten_thousand_peers_it_is_still_found():
    house = Weeks(limits={"egress_pairs": 100})
    house.pass_days(8, training)
    made = []
    for number in range(10_000):
        connection = house.connect(10_000 + number, 1, peer=f"fe80::{number:x}")
        connection.post("send", 1, 20 * MiB)
        house.end(connection)
        if number % 100 == 0:
            made += house.look(step=MINUTE)
    made += house.look(10, step=MINUTE)
    assert any("to many peers" in record.body or "all peers" in record.body for record in made)
    assert len(house.detectors.remembered.pairs) < 110


def test_silent_pairs_are_forgotten():
    house = Weeks()
    house.send(THIEF, MiB)
    house.look()
    house.end(house.to.pop(THIEF))
    house.look(40, step=DAY)
    assert not house.detectors.remembered.pairs
    assert not house.detectors.remembered.workloads


# --- the file -----------------------------------------------------------------------------------


def file_of(tmp_path, pairs=3):
    remembered = Remembered(100)
    file = StateFile(str(tmp_path / "state.db"), remembered)
    for number in range(pairs):
        remembered.sent("k8s:train/main", f"::{number}", 1000 + number, 480000)
    remembered.learn(remembered.workloads["k8s:train/main"], "fe80::1", 480000)
    assert file.save(file.take())
    return file


def read(path):
    remembered = Remembered(100)
    StateFile(str(path), remembered).load()
    return remembered


def test_what_was_saved_is_there_after_a_restart(tmp_path):
    file = file_of(tmp_path)
    again = read(file.path)
    assert {key: list(pair.hours) for key, pair in again.pairs.items()} == {
        key: list(pair.hours) for key, pair in file._remembered.pairs.items()
    }
    assert again.workloads["k8s:train/main"].knows("fe80::1")
    assert not again.errors
    assert Path(file.path).stat().st_mode & 0o777 == 0o600


def test_only_what_has_changed_is_written_and_what_is_gone_goes(tmp_path):
    file = file_of(tmp_path)
    assert not file.take()
    file._remembered.sent("k8s:train/main", "::1", 5, 480001)
    batch = file.take()
    assert [row[:2] for row in batch.pairs] in (
        [("k8s:train/main", "::1"), ("k8s:train/main", "*")],
        [("k8s:train/main", "*"), ("k8s:train/main", "::1")],
    )
    file.save(batch)
    file._remembered.sweep(480000 + 24 * 100)
    file.save(file.take())
    assert not read(file.path).pairs
    assert not read(file.path).workloads


def test_a_finding_goes_on_over_a_restart(tmp_path):
    path = str(tmp_path / "state.db")
    house = Weeks(state=path)
    house.pass_days(9, training)
    house.detectors.save()
    after = Weeks(state=path)
    after.now = house.now
    assert to(after.pass_days(1, trickle(1_000_000)), THIEF)


def damage(path, how):
    if how == "no database":
        path.write_bytes(b"\x00garbage" * 1000)
    elif how == "damaged page":
        content = bytearray(path.read_bytes())
        content[4096 + 8 : 4096 + 300] = os.urandom(292)
        content[100:140] = os.urandom(40)
        path.write_bytes(content)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        with sqlite3.connect(path) as database:
            database.execute(how)


@pytest.mark.parametrize(
    "how",
    [
        "no database",
        "damaged page",
        "cut",
        "PRAGMA user_version = 9",
        "UPDATE pair SET hours = x'00'",
        "UPDATE pair SET hour = -1",
        "UPDATE pair SET hour = 'x'",
        "UPDATE workload SET learned = '[1'",
        "UPDATE workload SET learned = '[]'",
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_moved_aside_said_and_counted(tmp_path, caplog, how):
    path = tmp_path / "state.db"
    file_of(tmp_path)
    damage(path, how)
    remembered = Remembered(100)
    file = StateFile(str(path), remembered)
    file.load()
    assert remembered.errors == {"corrupt": 1}
    assert not remembered.pairs
    assert f"moved to {path}.corrupt" in caplog.text
    assert (tmp_path / "state.db.corrupt").exists()
    remembered.sent("w", "::1", 1, 480000)
    assert file.save(file.take())
    assert ("w", "::1") in read(path).pairs


def test_a_file_that_cannot_be_written_costs_nothing_else_and_is_said_once(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    remembered = Remembered(10)
    file = StateFile(str(tmp_path / "file" / "state.db"), remembered)
    file.load()
    for _ in range(3):
        remembered.sent("w", "::1", 1, 1)
        batch = file.take()
        assert not file.save(batch)
        file.give_back(batch)
    assert caplog.text.count("cannot be used") == 1
    assert remembered.changed_pairs == {("w", "::1"), ("w", "*")}


def test_a_link_or_a_directory_of_others_is_refused(tmp_path, caplog):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "state.db").symlink_to(victim)
    remembered = Remembered(10)
    file = StateFile(str(tmp_path / "state.db"), remembered)
    remembered.sent("w", "::1", 1, 1)
    assert not file.save(file.take())
    assert victim.read_text() == "precious"
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    assert not StateFile(str(open_to_all / "state.db"), remembered).save(file.take())
    assert f"others may write to {open_to_all}" in caplog.text


def test_names_are_data_and_no_sql(tmp_path):
    remembered = Remembered(10)
    file = StateFile(str(tmp_path / "s"), remembered)
    name = "process:x'); DROP TABLE pair; --\u202e"
    remembered.sent(name, "::1", 1, 480000)
    file.save(file.take())
    assert (name, "::1") in read(tmp_path / "s").pairs


def test_the_memory_of_the_node_is_saved_at_its_end_and_its_rows_are_told(tmp_path):
    path = tmp_path / "state.db"
    house = Weeks(Egress(), Peers(), state=str(path))
    house.send(THIEF, MiB)
    house.look()
    assert house.value(catalog.STATE_ROWS) == 2
    house.detectors.start()
    house.detectors.close()
    assert ("k8s:train/main", THIEF) in read(path).pairs


def test_constants_fit_the_file():
    pair = Remembered(10)._pair("a", "b", 5)
    assert (len(pair.hours), len(pair.days)) == (HOURS, DAYS + 1)
    assert OTHERS != ALL
