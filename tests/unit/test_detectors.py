"""Each detector: what makes it speak, and what must not."""

import os

import pytest

from fabrictap import catalog
from fabrictap.insight.detectors import FileState, SourceState
from fabrictap.insight.detectors.dark import Dark
from fabrictap.insight.detectors.gpus import GpuUse
from fabrictap.insight.detectors.links import Links
from fabrictap.insight.detectors.memory import Memory
from fabrictap.insight.detectors.peers import Peers
from fabrictap.insight.detectors.resources import Resources
from fabrictap.insight.detectors.tampering import Tampering
from fabrictap.insight.filewatch import WatchedFile
from fabrictap.insight.findings import Severity
from fabrictap.insight.reconcile import Reconciler
from fabrictap.ledger.gpus import Gpu, MigDevice
from fabrictap.ledger.memory import REMOTE_ATOMIC, REMOTE_READ, REMOTE_WRITE
from fabrictap.ledger.traffic import PortPosted, PortTraffic
from fabrictap.ledger.workloads import Workload
from findings_house import DEVICE, HERE, MIDNIGHT, SECOND, GiB, House, MiB, rules

THERE = "::ffff:10.0.0.2"
TRAIN = Workload(
    container_id="c" * 64, pod_uid="u1", pod_name="t-0", namespace="train", container_name="main"
)
STORE = Workload(
    container_id="d" * 64, pod_uid="u2", pod_name="s-0", namespace="store", container_name="main"
)


def kinds(records):
    return [record.attributes["fabrictap.finding.kind"] for record in records]


# --- dark egress ----------------------------------------------------------------------------------


class Dim(House):
    """A port that sends normal traffic and, as told, dark bytes in each look."""

    def __init__(self, **more):
        super().__init__(Dark(), **more)

    def move(self, dark, attributed=10 * MiB, times=1):
        made = []
        for _ in range(times):
            self.balance.attributed += attributed
            self.balance.dark += dark
            made += self.look()
        return made


def victim(house, qpn=7, pid=42, name="victim", *, state="rtr", size=GiB, workload=TRAIN, **more):
    house.process(pid, name, workload)
    house.register(pid * 100 + qpn, pid, size)
    return house.connect(qpn, pid, state, THERE, **more)


def test_a_theft_by_rdma_read_names_victim_and_peer_and_is_told_once():
    house = Dim()
    connection = victim(house)
    house.move(0, times=5)
    (record,) = house.move(8 * MiB, times=9)
    assert kinds([record]) == ["remote_read_egress"]
    assert record.severity == Severity.ERROR
    told = record.attributes
    assert (told["process.pid"], told["k8s.pod.name"]) == (42, "t-0")
    assert (told["rdma.qp.number"], told["rdma.peer.gid"], told["rdma.peer.qp.number"]) == (7, THERE, 1007)
    assert told["fabrictap.finding.value"] == 8 * MiB
    assert told["fabrictap.finding.threshold"] == MiB
    assert "victim (42)" in record.body
    # Its connection is in RTR: it has a receiver's flow only.
    assert record.span_id == connection.receiver.span_id
    assert len(connection.receiver.events) == 1


def test_a_theft_that_is_over_before_anybody_looks_names_victim_and_peer_all_the_same():
    house = Dim()
    connection = victim(house)
    house.move(0, times=3)
    house.end(connection)
    house.ledger.memory.remove_process(42)
    (record,) = house.move(8 * MiB)
    assert kinds([record]) == ["remote_read_egress"]
    assert (record.attributes["process.pid"], record.attributes["rdma.peer.gid"]) == (42, THERE)


def test_who_ended_long_before_is_not_named():
    house = Dim()
    house.end(victim(house))
    house.ledger.memory.remove_process(42)
    house.move(0, times=30)
    (record,) = house.move(8 * MiB)
    assert kinds([record]) == ["dark_egress"]
    assert "process.pid" not in record.attributes


def test_a_theft_that_goes_on_is_told_again_when_ten_times_as_much_is_gone():
    house = Dim()
    victim(house)
    states = [r.attributes["fabrictap.finding.state"] for r in house.move(8 * MiB, times=110)]
    assert states == ["opened", "worsened", "worsened"]


