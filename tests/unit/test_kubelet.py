"""The kubelet as a source: one that is well, one that hangs, one that lies, one with 10,000 pods."""

from __future__ import annotations

import random
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from doubles.kubelet import Kubelet as StandIn
from doubles.kubelet import answer
from fabrictap import catalog
from fabrictap.config import Config
from fabrictap.ledger import Ledger
from fabrictap.ledger.workloads import Container, Device, Workload
from fabrictap.series import SeriesTable
from fabrictap.sources import SourceUnavailable
from fabrictap.sources.kubelet.podresources import PodResourcesError, decode
from fabrictap.sources.kubelet.source import Kubelet

UID = "2c48913c-b29f-11e7-9350-020968147796"
ID = "9bca8d63d5fa610783847915bcff0ecac1273e5b4bed3f6fa1b07350e0135961"
GPU = "GPU-5a1f7b1c-3f5e-4b1e-9c3a-0d6f4b2f9f10"
TRAIN = Container("ml", "train-0", "main")
TOPOLOGY = {"nodes": [{"ID": 1}]}


def pod(
    name: str = "train-0", devices: dict[str, list[str]] | None = None, **more: object
) -> dict[str, object]:
    held = [
        {"resource_name": resource, "device_ids": ids, "topology": TOPOLOGY}
        for resource, ids in (devices or {}).items()
    ]
    container = {"name": "main", "devices": held, "cpu_ids": [1, 2], **more}
    return {"name": name, "namespace": "ml", "containers": [{"name": "sidecar"}, container]}


class Node:
    """A source with a series table and a ledger, and a kubelet's directories below ``root``."""

    def __init__(self, root: Path, seconds: float = 5.0, **limits: int) -> None:
        self.config = Config()
        kubelet = self.config.sources.kubelet
        self.socket = root / "s"
        kubelet.socket, kubelet.pods_log_dir = str(self.socket), str(root / "pods")
        for name, value in limits.items():
            setattr(self.config.limits, name, value)
        self.series = SeriesTable(self.config.limits.series)
        self.ledger = Ledger(self.config)
        self.source = Kubelet(kubelet, self.config.limits, self.series, self.ledger, seconds)
        self.now = 10**18

    def tick(self) -> None:
        self.now += 15 * 10**9
        self.source.fold(self.source.sample(), self.now)

    def assigned(self) -> dict[str, object]:
        return {
            str(series.attributes["fabrictap.device.id"]): series.value
            for series in self.series
            if series.metric is catalog.DEVICE_ASSIGNMENT and not series.ended
        }


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., StandIn]]:
    started: list[StandIn] = []

    def start(respond: Callable[[], bytes]) -> StandIn:
        started.append(StandIn(tmp_path / "s", respond))
        return started[-1]

    yield start
    for stand_in in started:
        stand_in.stop()


def test_devices_of_every_kind_have_their_pod(tmp_path: Path, serve: Callable[..., StandIn]):
    devices = {
        "nvidia.com/gpu": [GPU],
        "nvidia.com/mig-1g.10gb": ["MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f"],
        "rdma/hca": ["0000:81:00.2"],
    }
    claims = [
        {
            "claim_name": "gpus",
            "claim_namespace": "ml",
            "claim_resources": [
                {"driver_name": "gpu.nvidia.com", "pool_name": "node-1", "device_name": "gpu-3"},
                {"cdi_devices": [{"name": "k8s.gpu.nvidia.com/claim=u-gpu-0"}]},
            ],
        }
    ]
    serve(lambda: answer([pod(devices=devices, dynamic_resources=claims), pod("idle")]))
    node = Node(tmp_path)
    node.tick()
    assert node.ledger.workloads.devices == {
        Device("nvidia.com/gpu", GPU): (TRAIN,),
        Device("nvidia.com/mig-1g.10gb", "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f"): (TRAIN,),
        Device("rdma/hca", "0000:81:00.2"): (TRAIN,),
        Device("gpu.nvidia.com", "node-1/gpu-3", dynamic=True): (TRAIN,),
        Device("k8s.gpu.nvidia.com/claim", "u-gpu-0", dynamic=True): (TRAIN,),
    }
    assert node.ledger.workloads.owners(GPU) == (TRAIN,)
    assert node.ledger.workloads.owners("GPU-other") == ()
    assert set(node.assigned().values()) == {1}
    (series,) = [s for s in node.series if s.attributes.get("fabrictap.device.id") == GPU]
    assert series.attributes == {
        "fabrictap.device.resource": "nvidia.com/gpu",
        "fabrictap.device.id": GPU,
        "k8s.namespace.name": "ml",
        "k8s.pod.name": "train-0",
        "k8s.container.name": "main",
    }
    assert node.source.errors == {"unreadable": 1}, "this node has no log directory"


