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
from tests.datagen.made_up import RING, coco_annotation, write_coco

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


@pytest.mark.parametrize(
    ("tool", "annotations", "images", "file_name"),
    [
        ("CVAT", "annotations/instances_default.json", "images", "2.png"),
        ("Roboflow", "_annotations.coco.json", ".", "2.png"),
        ("Label Studio", "result.json", ".", "images/2.png"),
    ],
)
def test_coco_is_read_as_each_tool_lays_it_out(
    tmp_path: Path, tool: str, annotations: str, images: str, file_name: str
):
    pictures = [{"id": 5, "file_name": file_name, "width": 10, "height": 6}]
    root = write_coco(tmp_path, [coco_annotation(0, 3, RING)], images=pictures)
    (root / "annotations/instances.json").rename(root / annotations)
    if tool == "Roboflow":
        (root / "images/2.png").rename(root / "2.png")
    config = CONFIGS / "coco_reader.yaml"
    lines = config.read_text(encoding="utf-8").partition(f"# {tool} ")[2].splitlines()[1:3]
    assert [line.strip(" #") for line in lines] == [f"annotations: {annotations}", f"images: {images}"]
    plan = load_fit_plan(config, [f"data.root={root}", f"data.annotations={annotations}", f"data.images={images}"])
    (picture,) = plan.data.build()
    assert picture.labels.keys() == plan.tasks.keys()


def test_published_controls_are_shown_a_colour_of_theirs_for_every_class():
    plan = load_plan(CONFIGS / "published_controls.yaml")
    condition = plan.generator.values()["controls"][0].condition
    names = tuple(CLASSES.values())
    taxonomy = Taxonomy(names=names, is_thing=(False,) * len(names), colors=((0, 0, 0),) * len(names))
    assert not condition.build(taxonomy=taxonomy).left_out
