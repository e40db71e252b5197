"""A plan of the verb `fit`: which model is read how, what is learned, and from which pictures."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_type_hints

from annotated_types import Ge, MinLen
from pydantic import BeforeValidator, PlainSerializer, PlainValidator

from datagen.model import ModelSettings
from datagen.plugins import OneOf, Part, settings_model
from datagen.settings import Settings, check, check_plan, filled_like, read_settings
from decoders.errors import UserError
from decoders.settings import DecoderSettings, FitSettings, ReadSettings

_Choice = TypeVar("_Choice")


def _choices(kind: type[_Choice], at: str, values: Any) -> _Choice:
    """A settings dataclass of `decoders`, its keys and types checked like those of a plan."""
    if not isinstance(values, dict):
        raise UserError(f"{at}: found {values!r}, expected keys and values, one a line")
    nested = {name: hint for name, hint in get_type_hints(kind).items() if is_dataclass(hint)}
    inner = {name: _choices(cast(Any, nested[name]), f"{at}.{name}", values[name]) for name in nested if name in values}
    outer = {name: value for name, value in values.items() if name not in nested}
    checked = check(settings_model(kind, given=tuple(nested)), outer, at=at, extra_keys=list(nested))
    return kind(**{name: getattr(checked, name) for name in checked.model_fields_set}, **inner)


def _if_any(settings: ReadSettings) -> Any:
    """None where nothing was chosen: readers fitted before there were such choices are of the same plan."""
    return None if settings == ReadSettings() else asdict(settings)


def _with_options(values: Any) -> Any:
    """Tasks by name; one that is only named has the default options."""
    if isinstance(values, list) and all(isinstance(name, str) for name in cast("list[Any]", values)):
        values = dict.fromkeys(cast("list[str]", values))
    if not isinstance(values, dict):
        return values
    return {name: {} if options is None else options for name, options in cast("dict[str, Any]", values).items()}


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else (value,) if isinstance(value, int) else value


class PerceiverSettings(Settings):
    """How the model is read, as `decoders.perceivers.unet.Reading`; phrases only where a class name would not do."""

    timesteps: Annotated[tuple[Annotated[int, Ge(0)], ...], BeforeValidator(_as_tuple)] = (50,)
    """How much noise is added, in the training schedule; the features of several are joined. Each costs a pass."""
    noises: Annotated[int, Ge(1)] = 1
    """How many noises are added, one after the other; the features are averaged. Each costs a pass."""
    noise_seed: Annotated[int, Ge(0)] = 0
    """Of the first noise; the following numbers are those of the others."""
    layers: tuple[str, ...] = ("mid", "up")
    """`down`, `mid`, `up` (the last features of each block at its own grid) or paths of modules in the UNet."""
    attention: Literal["mean", "heads", "none"] = "mean"
    """What becomes of the class attention: its mean over heads and blocks, every head of every block, or nothing."""
    keep_loras: bool = False
    """Whether the model is read with its LoRA files on; without them a reader serves any style."""
    phrases: Mapping[str, str] = {}
    """What the text encoder is asked for, by class name; the name itself when left out."""

    def reading(self, choices: Mapping[str, Any]) -> "PerceiverSettings":
        """These settings with other choices, given as JSON values."""
        return check(PerceiverSettings, self.model_dump(mode="json") | dict(choices))


class FitPlan(Settings):
    """A plan of the verb `fit`. Paths in it are relative to the current folder, not to the plan's file."""

    reader: Path
    """Folder of the finished reader."""
    model: ModelSettings
    """Whose activations are read."""
    perceiver: PerceiverSettings = PerceiverSettings()
    """What of the model is read; `datagen probe` finds out what is best."""
    tasks: Annotated[Mapping[str, Mapping[str, Any]], MinLen(1), BeforeValidator(_with_options)]
    """Task name -> options: what the reader learns to say (datagen keys tasks); a list of names where the options are
    the defaults."""
    decoder: Annotated[
        DecoderSettings, PlainValidator(partial(_choices, DecoderSettings, "decoder")), PlainSerializer(asdict)
    ] = DecoderSettings()
    """What is fitted: its size."""
    fit: Annotated[FitSettings, PlainValidator(partial(_choices, FitSettings, "fit")), PlainSerializer(asdict)] = (
        FitSettings()
    )
    """How long and how fast, and on which views."""
    reading: Annotated[
        ReadSettings, PlainValidator(partial(_choices, ReadSettings, "reading")), PlainSerializer(_if_any)
    ] = ReadSettings()
    """How the reader looks at pictures."""
    data: Annotated[Part, OneOf("datasets", at="data")]
    """The few annotated pictures."""
    validation: Annotated[Part | None, OneOf("datasets", at="validation")] = None
    """Others, to measure the reader on. What it leaves out is as in `data`, unless it has another format."""


def load_fit_plan(path: Path, overrides: Iterable[str] = ()) -> FitPlan:
    """Read and check a plan, with overrides such as `data.root=photos` applied; no file of the data is looked at.

    Raises:
        UserError: names each wrong key or value in full, what was expected and, for unknown ones, the nearest known.
    """
    return check_plan(FitPlan, filled_like(read_settings(path, overrides), "validation", "data"), path)
