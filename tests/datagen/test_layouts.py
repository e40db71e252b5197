"""Layouts are crops of true labels: everything moves together, and a recipe is a function of its position."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datagen.datasets import AnnotatedImages, data_digest
from datagen.datasets.pocket_scenes import PocketScenes
from datagen.plugins import choose_part
from datagen.rare_classes import RareClasses
from datagen.records import Recipe
from datagen.sources import Source
from datagen.sources.layouts import Layouts
from decoders.errors import UserError
from decoders.labels import AnnotatedImage, DenseMap, InstanceSet, Taxonomy
from tests.decoders.toy_world import TAXONOMY, toy_pictures, truth_of

HEIGHT, WIDTH = 48, 64


class Toys(AnnotatedImages):
    """Toy pictures in memory."""

    def __init__(self, pictures: Sequence[AnnotatedImage], taxonomy: Taxonomy = TAXONOMY) -> None:
        self._pictures = {picture.name: picture for picture in pictures}
        self.names = tuple(self._pictures)
        self.taxonomy = taxonomy

    def load(self, name: str) -> AnnotatedImage:
        return self._pictures[name]


TOYS = Toys(toy_pictures(7))


def layouts(data: AnnotatedImages = TOYS, seed: int = 0, **settings: Any) -> Layouts:
    return Layouts(data=data, seed=seed, **settings)


def window(recipe: Recipe) -> tuple[int, int, int, int]:
    """Top, left, height and width in the source."""
    top, left, height, width = map(int, recipe.attributes["crop"].split(","))
    return top, left, height, width


def dense(recipe: Recipe, name: str) -> DenseMap:
    assert recipe.guide is not None
    label = recipe.guide.labels[name]
    assert isinstance(label, DenseMap)
    return label


def objects(recipe: Recipe) -> InstanceSet:
    assert recipe.guide is not None
    label = recipe.guide.labels["instances"]
    assert isinstance(label, InstanceSet)
    return label


def numbered(picture: AnnotatedImage) -> AnnotatedImage:
    """With a depth map whose values tell where each pixel was, a void patch, and two more objects."""
    depth, ids, balls = (picture.labels[name] for name in ("depth", "semantic", "instances"))
    assert isinstance(depth, DenseMap)
    assert isinstance(ids, DenseMap)
    assert isinstance(balls, InstanceSet)
    void = np.zeros((HEIGHT, WIDTH), bool)
    void[20:30, 5:25] = True
    masks = np.zeros((2, HEIGHT, WIDTH), bool)
    masks[0, :3, :3] = masks[1, -5:, 30:50] = True
    assert balls.keypoints_px is not None
    points = np.concatenate([balls.keypoints_px, np.full((2, 3, 3), 2, np.float32)])
    return replace(
        picture,
        labels={
            **picture.labels,
            "depth": replace(depth, values=np.arange(HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH, 1)),
            "semantic": replace(ids, values=np.where(void[..., None], 3, ids.values), valid=ids.valid & ~void),
            "instances": replace(truth_of(*balls.masks, *masks), keypoints_px=points),
        },
    )


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6),
    st.floats(0.2, 4),
    st.one_of(st.none(), st.integers(1, 90)),
    st.one_of(st.none(), st.integers(1, 90)),
    st.sampled_from([None, RareClasses()]),
)
def test_all_labels_move_together(
    index: int, scale: float, height: int | None, width: int | None, rare_classes: RareClasses | None
):
    source = numbered(TOYS[0])
    recipe = layouts(
        Toys([source]), height=height, width=width, scale=(scale,), rare_classes=rare_classes, minimum_visible=1
    ).recipe(index)
    assert recipe.guide is not None
    size = (height or HEIGHT, width or WIDTH)
    assert recipe.guide.size == size
    top, left, high, wide = window(recipe)
    assert float(recipe.attributes["scale"]) == pytest.approx(max(scale, size[0] / HEIGHT, size[1] / WIDTH), rel=1e-5)
    assert (high, wide) == pytest.approx([side / float(recipe.attributes["scale"]) for side in size], abs=1)
    rows = top + ((np.arange(size[0]) + 0.5) * high / size[0]).astype(int)
    columns = left + ((np.arange(size[1]) + 0.5) * wide / size[1]).astype(int)
    assert 0 <= rows[0] <= rows[-1] < HEIGHT
    assert 0 <= columns[0] <= columns[-1] < WIDTH
    places = np.ix_(rows, columns)
    for name, truth in source.labels.items():
        if isinstance(truth, DenseMap):
            found = dense(recipe, name)
            assert np.array_equal(found.values, truth.values[places])
            assert np.array_equal(found.valid, truth.valid[places])
            assert found.storage == truth.storage
    truth, found = source.labels["instances"], objects(recipe)
    assert isinstance(truth, InstanceSet)
    masks = np.stack([mask[places] for mask in truth.masks])
    shown = masks.any(axis=(1, 2))
    assert np.array_equal(found.masks, masks[shown])
    assert truth.keypoints_px is not None
    assert found.keypoints_px is not None
    assert (found.scores == 1).all()
    for given_points, moved in zip(
        truth.keypoints_px[shown].reshape(-1, 3), found.keypoints_px.reshape(-1, 3), strict=True
    ):
        x, y = (
            (given_points[0] - left + 0.5) * size[1] / wide - 0.5,
            (given_points[1] - top + 0.5) * size[0] / high - 0.5,
        )
        inside = -0.5 <= x < size[1] - 0.5 and -0.5 <= y < size[0] - 0.5 and given_points[2] > 0
        assert moved == pytest.approx((x, y, given_points[2]) if inside else (0, 0, 0), abs=1e-3)
    ids = dense(recipe, "semantic")
    visible = np.unique(ids.values[ids.valid]).astype(int)
    assert recipe.prompt == ", ".join(TAXONOMY.names[each - 1] for each in visible)


def test_a_plain_crop_is_a_copy_of_the_pixels():
    recipe = layouts(height=20, width=30).recipe(3)
    top, left, height, width = window(recipe)
    picture = TOYS.load(recipe.attributes["source"])
    assert recipe.guide is not None
    assert recipe.guide.image is not None
    assert np.array_equal(recipe.guide.image, picture.image[top : top + height, left : left + width])
    assert recipe.attributes["scale"] == "1"
    assert recipe.wanted == ()
    assert not {"anchor"} & recipe.attributes.keys()
    whole = layouts().recipe(0).guide
    assert whole is not None
    assert whole.image is not None
    assert not any(np.shares_memory(whole.image, TOYS[number].image) for number in range(7))


@pytest.mark.parametrize("rare_classes", [None, RareClasses(temperature=0.3)])
def test_recipes_do_not_depend_on_the_order_of_asking_and_edit_nothing(rare_classes: RareClasses | None):
    choices: dict[str, Any] = {
        "height": 24, "width": 32, "scale": (0.5, 1.0, 2.0), "rare_classes": rare_classes, "plain_share": 0.3,
        "prompt": "{classes}, {weather}", "style": {"weather": ("fog", "rain")},
    }  # fmt: skip
    pristine = data_digest(TOYS)
    forward = [layouts(**choices).recipe(index) for index in range(12)]
    source = layouts(**choices)
    for index in reversed(range(12)):
        again, before = source.recipe(index), forward[index]
        assert replace(again, guide=None) == replace(before, guide=None)
        assert np.array_equal(dense(again, "normals").values, dense(before, "normals").values)
        assert np.array_equal(objects(again).masks, objects(before).masks)
    assert data_digest(TOYS) == pristine
    assert {recipe.attributes["scale"] for recipe in forward} == {"0.5", "1", "2"}
    assert len({recipe.attributes["crop"] for recipe in forward}) > 6
    assert [layouts(seed=1, **choices).recipe(index).attributes for index in range(12)] != [
        recipe.attributes for recipe in forward
    ]
    assert isinstance(source, Source)
    assert source.length is None


def test_each_picture_comes_once_per_round_in_changing_order():
    source = layouts(height=8, width=8)
    names = [source.recipe(index).attributes["source"] for index in range(28)]
    rounds = [tuple(names[start : start + 7]) for start in range(0, 28, 7)]
    assert all(sorted(each) == sorted(TOYS.names) for each in rounds)
    assert len(set(rounds)) > 1


def test_a_class_is_told_when_enough_pixels_of_the_crop_show_it():
    ball = int((dense_ids(TOYS[0]) == 3).sum())
    data = Toys([TOYS[0]])
    for minimum, told in ((ball, "sky, wet ground, ball"), (ball + 1, "sky, wet ground")):
        assert layouts(data, words={"ground": "wet ground"}, minimum_visible=minimum).recipe(0).prompt == told


def dense_ids(picture: AnnotatedImage) -> np.ndarray:
    label = picture.labels["semantic"]
    assert isinstance(label, DenseMap)
    return label.values


def test_rare_classes_are_what_crops_are_made_around():
    source = layouts(height=16, width=16, rare_classes=RareClasses(quotas={"ball": 0.6, "sky": 0.0}, minimum_share=0.2))
    recipes = [source.recipe(index) for index in range(100)]
    anchors = Counter(recipe.attributes["anchor"] for recipe in recipes)
    assert anchors.keys() == {"ball", "ground"}
    assert 45 <= anchors["ball"] <= 75
    for recipe in recipes:
        ids = dense(recipe, "semantic").values
        assert (ids == 1 + TAXONOMY.names.index(recipe.attributes["anchor"])).mean() >= 0.2


def test_a_plan_builds_it_with_its_data():
    part = choose_part(
        "sources",
        {
            "kind": "layouts",
            "data": {"format": "pocket_scenes", "count": 1, "height": 32, "width": 32},
            "height": 24,
            "rare_classes": {"quotas": {"road": 0.5}},
            "prompt": "{classes} in {weather}",
            "style": {"weather": ["fog", {"text": "rain", "weight": 2}]},
        },
        at="source",
    )
    assert not part.asks_for("taxonomy")
    source = part.build(seed=3)
    data = PocketScenes(count=1, height=32, width=32)
    assert source.taxonomy == data.taxonomy
    assert source.digest == data.digest
    assert part.path_settings == {"data"}
    assert part.to_json()["rare_classes"]["temperature"] == 0.01
    assert dense(source.recipe(0), "depth").valid.shape == (24, 32)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"style": {"weather": []}}, "source.style.weather: found [], expected "),
        ({"scale": []}, "source.scale: found [], expected "),
        ({"scale": [0.0]}, "source.scale.0: found 0.0, expected greater than 0"),
        (
            {"rare_classes": {"temprature": 1}},
            "source.rare_classes.temprature: unknown key; did you mean 'temperature'?",
        ),
        (
            {"rare_classes": {"quotas": {"cra": 0.5}}},
            "source: rare_classes.quotas: 'cra' is no class; did you mean 'car'?",
        ),
        ({"words": {"roda": "x"}}, "source: words: 'roda' is no class; did you mean 'road'?"),
        ({"prompt": "{scale}", "style": {"scale": ["x"]}}, "source: style: found an attribute 'scale'"),
    ],
)
def test_mistakes_in_a_plan(settings: dict[str, Any], told: str):
    values = {"kind": "layouts", "data": {"format": "pocket_scenes", "count": 1, "height": 16, "width": 16}, **settings}
    with pytest.raises(UserError) as caught:
        choose_part("sources", values, at="source").build(seed=0)
    assert told in str(caught.value)


def test_data_that_cannot_serve_are_told_at_the_first_recipe():
    picture = TOYS[0]
    unmapped = replace(picture, labels={name: picture.labels[name] for name in ("depth", "instances")})
    for rare_classes in (None, RareClasses()):
        with pytest.raises(UserError, match=r"found the labels \['depth', 'instances'\], expected one that gives"):
            layouts(Toys([unmapped]), rare_classes=rare_classes).recipe(0)
    wider = replace(TAXONOMY, names=(*TAXONOMY.names, "train"), is_thing=(True,) * 4, colors=((0, 0, 0),) * 4,
                    category_ids=(), phrases=())  # fmt: skip
    source = layouts(Toys([picture], wider), rare_classes=RareClasses(quotas={"train": 0.5}))
    with pytest.raises(UserError, match=r"quotas: 'train' covers at most 0 of a picture"):
        source.recipe(0)
