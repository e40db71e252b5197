"""From a plan's file to finished parts, with every check that needs no picture."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic import Field, PlainSerializer, PlainValidator, model_validator

from datagen.exporters import Exporter
from datagen.filters import Filter
from datagen.generators import Generator
from datagen.labellers import Labeller
from datagen.model import Model, ModelSettings
from datagen.plugins import Group, OneOf, Part, choose_part
from datagen.settings import Settings, check_plan, read_settings
from datagen.sources import Source
from decoders.errors import UserError
from decoders.labels import Taxonomy


def _several(group: Group, at: str, values: Any) -> tuple[Part, ...]:
    if not isinstance(values, list):
        raise UserError(f"{at}: found {values!r}, expected a list, each entry with `kind:` and its settings")
    return tuple(choose_part(group, value, at=f"{at}.{index}") for index, value in enumerate(values))


def _to_json(parts: tuple[Part, ...]) -> Any:
    return [part.to_json() for part in parts]


_AS_JSON = PlainSerializer(_to_json)


class Candidates(Settings):
    """Several pictures for each recipe, of which the best is kept; in a plan a bare number is their `count`."""

    count: Annotated[int, Ge(1)] = 1
    """Pictures for each recipe."""
    best_by: str = "agreement"
    """Name of a filter's score, the higher the better; a picture that all filters keep comes before all others."""

    @model_validator(mode="before")
    @classmethod
    def _from_count(cls, value: Any) -> Any:
        return {"count": value} if isinstance(value, int) else value


class GeneratePlan(Settings):
    """A plan of the verb `generate`. Paths in it are relative to the current folder, not to the plan's file."""

    run: Path
    """Where everything goes."""
    target: Annotated[int, Ge(1)]
    """Accepted samples wanted: the dataset is the first so many in id order."""
    seed: Annotated[int, Ge(0)] = 0
    """Of all prompts, crops and noises: another one gives other pictures."""
    shard_size: Annotated[int, Ge(1)] = 64
    """Samples made, accepted or not, between two commits."""
    batch_size: Annotated[int, Ge(1)] = 8
    """Pictures drawn and labelled at once."""
    threads: Annotated[int, Ge(1)] = 1
    """CPU threads of each process. Like the batch size it decides the last digits of a picture."""
    candidates: Candidates = Candidates()
    """Pictures drawn for each recipe, of which the best is kept; a bare number is their count."""
    minimum_yield: Annotated[float, Ge(0), Le(1)] = 0.05
    """Give up when a smaller share is accepted ..."""
    yield_after: Annotated[int, Ge(1)] = 200
    """... of at least so many samples."""
    model: ModelSettings | None = None
    """May be left out where no part asks for a model."""
    source: Annotated[Part, OneOf("sources", at="source")]
    """What is asked for."""
    generator: Annotated[Part, OneOf("generators", at="generator")]
    """What draws it."""
    labeller: Annotated[Part, OneOf("labellers", at="labeller")]
    """What says what the pictures show."""
    filters: Annotated[tuple[Part, ...], PlainValidator(partial(_several, "filters", "filters")), _AS_JSON] = ()
    """What rejects pictures, one after the other: datagen keys filters."""
    exports: Annotated[tuple[Part, ...], PlainValidator(partial(_several, "exporters", "exports")), _AS_JSON] = Field(
        default_factory=lambda: _several("exporters", "exports", ["coco"])
    )
    """What is written of the accepted ones: datagen keys exporters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a plan's parts are built into."""

    model: Model | None
    source: Source
    generator: Generator
    labeller: Labeller
    filters: tuple[Filter, ...]
    exporters: dict[str, Exporter]
    """By kind, which is also the folder in `exports/`."""


def load_plan(path: Path, overrides: Iterable[str] = ()) -> GeneratePlan:
    """Read and check a plan, with overrides such as `generator.steps=10` or `filters.0.minimum=0.5` applied.

    Raises:
        UserError: names each wrong key or value in full, what was expected and, for unknown ones, the nearest known.
    """
    plan = check_plan(GeneratePlan, read_settings(path, overrides), path)
    times = Counter(part.kind for part in plan.exports)
    if doubled := sorted(kind for kind in times if times[kind] > 1):
        raise UserError(
            f"exports: {doubled[0]} is given {times[doubled[0]]} times; keep one, `datagen export` writes others"
        )
    return plan


def build_parts(
    plan: GeneratePlan, device: Callable[[], str] | None = None, prepare: Callable[[], None] = lambda: None
) -> Parts:
    """Construct the parts; small files are read, but no weights, so that this is quick for a finished run.

    Args:
        plan: says which.
        device: where the model computes, asked when it loads.
        prepare: makes the files that the labeller needs. As that may take minutes, all other parts are built before, so
            that their mistakes are told first; but where the source brings no classes, they wait for the labeller's.

    Raises:
        UserError: from a part's own checks, with its place in the plan put in front.
    """
    model = Model(plan.model.reference(), device=device) if plan.model else None
    given: dict[str, Any] = {"seed": plan.seed} | ({"model": model} if model else {})
    exporters = {part.kind: part.build() for part in plan.exports}
    source: Source | None = None if plan.source.asks_for("taxonomy") else plan.source.build(**given)
    brought: Taxonomy | None = getattr(source, "taxonomy", None)

    def others(taxonomy: Taxonomy) -> dict[str, Any]:
        return {
            "generator": plan.generator.build(**given, taxonomy=taxonomy),
            "filters": tuple(part.build(taxonomy=taxonomy) for part in plan.filters),
        }

    early = None if brought is None else others(brought)
    prepare()
    labeller: Labeller = plan.labeller.build(**given, taxonomy=brought)
    if brought is not None and brought.names != labeller.taxonomy.names:
        raise UserError(
            f"labeller: it says the classes {', '.join(labeller.taxonomy.names)}, the layouts of the source have "
            f"{', '.join(brought.names)}; take a reader of just these, in their order, or `kind: inherited`"
        )
    return Parts(
        model=model,
        source=plan.source.build(**given, taxonomy=labeller.taxonomy) if source is None else source,
        labeller=labeller,
        exporters=exporters,
        **(early or others(labeller.taxonomy)),
    )


def identity(plan: GeneratePlan, parts: Parts) -> dict[str, Any]:
    """All that decides the bytes of the shards, as JSON values: contents of files instead of their paths.

    Left out: how many samples are wanted, where they go, and in which formats they are exported.
    """
    return {
        "seed": plan.seed,
        "shard_size": plan.shard_size,
        "batch_size": plan.batch_size,
        "threads": plan.threads,
        **({"candidates": plan.candidates.model_dump()} if plan.candidates.count > 1 else {}),
        "model": parts.model.identity() if parts.model else None,
        "source": part_identity(plan.source, parts.source),
        "generator": part_identity(plan.generator, parts.generator),
        "labeller": part_identity(plan.labeller, parts.labeller),
        "filters": [part_identity(*pair) for pair in zip(plan.filters, parts.filters, strict=True)],
    }


def part_identity(part: Part, built: object) -> dict[str, Any]:
    """What of a part decides the result: its settings, and the digest of files instead of their paths."""
    settings = part.decisive()
    digest = getattr(built, "digest", None)
    if digest is not None:
        settings = {name: value for name, value in settings.items() if name not in part.path_settings}
        settings["digest"] = digest
    return settings
