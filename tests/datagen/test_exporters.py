"""The faults of other tools' COCO writers that ours must not have, and what resuming promises."""

import errno
import io
import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco_mask

from datagen.datasets.coco import Coco as CocoDataset
from datagen.exporters import Entry
from datagen.exporters.coco import Coco, CocoWriter
from datagen.instances import Rle, components, decode_mask, encode_mask, mask_area, mask_box
from datagen.validation import validate
from decoders.errors import UserError
from decoders.labels import DenseMap, InstanceSet, Storage, Taxonomy, metric_depth, semantic_map
from tests.datagen.made_up import TAXONOMY, failing, image, labels, objects, tree

INFO = {"description": "made up", "plan_digest": "abc"}


def _entries(count: int, *, with_objects: bool = True) -> list[Entry]:
    return [
        Entry(
            f"{number:08d}",
            image(number),
            labels(number) | ({"instances": objects()} if with_objects else {}),
            {"caption": f"№ {number}", "seed": number},
        )
        for number in range(count)
    ]


def _writer(folder: Path, *, info: Mapping[str, Any] = INFO, taxonomy: Taxonomy = TAXONOMY) -> CocoWriter:
    return CocoWriter(folder, taxonomy, info=info)


def _read(folder: Path, kind: str = "instances") -> dict[str, Any]:
    return json.loads((folder / "annotations" / f"{kind}.json").read_text(encoding="utf-8"))


def _decoded_by_pycocotools(rle: Rle) -> np.ndarray:
    with warnings.catch_warnings():  # of numpy, about how pycocotools hands over its memory
        warnings.simplefilter("ignore", DeprecationWarning)
        return np.array(coco_mask.decode({"size": rle["size"], "counts": rle["counts"].encode()}), bool)


@given(arrays(bool, st.tuples(st.integers(1, 23), st.integers(1, 23))))
@settings(max_examples=200, deadline=None)
def test_masks_come_back_bit_for_bit(mask: np.ndarray):
    rle = encode_mask(mask)
    np.testing.assert_array_equal(decode_mask(rle), mask)
    np.testing.assert_array_equal(_decoded_by_pycocotools(rle), mask)
    assert mask_area(rle) == mask.sum()
    assert isinstance(rle["counts"], str)
    rows, columns = np.nonzero(mask)
    if rows.size:
        x, y = columns.min(), rows.min()
        assert mask_box(rle) == [x, y, columns.max() + 1 - x, rows.max() + 1 - y]


def test_every_object_is_exact_and_none_is_a_crowd_unless_it_is_one(tmp_path: Path):
    Coco().export(_entries(3), TAXONOMY, tmp_path, INFO)
    data = _read(tmp_path)
    truth = objects()
    assert [found["id"] for found in data["annotations"]] == list(range(1, 13))
    assert [picture["id"] for picture in data["images"]] == [1, 2, 3]
    for image_id in (1, 2, 3):
        found = [entry for entry in data["annotations"] if entry["image_id"] == image_id]
        kept = [0, 1, 2, 4]  # 3 has no pixel
        for entry, index in zip(found, kept, strict=True):
            mask = truth.masks[index]
            np.testing.assert_array_equal(_decoded_by_pycocotools(entry["segmentation"]), mask)
            rows, columns = np.nonzero(mask)
            x, y = int(columns.min()), int(rows.min())
            assert entry["bbox"] == [x, y, columns.max() + 1 - x, rows.max() + 1 - y]
            assert entry["area"] == mask.sum()
            assert entry["iscrowd"] == int(index == 4)
            assert entry["category_id"] == TAXONOMY.category_ids[truth.category_ids[index] - 1]
            assert entry["score"] == pytest.approx(truth.scores[index])


