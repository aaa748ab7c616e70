"""From a pid to the attributes of its series: names that come later, pids that come back, a budget."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from doubles import raw_records as raw
from doubles.verbs_node import RTR, RTS, Node, created, destroyed, modified
from fabrictap import catalog
from fabrictap.config import Config
from fabrictap.insight.identities import Identities
from fabrictap.insight.inventory import Inventory
from fabrictap.ledger import Ledger
from fabrictap.ledger.memory import MemoryRegion
from fabrictap.ledger.processes import Process, read
from fabrictap.ledger.workloads import NONE, Container, Device, Pod, Resolver, Workload, attributes
from fabrictap.ledger.workloads.budget import DROP_ORDER
from fabrictap.ledger.workloads.procfs import Reader
from fabrictap.series import SeriesTable
from fabrictap.sources.rdma_netlink.source import RdmaNetlink

UID = "2c48913c-b29f-11e7-9350-020968147796"
ID = "9bca8d63d5fa610783847915bcff0ecac1273e5b4bed3f6fa1b07350e0135961"
IN_POD = Workload(container_id=ID, runtime="containerd", pod_uid=UID, qos="guaranteed")


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(Config())


def put(ledger: Ledger, pid: int, workload: Workload, ticks: int = 100, name: str = "train") -> None:
    ledger.processes.put(Process(pid, name, 1.0, ticks, workload))


def test_every_attribute_is_the_catalogs_and_has_its_place_in_the_budget():
    whole = Workload(
        container_id=ID,
        runtime="containerd",
        pod_uid=UID,
        qos="burstable",
        pod_name="p",
        namespace="ml",
        container_name="main",
        slurm_job="1",
        slurm_step="0",
        slurm_task="0",
        slurm_uid=7,
        slurm_user="anna",
        slurm_origin="cgroup",
        unit="a.service",
        slice="system.slice",
    )
    made = {"process.pid": 1, "process.executable.name": "x", **attributes(whole)}
    assert set(made) == {name for step in DROP_ORDER for name in step}
    for span_or_metric in (catalog.QP_STATUS, catalog.VERBS_IO, catalog.MR_SIZE, catalog.FLOW_SPAN):
        assert set(made) <= {attribute.name for attribute in span_or_metric.attributes}
    assert attributes(NONE) == {}


def test_the_kernel_and_a_process_that_nobody_read(ledger: Ledger):
    assert ledger.identity(None) == {"process.executable.name": "[kernel]"}
    assert ledger.identity(7) == {"process.pid": 7}
    assert ledger.identity(7, "train") == {"process.pid": 7, "process.executable.name": "train"}
    assert len(ledger.workloads.budget) == 1


def test_names_that_come_later_change_the_identity_and_hold_one_place(ledger: Ledger):
    put(ledger, 7, IN_POD)
    before = ledger.identity(7)
    assert before["k8s.pod.uid"] == UID
    assert "k8s.pod.name" not in before
    assert ledger.identity(7) is before, "made once"
    ledger.workloads.name({UID: Pod(UID, "ml", "train-0")}, {ID: Container("ml", "train-0", "main")})
    after = ledger.identity(7)
    assert after == {
        **before,
        "k8s.namespace.name": "ml",
        "k8s.pod.name": "train-0",
        "k8s.container.name": "main",
    }
    ledger.workloads.name({UID: Pod(UID, "ml", "train-0")}, {ID: Container("ml", "train-0", "main")})
    assert ledger.identity(7) is after, "the same names change nothing"
    assert len(ledger.workloads.budget) == 1


def test_a_pid_that_comes_back_has_nothing_of_its_predecessor(ledger: Ledger):
    put(ledger, 7, IN_POD)
    assert ledger.identity(7)["container.id"] == ID
    put(ledger, 7, Workload(slurm_job="3", slurm_origin="cgroup"), ticks=200, name="other")
    assert ledger.identity(7) == {
        "process.pid": 7,
        "process.executable.name": "other",
        "slurm.job.id": "3",
        "slurm.job.origin": "cgroup",
    }
    ledger.processes.remove(7)
    assert ledger.identity(7) == {"process.pid": 7}
    assert len(ledger.workloads.budget) == 1


def test_what_a_process_holds_is_given_back_when_it_owns_nothing(ledger: Ledger):
    series = SeriesTable(100)
    identities = Identities(series, ledger)
    for pid in (7, 8):
        put(ledger, pid, IN_POD)
        ledger.identity(pid)
    ledger.memory.put(MemoryRegion("mlx5_0", 1, 1, 8, None, 1, None))
    ledger.workloads.resolver.losses["gone"] += 2
    identities.fold(10**18)
    assert len(ledger.workloads.budget) == 1
    (lost,) = [s for s in series if s.metric is catalog.WORKLOAD_LOST]
    assert dict(lost.attributes) == {"fabrictap.workload.loss.reason": "gone"}
    ledger.workloads.resolver.losses["gone"] += 3
    identities.fold(10**18 + 10**9)
    assert lost.value == 5


def test_a_flood_of_processes_stays_within_the_budget_and_is_counted():
    config = Config()
    config.limits.identities = 16
    config.limits.processes = 64
    ledger, series = Ledger(config), SeriesTable(100)
    seen = set()
    for pid in range(1, 2000):
        put(ledger, pid, IN_POD)
        seen.add(frozenset(ledger.identity(pid).items()))
    assert len(ledger.workloads.budget) <= 16
    assert len(ledger.workloads._held) <= 64
    assert all(dict(one)["container.id"] == ID for one in seen)
    Identities(series, ledger).fold(10**18)
    levels = {
        s.attributes["fabrictap.identity.level"] for s in series if s.metric is catalog.IDENTITY_DROPPED
    }
    assert levels == {"process"}
    assert len(catalog.IDENTITY_LEVEL.values) == len(DROP_ORDER)


def test_devices_are_owned_by_who_has_them_now(ledger: Ledger):
    workloads = ledger.workloads
    one, two = Container("ml", "a", "main"), Container("ml", "b", "main")
    workloads.assign(
        {Device("nvidia.com/gpu", "GPU-1"): (one,), Device("nvidia.com/gpu", "GPU-2::0"): (two, one)}, 3
    )
    assert workloads.owners("GPU-1") == (one,)
    assert workloads.owners("GPU-2") == (two, one)
    assert (workloads.assigned, workloads.devices_dropped) == (3, 3)
    workloads.assign({})
    assert workloads.owners("GPU-1") == ()


def test_reading_a_process_resolves_it(tmp_path: Path):
    process = read(os.getpid(), "", Resolver(10))
    assert process.start_ticks == Reader().start_ticks(os.getpid())
    assert read(os.getpid(), "").start_ticks is None


def test_netlink_reads_a_pid_again_when_it_is_another_process_or_has_moved(tmp_path: Path, ledger: Ledger):
    now = [0.0]
    pid = os.getpid()
    path = tmp_path / str(pid)
    path.mkdir()

    def become(cgroup: str, ticks: int) -> None:
        (path / "stat").write_text(f"{pid} (x) S " + "0 " * 18 + f"{ticks} 0\n")
        (path / "cgroup").write_text(cgroup)
        (path / "environ").write_text("")
        (path / "status").write_text("")

    config = Config()
    source = RdmaNetlink(config.sources.rdma_netlink, SeriesTable(10), ledger)
    source._resolver = Resolver(10, reader=Reader(str(tmp_path)), clock=lambda: now[0])
    become(f"0::/docker/{ID}\n", 100)
    first = source._process(pid, None)
    assert first.workload.container_id == ID
    assert source._process(pid, first) is first
    become(f"0::/docker/{'b' * 64}\n", 101)
    second = source._process(pid, first)
    assert (second.start_ticks, second.workload.container_id) == (101, "b" * 64)
    become("0::/system.slice/slurmstepd.scope/job_5/step_extern\n", 101)
    now[0] = 100.0
    third = source._process(pid, second)
    assert third.workload.slurm_job == "5"
    for file in path.iterdir():
        file.unlink()
    assert source._process(pid, third) is third, "what has gone is known as it was"


def test_spans_say_whose_they_are_even_when_the_pid_is_already_anothers():
    node = Node()
    workload = Workload(container_id=ID, runtime="docker")
    node.fold(processes=[Process(7, "old", 1.0, 100, workload)])
    node.fold(created(17, pid=7), modified(RTR), modified(RTS))
    # the process ends and its pid comes back, all told in one sample
    successor = Process(7, "new", 2.0, 200, Workload(slurm_job="3", slurm_origin="cgroup"))
    node.fold(destroyed(17, pid=7), created(18, pid=7), processes=[successor])
    for span in node.spans().values():
        assert span.attributes["process.executable.name"] == "old"
        assert span.attributes["container.id"] == ID
        assert "slurm.job.id" not in span.attributes
    node.fold(modified(RTR, 18), modified(RTS, 18), destroyed(18, pid=7))
    for span in node.spans().values():
        assert span.attributes["process.executable.name"] == "new"
        assert span.attributes["slurm.job.id"] == "3"
        assert "container.id" not in span.attributes
        known = {attribute.name for attribute in catalog.FLOW_SPAN.attributes}
        assert {name for name in span.attributes if not name.startswith("rdma.flow.")} <= known


def test_everything_of_a_process_carries_its_workload():
    node = Node()
    node.fold(processes=[Process(7, "train", 1.0, 100, IN_POD)], instrumented={7: node.now})
    node.ledger.workloads.name({UID: Pod(UID, "ml", "train-0")}, {ID: Container("ml", "train-0", "main")})
    node.fold(created(17, pid=7), modified(RTR), modified(RTS))
    node.tick(raw.post(17, operations=4, size=1000, pid=7))
    node.ledger.contexts.opened("mlx5_0", 7, "probe")
    node.ledger.memory.put(MemoryRegion("mlx5_0", 1, 1, 7, None, 4096, 1))
    Inventory(node.table, node.ledger).fold(node.now)
    whole = {
        "process.pid": 7,
        "process.executable.name": "train",
        "k8s.namespace.name": "ml",
        "k8s.pod.name": "train-0",
        "k8s.pod.uid": UID,
        "k8s.container.name": "main",
        "container.id": ID,
        "container.runtime.name": "containerd",
    }
    for metric in (
        catalog.VERBS_IO,
        catalog.VERBS_OPERATIONS,
        catalog.VERBS_MESSAGE_SIZE,
        catalog.QP_STATUS,
        catalog.CONTEXT_COUNT,
        catalog.MR_COUNT,
        catalog.MR_SIZE,
    ):
        series = node.one(metric)
        assert whole.items() <= series.attributes.items(), metric.name
        assert set(series.attributes) <= {attribute.name for attribute in metric.attributes}


def test_processes_that_share_a_series_are_summed():
    config = Config()
    config.limits.identities = 2
    ledger, series = Ledger(config), SeriesTable(100)
    for pid in range(1, 9):
        put(ledger, pid, IN_POD)
        ledger.contexts.opened("mlx5_0", pid, "probe")
    inventory = Inventory(series, ledger)
    inventory.fold(10**18)
    inventory.fold(10**18 + 10**9)
    counts = [s for s in series if s.metric is catalog.CONTEXT_COUNT and not s.ended]
    assert len(counts) == 2
    assert sum(s.value for s in counts) == 8


def test_without_the_nodes_pids_a_probes_pid_is_no_process_of_this_proc():
    node = Node()
    node.verbs._host_pids = False
    process = node.verbs._process(os.getpid(), "ib_write_bw")
    assert process == Process(os.getpid(), "ib_write_bw", None)
    node.verbs._host_pids = True
    assert node.verbs._process(os.getpid(), "ib_write_bw").start_ticks is not None
