"""Everything the reader says, from few pictures: against networks from scratch, a linear probe and DatasetDM's recipe.

    python -m benchmarks.reader_tasks [--pictures 20 100 5 400] [--seeds 0 1 2] [--only scenes people recipe cost]

`scenes`: one fit of semantic classes, objects, depth and normals by each method, measured on 200 scenes of the test
seeds. A linear probe has no objects of its own; the connected parts of its classes stand in. `people`: objects and
keypoints from close-ups, OKS over people at least 32 px high. `recipe`: DatasetDM's recipe, classes and objects fitted
apart, 2,000 updates of one picture. `cost`: seconds and peak memory of 20 updates, each method in a process of its own,
the model included; the recipe also with its depth head.

Reader, U-Net and linear probe have the learning rate that was best of three on few-shot scenes no cell uses (before
this benchmark; no command repeats it), the recipe its own. 5 and 400 pictures are measured with the first seed only,
the recipe with 20 and 100. Cost on two cores, two cells side by side: reader and U-Net 8 x 2 fits of 600 updates x 0.7
s, people 6 of 600 x 0.7 s, linear probe 8 x 2 minutes, recipe 2 x 2 fits of 2,000 x 0.6 s: 5 hours of one worker, 2.5
in all. Every cell resumes by its content hash.

Told at the end: the mIoU on held-out pictures that a rival has at its best, and how long each needs to get there.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

from benchmarks import clock
from benchmarks.cells import Cell, measure_all, this_hardware
from benchmarks.datasetdm import ClassRegions, EveryBlock, Recipe, depth_updates
from benchmarks.few_shot_reader import interval
from benchmarks.readers import (
    MODEL,
    NORMALS,
    OBJECTS,
    OURS,
    LinearTrunk,
    Timed,
    UnetWithMemory,
    model_digest,
    perceiver_of,
)
from datagen.datasets import AnnotatedImages
from datagen.datasets.pocket_scenes import PocketScenes
from datagen.instances import components
from datagen.pocket import world
from decoders.average_precision import AveragePrecision
from decoders.checkpoint import load_checkpoint
from decoders.decoder import Trunk
from decoders.labels import AnnotatedImage, DenseMap, InstanceSet
from decoders.reader import Reader, fit_reader
from decoders.settings import FitSettings
from decoders.tasks.instances import Instances
from decoders.training import TrunkBuilder

METHODS: Mapping[str, tuple[TrunkBuilder, float]] = {
    "reader": (Trunk, 4e-3),
    "U-Net": (UnetWithMemory, 1e-3),
    "linear probe": (LinearTrunk, 4e-3),
}
"""Name -> what the task heads stand on, learning rate."""
SCENE_TASKS = ("semantic", "instances", "depth", "normals")
PEOPLE_TASKS = ("instances", "keypoints")
UNSEEN = 200
PERSON_PX = 32
"""Height from which a person's joints are asked for."""
MINIMUM_SCORE = 0.01
"""Average precision asks for unlikely objects, too; a dataset's would be noise."""
QUERIES = 100
PROMPT = f"a photo of a street, {', '.join(world.TAXONOMY.names)}"
COST_UPDATES = 20
RECIPE = {"recipe": "places and levels in the memory, best step"}
"""Part of its cells: what an earlier rebuild gave is not taken for this one's."""


class TallPeople(AnnotatedImages):
    """Close-ups in which the joints of smaller people are not given, so that they count neither for nor against."""

    def __init__(self, scenes: PocketScenes) -> None:
        self._scenes = scenes
        self.names = scenes.names
        self.taxonomy = scenes.taxonomy

    def load(self, name: str) -> AnnotatedImage:
        picture = self._scenes.load(name)
        objects = picture.labels["instances"]
        assert isinstance(objects, InstanceSet)
        assert objects.keypoints_px is not None
        small = objects.masks.any(axis=2).sum(axis=1) < PERSON_PX
        points = np.where(small[:, None, None], np.float32(0), objects.keypoints_px)
        return replace(picture, labels=dict(picture.labels) | {"instances": replace(objects, keypoints_px=points)})


def measure(cell: Cell) -> Mapping[str, Any]:
    return {"scenes": measure_scenes, "people": measure_people, "recipe": measure_recipe, "cost": measure_cost}[
        cell["part"]
    ](cell)


def few_shot(cell: Cell, *, close_up: bool = False) -> PocketScenes:
    return PocketScenes(count=cell["pictures"], seed=1000 * cell["seed"], split="few_shot", close_up=close_up)


def fit_one(cell: Cell, pictures: AnnotatedImages, tasks: Sequence[str]) -> tuple[Reader, Timed]:
    timed = Timed()
    reader = fit_reader(
        perceiver_of(cell["method"], world.TAXONOMY.phrases, cell["seed"]),
        pictures,
        world.TAXONOMY,
        tasks={task: {"minimum_score": MINIMUM_SCORE} if task == "instances" else {} for task in tasks},
        settings=FitSettings(
            seed=cell["seed"], learning_rate=cell["rate"], updates=cell["updates"], views=cell["views"]
        ),
        trunk=METHODS[cell["method"]][0],
        on_progress=timed,
    )
    return reader, timed


