"""The cardinality budget: how many identities series may carry, and what goes first."""

from __future__ import annotations

import random

import pytest

from fabrictap.ledger.workloads.budget import DROP_ORDER, CardinalityBudget


def process(number: int, container: int = 0, pod: int = 0) -> dict[str, str | int | bool]:
    return {
        "process.pid": number,
        "process.executable.name": "train",
        "container.id": f"c{container}",
        "k8s.pod.name": f"p{pod}",
        "k8s.namespace.name": "ml",
    }


def test_what_fits_is_kept_as_it_is():
    budget = CardinalityBudget(10)
    assert [budget.admit(process(n)) for n in range(5)] == [process(n) for n in range(5)]
    assert len(budget) == 5
    assert budget.dropped == [0] * len(DROP_ORDER)


def test_the_process_goes_first_then_the_container_then_the_pod():
    budget = CardinalityBudget(8)
    for number in range(4):
        assert "process.pid" in budget.admit(process(number, number, number))
    without_process = [budget.admit(process(n, n, n)) for n in (10, 11)]
    assert all("process.pid" not in kept and "container.id" in kept for kept in without_process)
    without_container = budget.admit(process(12, 12, 12))
    assert without_container == {
        "process.executable.name": "train",
        "k8s.pod.name": "p12",
        "k8s.namespace.name": "ml",
    }
    assert budget.admit(process(13, 13, 13)) == {
        "process.executable.name": "train",
        "k8s.namespace.name": "ml",
    }
    assert len(budget) == 8
    assert budget.admit({"k8s.namespace.name": "other", "process.pid": 1}) == {}
    assert budget.dropped == [5, 2, 1, 0, 1]


def test_a_level_that_is_known_takes_any_number():
    budget = CardinalityBudget(4)
    kept = [budget.admit(process(n)) for n in range(1000)]
    assert len(budget) <= 4
    assert kept[-1] == {name: value for name, value in process(0).items() if name != "process.pid"}
    assert budget.dropped[0] == 998


def test_what_is_given_back_is_free_for_another():
    budget = CardinalityBudget(2)
    first = budget.admit(process(1))
    assert budget.admit(process(1)) == first == process(1)
    second = budget.admit(process(2))
    assert "process.pid" not in second
    budget.release(first)
    third = budget.admit(process(3))
    assert "process.pid" not in third, "still held once"
    for kept in (first, second, third):
        budget.release(kept)
    assert len(budget) == 0
    assert budget.admit(process(4)) == process(4)


def test_giving_back_what_was_never_taken_is_a_fault():
    budget = CardinalityBudget(2)
    with pytest.raises(KeyError):
        budget.release(process(1))
    budget.release({})
    with pytest.raises(ValueError, match="holds nothing"):
        CardinalityBudget(0)


def test_it_never_holds_more_than_its_limit_and_ends_empty():
    rng = random.Random(3)
    for limit in (1, 2, 3, 7, 64):
        budget = CardinalityBudget(limit)
        held = []
        for _ in range(3000):
            if held and rng.random() < 0.45:
                budget.release(held.pop(rng.randrange(len(held))))
            else:
                whole = process(rng.randrange(200), rng.randrange(40), rng.randrange(9))
                kept = budget.admit(whole)
                assert kept.items() <= whole.items()
                held.append(kept)
            assert len(budget) <= limit
        for kept in held:
            budget.release(kept)
        assert len(budget) == 0
