"""Every picture of a dataset in other styles."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datagen.datasets.pocket_scenes import PocketScenes
from datagen.plugins import choose_part
from datagen.sources import Source
from datagen.sources.restyle import Restyle
from datagen.sources.templates import Phrase
from decoders.errors import UserError
from decoders.labels import semantic_ids

SCENES = PocketScenes(count=3, height=32, width=48)


def restyle(**settings: Any) -> Restyle:
    style = {"weather": ("fog", Phrase(text="snow", weight=3))}
    return Restyle(data=SCENES, prompt="{weather}, {classes}", style=style, seed=0, **settings)


def test_each_picture_comes_as_often_as_asked_with_its_labels():
    source = restyle(times=2)
    assert isinstance(source, Source)
    assert source.length == 6
    recipes = [source.recipe(index) for index in range(6)]
    assert [recipe.attributes["source"] for recipe in recipes] == [name for name in SCENES.names for _ in range(2)]
    assert len({recipe.seed for recipe in recipes}) == 6
    for recipe in recipes:
        picture = SCENES.load(recipe.attributes["source"])
        assert recipe.guide is not None
        assert recipe.guide.labels.keys() == picture.labels.keys()
        np.testing.assert_array_equal(semantic_ids(recipe.guide.labels), semantic_ids(picture.labels))
        np.testing.assert_array_equal(recipe.guide.image, picture.image)
        assert recipe.prompt == f"{recipe.attributes['weather']}, {', '.join(recipe.listed.values())}"
    again = restyle(times=2).recipe(4)
    assert (again.prompt, again.seed) == (recipes[4].prompt, recipes[4].seed)


def test_pictures_and_labels_can_be_brought_to_a_size():
    guide = restyle(height=24, width=40).recipe(1).guide
    assert guide is not None
    assert guide.size == (24, 40)
    assert semantic_ids(guide.labels).shape == (24, 40)


def test_in_a_plan(tmp_path: Path):
    scenes = {"format": "pocket_scenes", "count": 2}
    part = choose_part("sources", {"kind": "restyle", "data": scenes}, at="source")
    assert part.build(seed=0).taxonomy.names == SCENES.taxonomy.names
    assert "data" in part.path_settings
    with pytest.raises(UserError, match=r"source: words: 'raod' is no class; did you mean 'road'"):
        choose_part("sources", {"kind": "restyle", "data": scenes, "words": {"raod": "x"}}, at="source").build(seed=0)
    lost = {"kind": "restyle", "data": {"format": "voc", "root": str(tmp_path / "no")}}
    with pytest.raises(UserError, match=str(tmp_path / "no")):
        choose_part("sources", lost, at="source").build(seed=0)
