"""A node whose days are generated, and what of them an operator should be told.

Each scenario drives a :class:`House` with all detectors and a default configuration but for the policy. What
happens is made up, not recorded, and thresholds were set with these scenarios in view.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fabrictap.ledger.connections import Connection
from fabrictap.ledger.workloads import Workload
from findings_house import DAY, HOUR, House

MINUTE = HOUR // 60
Script = Callable[["Node", random.Random], None]


def pod(name: str, namespace: str = "ml", container: str = "main") -> Workload:
    return Workload(
        container_id=f"{zlib.crc32(name.encode()):064x}",
        pod_uid=f"uid-{name}",
        pod_name=name,
        namespace=namespace,
        container_name=container,
    )


class Node(House):
    """Fast looks (5 s) for what happens within minutes, slow ones (20 min) to let days pass."""

    qpn = 0

    def start(self, pid: int, workload: Workload, peers: int, *, base: int = 2, **more) -> list[Connection]:
        self.process(pid, more.pop("exe", "python"), workload)
        made = []
        for number in range(peers):
            self.qpn += 1
            address = f"::ffff:10.0.{(base + number) // 250}.{(base + number) % 250 + 1}"
            made.append(self.connect(self.qpn, pid, **{"peer": address, **more}))
        return made

    def sends(self, connections: list[Connection], size: int, operation: str = "rdma_write") -> None:
        """Posted and moved, as the port counts both."""
        for connection in connections:
            connection.post(operation, max(1, size >> 20), size)
            if operation != "rdma_read":
                self.balance.attributed += size
                # Headers that may be payload.
                self.balance.uncertain += size >> 7

    def days(self, count: float, each: Callable[[float], None], step: int = 20 * MINUTE) -> None:
        start = self.now
        while self.now - start < count * DAY:
            each((self.now % DAY) / HOUR)
            self.look(step=step)

    def minutes(self, count: float, each: Callable[[], None]) -> None:
        for _ in range(int(count * 12)):
            each()
            self.look()


@dataclass(frozen=True)
class Scenario:
    """``tells``: kinds of findings that are right; all others are false alarms. ``policy`` for the node."""

    name: str
    script: Script
    tells: frozenset[str] = frozenset()
    policy: object = None


def play(scenario: Scenario, seed: int) -> set[str]:
    """The kinds that were told of in one run."""
    node = Node(policy=scenario.policy, limits={"connections": 65536})
    scenario.script(node, random.Random(f"{scenario.name}{seed}"))
    return {str(record.attributes["fabrictap.finding.kind"]) for record in node.records}


def told(scenarios: tuple[Scenario, ...], seeds: int) -> Iterator[tuple[Scenario, set[str]]]:
    for scenario in scenarios:
        for seed in range(seeds):
            yield scenario, play(scenario, seed)
