"""A plan of the verb `adapt`: which model is trained on, in which way, on which pictures."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MinLen

from datagen.adaptation.training_settings import TrainingSettings
from datagen.model import ModelSettings
from datagen.plugins import OneOf, Part
from datagen.settings import check_plan, read_settings
from decoders.errors import UserError


class AdaptPlan(TrainingSettings):
    """Paths in it are relative to the current folder, not to the plan's file."""

    adapted: Path
    """Where everything goes: the LoRA file or the adapted model, curves, samples."""
    model: ModelSettings
    """What is trained further."""
    method: Literal["lora", "full"] = "lora"
    """`lora` trains a small file beside the model, `full` all weights of its UNet."""
    rank: Annotated[int, Ge(1)] | None = 8
    """Of the LoRA: higher can change more. Left out or null beside `full`."""
    images: Path | None = None
    """Folder of pictures, its subfolders included; no labels are needed ..."""
    data: Annotated[Part | None, OneOf("datasets", at="data")] = None
    """... or a dataset, of which the pictures are taken."""
    captions: Literal["one", "own"] = "one"
    """`own`: each picture is called what the text file of its name beside it says, or its dataset."""
    caption: str = ""
    """What every picture is called under `captions: one`; the empty prompt when left out."""
    caption_dropout: Annotated[float, Ge(0), Le(1)] = 0.1
    """Share of the pictures shown without caption: guidance needs a model that knows what comes without one."""
    size: tuple[Annotated[int, Ge(8)], Annotated[int, Ge(8)]] | None = None
    """Height and width of what is trained on, in pixels; the model's own size when left out."""
    scales: Annotated[tuple[Annotated[float, Gt(0), Le(1)], ...], MinLen(1)] = (1.0,)
    """By which a picture is resized before a part of that size is cut out, each as likely."""
    flip: bool = False
    """Whether half of the pictures are mirrored."""
    prompts: tuple[str, ...] = ()
    """What is drawn at the beginning, every `samples_every` updates and at the end; nothing without prompts."""
    guidance: Annotated[float, Ge(0)] = 7.5
    """Of these pictures."""


def load_adapt_plan(path: Path, overrides: Iterable[str] = ()) -> AdaptPlan:
    """Read and check a plan, with overrides such as `updates=100` applied; no picture is looked at.

    Raises:
        UserError: names each wrong key or value in full, and what was expected.
    """
    plan = check_plan(AdaptPlan, read_settings(path, overrides), path)
    if (plan.images is None) == (plan.data is None):
        found = "neither" if plan.images is None else "both"
        raise UserError(
            f"found {found} of `images` and `data`, expected one: a folder of pictures under `images`, or a dataset "
            "(`format:` and its settings) under `data`"
        )
    if plan.method == "full" and "rank" in plan.model_fields_set and plan.rank is not None:
        raise UserError("found `rank` beside `method: full`, which has none; set it to null, or take `method: lora`")
    if plan.method == "lora" and plan.rank is None:
        raise UserError("found null for `rank` beside `method: lora`, expected a number from 1 on, such as 8")
    if plan.captions == "own" and plan.caption:
        raise UserError("found `caption` beside `captions: own`; give one caption for all, or let each have its own")
    return plan
