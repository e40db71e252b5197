"""A sound dataset passes; each of many single faults is found and told in a sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from datagen import cli
from datagen.coco_format import read_coco
from datagen.exporters import Entry
from datagen.exporters.coco import Coco
from datagen.files import encode_png
from datagen.instances import encode_mask
from datagen.validation import score_against_itself, validate
from decoders.errors import UserError
from decoders.labels import InstanceSet
from tests.datagen.made_up import RING, TAXONOMY, coco_annotation, image, labels, objects, write_coco


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "dätä 1"
    entries = [Entry(f"{n:08d}", image(n), labels(n) | {"instances": objects()}, {"caption": f"{n}"}) for n in range(2)]
    Coco().export(entries, TAXONOMY, folder, {"description": "made up"})
    return folder


@pytest.fixture
def dataset(sound: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(sound, tmp_path / "set"))


def _change(folder: Path, kind: str, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "annotations" / f"{kind}.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def _found(folder: Path, *texts: str) -> None:
    report = validate(folder)
    assert not report.sound
    for text in texts:
        assert any(text in problem for problem in report.problems), report.problems
    with pytest.raises(UserError, match="problems"):
        report.require_sound()


def test_a_sound_dataset_passes(sound: Path):
    report = validate(sound)
    assert report.sound, report
    assert (report.pictures, report.objects, report.stuff_regions) == (2, 8, 4)
    assert report.self_score == pytest.approx(1, abs=1e-9)
    assert "is sound: 2 pictures, 8 objects (scored against themselves: AP 1.000)" in str(report)
    report.require_sound()


def _set(index: int, key: str, value: Any, table: str = "annotations") -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        data[table][index][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_set(0, "id", 0), "annotation id 0 is below 1"),
        (_set(0, "id", 2), "annotation id 2 occurs 2 times"),
        (_set(0, "num_keypoints", 1), "has num_keypoints 1, but gives 2"),
        (_set(0, "keypoints", [1, 1, 2]), "has 3 numbers in `keypoints`, expected 3 for each of the 2 points"),
        (_set(0, "keypoints", [1, 1, 2, 33, 1, 2]), "has keypoint 2 at x 33, y 1, outside its picture of 33 x 20"),
        (_set(0, "image_id", 9), "belongs to image id 9, which is not in `images`"),
        (_set(0, "category_id", 99), "has category id 99, which is not in `categories`"),
        (_set(0, "area", 100), "has area 100.0, but its mask covers 91 pixels"),
        (_set(0, "bbox", [2, 1, 9, 10]), "has bbox (2.0, 1.0, 9.0, 10.0), but its mask lies in (2.0, 1.0, 10.0, 10.0)"),
        (_set(0, "score", 1.5), "has score 1.5"),
        (_set(0, "score", None), "annotations.0.score"),
        (_set(0, "bbox", []), "annotations.0.bbox"),
        (lambda data: data["annotations"][0].pop("id"), "annotations.0.id"),
        (_set(0, "caption", None, "images"), "images.0.caption"),
        (_set(0, "color", "#ff00aa", "categories"), "categories.0.color"),
        (_set(0, "iscrowd", 2), "annotations.0.iscrowd"),
        (_set(0, "segmentation", {"size": [20, 33], "counts": "ü"}), "annotation 1 has the character 'ü'"),
        (_set(0, "segmentation", {"size": [20, 33], "counts": "P"}), "annotation 1 has run lengths that end in the"),
        (_set(0, "segmentation", {"size": [20, 33], "counts": "7"}), "has run lengths of 7 pixels in all"),
        (_set(0, "segmentation", {"size": [33, 20], "counts": "0"}), "a mask of size (33, 20); expected the picture's"),
        (_set(0, "segmentation", dict(encode_mask(np.zeros((20, 33), bool)))), "has an empty mask"),
        (_set(0, "segmentation", []), "no outline or mask"),
        (_set(0, "id", 2, "images"), "image id 2 occurs 2 times"),
        (_set(0, "id", 0, "images"), "image id 0 is below 1"),
        (_set(0, "width", 34, "images"), "is (20, 33) (height, width), but images say (20, 34)"),
        (_set(0, "width", "33", "images"), "images.0.width"),
        (_set(0, "file_name", "none.png", "images"), "picture not found"),
        (_set(0, "depth_file", "depth/none.png", "images"), "label file not found"),
        (_set(0, "depth_file", 3, "images"), "names 3 as depth_file"),
        (_set(0, "caption", "other", "images"), "images of instances.json and stuff.json differ"),
        (_set(0, "name", "other", "categories"), "categories of instances.json and stuff.json differ"),
        (_set(0, "id", 3, "categories"), "category id 3 occurs 2 times"),
        (_set(0, "semantic_id", 2, "categories"), "semantic ids of the categories are [2, 2, 3, 4]"),
        (lambda data: data["info"].pop("depth"), "info.depth is None"),
        (lambda data: data["info"]["depth"].update(dtype="uint8"), "holds uint16, expected uint8"),
        (lambda data: data["info"]["depth"].update(scale=0), "info.depth is"),
        (lambda data: data.pop("images"), "images: Field required"),
    ],
)  # fmt: skip
def test_a_fault_in_the_objects_is_found(dataset: Path, change: Callable[[dict[str, Any]], None], text: str):
    _change(dataset, "instances", change)
    _found(dataset, text)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_set(0, "category_id", 7), "stuff.json has classes [7, 12] for 00000000.png, but its semantic map [11, 12]"),
        (_set(0, "category_id", 12), "two regions of one class for 00000000.png"),
        (lambda data: data["annotations"].pop(0), "stuff.json has classes [12] for 00000000.png"),
        (
            lambda data: data["annotations"][0].update(
                segmentation=encode_mask(np.eye(20, 33, dtype=bool)), area=20, bbox=[0, 0, 20, 20]
            ),
            "pixels of category 11",
        ),
    ],
)
def test_a_fault_in_the_stuff_is_found(dataset: Path, change: Callable[[dict[str, Any]], None], text: str):
    _change(dataset, "stuff", change)
    _found(dataset, text)


def _segment(data: dict[str, Any], **values: Any) -> None:
    data["annotations"][0]["segments_info"][0].update(values)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda data: _segment(data, area=3), "segment 1 of panoptic/00000000.png covers other pixels"),
        (lambda data: _segment(data, bbox=[0.0, 0.0, 1.0, 1.0]), "covers other pixels"),
        (lambda data: _segment(data, category_id=99), "has category id 99, not in `categories`"),
        (lambda data: _segment(data, id=70), "but panoptic.json [2, "),
        (lambda data: data["annotations"].append(data["annotations"][0]), "2 entries of image id 1"),
        (lambda data: data["images"].pop(), "images or categories of instances.json and panoptic.json differ"),
        (lambda data: data["annotations"][0].pop("segments_info"), "annotations.0.segments_info: Field required"),
    ],
)
def test_a_fault_in_the_segments_is_found(dataset: Path, change: Callable[[dict[str, Any]], None], text: str):
    _change(dataset, "panoptic", change)
    _found(dataset, text)


def test_a_missing_panoptic_file_is_found(dataset: Path):
    (dataset / "annotations/panoptic.json").unlink()
    _found(dataset, "panoptic.json")


@pytest.mark.parametrize(
    ("file", "content", "text"),
    [
        ("images/00000000.png", None, "picture not found"),
        ("images/00000000.png", b"half", "cannot be read"),
        ("images/00000000.png", encode_png(image(0, 33, 20)), "image of 00000000.png is (33, 20)"),
        ("semantic/00000001.png", encode_png(np.full((20, 33), 5, np.uint8)), "holds ids [5], expected 0..4"),
        ("semantic/00000001.png", encode_png(np.full((20, 33), 1, np.uint8)), "but its semantic map [11]"),
        ("semantic/00000001.png", encode_png(image(0)), "holds colours"),
        ("depth/00000001.png", encode_png(np.ones((20, 33), np.uint8)), "holds uint8, expected uint16"),
        ("depth/00000001.png", encode_png(np.ones((20, 32), np.uint16)), "depth of 00000001.png is (20, 32)"),
        ("annotations/stuff.json", None, "stuff.json; check the path"),
        ("annotations/instances.json", b"{", "is not of the COCO form"),
        ("parts/settings.json", b"{}", "the dataset was not finished"),
    ],
)
def test_a_fault_in_a_file_is_found(dataset: Path, file: str, content: bytes | None, text: str):
    path = dataset / file
    if content is None:
        path.unlink()
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    _found(dataset, text)


def test_a_cut_picture_is_found(dataset: Path):
    path = dataset / "images" / "00000001.png"
    path.write_bytes(path.read_bytes()[:-300])
    _found(dataset, "00000001.png cannot be read")


def test_more_than_a_hundred_objects_score_one(tmp_path: Path):
    """pycocotools' default of 100 detections a picture would cap this at 0.66."""
    masks = np.zeros((150, 20, 33), bool)
    masks[np.arange(150), np.arange(150) // 33, np.arange(150) % 33] = True
    many = InstanceSet(
        masks=masks,
        category_ids=np.full(150, 2, np.int64),
        scores=np.linspace(0, 1, 150, dtype=np.float32),
        is_crowd=np.zeros(150, bool),
    )
    Coco().export([Entry("a", image(), {"instances": many}, {})], TAXONOMY, tmp_path, {})
    report = validate(tmp_path)
    assert report.sound
    assert report.self_score == pytest.approx(1, abs=1e-9)


def test_the_scorer_can_fail(dataset: Path):
    """Of two objects, one with id 0, the scorer counts one as unmatched."""
    _change(dataset, "instances", _set(0, "id", 0))
    score = score_against_itself(read_coco(dataset / "annotations" / "instances.json"))
    assert score is not None
    assert score < 0.99


def test_only_crowds_have_no_score(tmp_path: Path):
    crowd = InstanceSet(
        masks=np.ones((1, 20, 33), bool),
        category_ids=np.array([2], np.int64),
        scores=np.ones(1, np.float32),
        is_crowd=np.ones(1, bool),
    )
    Coco().export([Entry("a", image(), {"instances": crowd}, {})], TAXONOMY, tmp_path, {})
    report = validate(tmp_path)
    assert report.sound
    assert report.self_score is None


def test_a_folder_without_a_dataset_is_told(tmp_path: Path):
    with pytest.raises(UserError, match=r"is no dataset: .*instances\.json not found; give the folder"):
        validate(tmp_path)


def _foreign(folder: Path, *changes: dict[str, Any], **more: Any) -> Path:
    """As other tools write it: numbered from 0, coordinates between pixels; each of the changes makes an object."""
    ring = {"segmentation": RING, "bbox": [1.2, 0.8, 5.9, 4.1], "area": 25.5}
    annotations = [ring | coco_annotation(number, 3, RING) | change for number, change in enumerate(changes)]
    return write_coco(folder, annotations, **more)


def test_a_sound_foreign_dataset_passes(tmp_path: Path):
    crowd = {"segmentation": {"size": [6, 10], "counts": [0, 60]}, "iscrowd": 1, "area": None, "bbox": []}
    box_area = {"area": 5.9 * 4.1, "score": None}
    across_the_edge = {"segmentation": [[-4.0, 0, 8, 0, 8, 6, -4, 6]], "bbox": [-4, 0, 12, 6], "area": 72}
    report = validate(_foreign(tmp_path, {}, box_area, crowd, across_the_edge))
    assert report.sound, report
    assert report.foreign
    assert report.self_score == pytest.approx(1, abs=1e-9)
    assert f"{tmp_path}, checked as a foreign dataset (info has no settings_digest of ours: objects" in str(report)
    assert "alone), is sound: 2 pictures, 4 objects (scored against themselves: AP 1.000)" in str(report)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"id": 1}, "annotation id 1 occurs 2 times"),
        ({"image_id": 9}, "annotation 0 belongs to image id 9, which is not in `images`"),
        ({"category_id": 9}, "annotation 0 has category id 9, which is not in `categories`"),
        ({"area": 2}, "has area 2.0, but its mask covers 24 pixels"),
        ({"bbox": [4, 1, 6, 4]}, "has bbox (4.0, 1.0, 6.0, 4.0), but its mask lies in (1.0, 1.0, 6.0, 4.0)"),
        ({"segmentation": {"size": [6, 10], "counts": "7"}}, "has run lengths of 7 pixels in all"),
        ({"segmentation": [[20, 20, 30, 20, 30, 30]]}, "has an empty mask"),
        ({"segmentation": []}, "1 of 2 objects have no outline or mask, which a box does not give: annotation 0; the"),
        ({"score": 7}, "has score 7.0, expected 0..1"),
        ({"iscrowd": 3}, "annotations.0.iscrowd"),
    ],
)
def test_a_fault_in_foreign_objects_is_found(tmp_path: Path, change: dict[str, Any], text: str):
    _found(_foreign(tmp_path, change, {}), text)


