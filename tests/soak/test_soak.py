from pathlib import Path

import pytest

from tests.soak.scenarios import SCENARIOS

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_the_contract_holds_at_length(scenario, tmp_path: Path) -> None:
    outcome = scenario(tmp_path, 0.2)
    assert outcome.holds, outcome.facts
