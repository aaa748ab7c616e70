"""Days with traffic: normal work of every kind, thefts fast and slow, strangers, leaks, and bad cables."""

from __future__ import annotations

import random

from fabrictap import catalog
from fabrictap.insight.detectors import SourceState
from fabrictap.ledger.connections import Connection
from fabrictap.ledger.workloads import Workload
from findings_house import HERE, SECOND, GiB, MiB, rules
from findings_node import Node, Scenario, pod
from findings_trouble import TROUBLE

# --- normal work ------------------------------------------------------------------------------------


def training(node: Node, chance: random.Random) -> None:
    """Steps: bursts of all-reduce every few seconds to a ring of peers, memory registered for them."""
    links = node.start(100, pod("train-0"), 8)
    node.register(1, 100, 64 * GiB, 3)
    node.minutes(20, lambda: node.sends(links, chance.randint(100, 400) * MiB))
    node.days(9, lambda hour: node.sends(links, chance.randint(20, 60) * GiB))


def checkpoints(node: Node, chance: random.Random) -> None:
    """An idle job that writes its state to storage every two hours."""
    (link,) = node.start(110, pod("train-1"), 1, base=200)

    def work(hour: float) -> None:
        if hour % 2 < 0.3:
            node.sends([link], chance.randint(200, 240) * GiB)

    node.days(16, work)


def backup(node: Node, chance: random.Random) -> None:
    (link,) = node.start(120, pod("backup", "infra"), 1, base=210)

    def work(hour: float) -> None:
        if 2 <= hour < 2.3:
            node.sends([link], 1440 * MiB + chance.randint(0, 64) * MiB)

    node.days(16, work)


def pods_that_come_and_go(node: Node, chance: random.Random) -> None:
    """Inference: pods of one deployment, replaced, each with the same peers."""
    alive: list[list[Connection]] = []
    number = 0

    def work(hour: float) -> None:
        nonlocal number
        if not alive or chance.random() < 0.1:
            number += 1
            alive.append(node.start(1000 + number, pod(f"serve-{number}", "web"), 4))
        if len(alive) > 3:
            for connection in alive.pop(0):
                node.end(connection)
        for links in alive:
            node.sends(links, chance.randint(50, 200) * MiB, "send")

    node.days(9, work)


def parameter_server(node: Node, chance: random.Random) -> None:
    """Peers read its memory in normal work, as the policy says."""
    links = node.start(130, pod("ps-0", "ps"), 16)
    node.register(2, 130, 128 * GiB)

    def work() -> None:
        node.balance.dark += chance.randint(100, 500) * MiB
        node.sends(links[:1], MiB)

    node.minutes(30, work)


def large_mpi(node: Node, chance: random.Random) -> None:
    """64 ranks with 100 queue pairs each start within a minute, and end."""
    ranks = []
    for rank in range(64):
        ranks.append(
            node.start(2000 + rank, Workload(slurm_job="7", slurm_uid=1000, slurm_origin="cgroup"), 100)
        )
        if rank % 8 == 7:
            node.look()
    node.minutes(3, lambda: [node.sends(links[:4], MiB) for links in ranks])
    for links in ranks:
        for connection in links:
            node.end(connection)
    node.look(5)