def test_the_tables_say_how_to_read_the_maps(tmp_path: Path):
    Coco().export(_entries(1), TAXONOMY, tmp_path, INFO)
    data = _read(tmp_path)
    assert data["info"]["plan_digest"] == "abc"
    assert data["info"]["instances"] == "given with the pictures"
    depth = data["info"]["depth"]
    assert depth == {"unit": "m", "scale": 1 / 256, "offset": 0, "dtype": "uint16", "channels": 1, "invalid": 0}
    assert data["categories"][1] == {
        "id": 3,
        "name": "car",
        "supercategory": "thing",
        "isthing": 1,
        "color": [0, 0, 142],
        "phrase": "a car",
        "semantic_id": 2,
        "keypoints": ["left_light", "right_light"],
        "skeleton": [[1, 2]],
        "sigmas": [0.07, 0.07],
    }
    assert data["categories"] == _read(tmp_path, "stuff")["categories"]
    assert [row["supercategory"] for row in data["categories"]] == ["stuff", "thing", "thing", "stuff"]
    (picture,) = data["images"]
    assert picture == {
        "id": 1,
        "file_name": "00000000.png",
        "height": 20,
        "width": 33,
        "caption": "№ 0",
        "seed": 0,
        "semantic_file": "semantic/00000000.png",
        "semantic_confidence_file": "semantic_confidence/00000000.png",  # and none of the depth, which is given truth
        "depth_file": "depth/00000000.png",
    }
    given_labels = labels(0)
    semantic, meters = given_labels["semantic"], given_labels["depth"]
    assert isinstance(semantic, DenseMap)
    assert isinstance(meters, DenseMap)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / picture["semantic_file"])), semantic.values[..., 0])
    steps = np.array(Image.open(tmp_path / picture["depth_file"]))
    assert steps.dtype == np.uint16
    np.testing.assert_array_equal(steps > 0, meters.valid)
    np.testing.assert_allclose(steps * depth["scale"], meters.values[..., 0], atol=depth["scale"] / 2)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "images" / picture["file_name"])), image(0))


def test_confidence_comes_back_with_its_map(tmp_path: Path):
    Coco().export(_entries(1), TAXONOMY, tmp_path, INFO)
    back = CocoDataset(root=tmp_path)[0].labels
    assert not any(name.endswith("_confidence") for name in back)
    for task, written in labels(0).items():
        found = back[task]
        assert isinstance(written, DenseMap)
        assert isinstance(found, DenseMap)
        np.testing.assert_allclose(found.confidence, written.confidence, atol=0.5 / 254)


def test_stuff_is_one_region_per_class_that_is_there(tmp_path: Path):
    Coco().export(_entries(2), TAXONOMY, tmp_path, INFO)
    data = _read(tmp_path, "stuff")
    assert [(entry["image_id"], entry["category_id"]) for entry in data["annotations"]] == [
        (1, 11),
        (1, 12),
        (2, 11),
        (2, 12),
    ]
    semantic = labels(1)["semantic"]
    assert isinstance(semantic, DenseMap)
    sky = decode_mask(data["annotations"][2]["segmentation"])
    np.testing.assert_array_equal(sky, semantic.values[..., 0] == 1)
    assert data["annotations"][2]["score"] == pytest.approx(semantic.confidence[sky].mean(), abs=1e-5)


def test_without_objects_the_connected_parts_of_things_count(tmp_path: Path):
    Coco(min_instance_pixels=30).export(_entries(1, with_objects=False), TAXONOMY, tmp_path, INFO)
    data = _read(tmp_path)
    assert data["info"]["instances"] == "connected components of the semantic map"
    assert [entry["category_id"] for entry in data["annotations"]] == [3, 7]
    assert all(entry["area"] >= 30 for entry in data["annotations"])
    assert validate(tmp_path).sound


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 4)), st.integers(0, 5)
)
@settings(max_examples=100, deadline=None)
def test_components_cover_each_thing_once(ids: np.ndarray, min_pixels: int):
    found = components(semantic_map(ids), TAXONOMY, min_pixels=min_pixels)
    assert found.masks.sum(axis=0).max(initial=0) <= 1
    for mask, semantic_id in zip(found.masks, found.category_ids, strict=True):
        assert (ids[mask] == semantic_id).all()
        assert mask.sum() >= max(min_pixels, 1)
    if min_pixels <= 1:
        np.testing.assert_array_equal(found.masks.any(axis=0), (ids == 2) | (ids == 3))


