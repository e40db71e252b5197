"""The verb `control`: a ControlNet trained from layouts and the pictures that they were made for.

Trained on a source domain's own UNet, the residuals need carry the layout only, not the domain's look (DGInStyle,
arXiv 2312.03048); so the ControlNet can steer another UNet afterwards.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console

from datagen.adaptation.control_plan import AdherenceSettings, ControlPlan, load_control_plan
from datagen.adaptation.tracking import check_tracker
from datagen.adaptation.training_folder import LOG_FILE, TrainingFolder
from datagen.conditions import Condition
from datagen.controls import ABOUT_FILE, WEIGHTS_FILE, control_digest, locate_control
from datagen.files import write_json
from datagen.labellers.decoded import Decoded
from datagen.launchers import Launcher, launched
from datagen.meter import console_of
from datagen.model import Model
from datagen.plan import part_identity
from datagen.plugins import Part
from datagen.records import Recipe
from datagen.sources import Source
from decoders.errors import UserError
from decoders.labels import Taxonomy

if TYPE_CHECKING:
    from torch import nn

_INPUTS = frozenset({"control", "model", "begin_with", "condition", "source", "adherence"})
"""Keys whose contents stand in the identity, or that do not decide the result."""
_SO_FAR = "so_far"
"""Folder of the ControlNet as it was at the last look, which can be used already."""
_FAR = 10**6
"""Recipes from here on are drawn to look at; training comes to them after a million pictures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlSummary:
    """What came of a training."""

    control: Path
    was_there: bool
    """It had been made by an equal plan before, and was kept."""
    updates: int
    adherence: float | None
    """mIoU at the end, of what a reader finds in pictures of fixed layouts; None where no reader looks."""

    def __str__(self) -> str:
        kept = " (made before, kept)" if self.was_there else ""
        told = "" if self.adherence is None else f"\nadherence: mIoU {self.adherence:.3f} (see samples/)"
        return (
            f"ControlNet of {self.updates} updates: {self.control}{kept}{told}\n"
            f"name it in a plan: generator: {{kind: controlnet, controls: [{{source: {self.control}}}]}}"
        )


def control(
    plan: Path,
    to: Path | None = None,
    overrides: Iterable[str] = (),
    console: Console | None = None,
    *,
    launcher: Launcher | None = None,
) -> ControlSummary:
    """Train on the plan's layouts and write the ControlNet; goes on where it was, and keeps what an equal plan made.

    Args:
        plan: YAML file.
        to: folder for everything; the plan's own when None.
        overrides: as `key.sub=value`.
        console: where progress is told; stderr when None.
        launcher: knows the other processes, which train together; asked of the environment when None.

    Raises:
        UserError: a mistake in the plan or the data, the folder is another plan's, or the loss is not finite.
        KeyboardInterrupt: stopped by a signal, after the update at hand was saved.
    """
    checked = load_control_plan(plan, overrides)
    check_tracker(checked.tracker)
    if launcher is not None:
        return _control(checked, to or checked.control, console, launcher)
    with launched() as launcher:
        return _control(checked, to or checked.control, console, launcher)


def _control(plan: ControlPlan, to: Path, console: Console | None, launcher: Launcher) -> ControlSummary:
    console = console_of(launcher.rank, console)
    model, apart = (Model(plan.model.reference(), device=lambda: launcher.device) for _ in range(2))
    source, taxonomy = _labelled(plan.source, plan.seed)
    if source.length is not None:
        raise UserError(
            f"source: {plan.source.kind} ends after {source.length} recipes, expected layouts without end; take `kind: "
            "layouts`, which cuts a dataset anew in each round"
        )
    # A copy of its own: conditions are drawn in another thread, where a reader that borrows the model would switch its
    # LoRA files off while it learns.
    condition: Condition = plan.condition.build(taxonomy=taxonomy, model=apart)
    begin_with = None if plan.begin_with is None else locate_control(plan.begin_with.source, plan.begin_with.revision)
    identity = launcher.once(
        lambda: (
            plan.decisive(without=_INPUTS)
            | {
                "model": model.digest,
                "dtype": plan.model.dtype,
                "begin_with": None if begin_with is None else control_digest(begin_with),
                "condition": part_identity(plan.condition, condition),
                "source": part_identity(plan.source, source),
            }
        )
    )
    folder = TrainingFolder(to, identity, verb="control_plan", result=WEIGHTS_FILE)
    was_there = folder.is_finished()
    launcher.barrier()
    if not was_there:
        chosen = plan.adherence
        looked_at = [] if chosen is None else _looked_at(chosen, plan.seed, source, taxonomy)
        if launcher.rank == 0 and chosen is not None and chosen.reader is not None:
            Decoded.prepare(reader=chosen.reader, fit=chosen.fit)
        launcher.barrier()
        _train(plan, model, source, taxonomy, condition, begin_with, looked_at, folder, console, launcher)
    return ControlSummary(
        control=folder.path,
        was_there=was_there,
        updates=plan.updates,
        adherence=_adherence_noted(folder.path),
    )


