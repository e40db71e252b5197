"""Classes that a reader was never shown, found through their phrases: seen, unseen and harmonic mIoU.

    python -m benchmarks.open_vocabulary [--seeds 0 1 2]

One split, chosen before the first measurement: UNSEEN are three classes of different kinds, whose pixels are void and
whose phrases are not asked for while fitting on 100 scenes. Then all twelve phrases are asked on 200 unseen scenes.
Beside it the ceiling, a reader with a fixed vocabulary that saw all twelve. Both with the default settings and one
learning rate. Last, what there is to go by: how well the attention to a class alone ranks the pixels of 24 few-shot
scenes (area under the ROC curve; 0.5 is chance). Cost on two cores, two cells side by side: 2 methods x 3 seeds, 600
updates x 0.2 s = 10 minutes.
"""

import argparse
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from benchmarks.cells import Cell, measure_all
from benchmarks.readers import MODEL, OURS, model_digest
from datagen.datasets import AnnotatedImages
from datagen.datasets.pocket_scenes import PocketScenes
from datagen.pocket import world
from decoders.checkpoint import load_checkpoint
from decoders.decoder import resize
from decoders.labels import AnnotatedImage, DenseMap, Taxonomy, semantic_map
from decoders.perceivers.unet import UnetPerceiver
from decoders.reader import fit_reader, load_reader
from decoders.settings import DecoderSettings, FitSettings

UNSEEN = ("sidewalk", "vegetation", "car")
METHODS = ("open", "fixed, saw all")


class SeenOnly(AnnotatedImages):
    """Scenes in which the unseen classes are void and have no id."""

    def __init__(self, scenes: PocketScenes) -> None:
        self._scenes = scenes
        self.names = scenes.names
        kept = [index for index, name in enumerate(world.TAXONOMY.names) if name not in UNSEEN]
        self.taxonomy = Taxonomy(
            names=tuple(world.TAXONOMY.names[index] for index in kept),
            is_thing=tuple(world.TAXONOMY.is_thing[index] for index in kept),
            colors=tuple(world.TAXONOMY.colors[index] for index in kept),
            phrases=tuple(world.TAXONOMY.phrases[index] for index in kept),
        )
        self._new_ids = np.zeros(len(world.TAXONOMY) + 1, np.uint8)
        self._new_ids[np.array(kept) + 1] = np.arange(1, len(kept) + 1)

    def load(self, name: str) -> AnnotatedImage:
        picture = self._scenes.load(name)
        return replace(picture, labels={"semantic": semantic_map(self._new_ids[_ids(picture)])})


def measure(cell: Cell) -> Mapping[str, Any]:
    checkpoint = load_checkpoint(MODEL)
    scenes = PocketScenes(count=cell["pictures"], seed=40_000 + 1000 * cell["seed"], split="few_shot")
    is_open = cell["method"] == "open"
    pictures = SeenOnly(scenes) if is_open else scenes
    reader = fit_reader(
        UnetPerceiver(checkpoint, phrases=pictures.taxonomy.phrases, attention=cell["attention"]),
        pictures,
        pictures.taxonomy,
        tasks={"semantic": {}},
        settings=FitSettings(seed=cell["seed"], updates=cell["updates"], learning_rate=cell["learning_rate"], views=8),
        decoder=DecoderSettings(open_vocabulary=is_open),
    )
    if is_open:
        with tempfile.TemporaryDirectory() as folder:
            reader.save(Path(folder), model={})
            reader = load_reader(
                Path(folder),
                lambda manifest: UnetPerceiver.from_settings(checkpoint, manifest.perceiver),
                asked=world.TAXONOMY,
            )
    found = reader.evaluate(PocketScenes(count=cell["unseen"], split="test"))["semantic"]
    ious = {name.removeprefix("iou/"): value for name, value in found.items() if name.startswith("iou/")}
    seen = statistics.mean(value for name, value in ious.items() if name not in UNSEEN)
    unseen = statistics.mean(ious[name] for name in UNSEEN)
    return {"seen": seen, "unseen": unseen, "harmonic": statistics.harmonic_mean([seen, unseen]), **found}


def measure_attention(cell: Cell) -> Mapping[str, Any]:
    """The mean map over heads and levels of each class, in proportion to the mean over the classes."""
    scenes = PocketScenes(count=cell["pictures"], seed=61_000, split="few_shot")
    perceiver = UnetPerceiver(load_checkpoint(MODEL), phrases=world.TAXONOMY.phrases)
    pictures = scenes[:]
    maps = torch.stack(
        [
            resize(level, (world.SIZE, world.SIZE))
            for level in perceiver.perceive(np.stack([picture.image for picture in pictures])).attention
        ]
    ).mean(0)
    ranks = (maps / maps.mean(1, keepdim=True)).float().cpu().numpy()
    found: dict[str, float] = {}
    for index, name in enumerate(world.TAXONOMY.names):
        truth = np.stack([_ids(picture) == index + 1 for picture in pictures]).ravel()
        inside, outside = (np.sort(ranks[:, index].ravel()[where]) for where in (truth, ~truth))
        found[f"auc/{name}"] = float(np.searchsorted(outside, inside).mean() / len(outside))
    return {"auc": statistics.mean(found.values()), **found}


def _ids(picture: AnnotatedImage) -> Int64[np.ndarray, "height width"]:
    semantic = picture.labels["semantic"]
    assert isinstance(semantic, DenseMap), "the world says so"
    return semantic.values[..., 0].astype(np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--workers", type=int, default=2, help="cells measured side by side")
    chosen = parser.parse_args()
    common = OURS | {
        "pictures": chosen.pictures,
        "updates": chosen.updates,
        "unseen": 200,
        "learning_rate": 4e-3,
        "attention": "heads",
        "model": model_digest(),
    }
    cells = [common | {"method": method, "seed": seed} for seed in chosen.seeds for method in METHODS]
    rows = measure_all("open_vocabulary", cells, measure, workers=chosen.workers)
    for method in METHODS:
        group = [row for row in rows if row["method"] == method]
        for name in ("seen", "unseen", "harmonic"):
            values = [row[name] for row in group]
            print(
                f"{method}: {name} mIoU {statistics.mean(values):.3f} ({min(values):.3f}..{max(values):.3f}), "
                f"{len(values)} seeds"
            )
    attention = {"pictures": 24, "model": common["model"]}
    for row in measure_all("class_attention", [attention], measure_attention):
        print(f"attention alone: AUC {row['auc']:.2f} in the mean over classes")


if __name__ == "__main__":
    main()