def test_shares_of_one_gpu_are_owned_by_all_who_have_one(tmp_path: Path, serve: Callable[..., StandIn]):
    pods = [pod(f"p{n}", {"nvidia.com/gpu.shared": [f"{GPU}::{n}"]}) for n in range(3)]
    serve(lambda: answer([*pods, pod("p9", {"nvidia.com/gpu": [GPU]})]))
    node = Node(tmp_path)
    node.tick()
    assert {owner.pod for owner in node.ledger.workloads.owners(GPU)} == {"p0", "p1", "p2", "p9"}


def test_a_device_that_goes_to_another_pod_changes_hands(tmp_path: Path, serve: Callable[..., StandIn]):
    pods = [pod(devices={"nvidia.com/gpu": [GPU]})]
    serve(lambda: answer(pods))
    node = Node(tmp_path)
    node.tick()
    pods[:] = [pod("next", {"nvidia.com/gpu": [GPU]})]
    node.tick()
    assert [owner.pod for owner in node.ledger.workloads.owners(GPU)] == ["next"]
    ended = [s for s in node.series if s.ended and s.attributes.get("k8s.pod.name") == "train-0"]
    assert [series.value for series in ended] == [0]


def test_without_a_kubelet_the_source_says_what_is_missing(tmp_path: Path):
    node = Node(tmp_path / "none", 2.0)
    with pytest.raises(SourceUnavailable, match=r"pods cannot be read: No such file.*does not answer"):
        node.source.sample()
    assert not Kubelet.wanted(node.config.sources.kubelet)
    (tmp_path / "none" / "pods").mkdir(parents=True)
    assert Kubelet.wanted(node.config.sources.kubelet)
    node.config.sources.kubelet.enabled = "off"
    assert not Kubelet.wanted(node.config.sources.kubelet)


def test_one_that_hangs_costs_its_deadline_and_the_names_still_come(
    tmp_path: Path, serve: Callable[..., StandIn]
):
    (tmp_path / "pods" / f"ml_train-0_{UID}").mkdir(parents=True)
    node = Node(tmp_path, 0.3)
    stand_in = serve(lambda: answer([pod(devices={"nvidia.com/gpu": [GPU]})]))
    node.tick()
    assert node.assigned() == {GPU: 1}
    good, stand_in._respond = stand_in._respond, lambda: bytes(stand_in.let_go.wait(60))
    for _ in range(3):
        began = time.monotonic()
        node.tick()
        assert time.monotonic() - began < 3
        assert node.assigned() == {GPU: 1}, "a restart of the kubelet does not take devices away"
    node.tick()
    assert node.assigned() == {}
    assert node.source.errors["deadline_exceeded"] == 4
    assert node.ledger.workloads.complete(Workload(pod_uid=UID)).pod_name == "train-0"
    stand_in.let_go.set()
    stand_in._respond = good
    node.tick()
    assert node.assigned() == {GPU: 1}


def test_a_socket_that_nobody_serves_costs_its_deadline(tmp_path: Path):
    node = Node(tmp_path, 0.3)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(node.socket))
        silent.listen()
        began = time.monotonic()
        with pytest.raises(SourceUnavailable):
            node.source.sample()
        assert time.monotonic() - began < 3


