"""A plan of the verb `control`: which model is steered, by what condition, learned from which layouts."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic import model_validator

from datagen.adaptation.training_settings import TrainingSettings
from datagen.model import ModelSettings
from datagen.plugins import OneOf, Part
from datagen.settings import Settings, check_plan, read_settings


class AdherenceSettings(Settings):
    """What is drawn and measured while a ControlNet is trained: the loss hardly says whether it is obeyed."""

    reader: Path | None = None
    """Says what the pictures show, of the classes of the layouts; pictures are only drawn when None."""
    fit: Path | None = None
    """Plan to fit the reader with, if that folder holds none yet."""
    source: Annotated[Part | None, OneOf("sources", at="adherence.source")] = None
    """Layouts to draw; others of the training's source when None."""
    pictures: Annotated[int, Ge(1)] = 8
    """So many layouts, always the same."""
    steps: Annotated[int, Ge(1)] = 25
    """Of the sampler."""
    guidance: Annotated[float, Ge(0)] = 7.5
    """Of these pictures."""


class BeginWith(Settings):
    """A ControlNet to go on from; in a plan a bare text is its `source`."""

    source: str
    """As `source` of a generator's control."""
    revision: str | None = None
    """Commit of the hub repository."""

    @model_validator(mode="before")
    @classmethod
    def _from_source(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value


class ControlPlan(TrainingSettings):
    """Paths in it are relative to the current folder, not to the plan's file."""

    control: Path
    """Where everything goes: the ControlNet, curves, samples."""
    model: ModelSettings
    """What it steers while it learns; its LoRA files count, so that a domain's look need not be learned again."""
    begin_with: BeginWith | None = None
    """A ControlNet to go on from, be it of another condition; a copy of the model's encoder when None."""
    condition: Annotated[Part, OneOf("conditions", at="condition")]
    """What it is shown."""
    source: Annotated[Part, OneOf("sources", at="source")]
    """Layouts with the pictures that they were made for, such as `layouts` of a dataset."""
    caption_dropout: Annotated[float, Ge(0), Le(1)] = 0.1
    """Share of the pictures shown without caption: guidance needs a model that knows what comes without one."""
    adherence: AdherenceSettings | None = AdherenceSettings()
    """What is drawn and measured meanwhile; nothing when None."""


def load_control_plan(path: Path, overrides: Iterable[str] = ()) -> ControlPlan:
    """Read and check a plan, with overrides such as `updates=100` applied; no picture is looked at.

    Raises:
        UserError: names each wrong key or value in full, and what was expected.
    """
    return check_plan(ControlPlan, read_settings(path, overrides), path)