def test_corners_connect_and_the_score_is_the_mean_confidence():
    ids = np.array([[2, 0, 0], [0, 2, 0], [0, 0, 0], [2, 0, 0]], np.uint8)
    confidence = np.linspace(0, 1, 12, dtype=np.float32).reshape(4, 3)
    found = components(semantic_map(ids, confidence), TAXONOMY, min_pixels=1)
    assert [mask.sum() for mask in found.masks] == [2, 1]
    np.testing.assert_allclose(found.scores, [confidence[[0, 1], [0, 1]].mean(), confidence[3, 0]])


def test_files_keep_their_bytes_and_names(tmp_path: Path):
    buffer = io.BytesIO()
    Image.fromarray(image()).save(buffer, "JPEG", exif=b"")
    writer = _writer(tmp_path)
    writer.add("Bild ü.v2.JPG", buffer.getvalue(), labels(), {})
    writer.finish()
    assert (tmp_path / "images" / "Bild ü.v2.JPG").read_bytes() == buffer.getvalue()
    (picture,) = _read(tmp_path)["images"]
    assert picture["semantic_file"] == "semantic/Bild ü.v2.png"
    assert (picture["height"], picture["width"]) == (20, 33)
    assert writer.has("Bild ü.v2.JPG")
    assert validate(tmp_path).sound


@pytest.mark.parametrize("count", [0, 1])
def test_no_picture_or_no_object_still_gives_valid_files(tmp_path: Path, count: int):
    sky = {"semantic": semantic_map(np.ones((20, 33), np.uint8))}
    Coco().export([Entry("a", image(), sky, {})] * count, TAXONOMY, tmp_path, INFO)
    report = validate(tmp_path)
    assert report.sound, report
    assert (report.pictures, report.objects, report.self_score) == (count, 0, None)
    assert (tmp_path / "images").is_dir()


def test_a_picture_without_any_label_is_written_too(tmp_path: Path):
    Coco().export(
        [Entry("a", image(), {}, {}), Entry("b", image(), {"depth": labels()["depth"]}, {})], TAXONOMY, tmp_path, {}
    )
    assert validate(tmp_path).sound
    assert "depth_file" not in _read(tmp_path)["images"][0]


def test_keypoints_are_kept(tmp_path: Path):
    points = np.array([[[1, 2, 2], [0, 0, 0]]], np.float32)
    one = InstanceSet(
        masks=np.ones((1, 20, 33), bool),
        category_ids=np.array([2], np.int64),
        scores=np.ones(1, np.float32),
        is_crowd=np.zeros(1, bool),
        keypoints_px=points,
    )
    Coco().export([Entry("a", image(), {"people": one}, {})], TAXONOMY, tmp_path, {})
    (entry,) = _read(tmp_path)["annotations"]
    assert entry["keypoints"] == [1, 2, 2, 0, 0, 0]
    assert entry["num_keypoints"] == 1
    assert validate(tmp_path).sound


def test_only_the_class_with_a_skeleton_gets_keypoints(tmp_path: Path):
    things = replace(objects(), category_ids=np.array([3, 2, 2, 2, 2], np.int64))
    Coco().export([Entry("a", image(), {"instances": things}, {})], TAXONOMY, tmp_path, {})
    found = [(entry["category_id"], entry.get("num_keypoints")) for entry in _read(tmp_path)["annotations"]]
    assert found == [(7, None), (3, 0), (3, 0), (3, 0)]


def test_keypoints_that_the_taxonomy_does_not_know_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="objects of instances have 2 keypoints, the taxonomy's skeleton 0"):
        Coco().export(
            [Entry("a", image(), {"instances": objects()}, {})], replace(TAXONOMY, skeleton=None), tmp_path, {}
        )


@pytest.fixture(scope="module")
def at_once(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("once") / "set"
    Coco().export(_entries(6), TAXONOMY, folder, INFO)
    return tree(folder)


@given(order=st.permutations(range(6)), cuts=st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=3))
@settings(max_examples=15, deadline=None)
def test_any_order_and_any_interruption_end_in_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory,
    at_once: dict[str, bytes],
    order: list[int],
    cuts: list[tuple[int, bool]],
):
    """Each cut is a new writer that takes the first so many; some finish before the next one goes on."""
    folder = tmp_path_factory.mktemp("parts") / "set"
    entries = _entries(6)
    for end, finishes in [*cuts, (6, True)]:
        writer = _writer(folder)
        for number in order[:end]:
            if not writer.has(entries[number].name):
                writer.add(*entries[number])
        if finishes:
            writer.finish()
    assert tree(folder) == at_once


