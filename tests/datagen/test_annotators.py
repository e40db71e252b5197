"""The real controlnet-aux, where it is installed: `make test-annotators`."""

from importlib.util import find_spec

import numpy as np
import pytest

from datagen.conditions.annotator import Annotator
from datagen.conditions.edges import Edges
from datagen.datasets.pocket_scenes import PocketScenes
from datagen.records import Guide

pytestmark = [
    pytest.mark.skipif(find_spec("controlnet_aux") is None, reason="needs controlnet-aux: make test-annotators"),
    pytest.mark.filterwarnings("ignore"),  # of its dependencies
]


@pytest.mark.parametrize("size", [(64, 128), (50, 78)])
def test_its_canny_is_ours_at_native_size(size: tuple[int, int]):
    """Also where a size is no multiple of 64, which it would round to by itself."""
    scene = PocketScenes(count=1, height=size[0], width=size[1])[0]
    guide = Guide(labels={}, image=scene.image)
    found, ours = Annotator(name="canny").draw(guide), Edges().draw(guide)
    assert found.shape == (3, *size)
    assert ours.any()
    inner = (slice(None), slice(2, -2), slice(2, -2))  # at the border they see other pixels beyond it
    assert (found[inner] != ours[inner]).mean() < 0.01  # an edge may be followed to one that begins out there


@pytest.mark.parametrize("name", ["lineart_standard", "shuffle"])
def test_other_detectors_without_weights_draw_the_same_again(name: str):
    guide = Guide(labels={}, image=PocketScenes(count=1, height=50, width=78)[0].image)
    annotator = Annotator(name=name)  # pyright: ignore[reportArgumentType]
    found = annotator.draw(guide)
    assert found.shape == (annotator.channels, 50, 78)
    assert 0 <= found.min() < found.max() <= 1
    np.testing.assert_array_equal(annotator.draw(guide), found)
