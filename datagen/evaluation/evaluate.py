"""The verb `evaluate`: students learn from real pictures, from synthetic ones and from both, and are measured.

<evaluation>/
  plan.yaml          the plan as it was understood
  cells/<key>.json   what was measured and on which hardware, by all that decides it; <key>/ while it is in training
  surveys/           hashes of pictures, so that test pictures found elsewhere are refused, and what is labelled
  results.json  table.txt  plot.png
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from rich.console import Console

from datagen.evaluation.apart import (
    also_real,
    check_apart,
    check_classes_agree,
    check_labels,
    check_measurable,
    never_measured,
    never_shown,
    survey,
)
from datagen.evaluation.columns import Cell, cells_of, counts_of, figure_on, key_of
from datagen.evaluation.evaluate_plan import EvaluatePlan, load_evaluate_plan
from datagen.evaluation.feature_space import FeatureSpace
from datagen.files import read_json, write_json
from datagen.launchers import Launcher
from datagen.launchers.local import Local
from datagen.meter import console_of
from datagen.model import hardware
from decoders.errors import UserError
from decoders.files import write_atomic

if TYPE_CHECKING:
    from datagen.evaluation.trial import Material

RESULTS_FILE = "results.json"
TABLE_FILE = "table.txt"
PLOT_FILE = "plot.png"
_DTYPE = "float32"
"""Of every student."""


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
        UserError: a mistake in the plan or the data: a size that the student cannot take, other classes, a test
            picture that is learned from, a missing label, a test without truth, too small a pool, or a student whose
            loss is not finite.
        KeyboardInterrupt: stopped by a signal, after the update at hand was saved.
    """
    checked = load_evaluate_plan(plan, overrides)
    launcher = launcher or Local()
    console = console_of(launcher.rank, console)
    folder = to or checked.evaluation
    tests = {"test": checked.test.build()} | {name: part.build() for name, part in checked.more_tests.items()}
    test = tests["test"]
    pools = {"real": checked.real.build(), "synthetic": checked.synthetic.build()}
    if checked.pool is not None:
        pools["pool"] = checked.pool.build()
    check_classes_agree(test, pools | {name: each for name, each in tests.items() if name != "test"})
    student = checked.student.build(taxonomy=test.taxonomy)
    _check_size(checked, student.size_multiple)
    cells = list(cells_of(checked, **{name: len(data) for name, data in pools.items()}))
    if launcher.rank:
        launcher.barrier()  # what the first process finds is remembered
    surveys, measured = (
        {name: survey(each, folder=folder / "surveys", console=console) for name, each in some.items()}
        for some in (pools, tests)
    )
    if launcher.rank == 0:
        write_atomic(folder / "plan.yaml", _as_yaml(checked).encode())
        launcher.barrier()
    check_apart(measured, surveys)
    used = _smallest_counts(cells)
    check_labels({name: surveys[name] for name in surveys if name in used} | measured, student.labels)
    check_measurable(measured, student.headline)
    warnings = [*never_measured(measured, student.headline, test.taxonomy)]
    firsts = {name: count for name, count in used.items() if name != "pool"}  # of the pool it is not the first ones
    warnings += never_shown(measured, surveys, test.taxonomy, firsts)
    repeated = also_real(surveys) if "pool" in surveys else frozenset[str]()
    if repeated:
        warnings.append(_without(repeated, len(pools["pool"]), max(cell.retrieved for cell in cells)))
    for warning in warnings:
        console.print(warning, markup=False)
    pool_model = checked.pool_model
    space = None if pool_model is None else FeatureSpace(pool_model.reference(), device=lambda: launcher.device)
    seen_by = None if space is None else space.digest
    keys = {cell: key_of(cell, checked, surveys, measured, checked.student.decisive(), seen_by) for cell in cells}
    missing = [key for key in dict.fromkeys(keys.values()) if not _file(folder, key).exists()]
    launcher.barrier()  # nobody measures before everybody knows what is missing
    if missing:
        from datagen.evaluation.study import Kept
        from datagen.evaluation.trial import Material

        there = {read_json(_file(folder, key))["hardware"] for key in set(keys.values()).difference(missing)}
        for warning in _mixed({*there, hardware(launcher.device, _DTYPE)}):
            console.print(warning, markup=False)
        nearest = None
        if space is not None:
            from datagen.evaluation.retrieval import Retrieval

            sides = {name: (surveys[name].digest, pools[name]) for name in ("real", "pool")}
            left_out = frozenset(number for number, name in enumerate(pools["pool"].names) if name in repeated)
            nearest = Retrieval(
                **sides, space=space, folder=folder / "features", console=console, left_out=left_out
            ).nearest
        learned, kept = (
            {name: Kept(pictures, labels=student.labels) for name, pictures in some.items()} for some in (pools, tests)
        )
        material = Material(student=student, device=launcher.device, data=learned, tests=kept, nearest=nearest)
        _measure(checked, material, folder, keys, missing, launcher, console)
    launcher.barrier()
    headlines = [figure_on(name, student.headline) for name in tests]
    return _summarise(folder, keys, headlines, warnings, write=launcher.rank == 0)


