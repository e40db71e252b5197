"""Both papers' claims on a laptop: does a student learn more when synthetic pictures are added?

    python -m benchmarks.worth [--claims datasetdm_20 datasetdm_100 objects dginstyle ...] [--scale full] [--seeds 0]
    python -m benchmarks.worth --scale quick --again     # anew, in a folder of its own, against the committed figures

Each claim (benchmarks/claims.py) is a few commands of `datagen` on the configs that users copy, printed as they run: a
reader is fitted on the annotated pictures there are, the model draws, the reader labels, a student of
segmentation-models-pytorch or torchvision learns, and is measured on pictures that nobody has seen. All columns of a
claim have equal updates, so `real` is real pictures alone for as long.

Cost on two slow cores, two processes of one thread that take 3 s for an update each, `full`: readers 5 x 15 minutes,
samples 2,000 x 2 x 1.1 s, 1,000 x 3 s and 500 x 2 x 2 s, in all 4 hours; then for each seed of the students 22 cells x
1,000 updates x 1.5 s = 9 hours, and Mask R-CNN 3 cells x 500 x 4 s. Ten hours are one seed; on cores of twice the
speed, three take as long. `quick`: half an hour. What is finished is kept in the user's cache folder; the same command
goes on, also with more seeds. Seeds that are committed of a claim are measured, too, whichever are asked for, so that
none is lost; with `--again` these alone.
"""

import argparse
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.cells import read_results, this_hardware, write_results
from benchmarks.claims import CAMVID, CLAIMS, ON_PHOTOGRAPHS, SCALES, Dataset, Scale, Step
from benchmarks.readers import model_digest
from datagen.datasets.coco import ANNOTATIONS
from datagen.evaluation.columns import Cell
from datagen.evaluation.evaluate import RESULTS_FILE
from datagen.evaluation.report import table
from datagen.files import read_json
from datagen.runs import library_versions
from decoders.files import cache_folder
from decoders.manifest import FORMAT

NAME = "worth"
TOLERANCE = 0.03
"""mIoU by which a cell may differ on another machine, where sums are rounded in another order."""
QUICK = ("datasetdm_20", "dginstyle", "camvid_20")
"""Toys, which `make benchmark` measures anew."""


def measure(name: str, scale: Scale, home: Path, *, processes: int) -> dict[str, Any]:
    """Run every step, which finds what it has finished before.

    Raises:
        CalledProcessError: a step failed, after it has told why.
    """
    steps = list(CLAIMS[name](scale, home))
    for step in steps:
        run(step, processes=processes)
    results = read_json(home / name / RESULTS_FILE)
    commands = [shlex.join(["datagen", *step.arguments()]).replace(str(home), "HOME") for step in steps]
    return {"commands": commands, "cells": results, "made_with": _made_with()}


def run(step: Step | Dataset, *, processes: int) -> None:
    """As a process of its own, or several where it pays; a dataset that is there is not made again.

    Raises:
        CalledProcessError: it failed, after it has told why.
    """
    print(shlex.join(["datagen", *step.arguments()]), flush=True)
    if isinstance(step, Dataset) and (step.to / ANNOTATIONS).exists():
        return
    launcher = [sys.executable]
    if processes > 1 and step.verb in ("generate", "evaluate"):
        launcher += ["-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu"]
        launcher += ["--num_processes", str(processes), "--main_process_port", "0"]
    subprocess.run([*launcher, "-m", "datagen", *step.arguments()], check=True)


def _made_with() -> dict[str, str]:
    students = {name: version(name) for name in ("segmentation-models-pytorch", "torchvision")}
    own = {"decoder": f"format {FORMAT}", "model": model_digest()}
    machine = {"python": platform.python_version(), "machine": platform.machine()}
    return {**machine, "hardware": this_hardware(), **own, **library_versions(), **students}


def told(cells: Sequence[Mapping[str, Any]]) -> str:
    """The table of an evaluation from its JSON."""
    return table(results_of(cells), headlines_of(cells))


def results_of(cells: Sequence[Mapping[str, Any]]) -> dict[Cell, Mapping[str, float]]:
    """From the JSON of an evaluation, of which older cells say nothing of their hardware."""
    return {
        Cell(**{key: cell[key] for key in cell if key not in ("hardware", "measured")}): cell["measured"]
        for cell in cells
    }


def headlines_of(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    wanted = ("semantic miou", "instances ap")
    return [name for name in cells[0]["measured"] if name.split(" on ")[0] in wanted]


def agrees(again: Sequence[Mapping[str, Any]], committed: Sequence[Mapping[str, Any]]) -> bool:
    """Print both side by side.

    Returns:
        Whether no headline of any cell is further off than the tolerance.
    """
    fine = True
    for mine, theirs in zip(again, committed, strict=True):
        for name in headlines_of(again):
            found, expected = mine["measured"][name], theirs["measured"][name]
            fine &= abs(found - expected) <= TOLERANCE
            print(f"{mine['column']:10} {name:28} committed {expected:.3f}, now {found:.3f}")
    return fine


def seeds_of(committed: Mapping[str, Any], asked: Iterable[int]) -> tuple[int, ...]:
    """Those that are committed of a claim, then those asked for: what takes the first ones only loses none.

    Args:
        committed: what `measure` returned; empty where nothing is.
    """
    return tuple(dict.fromkeys([*(cell["seed"] for cell in committed.get("cells", [])), *asked]))


def known() -> dict[str, Any]:
    """What was measured, by claim and scale."""
    return read_results(NAME)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--claims", nargs="+", choices=list(CLAIMS))
    parser.add_argument("--scale", choices=list(SCALES), default="full")
    of_students = "of the students, beside those committed; those of the scale unless given"
    parser.add_argument("--seeds", type=int, nargs="+", help=of_students)
    side_by_side = "that draw and study side by side; one for each GPU, two without"
    parser.add_argument("--processes", type=int, default=torch.cuda.device_count() or 2, help=side_by_side)
    parser.add_argument("--again", action="store_true", help="measure what is committed anew and compare")
    chosen = parser.parse_args()
    claims = chosen.claims or (QUICK if chosen.scale == "quick" else tuple(CLAIMS))
    scale = SCALES[chosen.scale]
    if chosen.again and chosen.seeds:
        parser.error("--again measures the seeds that are committed; leave --seeds out")
    asked = () if chosen.again else chosen.seeds or scale.seeds
    committed = known().get(chosen.scale, {})
    if chosen.again and (missing := [name for name in claims if name not in committed]):
        if chosen.claims or not committed:
            parser.error(f"nothing is committed of {', '.join(missing)}; measure without --again first")
        print(f"left out, as nothing is committed of it yet: {', '.join(missing)}")
        claims = [name for name in claims if name in committed]
    home = cache_folder() / "benchmarks/worth" / chosen.scale
    fine = True
    with tempfile.TemporaryDirectory() as anew:
        for name in claims:
            if name in ON_PHOTOGRAPHS and not CAMVID.exists():
                print(f"{name}: left out, as CamVid is not at {CAMVID}")
                continue
            folder = Path(anew) if chosen.again else home
            seeds = seeds_of(committed.get(name, {}), asked)
            found = measure(name, replace(scale, seeds=seeds), folder, processes=chosen.processes)
            print(told(found["cells"]), flush=True)
            if chosen.again:
                fine &= agrees(found["cells"], committed[name]["cells"])
                continue
            results = known()
            results.setdefault(chosen.scale, {})[name] = found
            write_results(NAME, results)
    print("as committed" if fine else f"further than {TOLERANCE} from what is committed")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