def test_a_second_run_does_nothing(tmp_path: Path, at_once: dict[str, bytes]):
    folder = tmp_path / "set"
    Coco().export(_entries(6), TAXONOMY, folder, INFO)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    Coco().export(_entries(6), TAXONOMY, folder, INFO)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == times
    assert tree(folder) == at_once


def test_a_larger_export_is_made_smaller(tmp_path: Path, at_once: dict[str, bytes]):
    folder = tmp_path / "set"
    Coco().export(_entries(8), TAXONOMY, folder, INFO)
    Coco().export(_entries(6), TAXONOMY, folder, INFO)
    assert tree(folder) == at_once


@pytest.mark.parametrize("count", [*range(0, 37, 4), 37, 38, 39])
def test_a_writer_killed_at_any_rename_goes_on(
    tmp_path: Path, at_once: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, count: int
):
    """40 renames make the dataset: the settings, six files a picture, three tables."""
    folder = tmp_path / "set"
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no machine loses power here
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", _killed_after(count, os.replace))
        with pytest.raises(_Killed):
            Coco().export(_entries(6), TAXONOMY, folder, INFO)
    Coco().export(_entries(6), TAXONOMY, folder, INFO)
    assert tree(folder) == at_once


@pytest.mark.parametrize("count", [*range(0, 17, 4), 17, 18, 19])
def test_a_finished_dataset_killed_while_it_grows_goes_on(
    tmp_path: Path, at_once: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, count: int
):
    folder = tmp_path / "set"
    monkeypatch.setattr(os, "fsync", lambda _: None)
    Coco().export(_entries(4), TAXONOMY, folder, INFO)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", _killed_after(count, os.replace))
        with pytest.raises(_Killed):
            Coco().export(_entries(6), TAXONOMY, folder, INFO)
    Coco().export(_entries(6), TAXONOMY, folder, INFO)
    assert tree(folder) == at_once


