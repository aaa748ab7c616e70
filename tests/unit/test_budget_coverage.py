"""What is said of connections whose posts were counted in a part of the time; the clock is the test's."""

from __future__ import annotations

import pytest

from doubles import raw_records as raw
from doubles.verbs_node import DEVICE, INIT, RTR, RTS, SECOND, Node, created, destroyed, modified
from fabrictap import catalog
from fabrictap.config import ConfigError, load
from fabrictap.sources.verbs.budget import Decision, State
from fabrictap.sources.verbs.calibration import Cost
from fabrictap.sources.verbs.duty import Figures
from fabrictap.sources.verbs.estimates import Estimates
from fabrictap.sources.verbs.missed import Missed
from fabrictap.view.text import share


class Duty:
    """Stands in for fabrictap.sources.verbs.duty.Duty, whose probes take root: what it told is the test's."""

    def __init__(self) -> None:
        self.cost = Cost(1000.0, 10_000.0)
        self.known: dict[int, Figures] = {}
        self.told: list[Decision] = []

    def figures(self) -> dict[int, Figures]:
        return dict(self.known)

    def decisions(self) -> list[Decision]:
        told, self.told = self.told, []
        return told

    def states(self) -> dict[State, int]:
        return {State.FULL: 1, State.OFF: 0}

    def node_cost(self) -> float:
        return 0.004

    def run_times(self) -> dict[str, float]:
        return {"post_send_entry": 1.5}


class Watched:
    """A node with queue pair 17 of process 1 in RTS, made now."""

    def __init__(self) -> None:
        self.node = Node()
        self.duty = Duty()
        self.missed = Missed()
        self.estimates = Estimates(
            self.node.table, self.node.ledger, self.node.verbs._post_fold, self.duty, self.missed
        )
        self.node.verbs._estimates = self.estimates
        self.made(17)
        self.duty.known[1] = Figures(0, 0.0, State.FULL, self.node.now)

    def made(self, qpn: int) -> None:
        self.node.fold(created(qpn), modified(INIT, qpn), modified(RTR, qpn), modified(RTS, qpn))
        connection = self.node.ledger.connections.get(DEVICE, qpn)
        assert connection is not None
        self.began = connection.created_ns

    def gap(self, start: float, end: float | None = None) -> None:
        """Seconds after the connection was made."""
        self.missed.begin(1, self.began + int(start * SECOND))
        if end is not None:
            self.missed.end(1, self.began + int(end * SECOND))

    def until(self, seconds: float, operations: int) -> None:
        """Fold at that time, with so many posts until then."""
        self.node.now = self.began + int((seconds - 1) * SECOND)
        self.node.tick(raw.post(17, operations=operations, size=10))


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_a_connection_is_estimated_with_the_share_of_its_time_that_was_seen(watched):
    watched.until(5, 10)
    assert watched.node.connection().coverage.kind == "exact"
    watched.gap(6, 8)
    watched.until(10, 12)
    connection = watched.node.connection()
    assert connection.coverage.kind == "estimated"
    assert connection.fraction == pytest.approx(0.8, abs=1e-6)
    assert not connection.unseen
    watched.gap(10)
    watched.until(20, 12)
    assert connection.fraction == pytest.approx(0.4, abs=1e-6)


def test_the_series_that_said_exact_ends_with_what_was_exact(watched):
    watched.until(5, 10)
    watched.gap(5)
    watched.until(6, 11)
    watched.missed.end(1, watched.began + 7 * SECOND)
    watched.until(9, 15)
    exact = watched.node.one(catalog.VERBS_OPERATIONS, fabrictap_coverage="exact")
    estimated = watched.node.one(catalog.VERBS_OPERATIONS, fabrictap_coverage="estimated")
    assert (exact.value, exact.ended) == (11, True)
    assert (estimated.value, estimated.ended) == (4, False)
    # Nothing is scaled up, and nothing is lost of what was counted.
    watched.node.fold(destroyed())
    sender = watched.node.spans()["sender"].attributes
    assert sender["rdma.flow.send.operations"] == 15
    assert sender["fabrictap.coverage"] == "estimated"
    assert 0.5 < sender["fabrictap.coverage.fraction"] < 1


def test_a_connection_made_and_ended_within_a_gap_has_no_figures_not_zeros(watched):
    watched.gap(1)
    watched.node.now = watched.began + 5 * SECOND
    watched.node.fold(created(18), modified(INIT, 18), modified(RTR, 18), modified(RTS, 18), destroyed(18))
    sender = watched.node.spans()["sender"]
    assert sender.attributes["fabrictap.coverage"] == "estimated"
    assert sender.attributes["fabrictap.coverage.fraction"] == 0
    assert not [name for name in sender.attributes if name.endswith((".operations", ".io"))]