def test_no_dark_egress_no_finding():
    house = Dim()
    victim(house)
    assert house.move(0, times=50) == []


@pytest.mark.parametrize(("dark", "attributed"), [(400_000, 10 * MiB), (5 * MiB, 10 * GiB)])
def test_little_or_a_small_share_is_no_finding(dark, attributed):
    house = Dim()
    victim(house)
    assert house.move(dark, attributed, times=50) == []


def test_what_comes_in_is_not_its_business():
    house = Dim()
    victim(house)
    house.balance.direction = "receive"
    assert house.move(100 * MiB, times=5) == []


def test_of_several_that_could_be_read_all_are_named_and_none_is_accused():
    house = Dim()
    victim(house, 7, 42, "big", size=8 * GiB)
    victim(house, 8, 43, "small", size=GiB)
    victim(house, 9, 44, "sender", state="rts", size=16 * GiB)
    (record,) = house.move(8 * MiB, times=3)
    assert (kinds([record]), record.severity) == (["remote_read_egress"], Severity.WARN)
    assert "process.pid" not in record.attributes
    named = record.attributes["fabrictap.finding.candidates"].split("; ")
    # A pure victim stays in RTR; then whoever has more to read.
    assert [name.split(" ")[0] for name in named] == ["big", "small", "sender"]
    assert record.attributes["rdma.peer.gid"] == THERE


def test_a_process_without_readable_memory_or_connection_is_no_candidate():
    house = Dim()
    victim(house)
    house.process(50, "writes")
    house.connect(20, 50)
    house.process(51, "idle")
    house.register(1, 51, GiB)
    house.process(52, "init")
    house.register(2, 52, GiB)
    house.connect(21, 52, "init")
    house.process(53, "datagrams")
    house.register(3, 53, GiB)
    house.connect(22, 53, type="ud")
    (record,) = house.move(8 * MiB, times=2)
    assert record.attributes["process.pid"] == 42


def test_a_process_whose_posts_are_not_seen_is_another_explanation():
    house = Dim()
    victim(house)
    house.process(43, "own-library")
    house.connect(9, 43, coverage="control_only")
    (record,) = house.move(8 * MiB, times=2)
    assert kinds([record]) == ["dark_egress"]
    assert "own-library" in record.attributes["fabrictap.finding.candidates"]


def test_dark_egress_without_any_candidate_is_told_too():
    (record,) = Dim().move(8 * MiB, times=3)
    assert kinds([record]) == ["dark_egress"]
    assert "no process here can be named" in record.body
    assert record.span_id is None


def test_readers_that_the_policy_allows_are_no_finding_and_others_are():
    policy = rules({"match": {"k8s.namespace.name": "tr*"}, "remote_read": True, "peers": ["10.0.0.0/24"]})
    house = Dim(policy=policy)
    victim(house)
    assert house.move(8 * MiB, times=20) == []
    victim(house, 8, 43, "other", workload=STORE)
    found = house.move(8 * MiB, times=20)
    assert [record.attributes["process.pid"] for record in found] == [43]


def test_a_counter_that_starts_again_is_no_theft():
    house = Dim()
    victim(house)
    house.move(600_000, times=1)
    house.balance.dark, house.balance.since_ns = 0, house.now
    assert house.move(0, times=5) == []


def test_dark_egress_from_before_the_window_is_not_told_as_sudden():
    house = Dim()
    house.now += 3600 * SECOND
    # An hour's worth, as when the detector looks for the first time.
    house.balance.dark = 100 * MiB
    assert house.look() == []


# --- memory ---------------------------------------------------------------------------------------


def test_memory_beyond_the_limit_is_told_with_what_peers_may_do():
    house = House(Memory(), exposed_memory=GiB)
    house.process(42, "cache", TRAIN)
    house.register(1, 42, GiB, REMOTE_READ)
    assert house.look() == []
    house.register(2, 42, GiB, REMOTE_WRITE)
    (record,) = house.look()
    assert kinds([record]) == ["exposed_memory"]
    assert record.attributes["fabrictap.finding.value"] == 2 * GiB
    assert "1 GiB to read, 1 GiB to write" in record.body
    assert record.severity == Severity.INFO
    house.ledger.memory.remove(DEVICE, 2)
    house.look(20)
    assert house.open() == []


