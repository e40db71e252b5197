"""What is told about annotated pictures is true, and what is odd about them is named."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from datagen import cli
from datagen.datasets import AnnotatedImages
from datagen.datasets.coco import Coco
from datagen.datasets.label_folder import LabelFolder
from datagen.datasets.pocket_scenes import PocketScenes
from datagen.exporters import Entry
from datagen.exporters.coco import Coco as CocoExporter
from datagen.inspection import ClassCount, Inspection, inspect, inspect_sources, oddities
from datagen.instances import encode_mask
from datagen.pocket.truth import write_scenes
from datagen.validation import validate
from decoders.errors import UserError
from decoders.labels import AnnotatedImage, InstanceSet, LabelSet, Taxonomy, metric_depth, semantic_map
from tests.datagen.made_up import RING, coco_annotation, write_coco

QUIET = Console(quiet=True)
TAXONOMY = Taxonomy(
    names=("ground", "ball", "ghost"),
    is_thing=(False, True, True),
    colors=((0, 0, 255), (0, 255, 0), (255, 0, 0)),
    category_ids=(7, 8, 9),
)


class Made(AnnotatedImages):
    def __init__(self, **pictures: LabelSet) -> None:
        self.taxonomy = TAXONOMY
        self.names = tuple(pictures)
        self._labels = pictures

    def load(self, name: str) -> AnnotatedImage:
        return AnnotatedImage(name=name, image=np.zeros((10, 20, 3), np.uint8), labels=self._labels[name])


def look(**pictures: LabelSet) -> Inspection:
    return inspect(Made(**pictures), console=QUIET)


def ids(value: int) -> np.ndarray:
    return np.full((10, 20), value, np.uint8)


def balls(*masks: np.ndarray) -> InstanceSet:
    count = len(masks)
    return InstanceSet(
        masks=np.stack(masks) if masks else np.zeros((0, 10, 20), bool),
        category_ids=np.full(count, 2, np.int64),
        scores=np.ones(count, np.float32),
        is_crowd=np.zeros(count, bool),
    )


def test_counts_are_those_of_the_labels():
    half = ids(1)
    half[:, 10:] = 2
    ball = half == 2
    found = look(a={"semantic": semantic_map(half), "instances": balls(ball)}, b={"semantic": semantic_map(ids(0))})
    assert found.sizes == {(10, 20): 2}
    assert [(count.pictures, count.pixels, count.objects) for count in found.classes] == [
        (1, 100, 0),
        (1, 100, 1),
        (0, 0, 0),
    ]
    assert found.void_pixels == 200
    text = str(found)
    assert "2 pictures, width x height: 20 x 10 (2)" in text
    assert "void: 50.00% of the pixels" in text
    assert "    8  ball                    thing           1   50.00%        1" in text


def test_what_is_odd_is_named_with_its_remedy():
    left, all_of_it = ids(0).astype(bool), ids(1).astype(bool)
    left[:, :4] = True
    warnings = "\n".join(
        look(
            empty={"semantic": semantic_map(ids(0)), "instances": balls()},
            crossing={"instances": balls(left, left & False, all_of_it)},
            far={"depth": metric_depth(np.full((10, 20), 200, np.float32))},
            nowhere={"depth": metric_depth(np.full((10, 20), np.inf, np.float32))},
        ).warnings()
    )
    assert "no example of ground, ghost: a reader cannot learn them; annotate one" in warnings
    assert "nothing is annotated in empty; nowhere: leave them out" in warnings
    assert (
        "objects overlap in crossing (object 1 ball and object 3 ball share 40 pixels): the smaller one is taken"
        in warnings
    )
    assert "far (depth): half of it nearer than 200.00 m; nowhere (depth): no valid pixel: check the unit" in warnings


def test_background_alone_is_no_annotation():
    background = replace(TAXONOMY, names=("background", "ball", "ghost"))
    found = Inspection(taxonomy=background, classes=[ClassCount() for _ in background.names])
    found.add(
        AnnotatedImage(
            name="forgotten", image=np.zeros((10, 20, 3), np.uint8), labels={"semantic": semantic_map(ids(1))}
        )
    )
    assert found.empty == ["forgotten"]


def test_an_export_of_depths_alone_lacks_no_class(tmp_path: Path):
    meters = np.full((10, 20), 8, np.float32)
    entry = Entry("a", np.zeros((10, 20, 3), np.uint8), {"depth": metric_depth(meters)}, {})
    CocoExporter().export([entry], TAXONOMY, tmp_path, {})
    found = inspect(Coco(root=tmp_path), console=QUIET)
    assert "labels: depth (1)" in str(found)
    assert not any(count.pictures for count in found.classes)
    assert list(found.warnings()) == []
    assert validate(tmp_path).sound
    done = CliRunner().invoke(cli.app, ["show", str(tmp_path), "--to", str(tmp_path / "sheet.png")])
    assert done.exit_code == 0, done.output


def test_crowds_are_no_example():
    crowd = replace(balls(ids(1).astype(bool)), is_crowd=np.ones(1, bool))
    found = look(a={"instances": crowd})
    assert [(count.pictures, count.objects) for count in found.classes] == [(0, 0)] * 3
    assert found.empty == []


def test_depth_with_gaps_is_told_apart_from_sky():
    meters = np.full((10, 20), np.inf, np.float32)
    meters[4, :10] = 8
    found = look(a={"depth": metric_depth(meters)})
    assert "half nearer than 8.00 m, known of 5.0% of the pixels" in str(found)
    assert "ghost" not in str(found), "depths say nothing of classes"
    assert "depth is known of 5.0% of the pixels only" in "".join(found.warnings())


@pytest.mark.parametrize(
    ("settings", "ending", "told"),
    [
        ({}, ".png", True),
        ({"depth_scale": 1 / 256}, ".png", False),
        ({"depth_kind": "inverse"}, ".png", False),
        ({}, ".npy", False),
    ],
)
def test_a_unit_of_depth_that_nobody_said_is_told_once(
    settings: dict[str, Any], ending: str, told: bool, tmp_path: Path
):
    """Millimetres of a room, read as KITTI's steps, are as likely as a street."""
    for number in range(3):
        for folder in ("images", "depth"):
            (tmp_path / folder).mkdir(exist_ok=True)
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "images" / f"{number}.png")
        steps = np.full((4, 6), 2500, np.uint16)
        if ending == ".png":
            Image.fromarray(steps).save(tmp_path / "depth" / f"{number}.png")
        else:
            np.save(tmp_path / "depth" / f"{number}.npy", steps / np.float32(1000))
    data = LabelFolder(root=tmp_path, labels=None, depth="depth", **settings)
    expected = (
        "depth files are taken as 1/256 m a step, so that half of it is nearer than 9.77 m; were they millimetres, it "
        "would be 2.50 m: say `depth_scale` (metres per step)"
    )
    found = inspect(data, console=QUIET)
    assert [warning for warning in found.warnings() if "millimetres" in warning] == [expected] * told
    assert str(found).count(expected) == told
    assert oddities(data) == list(found.warnings())


