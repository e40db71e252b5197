"""The same parts without a plan: what the README shows, run."""

from pathlib import Path

import numpy as np

from datagen.exporters import Entry
from datagen.exporters.coco import Coco
from datagen.factory import Factory
from datagen.filters.class_coverage import ClassCoverage
from datagen.shards import ShardStore
from datagen.sources.templates import Phrase, Templates
from datagen.validation import validate
from tests.datagen.toys import Brightness


class Stripes:
    """A generator of one's own: anything with this one method."""

    def render(self, recipes):  # pyright: ignore[reportMissingParameterType, reportUnknownParameterType]
        noise = [np.random.default_rng(recipe.seed).integers(0, 256, (4, 1, 3), np.uint8) for recipe in recipes]
        return np.stack(noise).repeat(8, axis=1).repeat(48, axis=2)


def test_ten_lines_make_a_dataset(tmp_path: Path):
    labeller = Brightness()  # or Decoded(reader=Path("readers/mine"), model=model)
    source = Templates(
        templates=("a photo of {things}",),
        slots={"things": (Phrase(text="two cars", wants=("car",)), "an empty road")},
        seed=0,
        taxonomy=labeller.taxonomy,
    )
    filters = [ClassCoverage(minimum_share=0.01, taxonomy=labeller.taxonomy)]
    store = ShardStore(tmp_path / "run")
    factory = Factory(source=source, generator=Stripes(), labeller=labeller, filters=filters, store=store, target=10)
    shards = list(factory.run())
    entries = (
        Entry(each.recipe.id, each.image, each.labels, {"caption": each.recipe.prompt}) for each in store.accepted(10)
    )
    Coco().export(entries, labeller.taxonomy, tmp_path / "dataset", info={"description": "stripes"})

    assert [shard.index for shard in shards] == [0]
    report = validate(tmp_path / "dataset")
    assert report.sound
    assert report.pictures == 10
