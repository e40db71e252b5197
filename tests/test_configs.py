"""Every config that comes along is a plan of its verb."""

from pathlib import Path

import pytest

from datagen.adaptation.adapt_plan import load_adapt_plan
from datagen.adaptation.control_plan import load_control_plan
from datagen.evaluation.evaluate_plan import load_evaluate_plan
from datagen.fit_plan import load_fit_plan
from datagen.plan import load_plan
from datagen.settings import read_settings

LOADERS = {
    "adapted": load_adapt_plan,
    "control": load_control_plan,
    "evaluation": load_evaluate_plan,
    "reader": load_fit_plan,
    "run": load_plan,
}
"""By the key that says where everything goes."""


@pytest.mark.parametrize("config", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.name)
def test_it_is_a_plan(config: Path):
    (key,) = LOADERS.keys() & read_settings(config).keys()
    assert LOADERS[key](config)
