"""What confidence is worth on pictures nobody fitted on: calibration before and after tuning, and risk by coverage.

    python -m benchmarks.confidence [--pictures 20 100] [--looks 1 4]

Readers of classes, objects, depth and normals from scenes of the few-shot seeds; confidences were tuned on a fifth of
the few, the fifth that chose the best step; everything here is measured on 200 scenes of the test seeds. The risk is
the share of wrong answers (pixels of another class, depths off by more than a factor of 1.25, normals by more than 22.5
degrees, objects without a true one of their class at an IoU of 0.5) among the surest 100 %, 90 % and 70 %. Cost on two
cores, two cells side by side: 4 fits of 600 updates x 0.6 s, and 200 pictures read twice by each: 15 minutes.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.cells import Cell, measure_all
from benchmarks.readers import MODEL, NORMALS, OBJECTS, OURS, model_digest
from datagen.datasets.pocket_scenes import PocketScenes
from datagen.pocket import world
from decoders.calibration import PRIOR, Reliability
from decoders.checkpoint import load_checkpoint
from decoders.perceivers.unet import UnetPerceiver
from decoders.reader import Reader, fit_reader
from decoders.settings import FitSettings, ReadSettings

TASKS = ("semantic", "instances", "depth", "normals")
COVERAGES = (1.0, 0.9, 0.7)
UNTUNED: Mapping[str, float | Sequence[float]] = {
    "temperature": 1.0,
    "score_sigmoids": (1.0, 0.0),
    "spread_factor": 1.0,
    "concentration_factor": 1.0,
}
"""The numbers that tuning sets, as they are before."""


def measure(cell: Cell) -> Mapping[str, Any]:
    reader = fit_reader(
        UnetPerceiver(load_checkpoint(MODEL), phrases=world.TAXONOMY.phrases),
        PocketScenes(count=cell["pictures"], seed=1000 * cell["seed"], split="few_shot"),
        world.TAXONOMY,
        tasks={name: {"minimum_score": cell["minimum_score"]} if name == "instances" else {} for name in TASKS},
        settings=FitSettings(
            seed=cell["seed"], learning_rate=cell["rate"], updates=cell["updates"], views=cell["views"]
        ),
        reading=ReadSettings(short_side=world.SIZE, looks=cell["looks"]),
    )
    unseen = PocketScenes(count=cell["unseen"], split="test")
    found: dict[str, float] = {}
    for name, tuned in reliabilities(reader, unseen).items():
        found[f"{name} ece after"] = tuned.expected_calibration_error
        for coverage in COVERAGES:
            found[f"{name} risk at {coverage:.0%}"] = tuned.risk_at(coverage)
    for task in reader.tasks.values():
        for name, buffer in task.named_buffers(recurse=False):
            if name in UNTUNED:
                buffer.copy_(buffer.new_tensor(UNTUNED[name]))
    before = reliabilities(reader, unseen)
    return found | {f"{name} ece before": untuned.expected_calibration_error for name, untuned in before.items()}


def reliabilities(reader: Reader, unseen: PocketScenes) -> dict[str, Reliability]:
    scores = reader.compare(unseen)
    return {name: score.reliability for name, score in scores.items() if score.reliability is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--looks", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--workers", type=int, default=2, help="cells measured side by side")
    chosen = parser.parse_args()
    common = {
        **OURS,
        **OBJECTS,
        **NORMALS,
        "model": model_digest(),
        "rate": 4e-3,
        "seed": 0,
        "unseen": 200,
        "minimum_score": 0.01,  # of objects: also what is hardly there shall have the confidence of such
        "updates": chosen.updates,
        "views": 16,
        "prior": PRIOR,
    }
    cells = [common | {"pictures": count, "looks": looks} for count in chosen.pictures for looks in chosen.looks]
    for row in measure_all("confidence", cells, measure, workers=chosen.workers):
        print(f"{row['pictures']} pictures, {row['looks']} looks:")
        for name in TASKS:
            risks = ", ".join(f"{row[f'{name} risk at {coverage:.0%}']:.3f}" for coverage in COVERAGES)
            before, after = row[f"{name} ece before"], row[f"{name} ece after"]
            print(f"  {name:10} calibration error {before:.3f} -> {after:.3f}; risk at 100, 90, 70 %: {risks}")


if __name__ == "__main__":
    main()