def test_ten_thousand_pods_are_taken_and_more_are_counted(tmp_path: Path, serve: Callable[..., StandIn]):
    many = answer([pod(f"p{n}", {"nvidia.com/gpu": [f"GPU-{n}"]}) for n in range(10_000)])
    serve(lambda: many)
    node = Node(tmp_path, device_assignments=10_000)
    began = time.monotonic()
    node.tick()
    assert time.monotonic() - began < 10
    assert len(node.ledger.workloads.devices) == 10_000
    assert "too_many" not in node.source.errors
    small = Node(tmp_path, pods=100, device_assignments=50)
    small.tick()
    assert len(small.ledger.workloads.devices) == 50
    assert small.source.errors["too_many"] == 50 + 100


def test_an_answer_larger_than_any_client_takes_is_refused(tmp_path: Path, serve: Callable[..., StandIn]):
    serve(lambda: b"\x0a\x00" * (9 << 20))
    node = Node(tmp_path)
    with pytest.raises(SourceUnavailable, match="resource_exhausted"):
        node.source.sample()


def test_millions_of_empty_pods_take_no_memory():
    lie = b"\x0a\x00" * (4 << 20)
    tracemalloc.start()
    try:
        made = decode(lie, 10_000, 100)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (made.devices, made.rejected) == ({}, 10_000)
    assert made.dropped == 10_000
    assert peak < 4 << 20


def test_names_that_are_none_are_counted_and_the_others_stay(tmp_path: Path, serve: Callable[..., StandIn]):
    bad = [
        pod("Train\n", {"nvidia.com/gpu": ["GPU-1"]}),
        {**pod("p", {"nvidia.com/gpu": ["GPU-2"]}), "namespace": "../../x"},
        {
            **pod("p"),
            "containers": [{"name": "x\x1b[2J", "devices": [{"resource_name": "r", "device_ids": ["3"]}]}],
        },
        pod(devices={"nvidia.com/gpu\n\x00" + "y" * 1000: ["GPU\u202e4\n"]}),
    ]
    serve(lambda: answer([*bad, pod("good", {"nvidia.com/gpu": [GPU]})]))
    node = Node(tmp_path)
    node.tick()
    assert node.source.errors["rejected_name"] == 3
    odd, good = node.ledger.workloads.devices
    assert good == Device("nvidia.com/gpu", GPU)
    assert odd.id == r"GPU\u202e4\n"
    assert odd.resource.startswith(r"nvidia.com/gpu\n\x00yy")
    assert len(odd.resource) <= 128


def test_what_is_no_answer_is_one_error_and_never_a_fault():
    whole = answer([pod(f"p{n}", {"nvidia.com/gpu": [f"GPU-{n}"]}) for n in range(3)])
    rng = random.Random(1)
    outcomes = set()
    for _ in range(5000):
        broken = bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        if rng.random() < 0.3:
            del broken[rng.randrange(len(broken)) :]
        try:
            made = decode(bytes(broken), 100, 100)
        except PodResourcesError as error:
            outcomes.add(error.word)
            continue
        outcomes.add("taken")
        for device, containers in made.devices.items():
            assert device.id.isprintable()
            assert device.resource.isprintable()
            assert all(container.name.isascii() for container in containers)
    assert outcomes == {"malformed", "taken"}
    for lie in (b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f", b"\x0b", b"\x0a"):
        with pytest.raises(PodResourcesError):
            decode(lie, 10, 10)
    assert decode(b"\x10\x05\x19" + b"x" * 8 + b"\x25" + b"x" * 4 + b"\x12\x01x", 10, 10).devices == {}


def test_a_kubelet_that_is_restarted_is_found_again(tmp_path: Path, serve: Callable[..., StandIn]):
    node = Node(tmp_path, 2.0)
    first = serve(lambda: answer([pod(devices={"nvidia.com/gpu": [GPU]})]))
    node.tick()
    first.stop()
    node.socket.unlink(missing_ok=True)
    with pytest.raises(SourceUnavailable):
        node.source.sample()
    second = serve(lambda: answer([pod(devices={"nvidia.com/gpu": ["GPU-new"]})]))
    node.tick()
    assert node.assigned() == {"GPU-new": 1}
    assert (first.calls, second.calls) == (1, 1)
    assert threading.active_count() < 50
