"""The verb `evaluate`: students learn from real pictures, from synthetic ones and from both, and are measured.

<evaluation>/
  plan.yaml          the plan as it was understood
  cells/<key>.json   what was measured, by all that decides it; <key>/ while it is in training
  surveys/           hashes of pictures, so that test pictures found elsewhere are refused
  results.json  table.txt  plot.png
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from rich.console import Console

from datagen.evaluation.apart import check_apart, check_classes_agree, never_shown, survey
from datagen.evaluation.columns import Cell, cells_of, key_of
from datagen.evaluation.evaluate_plan import EvaluatePlan, load_evaluate_plan
from datagen.files import read_json, write_json
from datagen.launchers import Launcher
from datagen.launchers.local import Local
from datagen.meter import console_of
from datagen.model import Model
from decoders.errors import UserError
from decoders.files import write_atomic

if TYPE_CHECKING:
    from datagen.datasets import AnnotatedImages
    from datagen.students import Student

RESULTS_FILE = "results.json"
TABLE_FILE = "table.txt"
PLOT_FILE = "plot.png"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSummary:
    """What came of an evaluation."""

    folder: Path
    table: str
    results: Mapping[Cell, Mapping[str, float]]
    """Figures by cell, such as `semantic miou`."""

    def __str__(self) -> str:
        return f"{self.table}\n\n{self.folder / RESULTS_FILE}\n{self.folder / PLOT_FILE}"


def evaluate(
    plan: Path,
    to: Path | None = None,
    overrides: Iterable[str] = (),
    console: Console | None = None,
    *,
    launcher: Launcher | None = None,
) -> EvaluationSummary:
    """Train and measure every cell that was not measured yet; several processes share the cells.

    Args:
        plan: YAML file.
        to: folder for everything; the plan's own when None.
        overrides: as `key.sub=value`.
        console: where progress is told; stderr when None.
        launcher: knows the other processes; None when this one is alone.

    Raises:
        UserError: a mistake in the plan or the data: other classes, a test picture that is learned from, a missing
            label, or a student whose loss is not finite.
        KeyboardInterrupt: stopped by a signal, after the update at hand was saved.
    """
    checked = load_evaluate_plan(plan, overrides)
    launcher = launcher or Local()
    console = console_of(launcher.rank, console)
    folder = to or checked.evaluation
    test = checked.test.build()
    pools = {"real": checked.real.build(), "synthetic": checked.synthetic.build()}
    if checked.pool is not None:
        pools["pool"] = checked.pool.build()
    check_classes_agree(test, pools)
    student = checked.student.build(taxonomy=test.taxonomy)
    cells = list(cells_of(checked, **{name: len(data) for name, data in pools.items()}))
    if launcher.rank:
        launcher.barrier()  # what the first process finds is remembered
    surveys = {
        name: survey(data, folder=folder / "surveys", console=console) for name, data in {**pools, "test": test}.items()
    }
    if launcher.rank == 0:
        write_atomic(folder / "plan.yaml", _as_yaml(checked).encode())
        launcher.barrier()
    check_apart(surveys)
    for warning in never_shown(surveys, test.taxonomy):
        console.print(warning, markup=False)
    model = (
        None if checked.pool_model is None else Model(checked.pool_model.reference(), device=lambda: launcher.device)
    )
    space = None if model is None else model.digest
    keys = {cell: key_of(cell, checked, surveys, checked.student.to_json(), space) for cell in cells}
    missing = [key for key in dict.fromkeys(keys.values()) if not _file(folder, key).exists()]
    launcher.barrier()  # nobody measures before everybody knows what is missing
    if missing:
        data = {**pools, "test": test}
        nearest = None
        if model is not None:
            from datagen.evaluation.retrieval import Retrieval

            sides = {name: (surveys[name].digest, data[name]) for name in ("real", "pool")}
            nearest = Retrieval(**sides, model=model, folder=folder / "features", console=console).nearest
        _measure(checked, student, data, nearest, folder, keys, missing, launcher, console)
    launcher.barrier()
    return _summarise(folder, keys, student.headline, write=launcher.rank == 0)


def _measure(
    plan: EvaluatePlan,
    student: "Student",
    data: "Mapping[str, AnnotatedImages]",
    nearest: Callable[[int], Sequence[int]] | None,
    folder: Path,
    keys: Mapping[Cell, str],
    missing: list[str],
    launcher: Launcher,
    console: Console,
) -> None:
    from datagen.evaluation.report import told_counts
    from datagen.evaluation.study import Kept
    from datagen.evaluation.trial import Material, run

    kept = {name: Kept(pictures, labels=student.labels) for name, pictures in data.items()}
    material = Material(student=student, device=launcher.device, data=kept, nearest=nearest)
    first = {key: cell for cell, key in reversed(list(keys.items()))}
    mine = missing[launcher.rank :: launcher.world]
    for place, key in enumerate(mine):
        cell = first[key]
        console.print(
            f"cell {place + 1} of {len(mine)}: {cell.column}, {told_counts(cell)}, "
            f"{cell.updates} updates, seed {cell.seed}",
            markup=False,
        )
        result = run(cell, plan, material, folder=folder / "cells" / key, console=console)
        write_json(_file(folder, key), {"cell": asdict(cell), "measured": dict(result)})


def _file(folder: Path, key: str) -> Path:
    return folder / "cells" / f"{key}.json"


def _summarise(folder: Path, keys: Mapping[Cell, str], headline: str, *, write: bool) -> EvaluationSummary:
    from datagen.evaluation.report import plot, table

    results = {cell: read_json(_file(folder, key))["measured"] for cell, key in keys.items()}
    if not all(headline in result for result in results.values()):
        raise UserError(f"no test picture has anything to measure {headline!r} on; check the labels of `test`")
    told = table(results, headline)
    if write:
        write_json(folder / RESULTS_FILE, [asdict(cell) | {"measured": result} for cell, result in results.items()])
        write_atomic(folder / TABLE_FILE, f"{told}\n".encode())
        plot(results, headline, folder / PLOT_FILE)
    return EvaluationSummary(folder=folder, table=told, results=results)


def _as_yaml(plan: EvaluatePlan) -> str:
    return yaml.safe_dump(plan.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