def test_a_sound_dataset_has_no_warning():
    found = inspect(PocketScenes(count=12), console=QUIET)
    assert list(found.warnings()) == []
    assert found.pictures == 12
    assert found.labels["normals"] == 12


def test_a_plan_and_a_dataset_can_both_be_inspected(tmp_path: Path):
    write_scenes(tmp_path / "szenen ü", count=3, seed=0, split="few_shot")
    done = CliRunner().invoke(cli.app, ["inspect", str(tmp_path / "szenen ü"), "--to", str(tmp_path / "sheet.png")])
    assert done.exit_code == 0, done.output
    assert "3 pictures" in done.output
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 300
    sources = inspect_sources(Path("configs/pocket_reader.yaml"), ["data.count=2", "validation.count=1"])
    assert {name: len(source) for name, source in sources.items()} == {"data": 2, "validation": 1}


def test_what_a_coco_file_says_of_no_picture_or_no_pixel_is_told(tmp_path: Path):
    outside = [[20.0, 20.0, 30.0, 20.0, 30.0, 30.0]]
    strays = [coco_annotation(number, 3, RING, image_id=99) for number in range(10, 17)]
    root = write_coco(tmp_path, [coco_annotation(1, 3, RING), coco_annotation(2, 40, outside), *strays])
    found = inspect(Coco(root=root), console=QUIET)
    assert found.classes[1].objects == 0
    warnings = "\n".join(found.warnings())
    assert "7 annotations belong to no picture of " in warnings
    assert "left out: annotation 10 of image id 99; annotation 11 of" in warnings
    assert "annotation 14 of image id 99 and 2 more; add their pictures to `images`, or remove them" in warnings
    assert "1 objects have no pixel in their picture and are left out: annotation 2 of ü 1; correct or" in warnings
    assert oddities(Coco(root=root)) == list(found.warnings())


def test_objects_that_overlap_are_named_as_in_their_file(tmp_path: Path):
    outside = [[20.0, 20.0, 30.0, 20.0, 30.0, 30.0]]
    annotations = [
        coco_annotation(17, 3, outside),
        coco_annotation(4711, 40, RING),
        coco_annotation(5, 3, encode_mask(np.ones((6, 10), bool)), iscrowd=1),
        coco_annotation(12, 3, encode_mask(np.ones((6, 10), bool))),
    ]
    warnings = "\n".join(inspect(Coco(root=write_coco(tmp_path, annotations)), console=QUIET).warnings())
    assert "objects overlap in ü 1 (annotation 4711 cat and annotation 12 dog share " in warnings
    assert "left out: annotation 17 of ü 1; correct" in warnings


def test_something_else_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"holds no annotations/instances\.json; give a COCO dataset"):
        inspect_sources(tmp_path)
    with pytest.raises(UserError, match=r"a\.json is a JSON file; give a COCO dataset.*`data: {format: coco"):
        inspect_sources(tmp_path / "a.json")


def test_a_dataset_has_no_keys_to_set(tmp_path: Path):
    write_scenes(tmp_path, count=1, seed=0, split="few_shot")
    with pytest.raises(UserError, match=r"--set data\.first=1 changes a key of a plan, and .* is a dataset; leave it"):
        inspect_sources(tmp_path, ["data.first=1"])
