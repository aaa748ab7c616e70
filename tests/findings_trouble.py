"""Days on which something breaks or is taken away, each beside one that only looks like it."""

from __future__ import annotations

import random
from pathlib import Path
from tempfile import TemporaryDirectory

from fabrictap import catalog
from fabrictap.insight.detectors import SourceState
from fabrictap.insight.filewatch import WatchedFile
from fabrictap.ledger.gpus import Gpu, MigDevice
from fabrictap.ledger.workloads import Workload
from findings_house import GiB, MiB, rules
from findings_node import Node, Scenario, pod

_SOURCES = ("verbs", "infiniband", "rdma_netlink", "nvml")


def _sources(node: Node, *down: str) -> None:
    node.sources = [
        SourceState(name, name not in down, "gone" if name in down else None) for name in _SOURCES
    ]


def _probe(node: Node, places: int, name: str = "fexit_modify_qp", method: str = "fexit") -> None:
    labels = {"fabrictap.probe": name, "fabrictap.probe.method": method}
    node.table.series(catalog.PROBE_ATTACHED, labels, node.now).set(places, node.now)


def _lost(node: Node, count: int) -> None:
    labels = {"fabrictap.source": "verbs", "fabrictap.loss.reason": "buffer_full"}
    node.table.series(catalog.LOST, labels, node.now).observe(count, node.now)


def _probed(node: Node) -> None:
    _sources(node)
    _probe(node, 2)
    _lost(node, 0)


# --- dark egress without an owner -------------------------------------------------------------------


def bypass(node: Node, chance: random.Random) -> None:
    """Something posts around every library that is probed, and nobody's memory may be read."""
    links = node.start(200, pod("train-4"), 4)

    def work() -> None:
        node.sends(links, 10 * MiB)
        node.balance.dark += chance.randint(50, 200) * MiB

    node.minutes(3, work)


# --- tampering --------------------------------------------------------------------------------------


def probe_taken_away(node: Node, chance: random.Random) -> None:
    _probed(node)
    links = node.start(210, pod("train-5"), 4)
    node.minutes(chance.randint(2, 5), lambda: node.sends(links, MiB))
    _probe(node, 0)
    node.minutes(2, lambda: node.sends(links, MiB))


def probes_come_one_by_one(node: Node, chance: random.Random) -> None:
    """Libraries of containers come and go: their probes do, too."""
    _probed(node)

    def work() -> None:
        _probe(node, chance.randint(1, 9), "post_send_entry", "uprobe")

    for places in (0, 1, 3):
        _probe(node, places, "kprobe_x")
        node.look(chance.randint(1, 5))
    node.minutes(5, work)


def blinded(node: Node, chance: random.Random) -> None:
    """The probes say that they are attached, and only netlink sees connections."""
    _probed(node)
    node.start(220, pod("train-6"), 4)
    node.minutes(3, lambda: None)
    node.start(221, pod("hidden"), chance.randint(3, 9), base=300, origin="netlink")
    node.minutes(3, lambda: None)


def busy_start(node: Node, chance: random.Random) -> None:
    """Connections older than the agent, and records lost under load: no blindness."""
    _probed(node)
    node.start(230, pod("old"), 50, origin="netlink")
    node.minutes(3, lambda: None)
    for burst in range(1, 20):
        node.start(230 + burst, pod(f"new-{burst}"), 2, origin="netlink")
        _lost(node, burst * chance.randint(10, 100))
        node.look(2)


