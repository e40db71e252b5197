"""Is reading a diffusion model worth it? Against the same decoder on a random UNet, and a U-Net from scratch.

    python -m benchmarks.few_shot_reader pocket [--pictures 20 100] [--seeds 0 1 2] [--updates 600]
    python -m benchmarks.few_shot_reader camvid [--pictures 20 60 367] [--size 192 256] [--root ../shared/data/camvid]

All three see the same pictures, augmented views, updates, losses and held-out part, at full picture size. The decoders
have their default learning rate; the U-Net gets the best of three as judged on the held-out part of the few, and only
that one is measured on unseen pictures. Cost on two cores, one cell after another: pocket, 2 sizes x 3 seeds x 5 fits
of 600 updates x 0.7 s = 3.5 hours; camvid, 3 seeds x (600 updates x 1.5 s of each decoder, 3 x 600 x 2.4 s of the
U-Net) = 5 hours. `--one-rate` gives the U-Net the one in the middle alone, which was best with the first seed
everywhere. Every cell resumes by its content hash.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.cells import Cell, measure_all
from benchmarks.readers import OURS, RATES, fit_best, model_digest
from datagen.datasets import AnnotatedImages, data_digest, read_names
from datagen.datasets.pocket_scenes import PocketScenes
from datagen.evaluation.report import half_width
from datagen.fit_plan import FitPlan, load_fit_plan
from datagen.fitting import with_phrases
from datagen.settings import read_settings
from decoders.reader import Reader


def measure_pocket(cell: Cell) -> Mapping[str, Any]:
    few = PocketScenes(count=cell["pictures"], seed=1000 * cell["seed"], split="few_shot")
    unseen = PocketScenes(count=cell["unseen"], split="test")
    settings = {"updates": cell["updates"], "views": cell["views"]}
    reader, rate = fit_best(cell, few, {"semantic": {}, "depth": {}}, settings)
    return figures(reader, unseen) | {"learning_rate": rate}


CAMVID = Path("configs/camvid_reader.yaml")
CAMVID_PICTURES = (20, 60, 367)
"""A third of those that the plan lists, as spread over the drives as they; the plan's own; all that there are."""


def camvid_plan(root: str, pictures: int) -> FitPlan:
    listed = read_names(Path(read_settings(CAMVID)["data"]["names"]))
    names = {20: listed[::3], 60: listed, 367: None}[pictures]
    return load_fit_plan(CAMVID, [f"data.root={root}", f"data.names={json.dumps(names)}"])


def measure_camvid(cell: Cell, *, root: str) -> Mapping[str, Any]:
    plan = camvid_plan(root, cell.get("pictures", 60))
    assert plan.validation is not None
    few, unseen = plan.data.build(), plan.validation.build()
    taxonomy = with_phrases(few.taxonomy, cell.get("phrases", {}))
    settings = {name: cell[name] for name in ("updates", "views")} | {"size": tuple(cell["size"])}
    reader, rate = fit_best(cell, few, {"semantic": {}}, settings, taxonomy=taxonomy)
    return figures(reader, unseen) | {"learning_rate": rate}


def figures(reader: Reader, unseen: AnnotatedImages) -> dict[str, Any]:
    """mIoU and, where it was learned, depth, on pictures that nobody fitted on."""
    found = reader.evaluate(unseen)
    return {f"{task} {name}": value for task, values in found.items() for name, value in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["pocket", "camvid"])
    parser.add_argument("--pictures", type=int, nargs="+", help="20 and 100 of pocket, 60 of camvid when left out")
    parser.add_argument("--size", type=int, nargs=2, default=[192, 256], help="of camvid: height and width while read")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--one-rate", action="store_true", help="the middle one of the U-Net's three")
    parser.add_argument("--methods", nargs="+", choices=list(RATES), default=list(RATES))
    parser.add_argument("--workers", type=int, default=2, help="cells measured side by side")
    parser.add_argument("--root", default="../shared/data/camvid")
    chosen = parser.parse_args()
    model = model_digest()
    common = {"updates": chosen.updates, "model": model}
    reading: dict[str, Any] = {}
    if chosen.data == "pocket":
        counts = chosen.pictures or [20, 100]
        variants = [common | {"views": 16, "pictures": count, "unseen": 200} for count in counts]
        measure = measure_pocket
    else:
        counts = chosen.pictures or [60]
        if unknown := set(counts).difference(CAMVID_PICTURES):
            parser.error(f"--pictures: found {sorted(unknown)}, expected some of {CAMVID_PICTURES}")
        plans = {count: camvid_plan(chosen.root, count) for count in counts}
        variants = [
            common
            | {"views": 8, "size": chosen.size, "data": data_digest(plan.data.build())[:16]}
            | ({} if count == 60 else {"pictures": count})
            for count, plan in plans.items()
        ]
        perceiver = plans[counts[0]].perceiver
        reading["reading"] = perceiver.model_dump(mode="json", exclude={"phrases"})
        reading["phrases"] = dict(perceiver.phrases)
        measure = partial(measure_camvid, root=chosen.root)
    # Seeds outermost: when time runs out, every condition has the same number of them.
    cells = [
        variant
        | {"method": method, "seed": seed, "rates": [rates[len(rates) // 2]] if chosen.one_rate else list(rates)}
        | ({} if method == "U-Net" else reading | OURS)
        for seed in chosen.seeds
        for variant in variants
        for method, rates in RATES.items()
        if method in chosen.methods
    ]
    report(measure_all(f"few_shot_reader_{chosen.data}", cells, measure, workers=chosen.workers))


def report(rows: Sequence[Mapping[str, Any]]) -> None:
    """One line per method and number of pictures: mean and range over the seeds; then what the reader wins by."""
    groups: dict[tuple[Any, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row.get("pictures", 60), row["method"]), []).append(row)
    for (pictures, method), group in groups.items():
        shown: list[str] = []
        for name in ("semantic miou", "depth absrel", "depth delta1"):
            values = [row[name] for row in group if name in row]
            if values:
                shown.append(f"{name} {statistics.mean(values):.3f} ({min(values):.3f}..{max(values):.3f})")
        print(f"{pictures} pictures, {method}, {len(group)} seeds: " + ", ".join(shown))
    for (pictures, method), group in groups.items():
        if method != "reader" and (pictures, "reader") in groups:
            readers = groups[pictures, "reader"]
            pairs = zip(readers, group, strict=True)  # by seed
            wins = [100 * (ours["semantic miou"] - other["semantic miou"]) for ours, other in pairs]
            print(f"{pictures} pictures, reader - {method}: {interval(wins)} mIoU")


def interval(differences: Sequence[float]) -> str:
    """Mean and 95 % interval of paired differences by Student's t; one seed has no interval."""
    mean, half = statistics.mean(differences), half_width(differences)
    return f"{mean:+.1f} (one seed)" if half is None else f"{mean:+.1f} ({mean - half:+.1f}..{mean + half:+.1f})"


if __name__ == "__main__":
    main()
