"""How claims of `benchmarks.worth` do with other settings, on scenes that none of them is tested on: to choose by.

    python -m benchmarks.mixes [--claims datasetdm_20 dginstyle] [--seeds 0 1] [--processes 2]

`dginstyle`: how much guidance draws the pictures, and how large a share of every batch are the game's own scenes?
`datasetdm_20`: how many of the reader's answers are kept (`coverage`; the least sure become void)? Each beside real
pictures alone for as long. The students are those of the claims, in full; the scenes to choose by are few-shot ones
that nothing else uses, so that the claims' test scenes have no part in the choice.

Cost on two slow cores, a seed: students 8 x 1,000 updates x 1.5 s = 3 hours; pictures that `benchmarks.worth` has not
drawn, 2 x 2,000 x 1.1 s and 1,000 x 3 s: 2 hours. Every cell resumes by its content hash.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch

from benchmarks.cells import Cell, measure_all
from benchmarks.claims import CLAIMS, HARDER, NORMAL, SCALES, Step
from benchmarks.readers import model_digest
from benchmarks.worth import headlines_of, run
from datagen.evaluation.evaluate import RESULTS_FILE
from datagen.files import read_json
from datagen.pocket import scene_cache
from decoders.files import cache_folder
from decoders.manifest import FORMAT

NAME = "mixes"
SCALE = SCALES["full"]
_STREETS: Mapping[str, Any] = {"format": "pocket_scenes", "split": "few_shot", "seed": 33_000, "count": 200}
CHOSEN_BY: Mapping[str, Mapping[str, Any]] = {
    "datasetdm_20": {"test": {"split": "few_shot", "seed": 32_000, "count": 300}, "more_tests": {}},
    "dginstyle": {
        "test": {**_STREETS, **NORMAL},
        "more_tests": {"adverse": {**_STREETS, **HARDER["adverse"]}},
    },
}
"""Claim -> what its students are measured on here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Other settings of a claim."""

    column: str = "both"
    made: Mapping[str, Any] = field(default_factory=dict)
    """Of the pictures and their labels; none = as the claim makes them."""
    real_share: float = 0.5


_LESS: Mapping[str, Any] = {"generator.guidance": 1.0}
MIXES: Mapping[str, tuple[Mix, ...]] = {
    "datasetdm_20": (
        Mix(column="real"),
        Mix(),
        *(Mix(made={"labeller.coverage": coverage}) for coverage in (0.8, 0.6)),
    ),
    "dginstyle": (
        Mix(column="real"),
        Mix(),
        Mix(made=_LESS),
        Mix(made=_LESS, real_share=0.75),
    ),
}


def all_cells(claims: list[str], seeds: list[int]) -> Iterator[Cell]:
    """Seeds outermost: when time runs out, every mix has the same number of them."""
    made_by = {"world": scene_cache.world_digest(), "model": model_digest(), "decoder": FORMAT}
    for seed in seeds:
        for claim in claims:
            for mix in MIXES[claim]:
                told = {"column": mix.column, "made": dict(mix.made), "real share": mix.real_share}
                yield {"claim": claim, **told, "seed": seed, "updates": SCALE.updates, **made_by}


def measure(cell: Cell, *, processes: int) -> Mapping[str, Any]:
    """Draw what was not drawn, train one student, return its figures."""
    made, study = steps_of(cell)
    for step in (*made, study):
        run(step, processes=processes if step.verb == "generate" else 1)
    (found,) = read_json(study.to / RESULTS_FILE)
    return found["measured"]


def steps_of(cell: Cell) -> tuple[list[Step], Step]:
    """What makes the pictures, and the evaluation of this one cell."""
    home = cache_folder() / "benchmarks"
    *made, study = (cast(Step, step) for step in CLAIMS[cell["claim"]](SCALE, home / "worth" / "full"))
    drawn = made[-1]
    if cell["made"]:
        own = "_".join(f"{name.split('.')[-1]}_{value:g}" for name, value in cell["made"].items())
        drawn = replace(drawn, settings={**drawn.settings, **cell["made"]}, to=home / NAME / cell["claim"] / own)
    chosen = {
        "synthetic.root": str(drawn.to / "exports/coco"),
        "columns": [cell["column"]],
        "curve_counts": None,
        "seeds": [cell["seed"]],
        "real_share": cell["real share"],
        **CHOSEN_BY[cell["claim"]],
    }
    to = home / NAME / cell["claim"] / "_".join(map(str, (cell["column"], drawn.to.name, cell["real share"])))
    return [*made[:-1], drawn], replace(study, settings={**study.settings, **chosen}, to=to)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--claims", nargs="+", choices=list(MIXES), default=list(MIXES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    side_by_side = "that draw side by side; one for each GPU, two without"
    parser.add_argument("--processes", type=int, default=torch.cuda.device_count() or 2, help=side_by_side)
    chosen = parser.parse_args()
    cells = all_cells(chosen.claims, chosen.seeds)
    for row in measure_all(NAME, cells, partial(measure, processes=chosen.processes)):
        figures = ", ".join(f"{name} {row[name]:.3f}" for name in headlines_of([{"measured": row}]))
        made = ", ".join(f"{name} {value}" for name, value in row["made"].items()) or "as the claim makes them"
        print(f"{row['claim']}, {row['column']}, real share {row['real share']}, {made}, seed {row['seed']}: {figures}")


if __name__ == "__main__":
    main()