def test_memory_for_the_process_itself_is_no_exposure():
    house = House(Memory(), exposed_memory=GiB)
    house.register(1, 42, 100 * GiB, 0)
    house.register(2, 42, 100 * GiB, 1)
    assert house.look() == []
    house.register(3, 43, 100 * GiB, REMOTE_ATOMIC)
    assert kinds(house.look()) == ["exposed_memory"]


def test_the_policy_sets_limits_for_a_workload_up_and_down():
    policy = rules(
        {"match": {"k8s.namespace.name": "store"}, "exposed_memory": 64 * GiB},
        {"match": {"k8s.namespace.name": "train"}, "exposed_memory": 0},
    )
    house = House(Memory(), exposed_memory=GiB, policy=policy)
    house.process(1, "store", STORE)
    house.process(2, "train", TRAIN)
    house.register(1, 1, 60 * GiB)
    assert house.look() == []
    house.register(2, 2, 4096)
    (record,) = house.look()
    assert (record.attributes["process.pid"], record.severity) == (2, Severity.WARN)


# --- peers ----------------------------------------------------------------------------------------


def test_after_a_time_of_learning_a_new_peer_is_told_once():
    house = House(Peers(), learn_days=1)
    house.process(1, "app", TRAIN)
    for qpn in range(1, 20):
        house.connect(qpn, 1, peer=f"::ffff:10.0.0.{qpn + 10}")
    house.look(10)
    house.look(26, step=3600 * SECOND)
    assert house.records == []
    house.connect(50, 1, peer="::ffff:192.168.7.7")
    (record,) = house.look(5)
    assert (kinds([record]), record.attributes["rdma.peer.gid"]) == (["new_peer"], "::ffff:192.168.7.7")
    house.look(200)
    assert house.open() == []
    house.connect(51, 1, peer="::ffff:192.168.7.7")
    assert house.look(5) == []


def test_a_connection_that_comes_and_goes_between_two_looks_is_seen():
    house = House(Peers(), policy=rules({"peers": ["10.0.0.0/24"]}))
    house.process(1)
    house.connect(1, 1)
    house.look()
    house.end(house.connect(2, 1, peer="::ffff:172.16.0.1"))
    assert kinds(house.look()) == ["forbidden_peer"]


def test_peers_of_the_policy_are_silent_and_others_told_from_the_first_day():
    policy = rules({"match": {"process.executable.name": "app"}, "peers": ["10.0.0.0/24", "fe80::/64"]})
    house = House(Peers(), policy=policy)
    house.process(1)
    house.process(2, "other")
    for qpn, peer in enumerate(("::ffff:10.0.0.9", "fe80::2", HERE)):
        house.connect(qpn, 1, peer=peer)
    house.connect(10, 2, peer="::ffff:10.9.9.9")
    assert house.look(5) == []
    house.connect(11, 1, peer="::ffff:10.9.9.9")
    (record,) = house.look(5)
    assert (kinds([record]), record.attributes["process.pid"]) == (["forbidden_peer"], 1)


def tenants(**more):
    policy = rules(
        {"match": {"k8s.namespace.name": "train"}, "tenant": "blue"},
        {"match": {"k8s.namespace.name": "store"}, "tenant": "red", **more},
    )
    house = House(Peers(), policy=policy)
    house.process(1, "a", TRAIN)
    house.process(2, "b", STORE)
    house.connect(7, 1, peer=HERE, peer_qpn=8)
    house.connect(8, 2, peer=HERE, peer_qpn=7)
    return house


def test_tenants_that_are_connected_on_this_node_are_told_as_one_finding():
    (record,) = tenants().look(10)
    assert (kinds([record]), record.severity) == (["cross_tenant"], Severity.ERROR)
    pair = {record.attributes["fabrictap.finding.tenant"], record.attributes["fabrictap.finding.peer.tenant"]}
    assert pair == {"blue", "red"}


