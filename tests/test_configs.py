"""Every config that comes along is a plan of its verb."""

from pathlib import Path

import pytest

from datagen.adaptation.adapt_plan import load_adapt_plan
from datagen.adaptation.control_plan import load_control_plan
from datagen.datasets.cityscapes import CLASSES
from datagen.evaluation.evaluate_plan import load_evaluate_plan
from datagen.fit_plan import load_fit_plan
from datagen.plan import load_plan
from datagen.settings import read_settings
from decoders.labels import Taxonomy

LOADERS = {
    "adapted": load_adapt_plan,
    "control": load_control_plan,
    "evaluation": load_evaluate_plan,
    "reader": load_fit_plan,
    "run": load_plan,
}
"""By the key that says where everything goes."""


CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_it_is_a_plan(config: Path):
    (key,) = LOADERS.keys() & read_settings(config).keys()
    assert LOADERS[key](config)


def test_published_controls_are_shown_a_colour_of_theirs_for_every_class():
    plan = load_plan(CONFIGS / "published_controls.yaml")
    condition = plan.generator.values()["controls"][0].condition
    names = tuple(CLASSES.values())
    taxonomy = Taxonomy(names=names, is_thing=(False,) * len(names), colors=((0, 0, 0),) * len(names))
    assert not condition.build(taxonomy=taxonomy).left_out