def quiet_port(node: Node, chance: random.Random) -> None:
    """Nothing but acknowledgements, which are a few bytes more than expected, and single errors."""

    def work() -> None:
        node.balance.uncertain += 4096
        node.count(catalog.ERRORS, node.now // (600 * SECOND), ERROR_TYPE="symbol_error")
        node.count(catalog.PORT_COUNTER, node.now // SECOND, RDMA_COUNTER_NAME="out_of_sequence")

    node.minutes(30, work)


def restarts(node: Node, chance: random.Random) -> None:
    """The driver is reloaded: counters begin again, one source after the other comes back."""
    links = node.start(140, pod("train-2"), 4)
    node.sources = [SourceState("verbs", True, None), SourceState("infiniband", True, None)]
    node.minutes(2, lambda: node.sends(links, 100 * MiB))
    for connection in links:
        node.end(connection)
    node.balance.attributed = node.balance.dark = node.balance.uncertain = 0
    node.balance.since_ns = node.now
    node.sources = [SourceState("verbs", True, None), SourceState("infiniband", False, "no devices")]
    node.look(12)
    node.sources = [SourceState("verbs", True, None), SourceState("infiniband", True, None)]
    links = node.start(141, pod("train-2"), 4)
    node.minutes(5, lambda: node.sends(links, 100 * MiB))


# --- what should be told ----------------------------------------------------------------------------


def _victim(node: Node, chance: random.Random) -> list[Connection]:
    links = node.start(100, pod("train-0"), 8)
    node.register(1, 100, 64 * GiB, 3)
    node.start(150, pod("model", "llm"), 1, base=230, state="rtr")
    node.register(3, 150, 80 * GiB)
    node.minutes(2, lambda: node.sends(links, 100 * MiB))
    return links


def theft_fast(node: Node, chance: random.Random) -> None:
    links = _victim(node, chance)

    def work() -> None:
        node.sends(links, 100 * MiB)
        node.balance.dark += 2 * GiB

    node.minutes(2, work)


def theft_in_bursts(node: Node, chance: random.Random) -> None:
    links = _victim(node, chance)

    def work() -> None:
        node.sends(links, 10 * MiB)
        if chance.random() < 0.1:
            node.balance.dark += 64 * MiB

    node.minutes(20, work)


def theft_paced(node: Node, chance: random.Random) -> None:
    """RDMA READ at 60 kB/s, below the threshold of seconds."""
    links = _victim(node, chance)

    def work(hour: float) -> None:
        node.sends(links, 10 * GiB)
        node.balance.dark += 60_000 * 1200

    node.days(2, work)


def exfiltration_slow(node: Node, chance: random.Random) -> None:
    """1 MB a minute, sent, to a new peer, after weeks of normal work."""
    links = node.start(100, pod("train-0"), 8)
    node.days(10, lambda hour: node.sends(links, chance.randint(1, 3) * GiB))
    leak = node.start(100, pod("train-0"), 1, base=5000)

    def work(hour: float) -> None:
        node.sends(links, chance.randint(1, 3) * GiB)
        node.sends(leak, 20_000_000)

    node.days(3, work)


def exfiltration_from_the_start(node: Node, chance: random.Random) -> None:
    links = node.start(100, pod("train-0"), 8)
    leak = node.start(100, pod("train-0"), 1, base=5000)

    def work(hour: float) -> None:
        node.sends(links, chance.randint(1, 3) * GiB)
        node.sends(leak, chance.randint(15, 25) * 1_000_000)

    node.days(5, work)


def stranger(node: Node, chance: random.Random) -> None:
    """A peer that no policy lists."""
    node.start(160, pod("train-3"), 4)
    node.minutes(2, lambda: None)
    node.start(160, pod("train-3"), 1, base=9000, peer="::ffff:172.16.5.5")
    node.minutes(2, lambda: None)


def tenants_meet(node: Node, chance: random.Random) -> None:
    node.process(170, "a", pod("a", "blue"))
    node.process(171, "b", pod("b", "red"))
    node.connect(901, 170, peer=HERE, peer_qpn=902)
    node.connect(902, 171, peer=HERE, peer_qpn=901)
    node.minutes(2, lambda: None)


def queue_pair_leak(node: Node, chance: random.Random) -> None:
    node.process(180, "leaks", pod("leaks"))

    def work() -> None:
        for _ in range(1500):
            node.qpn += 1
            node.connect(node.qpn, 180)

    node.minutes(1, work)


def dying_cable(node: Node, chance: random.Random) -> None:
    errors = 0

    def work() -> None:
        nonlocal errors
        errors += chance.randint(50, 150)
        node.count(catalog.ERRORS, errors, ERROR_TYPE="symbol_error")

    node.minutes(5, work)


def exposed(node: Node, chance: random.Random) -> None:
    node.start(190, pod("cache", "kv"), 2)
    node.register(4, 190, 600 * GiB)
    node.minutes(2, lambda: None)


_ALLOWED = rules({"match": {"k8s.namespace.name": "ps"}, "remote_read": True, "peers": ["10.0.0.0/16"]})
_LISTED = rules({"match": {"k8s.namespace.name": "ml"}, "peers": ["10.0.0.0/16"]})
_TENANTS = rules(tenant_by="k8s.namespace.name")
_THEFT = frozenset({"remote_read_egress"})

SCENARIOS = (
    Scenario("training", training),
    Scenario("checkpoints", checkpoints),
    Scenario("backup", backup),
    Scenario("pods that come and go", pods_that_come_and_go),
    Scenario("parameter server", parameter_server, policy=_ALLOWED),
    Scenario("large MPI job", large_mpi),
    Scenario("quiet port", quiet_port),
    Scenario("restarts", restarts),
    Scenario("theft, fast", theft_fast, _THEFT),
    Scenario("theft, in bursts", theft_in_bursts, _THEFT),
    Scenario("theft, paced", theft_paced, frozenset({"slow_egress"})),
    Scenario("exfiltration, slow", exfiltration_slow, frozenset({"slow_egress", "new_peer"})),
    Scenario("exfiltration from the start", exfiltration_from_the_start, frozenset({"slow_egress"})),
    Scenario("stranger", stranger, frozenset({"forbidden_peer"}), _LISTED),
    Scenario("tenants meet", tenants_meet, frozenset({"cross_tenant"}), _TENANTS),
    Scenario("queue pair leak", queue_pair_leak, frozenset({"resource_exhaustion"})),
    Scenario("dying cable", dying_cable, frozenset({"link_errors"})),
    Scenario("exposed memory", exposed, frozenset({"exposed_memory"})),
    *TROUBLE,
)
NORMAL = tuple(scenario for scenario in SCENARIOS if not scenario.tells)