def test_a_shared_service_and_one_tenant_with_itself_are_no_finding():
    assert tenants(talks_to=["blue"]).look(10) == []
    house = House(Peers(), policy=rules(tenant_by="k8s.namespace.name"))
    house.process(1, "a", TRAIN)
    house.process(2, "b", TRAIN)
    house.connect(7, 1, peer=HERE, peer_qpn=8)
    house.connect(8, 2, peer=HERE, peer_qpn=7)
    assert house.look(10) == []
    house.process(2, "b", STORE)
    assert kinds(house.look(10)) == ["cross_tenant"]


def test_a_policy_that_is_reloaded_ends_what_it_allows():
    house = House(Peers(), policy=rules({"peers": ["10.9.0.0/16"]}))
    house.process(1)
    house.connect(1, 1)
    assert kinds(house.look(3)) == ["forbidden_peer"]
    house.detectors.reload(rules({"peers": ["10.0.0.0/8"]}))
    house.look(20)
    assert house.open() == []


# --- resources ------------------------------------------------------------------------------------


def test_too_many_queue_pairs_regions_and_devices_of_one_process_are_told():
    house = House(Resources(), queue_pairs=100, memory_regions=50, contexts=5, queue_pair_rate=1e6)
    house.process(1, "leaks")
    for number in range(100):
        house.connect(number, 1)
    for number in range(50):
        house.register(number, 1, 4096)
    for _ in range(5):
        house.ledger.contexts.opened(DEVICE, 1, "probe")
    assert house.look(3) == []
    house.connect(100, 1)
    house.register(50, 1, 4096)
    house.ledger.contexts.opened(DEVICE, 1, "probe")
    assert sorted(record.attributes["fabrictap.finding.unit"] for record in house.look(3)) == [
        "{context}",
        "{memory_region}",
        "{qp}",
    ]


def test_queue_pairs_that_come_and_go_quickly_are_told():
    house = House(Resources(), queue_pair_rate=20.0)
    house.process(1, "churns")
    for qpn in range(150):
        house.end(house.connect(qpn, 1))
    assert house.look() == []
    for qpn in range(150):
        house.end(house.connect(qpn, 1))
    (record,) = house.look()
    assert "churns (1) made 300 queue pairs in 10 s" in record.body
    assert house.look(2) == []


def test_a_job_that_starts_is_no_churn_and_the_policy_may_allow_more():
    policy = rules({"match": {"process.executable.name": "mpi"}, "queue_pairs": 500})
    house = House(Resources(), queue_pairs=100, policy=policy)
    house.process(1, "mpi")
    for qpn in range(400):
        house.connect(qpn, 1)
    assert house.look(10) == []


def flood(house, connection, operations, size, times=6):
    made = []
    for _ in range(times):
        connection.post("rdma_write", operations, operations * size)
        made += house.look()
    return made


def test_a_flood_of_small_messages_beside_neighbours_is_told():
    house = House(Resources(), operation_rate=1e6)
    house.process(1, "floods")
    house.process(2, "neighbour")
    connection = house.connect(1, 1)
    house.connect(2, 2)
    (record,) = flood(house, connection, 10_000_000, 64)
    assert record.attributes["fabrictap.finding.unit"] == "{operation}/s"
    assert record.attributes["fabrictap.finding.value"] == 2_000_000


@pytest.mark.parametrize(
    ("operations", "size", "neighbour"), [(10_000_000, 65536, 2), (10_000_000, 64, 1), (1_000_000, 64, 2)]
)
def test_large_messages_a_node_of_its_own_or_few_operations_are_no_flood(operations, size, neighbour):
    house = House(Resources(), operation_rate=1e6)
    house.process(1, "works")
    house.process(2, "neighbour")
    connection = house.connect(1, 1)
    house.connect(2, neighbour)
    assert flood(house, connection, operations, size) == []


# --- tampering ------------------------------------------------------------------------------------