def coverage_falls(node: Node, chance: random.Random) -> None:
    _probed(node)
    links = node.start(240, pod("train-7"), chance.randint(20, 60))
    node.minutes(2, lambda: node.sends(links, MiB))
    for connection in links[: len(links) * 3 // 4]:
        connection.cover("control_only", None)
    node.minutes(2, lambda: None)


def never_covered(node: Node, chance: random.Random) -> None:
    """A node whose jobs all post past the probed libraries, from the first day on."""
    _probed(node)
    links = node.start(250, pod("nvshmem"), chance.randint(20, 60), coverage="control_only")
    node.minutes(5, lambda: None)
    for connection in links:
        node.end(connection)
    node.minutes(1, lambda: None)


def blackout(node: Node, chance: random.Random) -> None:
    _sources(node)
    node.look(chance.randint(3, 30))
    _sources(node, "verbs", "infiniband", "rdma_netlink")
    node.look(12)


def one_after_the_other(node: Node, chance: random.Random) -> None:
    """An upgrade of the driver: each source goes for a moment, never two within half a minute."""
    _sources(node)
    node.look(5)
    for name in _SOURCES:
        _sources(node, name)
        node.look(chance.randint(1, 6))
        _sources(node)
        node.look(12)


def recording_swapped(node: Node, chance: random.Random) -> None:
    with TemporaryDirectory() as directory:
        recording, other = Path(directory, "ring"), Path(directory, "other")
        recording.write_text("ours")
        watched = WatchedFile("recording", str(recording), content=False)
        for _ in range(chance.randint(2, 10)):
            recording.write_text("as every tick does")
            node.detectors._files = (watched.state(),)
            node.look()
        other.write_text("theirs")
        other.replace(recording)
        node.detectors._files = (watched.state(),)
        node.look(3)


# --- links ------------------------------------------------------------------------------------------


def _port(node: Node, up: int, gigabits: float) -> None:
    node.count(catalog.NETWORK_UP, up, RDMA_PORT_STATE="active" if up else "down")
    node.count(catalog.NETWORK_LIMIT, gigabits / 8 * 1e9)


def narrower(node: Node, chance: random.Random) -> None:
    """A cable that is trained anew at half its speed."""
    _port(node, 1, 400)
    node.look(chance.randint(5, 30))
    _port(node, 1, 200)
    node.look(5)


def goes_down(node: Node, chance: random.Random) -> None:
    _port(node, 1, 400)
    node.look(chance.randint(5, 30))
    _port(node, 0, 400)
    node.look(5)


def unplugged(node: Node, chance: random.Random) -> None:
    """A port that never had a cable, and one that is always as slow as this."""
    _port(node, 0, 10)
    node.look(chance.randint(20, 60))


def congested(node: Node, chance: random.Random) -> None:
    """A peer that loses packets: repeated by the thousand, with a pause now and then."""
    repeated = 0

    def work() -> None:
        nonlocal repeated
        repeated += 0 if chance.random() < 0.1 else chance.randint(2000, 9000)
        node.count(catalog.PORT_COUNTER, repeated, RDMA_COUNTER_NAME="local_ack_timeout_err")

    node.minutes(5, work)


# --- GPUs -------------------------------------------------------------------------------------------


def _gpu(node: Node, *migs: str) -> None:
    node.ledger.gpus.put(Gpu("GPU-1", 0, migs=tuple(MigDevice(mig, "GPU-1", 0, 0) for mig in migs)))


def _uses(node: Node, *workloads: Workload) -> None:
    for pid, workload in enumerate(workloads, 300):
        node.process(pid, "python", workload)
    node.ledger.gpus.use("GPU-1", range(300, 300 + len(workloads)))


def shared_gpu(node: Node, chance: random.Random) -> None:
    _gpu(node)
    _uses(node, pod("a", "blue"), *[pod("b", "red")] * chance.randint(1, 4))
    node.minutes(2, lambda: None)


def split_gpu(node: Node, chance: random.Random) -> None:
    """Tenants on MIG devices of one GPU, and the node's own monitoring."""
    _gpu(node, *(f"MIG-{number}" for number in range(chance.randint(2, 7))))
    _uses(node, pod("a", "blue"), pod("b", "red"), Workload(unit="nvidia-dcgm.service"))
    node.minutes(2, lambda: None)


def one_tenant(node: Node, chance: random.Random) -> None:
    """The workers of one training job on one GPU, under MPS."""
    _gpu(node)
    _uses(node, *[pod("train-8")] * chance.randint(2, 8), Workload(unit="nvidia-dcgm.service"))
    node.minutes(2, lambda: None)


def split_anew(node: Node, chance: random.Random) -> None:
    _gpu(node, "MIG-1", "MIG-2")
    node.look(chance.randint(2, 20))
    _gpu(node, "MIG-3")
    node.look(3)


def _confidential(node: Node, value: int) -> None:
    node.table.series(catalog.GPU_CONFIDENTIAL, {"hw.id": "GPU-1"}, node.now).set(value, node.now)


def confidence_lost(node: Node, chance: random.Random) -> None:
    _gpu(node)
    _confidential(node, 1)
    node.look(chance.randint(2, 20))
    _confidential(node, 0)
    node.look(3)


def never_confidential(node: Node, chance: random.Random) -> None:
    _gpu(node)
    _confidential(node, 0)
    node.register(1, 100, GiB, 0)
    node.look(chance.randint(5, 20))


_TENANTS = rules(tenant_by="k8s.namespace.name")


def _tells(*kinds: str) -> frozenset[str]:
    return frozenset(kinds)


TROUBLE = (
    Scenario("posts around the libraries", bypass, _tells("dark_egress")),
    Scenario("probe taken away", probe_taken_away, _tells("probe_detached")),
    Scenario("probes come one by one", probes_come_one_by_one),
    Scenario("blinded probes", blinded, _tells("probes_blind")),
    Scenario("busy start", busy_start),
    Scenario("coverage falls", coverage_falls, _tells("coverage_fell")),
    Scenario("never covered", never_covered),
    Scenario("blackout", blackout, _tells("sources_down")),
    Scenario("one source after the other", one_after_the_other),
    Scenario("recording swapped", recording_swapped, _tells("file_replaced")),
    Scenario("link at half its speed", narrower, _tells("link_degraded")),
    Scenario("link goes down", goes_down, _tells("link_degraded")),
    Scenario("unplugged port", unplugged),
    Scenario("congestion", congested, _tells("retransmissions")),
    Scenario("tenants share a GPU", shared_gpu, _tells("gpu_shared"), _TENANTS),
    Scenario("tenants on MIG devices", split_gpu, policy=_TENANTS),
    Scenario("one tenant on a GPU", one_tenant, policy=_TENANTS),
    Scenario("GPU is split anew", split_anew, _tells("mig_changed")),
    Scenario("confidential computing goes off", confidence_lost, _tells("confidential_off")),
    Scenario("never confidential", never_confidential),
)
