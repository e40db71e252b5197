"""A plan of the verb `evaluate`: which student learns from which pictures, and is measured on which."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import field_validator

from datagen.model import ModelSettings
from datagen.plugins import OneOf, Part
from datagen.settings import Settings, check_plan, filled, filled_like, read_settings
from decoders.augmentation import Augmentation
from decoders.errors import UserError

Column = Literal["real", "real_long", "synthetic", "both", "teacher", "retrieved"]
Counts = Annotated[tuple[Annotated[int, Ge(1)], ...], MinLen(1)]


class ViewSettings(Settings):
    """How far what a student sees may differ from the plain pictures; as `decoders.augmentation.Augmentation`."""

    zoom: tuple[float, float] = (0.8, 1.6)
    """Smallest and largest magnification relative to the plain view, drawn evenly in log space."""
    mirror: bool = True
    """Whether half of the views are mirrored."""
    jitter: float = 0.2
    """Largest relative change of brightness, contrast and saturation; hue moves by a tenth of it. 0 = off."""

    def augmentation(self) -> Augmentation:
        """As students take it.

        Raises:
            UserError: a number is out of range.
        """
        return Augmentation(zoom=self.zoom, mirror=self.mirror, jitter=self.jitter)


class EvaluatePlan(Settings):
    """Paths in it are relative to the current folder, not to the plan's file."""

    evaluation: Path
    """Where everything goes: every finished cell, the table, the plot."""
    student: Annotated[Part, OneOf("students", at="student")]
    """Who learns."""
    real: Annotated[Part, OneOf("datasets", at="real")]
    """The annotated pictures that there are."""
    synthetic: Annotated[Part, OneOf("datasets", at="synthetic")]
    """The dataset whose worth is asked for."""
    test: Annotated[Part, OneOf("datasets", at="test")]
    """Real pictures that nobody has learned from. What it leaves out is as in `real`, unless it has another format."""
    more_tests: Mapping[str, Annotated[Part, OneOf("datasets", at="more_tests")]] = {}
    """Other test pictures by what is special of them, such as `night`, on which the same students are measured, too.
    What they leave out is as in `test`, unless they have another format."""
    columns: Annotated[tuple[Column, ...], MinLen(1)] = ("real", "real_long", "synthetic", "both", "teacher")
    """What is learned from: `real` pictures only; the same with as many updates as the mixed columns (`real_long`);
    `synthetic` only; `both`; and both with the synthetic pictures labelled by the moving average of the student itself
    (`teacher`; Mean Teacher, arXiv 1703.01780), instead of their own labels; and `retrieved`: as many pictures of a
    `pool` in their place, those most like the real ones, as beat synthetic ones in Unmet Promise (arXiv 2406.05184).
    The student sees what a teacher labels in strongly changed colours and with CutMix (UniMatch, arXiv 2208.09910;
    SENSE, arXiv 2605.19289, which also averages a teacher's mirrored looks, has it from there). A teacher labels
    classes where the pictures' own labels do; depth is then learned from the real pictures alone. Objects it cannot
    label, as unsure ones would be learned as background: the student `detector` has no `teacher`, nor when the columns
    are left out."""
    pool: Annotated[Part | None, OneOf("datasets", at="pool")] = None
    """Other real pictures with labels, for `retrieved`; those that are in `real`, by their pixels, are not retrieved.
    What it leaves out is as in `real`."""
    pool_model: ModelSettings | None = None
    """Whose features say which pictures of the pool are like the real ones: a diffusion model's, or those of a vision
    model of transformers (DINOv2, ViT, CLIP) in a folder."""
    real_counts: Counts | None = None
    """So many of the first real pictures, one cell for each; all of them when left out. Labels of synthetic pictures
    must not be made with more of them than the smallest, or a mixed column knows more than it says."""
    curve_counts: tuple[Annotated[int, Ge(1)], ...] | None = None
    """So many of the first real pictures alone, each learned from for as long as the mixed columns: with `real_counts`
    the curve that says how many real pictures a mixed column stands for."""
    synthetic_counts: Counts | None = None
    """So many of the first synthetic pictures; all when left out."""
    seeds: Annotated[tuple[Annotated[int, Ge(0)], ...], MinLen(1)] = (0, 1, 2)
    """Of weights and views; every cell is learned with each. One seed gives no interval."""

    size: tuple[Annotated[int, Ge(32)], Annotated[int, Ge(32)]]
    """Height and width in pixels of the views that are learned from; test pictures are scaled alike."""
    views: ViewSettings = ViewSettings()
    """How far they may differ from the plain pictures."""
    updates: Annotated[int, Ge(1)] = 1000
    """Of the columns `real` and `synthetic`."""
    mixed_updates: Annotated[int, Ge(1)] | None = None
    """Of the others; as `updates` when left out, and then `real_long` is `real`."""
    batch_size: Annotated[int, Ge(2)] = 8
    """Views of one update."""
    real_share: Annotated[float, Gt(0), Lt(1)] = 0.5
    """Of a batch of mixed columns, however few the real pictures are."""
    sure_from: Annotated[float, Ge(0), Le(1)] = 0.95
    """How sure the teacher must be of the class of a pixel; the rest is void."""
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    """Of AdamW, at its highest."""
    warm_up: Annotated[int, Ge(0)] = 50
    """Updates over which the rate rises."""
    decay: Annotated[float, Ge(0), Le(1)] = 0.5
    """Share of the updates, at the end, over which the rate falls to zero."""
    ema: Annotated[float, Ge(0), Lt(1)] = 0.996
    """Decay of the moving average of the weights, which is measured, and which is the teacher."""
    threads: Annotated[int, Ge(1)] = 2
    """CPU threads of each process; another number may change the last digits."""

    @field_validator("more_tests", mode="before")
    @classmethod
    def _null_is_none(cls, value: Any) -> Any:
        return {} if value is None else value

    @field_validator("columns", "seeds", "real_counts", "curve_counts", "synthetic_counts")
    @classmethod
    def _each_once(cls, values: tuple[object, ...] | None) -> tuple[object, ...] | None:
        if values is not None and len(set(values)) < len(values):
            raise ValueError("each entry once")
        return values