class Guarded(House):
    def __init__(self):
        super().__init__(Tampering())
        self.up("verbs", "infiniband", "rdma_netlink")

    def up(self, *names, down=()):
        self.sources = [SourceState(name, name not in down, None) for name in names]

    def probe(self, count, probe="fexit_modify_qp"):
        labels = {"fabrictap.probe": probe, "fabrictap.probe.method": "fexit"}
        self.table.series(catalog.PROBE_ATTACHED, labels, self.now).set(count, self.now)

    def lost(self, count):
        labels = {"fabrictap.source": "verbs", "fabrictap.loss.reason": "buffer_full"}
        self.table.series(catalog.LOST, labels, self.now).observe(count, self.now)


def test_a_probe_that_is_attached_at_fewer_places_is_told_until_it_is_back():
    house = Guarded()
    house.probe(2)
    assert house.look(10) == []
    house.probe(0)
    (record,) = house.look(10)
    assert (kinds([record]), record.severity) == (["probe_detached"], Severity.ERROR)
    house.probe(2)
    house.look(20)
    assert house.open() == []


def test_probes_that_come_one_after_the_other_are_no_loss_and_a_source_that_ends_tells_for_itself():
    house = Guarded()
    for count in (0, 1, 3):
        house.probe(count)
        house.look(5)
    house.up("verbs", "infiniband", "rdma_netlink", down=("verbs",))
    house.probe(0)
    house.look(10)
    house.up("verbs", "infiniband", "rdma_netlink")
    house.probe(1)
    house.look(10)
    assert house.records == []


def test_connections_that_only_netlink_has_seen_mean_blind_probes():
    house = Guarded()
    house.lost(0)
    house.probe(1)
    house.connect(1, origin="netlink")
    house.look(20)
    for qpn in (2, 3, 4):
        house.connect(qpn, origin="netlink")
    (record,) = house.look(5)
    assert kinds([record]) == ["probes_blind"]


def test_a_node_whose_control_path_is_not_probed_is_not_blinded():
    house = Guarded()
    house.look(20)
    for qpn in range(10):
        house.connect(qpn, origin="netlink")
    assert house.look(10) == []


def test_older_connections_and_records_that_were_lost_are_no_blindness():
    house = Guarded()
    house.lost(0)
    house.probe(1)
    for qpn in range(10):
        house.connect(qpn, origin="netlink")
    house.look(30)
    for qpn in range(20, 30):
        house.connect(qpn, origin="netlink")
        house.lost(qpn)
        house.look()
    assert house.records == []


def test_coverage_that_falls_suddenly_is_told_and_a_node_without_it_is_not():
    house = Guarded()
    connections = [house.connect(qpn) for qpn in range(20)]
    house.look(10)
    for connection in connections[:15]:
        connection.cover("control_only", None)
    assert kinds(house.look(5)) == ["coverage_fell"]
    house = Guarded()
    for qpn in range(20):
        house.connect(qpn, coverage="control_only")
    assert house.look(10) == []


def test_sources_that_stop_together_are_told_and_one_alone_is_not():
    house = Guarded()
    house.look(3)
    house.up("verbs", "infiniband", "rdma_netlink", down=("verbs",))
    assert house.look(20) == []
    house.up("verbs", "infiniband", "rdma_netlink")
    house.look(3)
    house.up("verbs", "infiniband", "rdma_netlink", down=("verbs", "infiniband"))
    (record,) = house.look(5)
    assert (kinds([record]), record.attributes["fabrictap.source"]) == (["sources_down"], "infiniband, verbs")
    house.up("verbs", "infiniband", "rdma_netlink")
    house.look(20)
    assert house.open() == []


def test_sources_that_never_were_there_have_not_stopped():
    house = Guarded()
    house.up("verbs", "infiniband", down=("verbs", "infiniband"))
    assert house.look(20) == []


