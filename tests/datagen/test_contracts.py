"""What every plug-in of a folder promises, once for all of them: a new one joins by a line in a table here."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datagen.datasets import AnnotatedImages, data_digest
from datagen.exporters import Entry
from datagen.exporters.coco import Coco
from datagen.filters import Filter
from datagen.packing import pack_map
from datagen.plugins import choose_part, find, kinds
from datagen.records import Guide
from datagen.sources import Source, sample_id
from decoders.labels import DenseMap, InstanceSet
from tests.datagen.made_up import TAXONOMY, image, labels, objects, sample
from tests.datagen.test_fitting import CLASSES, photographs

# ---- datasets ----


def _exported(root: Path) -> dict[str, Any]:
    entries = [
        Entry(f"bild {number}é", image(number), labels(number) | {"instances": objects()}, {}) for number in range(3)
    ]
    Coco().export(entries, TAXONOMY, root, {})
    return {"root": str(root)}


def _voc(root: Path) -> dict[str, Any]:
    for folder in ("JPEGImages", "SegmentationClass"):
        (root / folder).mkdir(parents=True)
    for number in range(3):
        Image.fromarray(image(number, 6, 9)).save(root / f"JPEGImages/{number}.jpg")
        ids = np.random.default_rng(number).choice(np.array([0, 7, 15, 255], np.uint8), (6, 9))
        Image.fromarray(ids).save(root / f"SegmentationClass/{number}.png")
    return {"root": str(root)}


def _cityscapes(root: Path) -> dict[str, Any]:
    for folder in ("leftImg8bit/train/ulm", "gtFine/train/ulm"):
        (root / folder).mkdir(parents=True)
    for number in range(3):
        name = f"train/ulm/ulm_{number}"
        Image.fromarray(image(number, 6, 9)).save(root / f"leftImg8bit/{name}_leftImg8bit.png")
        ids = np.full((6, 9), 7, np.uint8)
        ids[2:5, 3:6] = 26
        numbers = np.where(ids == 26, np.uint16(26_001), ids)
        Image.fromarray(ids).save(root / f"gtFine/{name}_gtFine_labelIds.png")
        Image.fromarray(numbers).save(root / f"gtFine/{name}_gtFine_instanceIds.png")
    return {"root": str(root)}


def _label_folder(root: Path) -> dict[str, Any]:
    return {"root": str(photographs(root, 3)), "classes": CLASSES, "void": [9]}


DATASETS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "cityscapes": _cityscapes,
    "coco": _exported,
    "coco_panoptic": _exported,
    "label_folder": _label_folder,
    "pocket_scenes": lambda _: {"count": 3, "height": 32, "width": 48},
    "voc": _voc,
}
"""Format -> settings of one with three pictures, whose files are put into a folder."""


def test_every_dataset_is_held_to_the_contract():
    assert set(kinds("datasets")) == DATASETS.keys()


@pytest.mark.parametrize("kind", DATASETS)
def test_a_dataset(kind: str, tmp_path: Path):
    settings = DATASETS[kind](tmp_path / "data ü")

    def build(**more: Any) -> AnnotatedImages:
        return choose_part("datasets", {"format": kind, **settings, **more}, at="data").build()

    data = build()
    assert isinstance(data, AnnotatedImages)
    assert len(data) == len(data.names) == len(set(data.names)) == 3
    assert [each.name for each in data] == list(data.names)
    assert [each.name for each in data[1:]] == list(data.names[1:])
    assert data[-1].name == data.names[-1]
    with pytest.raises(IndexError):
        data[3]
    for each in data:
        assert each.labels
        for label in each.labels.values():
            assert (label.valid.shape if isinstance(label, DenseMap) else label.masks.shape[1:]) == each.image.shape[:2]
            if isinstance(label, InstanceSet):
                assert set(label.category_ids.tolist()) <= set(range(1, len(data.taxonomy) + 1))
            else:
                pack_map(label)  # it fits a file
    assert data_digest(build()) == data_digest(data)
    if "every" in inspect.signature(find("datasets", kind, at="")).parameters:
        assert build(every=2).names == data.names[::2]
        assert build(first=2).names == data.names[:2]
        assert build(names=[data.names[1]]).names == data.names[1:2]
        assert data_digest(build(first=2)) != data_digest(data)


# ---- sources ----

SOURCES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "layouts": lambda root: {"data": {"format": "label_folder", **_label_folder(root)}, "height": 32, "width": 32},
    "prompts": lambda root: {"file": str(_prompts(root))},
    "restyle": lambda root: {"data": {"format": "label_folder", **_label_folder(root)}, "times": 2},
    "templates": lambda _: {"templates": ["a {look} of a car"], "slots": {"look": ["photo", "film"]}},
}
"""Kind -> settings, whose files are put into a folder."""


def _prompts(root: Path) -> Path:
    root.mkdir(parents=True)
    (root / "prompts.txt").write_text("a car\nein Zug ü\n", encoding="utf-8")
    return root / "prompts.txt"


def test_every_source_is_held_to_the_contract():
    assert set(kinds("sources")) == SOURCES.keys()


def _guide(found: Guide | None) -> list[bytes]:
    maps = [] if found is None else [each for each in found.labels.values() if isinstance(each, DenseMap)]
    return [each.values.tobytes() + each.valid.tobytes() for each in maps]


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source(kind: str, tmp_path: Path):
    settings = SOURCES[kind](tmp_path / "data ü")

    def build(seed: int = 3) -> Source:
        return choose_part("sources", {"kind": kind, **settings}, at="source").build(seed=seed, taxonomy=TAXONOMY)

    source = build()
    assert isinstance(source, Source)
    assert source.length is None or source.length == 6
    recipes = [source.recipe(index) for index in range(6)]
    assert [each.id for each in recipes] == [sample_id(index) for index in range(6)]
    assert len({each.seed for each in recipes}) == 6
    assert all(each.prompt for each in recipes)
    for index in (4, 0):  # in any order, by anybody
        for again in (source.recipe(index), build().recipe(index)):
            mine = recipes[index]
            assert (again.id, again.prompt, again.seed, again.wanted) == (mine.id, mine.prompt, mine.seed, mine.wanted)
            assert again.attributes == mine.attributes
            assert _guide(again.guide) == _guide(mine.guide)
    assert {each.seed for each in recipes}.isdisjoint(build(seed=4).recipe(index).seed for index in range(6))


# ---- filters ----

FILTERS: dict[str, dict[str, Any]] = {
    "agreement": {"minimum": 0.0},
    "class_coverage": {"minimum_share": 0.0},
    "confidence": {"minimum": 0.0},
}
"""Kind -> settings under which all but anything is kept."""
STRICT: dict[str, dict[str, Any]] = {
    "agreement": {"minimum": 1.0},
    "class_coverage": {"minimum_classes": 99},
    "confidence": {"minimum": 1.0},
}


def test_every_filter_is_held_to_the_contract():
    assert set(kinds("filters")) == FILTERS.keys() == STRICT.keys()


@pytest.mark.parametrize("kind", FILTERS)
def test_a_filter(kind: str):
    def build(settings: dict[str, Any]) -> Filter:
        return choose_part("filters", {"kind": kind, **settings}, at="filters.0").build(taxonomy=TAXONOMY)

    plain = sample(1)
    guided = replace(plain, recipe=replace(plain.recipe, guide=Guide(labels=labels(1))))
    kept, rejected = build(FILTERS[kind]).judge(guided), build(STRICT[kind]).judge(guided)
    assert isinstance(build({}), Filter)
    assert (kept.keep, kept.reason) == (True, "")
    assert not rejected.keep
    assert rejected.reason
    assert not any(character.isdigit() for character in rejected.reason), "reasons are counted, numbers are scores"
    assert kept.scores
    assert all(isinstance(score, float) for score in kept.scores.values())
    for name, untouched in sample(1).labels.items():  # a filter changes nothing
        parts = ("masks", "scores") if isinstance(untouched, InstanceSet) else ("values", "valid", "confidence")
        assert all(np.array_equal(getattr(guided.labels[name], part), getattr(untouched, part)) for part in parts)