def test_a_connection_made_after_the_gaps_is_exact(watched):
    watched.gap(1, 2)
    watched.gap(3, 4)
    watched.until(5, 1)
    watched.node.now = watched.node.connection().created_ns + 9 * SECOND
    watched.made(18)
    watched.node.tick()
    assert watched.node.connection(18).coverage.kind == "exact"
    watched.gap(5, 6)  # of the new one's time
    watched.node.now = watched.began + 9 * SECOND
    watched.node.tick()
    assert watched.node.connection(18).fraction == pytest.approx(0.9, abs=1e-6)


def test_what_was_never_seen_stays_control_only(watched):
    watched.node.instrumented(1)
    watched.node.connection().cover("control_only", None)
    watched.gap(1, 2)
    watched.until(5, 1)
    assert watched.node.connection().coverage.kind != "estimated"


def test_ports_of_what_goes_uncounted_are_told_to_who_reconciles(watched):
    watched.until(5, 1)
    assert watched.node.ledger.traffic.partial_ns == {}
    watched.gap(5)
    watched.until(6, 1)
    assert watched.node.ledger.traffic.partial_ns == {f"{DEVICE}/1": watched.node.now}


def test_figures_and_decisions_are_exported(watched):
    figures = watched.duty.known[1]
    watched.duty.known[1] = Figures(5000, 0.005, State.REDUCED, figures.met_ns)
    watched.duty.told = [
        Decision(1, count=False, state=State.REDUCED, changed=True, pause=1.0, rate=2e6),
        Decision(1, count=True, state=State.REDUCED, changed=False, pause=0.0, rate=2e6),
    ]
    watched.gap(0.5)
    watched.until(2, 1)
    node = watched.node
    assert node.one(catalog.PROBE_HITS).value == 5000
    assert node.one(catalog.PROBE_COST).value == pytest.approx(0.005)
    assert node.one(catalog.PROBE_HITS).attributes["process.pid"] == 1
    assert node.one(catalog.PROBE_HIT_COST, fabrictap_probe_entry="stepped").value == pytest.approx(1e-5)
    assert node.one(catalog.PROBE_RUN_TIME).value == 1.5
    assert node.one(catalog.BUDGET_USED).value == 0.004
    assert node.one(catalog.BUDGET_PROCESSES, fabrictap_budget_state="full").value == 1
    made = {s.attributes[catalog.BUDGET_DECISION.name]: s.value for s in node.find(catalog.BUDGET_DECISIONS)}
    assert made == {"reduced": 1, "window": 1}
    assert node.one(catalog.COVERAGE_RATIO).value == pytest.approx(0.25, abs=0.01)
    del watched.duty.known[1]
    watched.missed.forget(1)
    watched.until(3, 1)
    assert node.one(catalog.PROBE_HITS).ended
    assert node.one(catalog.COVERAGE_RATIO).ended


def test_gaps_that_are_forgotten_one_by_one_still_count():
    missed = Missed()
    for number in range(100):
        missed.begin(1, number * 10)
        missed.begin(1, number * 10 + 1)
        missed.end(1, number * 10 + 4)
        missed.end(1, number * 10 + 5)
    assert missed.until(1, 10_000) == 400
    assert missed.until(1, 992) == 398
    assert missed.until(1, 990) == 396
    assert missed.until(1, 985) == 396
    missed.begin(1, 2000)
    assert missed.until(1, 2005) == 405
    assert missed.pids() == [1]
    missed.forget(1)
    assert missed.until(1, 2005) == 0


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0.0, "0 %"),
        (1e-9, "<0.01 %"),
        (0.0131, "1.31 %"),
        (0.5, "50 %"),
        (0.99999, ">99.9 %"),
        (1.0, "100 %"),
    ],
)
def test_a_share_is_neither_nothing_nor_all_where_it_is_not(value, told):
    assert share(value) == told


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("process: 0", "sources.verbs.budget.process: expected from 0.0001 to 1"),
        ("node: 5000", "sources.verbs.budget.node: expected from 0.0001 to 1024"),
        ("workloads: [{match: {k8s.namespace: x}}]", "did you mean k8s.namespace.name?"),
        ("workloads: [{data: offf}]", "expected one of off, budget, full, got 'offf'; did you mean off?"),
        ("workloads: [{data: full}, {data: off}]", "workloads[0] has no match and so is for all"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(tmp_path, text, said):
    file = tmp_path / "config.yaml"
    file.write_text(f"sources: {{verbs: {{budget: {{{text}}}}}}}")
    with pytest.raises(ConfigError) as error:
        load(str(file), {})
    assert said in str(error.value)


def test_rules_for_what_is_off_are_refused(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("sources: {verbs: {data: off, budget: {workloads: [{data: full}]}}}")
    with pytest.raises(
        ConfigError, match=r"nothing is counted for anybody while sources\.verbs\.data is off"
    ):
        load(str(file), {})