def _check_size(plan: EvaluatePlan, multiple: int) -> None:
    """
    Raises:
        UserError: the student cannot take views of that size.
    """
    fits = [max(1, (pixels + multiple // 2) // multiple) * multiple for pixels in plan.size]
    if fits != list(plan.size):
        raise UserError(
            f"size: found {list(plan.size)}, but the student `{plan.student.kind}` takes heights and widths that are "
            f"multiples of {multiple}; the nearest that fits is `size: {fits}`"
        )


def _smallest_counts(cells: Iterable[Cell]) -> dict[str, int]:
    """Of each dataset that is learned from."""
    counts: dict[str, int] = {}
    for cell in cells:
        for name, count in counts_of(cell).items():
            if count:
                counts[name] = min(count, counts.get(name, count))
    return counts


def _mixed(machines: Collection[str]) -> Iterator[str]:
    """What to tell where cells of one table come from different hardware."""
    if len(machines) > 1:
        yield (
            f"cells of this table come from different hardware ({'; '.join(sorted(machines))}), each of which rounds "
            "in its own way: a difference between two of them is not that of their columns alone"
        )


def _without(repeated: Collection[str], pool: int, wanted: int) -> str:
    """What to tell of pictures of the pool that are not retrieved, as they are real ones already.

    Raises:
        UserError: there are too few others.
    """
    told = f"{len(repeated)} of {pool} pictures of `pool` are also in `real`"
    if pool - len(repeated) < wanted:
        raise UserError(
            f"{told}, which leaves {pool - len(repeated)}, expected as many as synthetic ones, {wanted}; name a pool "
            "of other pictures, or fewer in `synthetic_counts`"
        )
    return f"{told}: these are not retrieved"


def _measure(
    plan: EvaluatePlan,
    material: "Material",
    folder: Path,
    keys: Mapping[Cell, str],
    missing: list[str],
    launcher: Launcher,
    console: Console,
) -> None:
    from datagen.evaluation.report import told_counts
    from datagen.evaluation.trial import run

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
        made_on = hardware(launcher.device, _DTYPE)
        write_json(_file(folder, key), {"cell": asdict(cell), "hardware": made_on, "measured": dict(result)})


def _file(folder: Path, key: str) -> Path:
    return folder / "cells" / f"{key}.json"


def _summarise(
    folder: Path, keys: Mapping[Cell, str], headlines: Sequence[str], warnings: Sequence[str], *, write: bool
) -> EvaluationSummary:
    from datagen.evaluation.report import plot, table

    found = {cell: read_json(_file(folder, key)) for cell, key in keys.items()}
    results = {cell: each["measured"] for cell, each in found.items()}
    warnings = [*warnings, *_mixed({each["hardware"] for each in found.values()})]
    for headline in headlines:
        if not all(headline in result for result in results.values()):
            raise UserError(f"no test picture has anything to measure {headline!r} on; check the labels of the test")
    told = "\n".join([table(results, headlines), *(["", *warnings] if warnings else [])])
    if write:
        kept = ("hardware", "measured")
        rows = [asdict(cell) | {name: each[name] for name in kept} for cell, each in found.items()]
        write_json(folder / RESULTS_FILE, rows)
        write_atomic(folder / TABLE_FILE, f"{told}\n".encode())
        plot(results, headlines, folder / PLOT_FILE)
    return EvaluationSummary(folder=folder, table=told, results=results)


def _as_yaml(plan: EvaluatePlan) -> str:
    return yaml.safe_dump(plan.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