def test_a_recording_that_is_replaced_and_a_configuration_that_changes_are_told(tmp_path):
    recording, settings = tmp_path / "ring", tmp_path / "fabrictap.yaml"
    recording.write_text("ours")
    settings.write_text("agent: {}")
    files = [
        WatchedFile("recording", str(recording), content=False),
        WatchedFile("configuration", str(settings), content=True),
    ]
    house = Guarded()

    def look():
        house.detectors._files = tuple(file.state() for file in files)
        return house.look()

    recording.write_text("as every tick does")
    settings.touch()
    assert look() == []
    other = tmp_path / "other"
    other.write_text("theirs")
    other.replace(recording)
    settings.write_text("agent: {log_level: error}")
    found = look()
    assert kinds(found) == ["file_replaced", "file_replaced"]
    assert sorted(record.body for record in found) == [
        f"configuration {settings} has changed since it was read",
        f"recording {recording} is another file than the one that the agent writes",
    ]
    files[1].accept()
    recording.unlink()
    assert [file.state().changed for file in files] == ["is gone", None]


def test_a_fifo_in_the_place_of_the_configuration_does_not_hang(tmp_path):
    path = tmp_path / "c"
    path.write_text("")
    file = WatchedFile("configuration", str(path), content=True)
    path.unlink()
    os.mkfifo(path)
    assert file.state() == FileState("configuration", str(path), "has changed since it was read")


# --- links ----------------------------------------------------------------------------------------


class Linked(House):
    def __init__(self):
        super().__init__(Links())
        self.state()
        self.speed(200)

    def state(self, up=1, state="active"):
        for series in list(self.table):
            if series.metric is catalog.NETWORK_UP:
                self.table.end(series)
        self.count(catalog.NETWORK_UP, up, RDMA_PORT_STATE=state)

    def speed(self, gigabits):
        self.count(catalog.NETWORK_LIMIT, gigabits / 8 * 1e9)

    def counts(self, metric, name, per_look, times=20):
        made = []
        total = 1000
        for _ in range(times):
            total += per_look
            if metric is catalog.ERRORS:
                self.count(metric, total, ERROR_TYPE=name)
            else:
                self.count(metric, total, RDMA_COUNTER_NAME=name)
            made += self.look()
        return made


def test_errors_faster_than_the_limit_are_told_and_a_few_are_not():
    assert kinds(Linked().counts(catalog.ERRORS, "symbol_error", 10)) == ["link_errors"]
    assert Linked().counts(catalog.ERRORS, "symbol_error", 1) == []


def test_errors_of_nvlinks_are_told_link_by_link_and_those_of_gpu_memory_are_not_links():
    house = House(Links())
    made = []
    for step in range(1, 20):
        for link in (0, 1, 2):
            total = step * 100 * (link > 0)
            house.count(
                catalog.ERRORS, total, HW_ID="GPU-1", HW_TYPE="gpu", ERROR_TYPE="nvlink_crc", GPU_LINK=link
            )
        house.count(catalog.ERRORS, step * 100, HW_ID="GPU-1", HW_TYPE="gpu", ERROR_TYPE="ecc_corrected")
        made += house.look()
    assert [record.attributes["gpu.nvlink.link"] for record in made] == [1, 2]


def test_one_link_that_went_down_is_one_too_many():
    house = Linked()
    house.counts(catalog.ERRORS, "link_downed", 0)
    assert kinds(house.counts(catalog.ERRORS, "link_downed", 1, times=1)) == ["link_errors"]


def test_what_was_counted_before_the_agent_came_is_not_told():
    house = Linked()
    house.count(catalog.ERRORS, 10**9, ERROR_TYPE="symbol_error")
    house.look()
    house.count(catalog.ERRORS, 10**9, ERROR_TYPE="symbol_error")
    assert house.look(20) == []


def test_retransmissions_are_told_apart_from_other_counters():
    assert kinds(Linked().counts(catalog.PORT_COUNTER, "out_of_sequence", 1000)) == ["retransmissions"]
    assert kinds(Linked().counts(catalog.ERRORS, "packet_seq_err", 1000)) == ["retransmissions"]
    assert Linked().counts(catalog.PORT_COUNTER, "out_of_sequence", 100) == []
    assert Linked().counts(catalog.PORT_COUNTER, "rx_read_requests", 10**6) == []


