"""The slow tier of the nvml source: memory, links, errors, states, MIG, processes, XIDs, topology."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from doubles.nvml.driver import MARKER, NOT_AVAILABLE, Process
from fabrictap import catalog
from fabrictap.catalog import (
    ERRORS,
    GPU_BAR1_LIMIT,
    GPU_BAR1_USAGE,
    GPU_CLOCKS_REASON,
    GPU_CONFIDENTIAL,
    GPU_CONTAINERS,
    GPU_ENERGY,
    GPU_FABRIC,
    GPU_MEMORY_LIMIT,
    GPU_MEMORY_USAGE,
    GPU_MEMORY_UTILIZATION,
    GPU_MIG_MODE,
    GPU_MPS,
    GPU_POWER,
    GPU_PRESENT,
    GPU_PROCESS_MEMORY,
    GPU_PROCESSES,
    GPU_ROW_REMAPPING,
    GPU_TEMPERATURE,
    GPU_UTILIZATION,
    HW_STATUS,
    NVLINK_LIMIT,
    NVLINK_UP,
    PCIE_LIMIT,
)
from fabrictap.insight.inventory import Inventory
from fabrictap.ledger.workloads import Workload
from fabrictap.ledger.workloads.budget import CardinalityBudget
from fabrictap.sources.nvml import fields, pci, processes
from support import eventually

pytest_plugins = ["nvml_fixtures"]


def test_memory_power_and_the_like_are_what_the_driver_says(watch):
    watched = watch("hgx-h100")
    numbers = {
        "memory_used_bytes": 123 << 20,
        "bar1_used_bytes": 77 << 20,
        "utilization_gpu_percent": 42,
        "power_mw": 512_345,
        "energy_mj": 7_654_321,
        "temperature_celsius": 55,
        "pcie_generation": 4,
        "pcie_width": 8,
    }
    for name, value in numbers.items():
        watched.node.value(6, name).rate(0).set(value)
    watched.start()
    gpu = {"hw__id": watched.gpu(6)}
    total = watched.node.value(6, "memory_total_bytes").get()
    assert watched.value(GPU_MEMORY_LIMIT, **gpu) == total
    assert watched.value(GPU_MEMORY_USAGE, **gpu) == 123 << 20
    assert watched.value(GPU_MEMORY_UTILIZATION, **gpu) == pytest.approx((123 << 20) / total)
    assert watched.value(GPU_BAR1_LIMIT, **gpu) == watched.node.value(6, "bar1_total_bytes").get()
    assert watched.value(GPU_BAR1_USAGE, **gpu) == 77 << 20
    assert watched.value(GPU_UTILIZATION, **gpu) == 0.42
    assert watched.value(GPU_POWER, **gpu) == pytest.approx(512.345)
    assert watched.value(GPU_ENERGY, **gpu) == 7654
    assert watched.values(GPU_TEMPERATURE, "hw.sensor_location", **gpu) == {"gpu": 55, "memory": 72}
    assert watched.value(PCIE_LIMIT, **gpu) == round(8 * 16e9 * 128 / 130 / 8)
    assert len(watched.find(GPU_POWER)) == 8


def test_pcie_bandwidth_of_every_generation():
    assert fields.pcie_bandwidth(1, 16) == 4_000_000_000
    assert fields.pcie_bandwidth(5, 16) == 63_015_384_615
    assert fields.pcie_bandwidth(6, 16) == 121_000_000_000
    assert fields.pcie_bandwidth(99, 16) is None


def test_errors_by_type_and_link(watch):
    watched = watch("hgx-h100")
    watched.node.field(1, 94).set(3)
    watched.node.field(1, 142).set(4)
    watched.node.field(1, 143).set(5)
    watched.node.value(1, "ecc_uncorrected_volatile").set(6)
    for link in range(18):
        watched.node.field(1, 161, link).set(100 + link)
        watched.node.field(1, 163, link).set(200 + link)
    watched.start()
    gpu = {"hw__id": watched.gpu(1), "hw__type": "gpu"}

    def count(kind, **more):
        return watched.value(ERRORS, error__type=kind, **gpu, **more)

    assert (count("pcie_replay"), count("row_remap_corrected"), count("row_remap_uncorrected")) == (3, 4, 5)
    assert count("ecc_uncorrected", gpu__ecc__span="volatile") == 6
    assert count("ecc_corrected", gpu__ecc__span="aggregate") == 2
    replays = watched.values(ERRORS, "gpu.nvlink.link", error__type="nvlink_replay", **gpu)
    assert replays == {link: 100 + link for link in range(18)}
    assert count("nvlink_crc", gpu__nvlink__link=17) == 217
    watched.node.field(1, 161, 4).set(110)
    watched.slow(10)
    assert count("nvlink_replay", gpu__nvlink__link=4) == 110


def test_nvlink_5_errors(watch):
    watched = watch("gb200")
    for field in fields.LINK_ERRORS:
        if field >= 206:
            watched.node.field(0, field, 3).set(field)
    watched.start()
    found = watched.values(ERRORS, "error.type", hw__id=watched.gpu(0), gpu__nvlink__link=3)
    assert found == {kind: field for field, kind in fields.LINK_ERRORS.items() if field >= 206}


def test_links_with_state_speed_and_what_they_lead_to(watch):
    watched = watch("hgx-h100")
    watched.node.link_active(0, 5, False)
    watched.start()
    gpu = {"hw__id": watched.gpu(0)}
    up = watched.values(NVLINK_UP, "gpu.nvlink.link", **gpu)
    assert up == {link: int(link != 5) for link in range(18)}
    limits = watched.values(NVLINK_LIMIT, "gpu.nvlink.link", **gpu)
    assert limits == {link: 26_562_000_000 for link in range(18) if link != 5}
    (link,) = watched.find(NVLINK_UP, gpu__nvlink__link=13, **gpu)
    assert link.attributes["gpu.nvlink.remote.type"] == "switch"
    assert link.attributes["gpu.nvlink.remote.pci.address"] == "0000:07:00.0"
    assert link.attributes["gpu.nvlink.remote.link"] == 4
    assert watched.values(HW_STATUS, "hw.state", **gpu) == {"ok": 0, "degraded": 1, "failed": 0}
    assert watched.values(HW_STATUS, "hw.state", hw__id=watched.gpu(1)) == {
        "ok": 1,
        "degraded": 0,
        "failed": 0,
    }


def test_a_remote_end_that_is_a_gpu_of_this_node_is_named(watch):
    watched = watch("hgx-h100")
    for name, number in (("remote_type", 0), ("remote_bus", 0x43)):
        watched.node.link_value(0, 2, name).set(number)
    watched.start()
    (link,) = watched.find(NVLINK_UP, hw__id=watched.gpu(0), gpu__nvlink__link=2)
    assert link.attributes["gpu.nvlink.remote.type"] == "gpu"
    assert link.attributes["gpu.nvlink.remote.gpu"] == watched.gpu(1)


def test_states(watch):
    watched = watch("hgx-h100")
    watched.node.value(2, "clocks_event_reasons").set(0x44)
    watched.node.value(2, "fabric_state").set(2)
    watched.node.field(2, 144).set(1)
    watched.node.node_value("confidential_feature").set(1)
    watched.start()
    gpu = {"hw__id": watched.gpu(2)}
    reasons = watched.values(GPU_CLOCKS_REASON, "gpu.clocks.reason", **gpu)
    assert {name for name, value in reasons.items() if value} == {"sw_power_cap", "hw_thermal"}
    assert set(reasons) == set(catalog.GPU_THROTTLE_REASON.values)
    assert watched.values(GPU_FABRIC, "gpu.fabric.state", **gpu) == {"in_progress": 1}
    assert watched.values(GPU_ROW_REMAPPING, "gpu.row_remap.state", **gpu) == {"pending": 1, "failed": 0}
    assert watched.value(GPU_CONFIDENTIAL, **gpu) == 1
    assert watched.value(GPU_MIG_MODE, **gpu) == 0
    watched.node.value(2, "fabric_state").set(3)
    watched.slow(10)
    assert watched.values(GPU_FABRIC, "gpu.fabric.state", **gpu) == {"completed": 1}


@pytest.mark.parametrize(
    ("field", "value", "state"),
    [(144, 1, "degraded"), (145, 1, "failed"), (230, 1, "degraded"), (230, 2, "failed"), (230, 0, "ok")],
)
def test_the_status_follows_what_the_driver_asks_for(watch, field, value, state):
    watched = watch("hgx-h100")
    watched.node.field(0, field).set(value)
    watched.start()
    states = watched.values(HW_STATUS, "hw.state", hw__id=watched.gpu(0))
    assert {name for name, on in states.items() if on} == {state}


def test_every_gpu_is_present_with_what_is_known_of_it(watch):
    watched = watch("hgx-h100")
    watched.start()
    (gpu,) = watched.find(GPU_PRESENT, gpu__index=3)
    attributes = gpu.attributes
    # the stand-in says of itself what it is, in all that is exported
    assert attributes.pop("hw.driver_version").endswith(MARKER)
    assert attributes == {
        "hw.id": "GPU-0a1b2c3d-4e5f-4a6b-8c7d-000000000003",
        "hw.model": "NVIDIA H100 80GB HBM3",
        "hw.serial_number": "1653023000003",
        "hw.firmware_version": "96.00.74.00.01",
        "gpu.index": 3,
        "gpu.pci.address": "0000:61:00.0",
        "gpu.numa.node": 0,
    }


# --- MIG ------------------------------------------------------------------------------------------


def test_mig_devices_have_their_own_figures_below_their_gpu(watch):
    watched = watch("a100-mig")
    watched.start()
    parent = watched.gpu(0)
    migs = {gpu.id: gpu.migs for gpu in watched.ledger.gpus}[parent]
    assert len(migs) > 1
    found = watched.values(GPU_MEMORY_LIMIT, "hw.id", hw__parent=parent)
    for slot, mig in enumerate(migs):
        assert found[mig.id] == watched.node.mig_value(0, slot, "memory_mib").get() << 20
    assert watched.value(GPU_MIG_MODE, hw__id=parent) == 1
    assert {one.attributes["hw.id"] for one in watched.find(GPU_PRESENT, hw__parent=parent)} == set(found)


def test_processes_belong_to_the_mig_device_that_they_use(watch):
    watched = watch("a100-mig")
    watched.source.open()
    watched.slow()
    migs = {gpu.id: gpu.migs for gpu in watched.ledger.gpus}[watched.gpu(0)]
    watched.node.processes(
        0,
        "compute",
        [Process(os.getpid(), 5 << 20, mig.gpu_instance, mig.compute_instance) for mig in migs[:2]],
    )
    watched.slow(30)
    for mig in migs:
        expected = 1 if mig in migs[:2] else 0
        assert watched.value(GPU_PROCESSES, hw__id=mig.id, hw__parent=watched.gpu(0)) == expected
    assert watched.value(GPU_PROCESS_MEMORY, hw__id=migs[1].id, process__pid=os.getpid()) == 5 << 20


def test_a_mig_device_that_is_taken_apart_ends_and_another_is_found(watch):
    watched = watch("a100-mig")
    watched.start()
    parent = watched.gpu(0)
    gone = next(gpu for gpu in watched.ledger.gpus if gpu.id == parent).migs[0]
    watched.node.remove_mig(0, 0)
    watched.slow(61)
    assert watched.find(GPU_MEMORY_USAGE, hw__id=gone.id) == []
    assert watched.find(GPU_PRESENT, hw__id=gone.id) == []
    assert len(watched.find(GPU_MEMORY_USAGE, hw__id=parent)) == 1


# --- processes ------------------------------------------------------------------------------------


def test_processes_with_name_and_memory_come_and_go(watch):
    watched = watch("hgx-h100")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        watched.node.processes(
            0, "compute", [Process(child.pid, 3 << 30), Process(os.getpid(), NOT_AVAILABLE)]
        )
        watched.node.processes(0, "graphics", [Process(os.getpid(), 1 << 20)])
        watched.start()
        gpu = {"hw__id": watched.gpu(0)}
        python = Path(sys.executable).resolve().name
        found = watched.values(GPU_PROCESS_MEMORY, "process.pid", "gpu.process.type", **gpu)
        assert found == {(child.pid, "compute"): 3 << 30, (os.getpid(), "graphics"): 1 << 20}
        names = {one.attributes["process.executable.name"] for one in watched.find(GPU_PROCESS_MEMORY, **gpu)}
        assert names == {python}
        assert watched.value(GPU_PROCESSES, **gpu) == 2
        assert watched.ledger.processes.get(child.pid).name == python
        child.communicate(b"\n")
    (gone,) = watched.find(GPU_PROCESS_MEMORY, process__pid=child.pid)
    watched.node.processes(0, "compute", [])
    watched.slow(10)
    assert not gone.ended  # processes are asked for every 30 s
    watched.slow(20)
    assert (gone.ended, gone.value) == (True, 0)
    assert watched.value(GPU_PROCESSES, **gpu) == 1


def test_containers_and_mps_servers_that_share_a_gpu_are_counted_and_named(watch, monkeypatch):
    one, other = "a" * 64, "b" * 64
    workloads = {
        1001: Workload(container_id=one, pod_uid="p1", pod_name="train-0", namespace="ml"),
        1002: Workload(container_id=other),
        1003: Workload(container_id=one, pod_uid="p1", pod_name="train-0", namespace="ml"),
        1004: Workload(),
    }

    def read(pid, comm, resolver):
        name = processes.MPS_SERVER if pid == 1004 else "python3"
        return processes.Process(pid, name, 1.0, 1, workloads[pid])

    monkeypatch.setattr(processes.ledger, "read", read)
    watched = watch("hgx-h100")
    watched.node.processes(3, "compute", [Process(pid, pid << 20) for pid in workloads])
    watched.start()
    gpu = {"hw__id": watched.gpu(3)}
    assert watched.value(GPU_PROCESSES, **gpu) == 4
    assert watched.value(GPU_CONTAINERS, **gpu) == 2
    assert watched.value(GPU_MPS, **gpu) == 1
    assert watched.value(GPU_MPS, hw__id=watched.gpu(2)) == 0
    (memory,) = watched.find(GPU_PROCESS_MEMORY, process__pid=1003)
    assert memory.attributes["k8s.pod.name"] == "train-0"
    assert memory.attributes["container.id"] == one
    watched.ledger.sweep()
    assert watched.ledger.identity(1003)["k8s.pod.name"] == "train-0"  # it is not forgotten while it is here


def test_processes_that_are_too_many_to_be_told_apart_are_summed(watch, monkeypatch):
    monkeypatch.setattr(
        processes.ledger, "read", lambda pid, comm, resolver: processes.Process(pid, "python3", 1.0, 1)
    )
    watched = watch("hgx-h100")
    watched.ledger.workloads.budget = CardinalityBudget(1)
    watched.node.processes(0, "compute", [Process(pid, 1 << 20) for pid in range(2000, 2010)])
    watched.start()
    found = watched.find(GPU_PROCESS_MEMORY, hw__id=watched.gpu(0))
    assert len(found) < 10
    assert sum(one.value for one in found) == 10 << 20


# --- XIDs -----------------------------------------------------------------------------------------


def xids(watched, gpu):
    found = watched.values(ERRORS, "error.type", hw__id=watched.gpu(gpu))
    return {kind: count for kind, count in found.items() if kind.startswith("xid_")}


def test_xids_are_counted_by_number_on_their_gpu(watch):
    watched = watch("hgx-h100")
    watched.start()
    eventually(lambda: watched.node.inside("nvmlEventSetWait_v2"), "a thread waits for events")
    for gpu, xid in ((2, 79), (2, 31), (5, 63), (2, 31)):
        watched.node.xid(gpu, xid)

    def counted():
        watched.slow()
        return xids(watched, 2), xids(watched, 5)

    eventually(lambda: counted() == ({"xid_79": 1, "xid_31": 2}, {"xid_63": 1}), "four XIDs are counted")
    assert xids(watched, 0) == {}


def test_nobody_waits_for_xids_where_that_is_off_or_not_to_be_had(watch):
    off = watch("hgx-h100", xid=False)
    off.start()
    assert off.source._xids is None
    off.close()
    without = watch("hgx-h100")
    for gpu in range(8):
        without.node.value(gpu, "supported_events").set(0)
    without.start()
    assert without.source._xids is None
    assert without.source.errors == {}


# --- topology -------------------------------------------------------------------------------------


def device(root: Path, path: str, numa: int) -> Path:
    where = root / "devices" / path
    where.mkdir(parents=True, exist_ok=True)
    (where / "numa_node").write_text(f"{numa}\n")
    return where


def test_the_nearest_rdma_device_by_switch_then_host_bridge_then_numa_node(watch, tmp_path):
    root = tmp_path / "sys"
    places = {
        "0000:1b:00.0": ("pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:02.0/0000:1b:00.0", 0),
        "0000:43:00.0": ("pci0000:37/0000:37:01.0/0000:43:00.0", 0),
        "0000:52:00.0": ("pci0000:50/0000:50:01.0/0000:52:00.0", 0),
        "0000:9d:00.0": ("pci0000:97/0000:97:01.0/0000:9d:00.0", 1),
    }
    (root / "bus/pci/devices").mkdir(parents=True)
    for address, (path, numa) in places.items():
        (root / "bus/pci/devices" / address).symlink_to(device(root, path, numa))
    nics = {
        "mlx5_0": ("pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:01.0/0000:18:00.0", 0),
        "mlx5_1": ("pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:03.0/0000:1c:00.0", 0),
        "mlx5_2": ("pci0000:37/0000:37:03.0/0000:3a:00.0", 0),
    }
    for name, (path, numa) in nics.items():
        entry = root / "class/infiniband" / name
        entry.mkdir(parents=True)
        (entry / "device").symlink_to(device(root, path, numa))
    (root / "class/infiniband/rxe0").mkdir()
    watched = watch("hgx-h100", sysfs=root)
    watched.start()
    near = {
        gpu.pci: (gpu.rdma, gpu.rdma_distance, gpu.numa) for gpu in watched.ledger.gpus if gpu.pci in places
    }
    assert near == {
        "0000:1b:00.0": (("mlx5_0", "mlx5_1"), "switch", 0),
        "0000:43:00.0": (("mlx5_2",), "host_bridge", 0),
        "0000:52:00.0": (("mlx5_0", "mlx5_1", "mlx5_2"), "numa", 0),
        "0000:9d:00.0": (("mlx5_0", "mlx5_1", "mlx5_2"), "system", 1),
    }
    (present,) = watched.find(GPU_PRESENT, gpu__index=0)
    assert present.attributes["gpu.rdma.devices"] == "mlx5_0,mlx5_1"
    assert pci.place(root / "nowhere") is None


# --- what can be had ------------------------------------------------------------------------------


def test_what_each_provider_delivers_is_exported(watch):
    watched = watch("a100-mig")
    watched.start()
    Inventory(watched.table, watched.ledger).fold(watched.node.now_ns)
    available = watched.values(catalog.METRIC_AVAILABLE, "fabrictap.metric", fabrictap__provider="nvml")
    assert available["gpu.nvlink.io"] == 8
    # two GPUs are split, and the driver has no figure of the whole then
    assert available["hw.gpu.utilization"] == 6
    missing = watched.values(
        catalog.METRIC_UNAVAILABLE,
        "fabrictap.metric",
        "fabrictap.unavailable.reason",
        fabrictap__provider="nvml",
    )
    assert missing["hw.gpu.utilization", "not_supported"] == 2
    assert missing["gpu.nvlink.packets", "not_supported"] == 8