def test_a_fault_in_foreign_tables_and_pictures_is_found(tmp_path: Path):
    pictures = [
        {"id": 5, "file_name": "2.png", "width": 7, "height": 6},
        {"id": 5, "file_name": "none/a.png", "width": 10, "height": 6},
    ]
    categories = [{"id": 3, "name": "cat"}, {"id": 3, "name": "cat"}]
    root = _foreign(tmp_path, images=pictures, categories=categories)
    _found(root, "image id 5 occurs 2 times", "category id 3 occurs 2 times", "category name 'cat' occurs 2 times")
    _found(root, "image of 2.png is (6, 10) (height, width), but images say (6, 7)", "1 of 2 pictures are missing")
    (root / "images/2.png").write_bytes(b"half")
    _found(root, "2.png cannot be read")


def test_a_foreign_dataset_may_lie_otherwise(tmp_path: Path):
    root = _foreign(tmp_path, {})
    (root / "annotations/instances.json").rename(root / "_annotations.coco.json")
    arguments = ["validate", str(root), "--annotations", "_annotations.coco.json"]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    assert "checked as a foreign dataset" in done.output
    done = CliRunner().invoke(cli.app, [*arguments, "--images", "sub"])
    assert done.exit_code == 2
    assert "2 of 2 pictures are missing" in done.output


def test_a_long_list_is_cut(dataset: Path):
    def change(data: dict[str, Any]) -> None:
        data["annotations"] = [{**data["annotations"][0], "area": number} for number in range(40)]

    _change(dataset, "instances", change)
    assert str(validate(dataset)).count("\n") == 21