def test_a_port_that_goes_down_or_slower_is_told_and_ends_when_it_is_back():
    house = Linked()
    house.look(5)
    house.state(0, "down")
    (record,) = house.look(5)
    assert (kinds([record]), record.body) == (["link_degraded"], f"{DEVICE}/1 is down; it was active")
    house.state()
    house.look(20)
    assert house.open() == []
    house.speed(100)
    (record,) = house.look(5)
    assert record.body == f"{DEVICE}/1 runs at 100 Gbit/s; it ran at 200"


def test_a_port_that_never_was_up_is_no_finding():
    house = House(Links())
    house.count(catalog.NETWORK_UP, 0, RDMA_PORT_STATE="down")
    assert house.look(20) == []


# --- GPUs -----------------------------------------------------------------------------------------


class Racked(House):
    def __init__(self, *workloads, **settings):
        super().__init__(GpuUse(), **settings)
        self.split()
        for pid, workload in enumerate(workloads, 1):
            self.process(pid, "python", workload)
        self.ledger.gpus.use("GPU-1", range(1, len(workloads) + 1))

    def split(self, *migs):
        self.ledger.gpus.put(Gpu("GPU-1", 0, migs=tuple(MigDevice(mig, "GPU-1", 0, 0) for mig in migs)))


def test_a_gpu_that_two_pods_share_without_mig_is_told_and_two_tenants_weigh_more():
    (record,) = Racked(TRAIN, STORE).look(5)
    assert (kinds([record]), record.severity) == (["gpu_shared"], Severity.INFO)
    assert record.attributes["hw.id"] == "GPU-1"
    (record,) = Racked(TRAIN, STORE, policy=rules(tenant_by="k8s.namespace.name")).look(5)
    assert record.severity == Severity.WARN


def test_one_pod_one_tenant_mig_and_daemons_of_the_node_are_no_sharing():
    assert Racked(TRAIN, TRAIN, Workload(unit="nvidia-dcgm.service")).look(5) == []
    house = Racked(TRAIN, STORE)
    house.split("MIG-1", "MIG-2")
    assert house.look(5) == []
    assert Racked(TRAIN, STORE, policy=rules({"tenant": "us"})).look(5) == []


def test_mig_devices_that_change_are_told():
    house = Racked()
    house.split("MIG-1", "MIG-2")
    assert house.look(5) == []
    house.split("MIG-1")
    assert kinds(house.look(5)) == ["mig_changed"]


def test_confidential_computing_that_goes_off_is_told_and_one_that_never_was_on_is_not():
    def set_to(house, value):
        house.table.series(catalog.GPU_CONFIDENTIAL, {"hw.id": "GPU-1"}, house.now).set(value, house.now)
        return house.look(5)

    house = Racked()
    assert set_to(house, 1) == []
    assert kinds(set_to(house, 0)) == ["confidential_off"]
    assert set_to(Racked(), 0) == []


# --- with the real balance --------------------------------------------------------------------------


@pytest.mark.parametrize(("stolen", "expected"), [(8 * MiB, ["remote_read_egress"]), (0, [])])
def test_the_balance_of_hardware_and_software_leads_to_the_victim(stolen, expected):
    """The reconciler itself, fed with what a RoCE port counts while a process sends and another is read."""
    house = House(Dark())
    reconciler = Reconciler(house.table, house.ledger)
    victim(house)
    moved, packets, posted = 0, 0, 0
    for _ in range(40):
        house.now += SECOND
        payload = 4 * MiB + stolen
        moved += payload + 58 * (payload // 1024)
        packets += payload // 1024
        posted += 4 * MiB
        sides = {"transmit": (moved, packets, packets), "receive": (0, 0, 0)}
        traffic = house.ledger.traffic
        traffic.ports = {f"{DEVICE}/1": PortTraffic(house.now, DEVICE, 1, "ethernet", True, 1518, 0, sides)}
        traffic.posted = {f"{DEVICE}/1": PortPosted(posted)}
        traffic.posted_until_ns = house.now
        reconciler.fold(house.now)
        house.detectors.look(house.now, reconciler.balances())
    records = house.board.take_records()
    assert sorted(set(kinds(records))) == expected
    if expected:
        assert records[0].attributes["process.pid"] == 42
        assert records[0].time_ns - MIDNIGHT < 15 * SECOND