def test_a_writer_killed_while_its_parts_are_removed_is_done(
    tmp_path: Path, at_once: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "set"
    with monkeypatch.context() as patch:
        patch.setattr("datagen.exporters.coco.shutil.rmtree", failing(_Killed()))
        with pytest.raises(_Killed):
            Coco().export(_entries(6), TAXONOMY, folder, INFO)
    assert (folder / "parts").exists()
    Coco().export(_entries(6), TAXONOMY, folder, INFO)
    assert tree(folder) == at_once


class _Killed(BaseException):
    pass


def _killed_after(count: int, call: Callable[..., None]) -> Callable[..., None]:
    left = count

    def replacement(*arguments: Any) -> None:
        nonlocal left
        if left == 0:
            raise _Killed
        left -= 1
        call(*arguments)

    return replacement


def test_a_full_disk_is_told_and_the_same_call_goes_on(
    tmp_path: Path, at_once: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "set"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(OSError(errno.ENOSPC, "full"), after=7))
        with pytest.raises(UserError, match="disk full"):
            Coco().export(_entries(6), TAXONOMY, folder, INFO)
    assert not [name for name in tree(folder) if name.endswith(".tmp")]
    Coco().export(_entries(6), TAXONOMY, folder, INFO)
    assert tree(folder) == at_once


@pytest.mark.parametrize("finished", [True, False])
def test_a_dataset_of_other_settings_is_not_touched(tmp_path: Path, finished: bool):
    writer = _writer(tmp_path)
    writer.add(*_entries(1)[0])
    if finished:
        writer.finish()
    before = tree(tmp_path)
    other = Taxonomy(names=("a",), is_thing=(True,), colors=((1, 2, 3),))
    recolored = replace(TAXONOMY, colors=(*TAXONOMY.colors[:-1], (9, 9, 9)))
    asked = {**INFO, "phrases": ["sky"]}
    for info, taxonomy, told in (
        (
            {**INFO, "plan_digest": 64 * "a"},
            TAXONOMY,
            r'settings: plan_digest \("abc" there, aaaaaaaa now\)\. It is not',
        ),
        (asked, TAXONOMY, r'settings: phrases \(null there, \["sky"\] now\)\.'),
        (INFO, other, r"settings: categories \(sky, car, traffic sign, background there, a now\)\."),
        (INFO, recolored, r"settings: categories \(of the same names, but other ids, colours or phrases\)\."),
    ):
        with pytest.raises(UserError, match=rf"holds a dataset of other {told}.* choose another folder"):
            _writer(tmp_path, info=info, taxonomy=taxonomy)
    pixels = "which, it does not tell" if finished else r"min_instance_pixels \(20 there, 5 now\)"
    with pytest.raises(UserError, match=f"holds a dataset of other settings: {pixels}"):
        CocoWriter(tmp_path, TAXONOMY, info=INFO, min_instance_pixels=5)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("finished", [True, False])
def test_a_model_that_was_moved_is_the_same_source(tmp_path: Path, finished: bool):
    writer = _writer(tmp_path, info={**INFO, "model": {"source": "models/a"}})
    writer.add(*_entries(1)[0])
    if finished:
        writer.finish()
    grown = _writer(tmp_path, info={**INFO, "model": {"source": "/abs/models/a"}})
    grown.add(*_entries(2)[1])
    grown.finish()
    assert validate(tmp_path).pictures == 2
    assert _read(tmp_path)["info"]["model"] == {"source": "/abs/models/a"}


@pytest.mark.parametrize("name", ["holiday.jpg", "annotations/instances.json"])
def test_a_folder_with_something_else_is_not_touched(tmp_path: Path, name: str):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"images": []}')
    before = tree(tmp_path)
    with pytest.raises(UserError, match="choose another folder"):
        _writer(tmp_path)
    assert tree(tmp_path) == before


def test_names_that_cannot_be_are_refused(tmp_path: Path):
    writer = _writer(tmp_path)
    writer.add("a", image(), {}, {})
    buffer = io.BytesIO()
    Image.fromarray(image()).save(buffer, "JPEG")
    with pytest.raises(UserError, match=r"a\.png and a\.jpg would share the label file a\.png"):
        writer.add("a.jpg", buffer.getvalue(), {}, {})
    for name in ("../a.jpg", "notes.txt", "b"):
        with pytest.raises(UserError, match="expected a file name"):
            writer.add(name, buffer.getvalue(), {}, {})
    with pytest.raises(UserError, match=r"picture c\.jpg cannot be read"):
        writer.add("c.jpg", b"no picture", {}, {})


def test_labels_that_do_not_fit_are_refused(tmp_path: Path):
    writer = _writer(tmp_path)
    high = {"semantic": semantic_map(np.full((20, 33), 5, np.uint8))}
    centimeters = Storage(unit="cm", quantum=1.0)
    ones = np.ones((20, 33), np.float32)
    other = DenseMap(values=ones[..., None], valid=ones > 0, confidence=ones, storage=centimeters)
    for wrong, text in (
        (labels(0, 33, 20), r"\(20, 33\), but its .* label has \(33, 20\)"),
        (high, r"semantic ids 5\.\.5, expected 1\.\.4"),
        ({"parts": metric_depth(ones)}, "cannot name files"),
        ({"a": labels()["semantic"], "b": labels()["semantic"]}, "more than one map of classes"),
        ({"a": objects(), "b": objects()}, "more than one set of objects"),
    ):
        with pytest.raises(ValueError, match=text):
            writer.add("a", image(), wrong, {})
    with pytest.raises(ValueError, match=r"\['width'\] of picture a"):
        writer.add("a", image(), {}, {"width": 3})
    assert not writer.file_names
    writer.add("a", image(), {"depth": other}, {})
    writer.add("b", image(), {"depth": metric_depth(ones)}, {})
    with pytest.raises(ValueError, match="map depth has two storages"):
        writer.finish()