def load_evaluate_plan(path: Path, overrides: Iterable[str] = ()) -> EvaluatePlan:
    """Read and check a plan, with overrides such as `updates=100` applied; no picture is looked at.

    Raises:
        UserError: names each wrong key or value in full, and what was expected.
    """
    values = filled_like(read_settings(path, overrides), "test", "real")
    values = filled_like(values, "pool", "real")
    more: Any = values.get("more_tests")
    if isinstance(more, dict):
        values |= {"more_tests": {name: filled(data, values.get("test")) for name, data in more.items()}}
    plan = check_plan(EvaluatePlan, values, path)
    if plan.student.kind == "detector" and "teacher" in plan.columns:
        if "columns" in plan.model_fields_set:
            raise UserError(
                "columns: found `teacher` with the student `detector`, expected a student of classes (`kind: "
                "segmenter`), since objects that a teacher is unsure of would be learned as background; leave "
                "`teacher` out"
            )
        plan = plan.model_copy(update={"columns": tuple(name for name in plan.columns if name != "teacher")})
    if "retrieved" in plan.columns and (plan.pool is None or plan.pool_model is None):
        raise UserError(
            "columns: `retrieved` takes pictures from a pool, expected `pool:` (a dataset) and `pool_model:`; add "
            "them, or leave `retrieved` out"
        )
    if "retrieved" not in plan.columns and (plan.pool is not None or plan.pool_model is not None):
        raise UserError("found `pool` or `pool_model`, but no column that uses them; add `retrieved` to `columns`")
    try:
        plan.views.augmentation()
    except UserError as error:
        raise UserError(f"views: {error}") from None
    if taken := sorted({"test", "real", "synthetic", "pool"} & plan.more_tests.keys()):
        raise UserError(
            f"more_tests: found {taken[0]!r}, which another dataset is called already; call it what it shows"
        )
    if real_slots(plan) in (0, plan.batch_size):
        raise UserError(
            f"real_share {plan.real_share:g} of a batch_size of {plan.batch_size} leaves no place for "
            f"{'real' if not real_slots(plan) else 'synthetic'} pictures; take a larger batch, or a share nearer to 0.5"
        )
    return plan


def real_slots(plan: EvaluatePlan) -> int:
    """Places of real pictures in a batch of both."""
    return round(plan.batch_size * plan.real_share)
