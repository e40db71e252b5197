"""What is learned from what: every column of a plan as cells, each of which is one training and its measurement."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from datagen.evaluation.apart import Survey, also_real
from datagen.evaluation.evaluate_plan import Column, EvaluatePlan, real_slots
from datagen.files import json_bytes
from decoders.errors import UserError

FORMAT = 1
"""Of cells; raise it when what a student learns or how it is measured changes: what is kept is stale then."""
_LEARNED = ("size", "views", "batch_size", "learning_rate", "warm_up", "decay", "ema", "threads")
"""Keys of the plan that decide every cell."""
_TEACHING = "classes, where the own labels have some; strong views and CutMix"
"""What a teacher labels, by `trial.taught`, and what is seen of it: cells of another rule are other cells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One training: on how many pictures of which kind, with whose labels, for how long."""

    column: Column
    real: int
    """How many of the first real pictures; 0 for none."""
    synthetic: int
    retrieved: int = 0
    """How many pictures of the pool."""
    updates: int
    seed: int

    @property
    def taught(self) -> bool:
        """Whether synthetic pictures have the labels of the student's own moving average."""
        return self.column == "teacher"


def counts_of(cell: Cell) -> Mapping[str, int]:
    """Dataset -> how many of its pictures are learned from."""
    return {"real": cell.real, "synthetic": cell.synthetic, "pool": cell.retrieved}


def figure_on(test: str, figure: str) -> str:
    """What a figure of one of the test sets is called: `semantic miou`, and `semantic miou on night`."""
    return figure if test == "test" else f"{figure} on {test}"


def cells_of(plan: EvaluatePlan, *, real: int, synthetic: int, pool: int = 0) -> Iterator[Cell]:
    """Every cell of a plan, seeds outermost: when time runs out, every condition has the same number of them.

    Args:
        real, synthetic, pool: how many pictures there are.

    Raises:
        UserError: more pictures are asked for than there are.
    """
    reals = _counts(plan.real_counts, real, at="real_counts")
    synthetics = _counts(plan.synthetic_counts, synthetic, at="synthetic_counts")
    curve = _counts(plan.curve_counts or (), real, at="curve_counts")
    if "retrieved" in plan.columns and max(synthetics) > pool:
        raise UserError(
            f"pool: found {pool} pictures, expected as many as synthetic ones, {max(synthetics)}; name a larger pool, "
            "or fewer in `synthetic_counts`"
        )
    mixed = plan.mixed_updates or plan.updates
    as_long: Column = "real" if mixed == plan.updates and "real_long" not in plan.columns else "real_long"
    on_curve = set(reals) if as_long in plan.columns else set[int]()
    for seed in plan.seeds:
        for column in plan.columns:
            alone = column in ("real", "real_long")
            updates = plan.updates if column in ("real", "synthetic") else mixed
            for of_real in (0,) if column == "synthetic" else reals:
                for added in (0,) if alone else synthetics:
                    retrieved = column == "retrieved"
                    yield Cell(
                        column=column,
                        real=of_real,
                        synthetic=0 if retrieved else added,
                        retrieved=added if retrieved else 0,
                        updates=updates,
                        seed=seed,
                    )
        for count in curve:
            if count not in on_curve:
                yield Cell(column=as_long, real=count, synthetic=0, updates=mixed, seed=seed)


def _counts(asked: Iterable[int] | None, there: int, *, at: str) -> tuple[int, ...]:
    counts = (there,) if asked is None else tuple(asked)
    if max(counts, default=0) > there:
        raise UserError(f"{at}: found {max(counts)}, but there are {there} pictures; take at most so many")
    return counts


def key_of(
    cell: Cell,
    plan: EvaluatePlan,
    surveys: Mapping[str, Survey],
    tests: Mapping[str, Survey],
    student: Mapping[str, Any],
    pool_model: str | None = None,
) -> str:
    """Identity of what is learned and measured: of two columns that do the same, one is enough.

    Args:
        surveys: of the datasets `real`, `synthetic` and, if there is one, `pool`.
        tests: of the datasets that are measured on, `test` among them.
        student: kind and settings.
        pool_model: digest of the model by whose features pictures are retrieved.
    """
    decisive: dict[str, Any] = asdict(cell)
    del decisive["column"]
    decisive |= {"format": FORMAT, "taught": cell.taught, "student": dict(student), "test": tests["test"].digest}
    if len(tests) > 1:
        decisive["tests"] = {name: each.digest for name, each in tests.items()}
    decisive |= plan.model_dump(mode="json", include=set(_LEARNED))
    if cell.real:
        decisive["real digest"] = surveys["real"].digest
    if cell.synthetic:
        decisive["synthetic digest"] = surveys["synthetic"].digest
    if cell.retrieved:
        decisive["pool digest"] = surveys["pool"].digest
        decisive["pool model"] = pool_model
        if also_real(surveys):
            decisive["pool"] = "without real ones"
    if cell.real and (cell.synthetic or cell.retrieved):
        decisive["real slots"] = real_slots(plan)
    if cell.taught:
        decisive |= {"sure_from": plan.sure_from, "teaching": _TEACHING}
    return hashlib.sha256(json_bytes(decisive)).hexdigest()[:16]
