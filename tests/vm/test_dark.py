"""Dark traffic: what a peer pulls out of a process that does nothing, held against every packet sent."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from otlp_json import Log, Reader
from vm.agent import Agent
from vm.harness import Machine
from vm.traffic import ADDRESSES, Traffic, perftest
from vm.truth import Truth

#: Large enough that what does not count as payload for sure (4 B for each packet) is far below 2 %.
STOLEN = ("ib_read_bw", "-n", "6000", "-s", "65536")
ASKED = 6000 * 65536
CLEAN = (
    ("ib_write_bw", "-n", "100", "-s", "65536"),
    ("ib_send_bw", "-n", "100", "-s", "65536"),
    ("ib_atomic_bw", "-n", "50"),
    ("ibv_ud_pingpong", "-n", "50", "-s", "1024"),
)


@dataclass(frozen=True)
class Observed:
    """What the agents of the victim (rxe0) and of the attacker (rxe1) exported before and after the theft."""

    clean: dict[tuple[str, str, str], int]
    after: dict[tuple[str, str, str], int]
    #: Payload of answers to reads that left the victim's port, and packets that it sent again.
    left: int
    again: int
    traffic: Traffic
    #: Log events before the theft, and all that both exported in the end.
    logs_before: int
    victim: Reader
    attacker: Reader


def balances(*exported: Reader) -> dict[tuple[str, str, str], int]:
    """(metric, port, direction) -> bytes."""
    return {
        (name, str(point.attributes["hw.id"]), str(point.attributes["network.io.direction"])): int(
            point.value
        )
        for reader in exported
        for name in ("rdma.port.attributed.io", "rdma.port.dark.io", "rdma.port.uncertain.io")
        for point in reader.now(name)
    }


@pytest.fixture(scope="module")
def observed(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Observed:
    truth = Truth(machine, tmp_path_factory.mktemp("truth"))
    victim = Agent(machine, "dark-victim", device="rxe0").start()
    attacker = Agent(machine, "dark-attacker", device="rxe1").start()
    for tool, *args in CLEAN:
        perftest(machine, tool, *args)
    clean = balances(victim.exports(3), attacker.exports(1))
    logs_before = len(victim.exported.logs) + len(attacker.exported.logs)
    traffic = perftest(machine, *STOLEN)
    after = balances(victim.exports(3), attacker.exports(1))

    def told() -> bool:
        victim.exported.poll()
        return bool(_opened(victim.exported))

    machine.wait_for(told, 30, "the theft is not told of")
    victim.stop()
    attacker.stop()
    sent = truth.stop()
    ours = [one for (device, _), one in sent.items() if device == "rxe0"]
    return Observed(
        clean,
        after,
        sum(one.read_responses for one in ours),
        sum(one.again for one in ours),
        traffic,
        logs_before,
        victim.exported,
        attacker.exported,
    )


def _opened(exported: Reader) -> list[Log]:
    return exported.opened("remote_read_egress", "dark_egress")


def test_nothing_is_dark_that_somebody_on_the_node_asked_for(observed: Observed) -> None:
    dark = {key: size for key, size in observed.clean.items() if key[0] == "rdma.port.dark.io"}
    assert ("rdma.port.dark.io", "rxe1/1", "transmit") in dark
    assert {key: size for key, size in dark.items() if key[2] == "transmit" and size} == {}


def test_what_a_peer_pulls_out_is_dark_within_two_percent(observed: Observed) -> None:
    key = ("rdma.port.dark.io", "rxe0/1", "transmit")
    dark = observed.after[key] - observed.clean[key]
    assert observed.left >= 0.98 * ASKED  # what was answered again stands in again
    assert 0.98 * ASKED <= dark <= 1.02 * ASKED + observed.again * 2048


def test_the_same_bytes_are_attributed_where_they_were_asked_for(observed: Observed) -> None:
    key = ("rdma.port.attributed.io", "rxe1/1", "receive")
    assert observed.after[key] - observed.clean[key] == ASKED
    dark = ("rdma.port.dark.io", "rxe1/1", "receive")
    assert observed.after[dark] == observed.clean[dark]


def test_nothing_is_found_in_what_the_other_tools_do(observed: Observed) -> None:
    assert observed.logs_before == 0
    assert _opened(observed.attacker) == []


def test_the_theft_is_told_once_within_ten_seconds_with_its_owner_and_peer(observed: Observed) -> None:
    (finding,) = _opened(observed.victim)
    assert finding["fabrictap.finding.kind"] == "remote_read_egress", finding
    assert finding["hw.id"] == "rxe0/1"
    assert finding["process.pid"] == observed.traffic.server_pid
    assert finding["rdma.peer.gid"] == f"::ffff:{ADDRESSES['rxe1']}"
    (read,) = observed.attacker.spans_named("rdma.flow", pid=observed.traffic.client_pid, role="receiver")
    assert finding.time_ns < read.end_ns + 10 * 10**9


def test_the_flow_that_was_read_has_it_as_an_event(observed: Observed) -> None:
    spans = observed.victim.spans_named("rdma.flow", pid=observed.traffic.server_pid)
    assert spans
    assert [event["name"] for span in spans for event in span.raw.get("events", ())]