def measure_scenes(cell: Cell) -> dict[str, Any]:
    linear = cell["method"] == "linear probe"
    tasks = [task for task in SCENE_TASKS if not (linear and task == "instances")]
    reader, timed = fit_one(cell, few_shot(cell), tasks)
    unseen = PocketScenes(count=cell["unseen"], split="test")
    found = figures(reader.evaluate(unseen))
    if linear:
        score = AveragePrecision(world.TAXONOMY)
        for picture in unseen:
            classes = reader.read([picture.image])[0]["semantic"]
            assert isinstance(classes, DenseMap)
            score.add(components(classes, world.TAXONOMY, min_pixels=world.VISIBLE_PIXELS), picture.labels["instances"])
        found |= figures({"instances": score.result()})
    points = reader.manifest.report["points"]
    return found | {
        "curve_s": timed.evaluated_s,
        "curve_miou": [point["scores"]["semantic"]["miou"] for point in points],
    }


def measure_people(cell: Cell) -> dict[str, Any]:
    reader, _ = fit_one(cell, few_shot(cell, close_up=True), PEOPLE_TASKS)
    return figures(reader.evaluate(TallPeople(PocketScenes(count=cell["unseen"], split="test", close_up=True))))


def measure_recipe(cell: Cell) -> dict[str, Any]:
    perceiver = EveryBlock(load_checkpoint(MODEL), PROMPT)
    recipe = Recipe(perceiver, _recipe_task(cell["task"]), seed=cell["seed"])
    curve = recipe.fit(few_shot(cell), updates=cell["updates"])
    unseen = PocketScenes(count=cell["unseen"], split="test")
    result = recipe.score(unseen).result()
    del result["ece"]  # the recipe has no confidence that could be right or wrong
    found = figures({cell["task"]: result}) | {"curve_s": curve.seconds, "curve_merit": curve.merits}
    if isinstance(recipe.task, ClassRegions):
        recipe.task.smallest_share = 0.0
        found["semantic miou, small classes too"] = recipe.score(unseen).result()["miou"]
    return found


def _recipe_task(name: str) -> Instances:
    bare = cast(Trunk, SimpleNamespace(deep_channels=256, fine_channels=8))  # its own network takes the trunk's place
    if name == "semantic":
        return ClassRegions(bare, world.TAXONOMY, queries=QUERIES, minimum_score=MINIMUM_SCORE)
    return Instances(bare, world.TAXONOMY, queries=QUERIES, parts=False, minimum_score=MINIMUM_SCORE)


def measure_cost(cell: Cell) -> dict[str, Any]:
    """In a process of its own, so that the peak is its own."""
    command = [sys.executable, "-m", "benchmarks.reader_tasks", "--cost", cell["method"], "--threads"]
    command.append(str(torch.get_num_threads()))
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_cost(method: str) -> None:
    """Seconds per update, seconds for the views of a picture and peak memory, as one line of JSON."""
    pictures = PocketScenes(count=COST_UPDATES, split="few_shot")
    views_s = 0.0
    if method == "recipe, depth":
        seconds = depth_updates(EveryBlock(load_checkpoint(MODEL), PROMPT), pictures[:COST_UPDATES])
        batch = 1
    elif method.startswith("recipe"):
        recipe = Recipe(EveryBlock(load_checkpoint(MODEL), PROMPT), _recipe_task(method.split(", ")[1]), seed=0)
        curve = recipe.fit(pictures, updates=COST_UPDATES, evaluations=1)
        seconds, batch = curve.seconds[-1] / COST_UPDATES, 1
    else:
        cell = {"method": method, "seed": 0, "rate": METHODS[method][1], "updates": COST_UPDATES, "views": 16}
        _, timed = fit_one(cell, pictures, SCENE_TASKS)
        seconds, batch, views_s = timed.update_s, FitSettings().batch_size, timed.views_s / COST_UPDATES
    found = {"update_s": seconds, "pictures_per_update": batch, "views_s": views_s, "peak_gib": clock.peak_gib()}
    print(json.dumps(found))


