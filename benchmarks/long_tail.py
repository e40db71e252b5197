"""Classes that two pictures show: what balanced losses and balanced sampling do for them, and to the others.

    python -m benchmarks.long_tail [--seeds 0 1 2]

After DatasetDM's long-tail protocol: scenes of the few-shot seeds in which each tail class is seen twice and every
other class at least twenty times; mIoU of the tail and of the head on 200 scenes of the test seeds. Cost on two cores,
two cells side by side: 4 conditions x 3 seeds = 12 fits of 600 updates x 0.6 s = 40 minutes.
"""

import argparse
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from benchmarks.cells import Cell, measure_all
from benchmarks.readers import MODEL, OURS, model_digest
from datagen.datasets.pocket_scenes import PocketScenes
from datagen.evaluation.report import interval
from datagen.pocket import world
from decoders.checkpoint import load_checkpoint
from decoders.labels import AnnotatedImage, DenseMap
from decoders.perceivers.unet import UnetPerceiver
from decoders.reader import fit_reader
from decoders.settings import FitSettings

TAIL = ("traffic sign", "bus", "bicycle")
TAIL_PICTURES, HEAD_PICTURES = 2, 20
_OFFSET, _SPAN = 20_000, 3_000
"""Of the few-shot seeds, far from those of other benchmarks: each seed of this one picks from a span of its own."""
PLAIN: Mapping[str, float] = {"balance": 0.0, "dice": 0.0}
CONDITIONS: Mapping[str, tuple[Mapping[str, float], float]] = {
    "neither": (PLAIN, 0.0),
    "losses": ({}, 0.0),
    "sampling": (PLAIN, 0.5),
    "both": ({}, 0.5),
}
"""Name -> options of the task semantic ({} are its defaults, which balance), `FitSettings.repeat_below`."""


@cache
def long_tailed(seed: int) -> list[AnnotatedImage]:
    """The first scenes of the span that make up the protocol; a tail class too small to count is not in them either."""
    tail = [world.TAXONOMY.names.index(name) + 1 for name in TAIL]
    counts: Counter[int] = Counter()
    chosen: list[AnnotatedImage] = []
    scenes = PocketScenes(count=_SPAN, seed=_OFFSET + _SPAN * seed, split="few_shot")
    for scene in scenes:
        semantic = scene.labels["semantic"]
        assert isinstance(semantic, DenseMap), "the world says so"
        pixels = np.bincount(semantic.values.astype(int).ravel(), minlength=len(world.TAXONOMY) + 1)
        seen = {int(one) + 1 for one in np.flatnonzero(pixels[1:] >= world.VISIBLE_PIXELS)}
        hints = {one for one in tail if 0 < pixels[one] < world.VISIBLE_PIXELS}
        full = {one for one in tail if counts[one] == TAIL_PICTURES}
        wanted = {one for one in range(1, len(world.TAXONOMY) + 1) if counts[one] < _needed(one, tail)}
        if not wanted:
            return chosen
        if hints or seen & full or not seen & wanted:
            continue
        chosen.append(scene)
        counts.update(seen)
    raise ValueError(f"{_SPAN} scenes do not hold enough of every class: {counts}")


def _needed(semantic_id: int, tail: Sequence[int]) -> int:
    return TAIL_PICTURES if semantic_id in tail else HEAD_PICTURES


def measure(cell: Cell) -> Mapping[str, Any]:
    options, repeat_below = CONDITIONS[cell["condition"]]
    pictures = long_tailed(cell["seed"])
    perceiver = UnetPerceiver(load_checkpoint(MODEL), phrases=world.TAXONOMY.phrases)
    # Nothing is held out: of two pictures with a sign, both might be.
    settings = FitSettings(
        seed=cell["seed"],
        updates=cell["updates"],
        repeat_below=repeat_below,
        learning_rate=cell["learning_rate"],
        holdout=cell["holdout"],
    )
    reader = fit_reader(perceiver, pictures, world.TAXONOMY, tasks={"semantic": dict(options)}, settings=settings)
    found = reader.evaluate(PocketScenes(count=cell["unseen"], split="test"))["semantic"]
    ious = {name.removeprefix("iou/"): value for name, value in found.items() if name.startswith("iou/")}
    return {
        "pictures": len(pictures),
        "tail miou": statistics.mean(ious[name] for name in TAIL),
        "head miou": statistics.mean(value for name, value in ious.items() if name not in TAIL),
        **found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--workers", type=int, default=2, help="cells measured side by side")
    chosen = parser.parse_args()
    common = OURS | {
        "updates": chosen.updates,
        "unseen": 200,
        "learning_rate": 4e-3,
        "holdout": 0.0,
        "model": model_digest(),
    }
    cells = [common | {"condition": name, "seed": seed} for seed in chosen.seeds for name in CONDITIONS]
    rows = measure_all("long_tail", cells, measure, workers=chosen.workers)
    groups = {name: [row for row in rows if row["condition"] == name] for name in CONDITIONS}  # each by seed
    for name, group in groups.items():
        for part in ("tail miou", "head miou"):
            values = [row[part] for row in group]
            gains = [value - plain[part] for value, plain in zip(values, groups["neither"], strict=True)]
            print(
                f"{name:10}{part}: {statistics.mean(values):.3f} ({min(values):.3f}..{max(values):.3f}), "
                f"{len(values)} seeds; {interval(gains, signed=True)} against neither"
            )


if __name__ == "__main__":
    main()