def _labelled(part: Part, seed: int) -> tuple[Source, Taxonomy]:
    """A source that brings labels, and their classes."""
    source: Any = None if part.asks_for("taxonomy") else part.build(seed=seed)
    taxonomy = getattr(source, "taxonomy", None)
    if taxonomy is None:
        raise UserError(
            f"{part.at}: {part.kind} brings no labels, expected layouts with the pictures that they were made for; "
            "take `kind: layouts`"
        )
    return source, taxonomy


def _looked_at(chosen: AdherenceSettings, seed: int, source: Source, taxonomy: Taxonomy) -> list[Recipe]:
    """The recipes that are drawn at each look."""
    if chosen.source is None:
        return [source.recipe(_FAR + index) for index in range(chosen.pictures)]
    others, found = _labelled(chosen.source, seed)
    if found.names != taxonomy.names:
        raise UserError(
            f"adherence.source: labels of the classes {', '.join(found.names)}, expected those of the training, "
            f"{', '.join(taxonomy.names)}; take a dataset with the same classes in the same order"
        )
    if others.length is not None and chosen.pictures > others.length:
        raise UserError(
            f"adherence.pictures: found {chosen.pictures}, expected at most {others.length}, after which "
            "adherence.source ends; ask for fewer, or take `kind: layouts`"
        )
    return [others.recipe(index) for index in range(chosen.pictures)]


def _train(
    plan: ControlPlan,
    model: Model,
    source: Source,
    taxonomy: Taxonomy,
    condition: Condition,
    begin_with: Path | None,
    looked_at: Sequence[Recipe],
    folder: TrainingFolder,
    console: Console,
    launcher: Launcher,
) -> None:
    import torch

    from datagen.adaptation.adherence import Adherence
    from datagen.adaptation.denoising import Denoising
    from datagen.adaptation.steering import GuidedBatch, GuidedBatches, new_control, steered
    from datagen.adaptation.training import Look, train

    peers = launcher.peers()
    checkpoint = model.checkpoint
    batches = GuidedBatches(
        source,
        condition,
        batch_size=plan.batch_size,
        caption_dropout=plan.caption_dropout,
        multiple=checkpoint.vae_scale_factor,
        seed=plan.seed,
        peers=peers,
    )
    denoising = Denoising(checkpoint, peers)
    network = new_control(checkpoint, condition.channels, begin_with=begin_with, seed=plan.seed)
    unet = cast("nn.Module", checkpoint.unet)
    if plan.gradient_checkpointing:
        cast(Any, network).enable_gradient_checkpointing()
        checkpoint.unet.enable_gradient_checkpointing()
    adherence = None
    if plan.adherence is not None:
        samples = folder.path / "samples"
        adherence = Adherence(looked_at, plan.adherence, model=model, taxonomy=taxonomy, folder=samples)
    about = {"condition": plan.condition.to_json(), "classes": list(taxonomy.names)}

    def loss(batch: GuidedBatch) -> torch.Tensor:
        predict = steered(unet, network, torch.from_numpy(batch.conditions).to(checkpoint.device))
        return denoising.loss(predict, denoising.latents(batch.pictures), batch.captions, batch.random)

    def look(adherence: Adherence, average: "nn.Module", step: int) -> Look:
        save_control(average, folder.path / _SO_FAR, about)
        seen = adherence.look(folder.path / _SO_FAR, step)
        if "adherence" in seen.values:
            console.print(f"after {step} updates: adherence mIoU {seen.values['adherence']:.3f}", markup=False)
        return seen

    train(
        network,
        verb="control",
        settings=plan,
        folder=folder,
        batches=batches,
        loss=loss,
        look=None if adherence is None else partial(look, adherence),
        save=lambda trained: save_control(trained, folder.path, about),
        launcher=launcher,
        console=console,
    )


def save_control(network: "nn.Module", folder: Path, about: Mapping[str, Any]) -> None:
    """Write a ControlNet as diffusers does, and beside it what it is to be shown."""
    cast(Any, network).save_pretrained(folder)
    write_json(folder / ABOUT_FILE, about)


def _adherence_noted(folder: Path) -> float | None:
    """What the log says of the last look."""
    log = folder / LOG_FILE
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return next((found for line in reversed(lines) if (found := _adherence_of(line)) is not None), None)


def _adherence_of(line: str) -> float | None:
    try:
        return json.loads(line).get("adherence")
    except ValueError:  # written by a process that was killed meanwhile
        return None
