"""Normal work of every kind, generated, makes no detector speak."""

import pytest

from fabrictap import catalog
from findings_node import play
from findings_scenarios import NORMAL, SCENARIOS


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("scenario", NORMAL, ids=lambda scenario: scenario.name)
def test_normal_work_is_no_finding(scenario, seed):
    assert play(scenario, seed) == set()


@pytest.mark.parametrize(
    "scenario", [one for one in SCENARIOS if one.tells], ids=lambda scenario: scenario.name
)
def test_what_should_be_told_is_told(scenario):
    assert play(scenario, 0) >= scenario.tells


def test_every_kind_of_finding_has_a_case():
    assert {kind.name for kind in catalog.findings()} == {kind for one in SCENARIOS for kind in one.tells}
