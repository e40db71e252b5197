"""Labels hardly depend on how many pictures are read at once, on the embedded model itself."""

from dataclasses import replace

import numpy as np
import pytest

from datagen.datasets.pocket_scenes import PocketScenes
from datagen.pocket import world
from decoders.checkpoint import ModelReference, load_checkpoint
from decoders.labels import DenseMap
from decoders.perceivers.unet import UnetPerceiver
from decoders.reader import Reader, fit_reader
from decoders.settings import FitSettings, ReadSettings

SIZES = [(128, 128), (96, 160)]
"""Height and width; the second is not square."""


@pytest.fixture(scope="module")
def reader() -> Reader:
    return fit_reader(
        UnetPerceiver(
            load_checkpoint(ModelReference(source="package://datagen.pocket/weights")), phrases=world.TAXONOMY.phrases
        ),
        PocketScenes(count=4),
        world.TAXONOMY,
        tasks={"semantic": {}},
        settings=FitSettings(updates=20, views=4, learning_rate=4e-3),
    )


@pytest.mark.parametrize("size", SIZES)
def test_one_at_a_time_and_eight_at_a_time_differ_on_less_than_a_thousandth(reader: Reader, size: tuple[int, int]):
    images = [scene.image for scene in PocketScenes(count=8, seed=100, height=size[0], width=size[1])]
    found: list[np.ndarray] = []
    for batch_size in (1, 8):
        reader.manifest = replace(reader.manifest, reading=ReadSettings(batch_size=batch_size))
        maps = [labels["semantic"] for labels in reader.read(images)]
        found.append(np.stack([one.values for one in maps if isinstance(one, DenseMap)]))
    alone, together = found
    assert len(np.unique(alone)) > 2, "a reader that says one thing everywhere would pass"
    assert (alone != together).mean() < 0.001