def figures(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {f"{task} {name}": value for task, values in scores.items() for name, value in values.items()}


def all_cells(chosen: argparse.Namespace) -> list[Cell]:
    """Seeds outermost: when time runs out, every condition has the same number of them."""
    model = model_digest()
    common = {"model": model, "unseen": UNSEEN, "minimum_score": MINIMUM_SCORE}
    fitted = common | {"updates": chosen.updates, "views": 16}
    cells: list[Cell] = []
    for seed in chosen.seeds:
        for pictures in chosen.pictures:
            if seed and pictures in (5, 400):
                continue
            one = fitted | {"seed": seed, "pictures": pictures}
            methods = [one | _of(name) | {"rate": rate} for name, (_, rate) in METHODS.items()]
            cells += [cell | NORMALS | {"part": "scenes"} for cell in methods]
            if pictures in (20, 100):
                cells += [cell | {"part": "people"} for cell in methods if cell["method"] != "linear probe"]
            if pictures in (20, 100) and not seed:
                recipe = common | RECIPE | {"part": "recipe", "seed": seed, "pictures": pictures, "updates": 2000}
                cells += [recipe | {"task": "semantic"}, recipe | OBJECTS | {"task": "instances"}]
    cost = {"part": "cost", "model": model, "updates": COST_UPDATES, "views": 16, "hardware": this_hardware()}
    names = ("reader", "U-Net", "recipe, semantic", "recipe, instances", "recipe, depth")
    cells += [cost | _of(name) for name in names]
    return [cell for cell in cells if cell["part"] in chosen.only]


def _of(method: str) -> dict[str, Any]:
    ours = OURS if method == "reader" else {}
    return {"method": method, **ours, **(OBJECTS if method in ("reader", "U-Net") else {})}


SHOWN = (
    "semantic miou",
    "semantic miou, small classes too",
    "instances ap",
    "instances ap50",
    "depth absrel",
    "depth rmse_m",
    "depth delta1",
    "normals mean_angle_deg",
    "keypoints oks_ap",
    "keypoints oks_ap50",
    "update_s",
    "peak_gib",
)


HEADLINES: Mapping[str, Sequence[str]] = {
    "scenes": ("semantic miou", "instances ap50"),
    "people": ("instances ap50", "keypoints oks_ap"),
}
"""By part, what the reader wants to be ahead in."""


def report(rows: Sequence[Mapping[str, Any]]) -> None:
    """One line per condition: mean and range over the seeds."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        condition = (row["part"], row.get("pictures", "-"), row.get("method", f"DatasetDM's recipe, {row.get('task')}"))
        groups.setdefault(condition, []).append(row)
    for (part, pictures, method), group in groups.items():
        shown: list[str] = []
        for name in SHOWN:
            values = [row[name] for row in group if name in row]
            if values:
                shown.append(f"{name} {statistics.mean(values):.3f} ({min(values):.3f}..{max(values):.3f})")
        print(f"{part}, {pictures} pictures, {method}, {len(group)} seeds: " + ", ".join(shown))
    for line in [*leads(groups), *race(rows)]:
        print(line)


def leads(groups: Mapping[tuple[Any, ...], Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """What the reader is ahead by, over the seeds that both have."""
    for (part, pictures, method), group in groups.items():
        if method == "reader" or part not in HEADLINES:
            continue
        ours = {row["seed"]: row for row in groups.get((part, pictures, "reader"), ())}
        for name in HEADLINES[part]:
            wins = [100 * (ours[row["seed"]][name] - row[name]) for row in group if row["seed"] in ours]
            if wins:
                yield f"{part}, {pictures} pictures, reader - {method}: {interval(wins)} of 100 in {name}"


def race(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """How long the reader needs to the mIoU on held-out pictures that another method has at its best, beside the other.

    From curves over updates, and what an update and the views of a picture cost each method alone: what else the
    machine did while the curves were measured does not count. Reader and U-Net learn all tasks meanwhile, the recipe
    classes alone.
    """
    costs = {row["method"]: row for row in rows if row["part"] == "cost"}
    fits = [row for row in rows if row["part"] == "scenes" or row.get("task") == "semantic"]
    for ours in fits:
        rivals = [row for row in fits if all(row[key] == ours[key] for key in ("seed", "pictures"))]
        for rival in rivals if ours.get("method") == "reader" and "reader" in costs else []:
            name = rival.get("method", "recipe, semantic")
            curve = _curve(rival)
            if rival is ours or name not in costs:
                continue
            goal = max(curve.values())
            theirs_s, ours_s = (_seconds_to(goal, row, costs) for row in (rival, ours))
            needed = "never" if ours_s is None else f"{ours_s:.0f} s"
            yield (
                f"{ours['pictures']} pictures, seed {ours['seed']}: the best mIoU of {name} on held-out pictures, "
                f"{goal:.3f}: {name} {theirs_s:.0f} s, reader {needed}"
            )


def _curve(row: Mapping[str, Any]) -> dict[int, float]:
    """Updates -> mIoU on held-out pictures."""
    merits = row.get("curve_miou") or row["curve_merit"]
    evaluations = FitSettings().evaluations if "curve_miou" in row else len(merits)
    return {-(-row["updates"] * (number + 1) // evaluations): merit for number, merit in enumerate(merits)}


def _seconds_to(goal: float, row: Mapping[str, Any], costs: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Until the held-out mIoU is at the goal; None where it never is."""
    cost = costs[row.get("method", "recipe, semantic")]
    reached = [step for step, merit in _curve(row).items() if merit >= goal]
    return cost["views_s"] * row["pictures"] + cost["update_s"] * reached[0] if reached else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["scenes", "people", "recipe", "cost"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--pictures", type=int, nargs="+", default=[20, 100, 5, 400])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--workers", type=int, default=2, help="cells measured side by side")
    parser.add_argument("--cost", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.cost:
        torch.set_num_threads(chosen.threads)
        print_cost(chosen.cost)
        return
    report(measure_all("reader_tasks", all_cells(chosen), measure, workers=chosen.workers))


if __name__ == "__main__":
    main()
