"""The verb `adapt`: a checkpoint's UNet trained on a domain's pictures, as a LoRA file or a model of its own."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console

from datagen.adaptation.adapt_plan import AdaptPlan, load_adapt_plan
from datagen.adaptation.pictures import Pictures, pictures_of_dataset, pictures_of_folder
from datagen.adaptation.tracking import check_tracker
from datagen.adaptation.training_folder import TrainingFolder
from datagen.files import require_outside
from datagen.launchers import Launcher, launched
from datagen.meter import console_of
from datagen.model import LoraSettings, Model
from datagen.plugins import Part
from decoders.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from datagen.adaptation.methods import Method
    from decoders.checkpoint import Checkpoint

_INPUTS = frozenset({"adapted", "model", "images", "data", "captions", "caption", "prompts", "guidance"})
"""Keys whose contents stand in the identity, or that do not decide the result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptSummary:
    """What came of an adaptation."""

    result: Path
    """The LoRA file, or the folder of the adapted model."""
    was_there: bool
    """It had been made by an equal plan before, and was kept."""
    pictures: int
    updates: int
    loras: tuple[LoraSettings, ...] = ()
    """Those of the plan's model, on top of which the file was learned; a model of its own holds them."""

    def __str__(self) -> str:
        kept = " (made before, kept)" if self.was_there else ""
        earlier = [f"{{source: {lora.source}, weight: {lora.weight}}}" for lora in self.loras]
        loras = f"loras: [{', '.join([*earlier, f'{{source: {self.result}}}'])}]"
        return (
            f"adapted to {self.pictures} pictures in {self.updates} updates: {self.result}{kept}\n"
            f"name it under `model:` of a plan as {loras if self.result.is_file() else f'source: {self.result}'}"
        )


def adapt(
    plan: Path,
    to: Path | None = None,
    overrides: Iterable[str] = (),
    console: Console | None = None,
    *,
    launcher: Launcher | None = None,
) -> AdaptSummary:
    """Train on the plan's pictures and write the result; goes on where it was, and keeps what an equal plan made.

    Args:
        plan: YAML file.
        to: folder for everything; the plan's own when None.
        overrides: as `key.sub=value`.
        console: where progress is told; stderr when None.
        launcher: knows the other processes, which train together; asked of the environment when None.

    Raises:
        UserError: a mistake in the plan or the pictures, the folder is another plan's, or the loss is not finite.
        KeyboardInterrupt: stopped by a signal, after the update at hand was saved.
    """
    checked = load_adapt_plan(plan, overrides)
    check_tracker(checked.tracker)
    if launcher is not None:
        return _adapt(checked, to or checked.adapted, console, launcher)
    with launched() as launcher:
        return _adapt(checked, to or checked.adapted, console, launcher)


def _adapt(plan: AdaptPlan, to: Path, console: Console | None, launcher: Launcher) -> AdaptSummary:
    console = console_of(launcher.rank, console)
    if plan.images is not None:
        require_outside(to, plan.images)
    pictures = _pictures(plan)
    model = Model(plan.model.reference(), device=lambda: launcher.device)
    method = _method(plan)
    identity = plan.decisive(without=_INPUTS) | {
        "model": model.digest,
        "dtype": plan.model.dtype,
        "pictures": pictures.digest,
    }
    folder = TrainingFolder(to, identity, verb="adapt", result=method.result)
    was_there = folder.is_finished()
    launcher.barrier()
    if not was_there:
        _train(plan, model, pictures, method, folder, console, launcher)
    file = folder.path / method.result
    return AdaptSummary(
        result=file if plan.method == "lora" else folder.path,
        was_there=was_there,
        pictures=len(pictures),
        updates=plan.updates,
        loras=plan.model.loras if plan.method == "lora" else (),
    )


def _pictures(plan: AdaptPlan) -> Pictures:
    choices: dict[str, Any] = {"caption": plan.caption, "own_captions": plan.captions == "own"}
    if plan.images is not None:
        return pictures_of_folder(plan.images, **choices)
    return pictures_of_dataset(cast(Part, plan.data).build(), **choices)  # `load_adapt_plan` has seen to one of the two


def _method(plan: AdaptPlan) -> "Method":
    from datagen.adaptation.methods import Full, Lora

    return Lora(rank=cast(int, plan.rank)) if plan.method == "lora" else Full()  # `load_adapt_plan` has seen to it


def _train(
    plan: AdaptPlan,
    model: Model,
    pictures: Pictures,
    method: "Method",
    folder: TrainingFolder,
    console: Console,
    launcher: Launcher,
) -> None:
    from datagen.adaptation.batches import Batch, Crops, PictureBatches
    from datagen.adaptation.denoising import Denoising
    from datagen.adaptation.samples import SampleRow
    from datagen.adaptation.training import Look, train

    peers = launcher.peers()
    checkpoint = model.checkpoint
    size = train_size(plan.size, checkpoint)
    batches = PictureBatches(
        pictures,
        Crops(size=size, scales=plan.scales, flip=plan.flip),
        batch_size=plan.batch_size,
        caption_dropout=plan.caption_dropout,
        seed=plan.seed,
        peers=peers,
    )
    denoising = Denoising(checkpoint, peers)
    unet = method.prepare(checkpoint, seed=plan.seed)
    if plan.gradient_checkpointing:
        checkpoint.unet.enable_gradient_checkpointing()
    row = SampleRow(
        model, plan.prompts, size=size, guidance=plan.guidance, seed=plan.seed, folder=folder.path / "samples"
    )

    def loss(batch: Batch) -> "Tensor":
        return denoising.loss(unet, denoising.latents(batch.pictures), batch.captions, batch.random)

    def look(_unet: "nn.Module", step: int) -> Look:
        return Look(row.draw(step), {})

    train(
        unet,
        verb="adapt",
        settings=plan,
        folder=folder,
        batches=batches,
        loss=loss,
        look=look if plan.prompts else None,
        save=lambda _: method.save(checkpoint, folder.path),
        launcher=launcher,
        console=console,
    )


def train_size(size: tuple[int, int] | None, checkpoint: "Checkpoint") -> tuple[int, int]:
    """Height and width to train at: those given, or the model's own.

    Raises:
        UserError: not a multiple of what the model's parts ask for.
    """
    own = checkpoint.unet.config["sample_size"] * checkpoint.vae_scale_factor
    multiple = math.lcm(checkpoint.vae_scale_factor, 8)  # the pipelines ask for 8, whatever their VAE
    height, width = size or (own, own)
    if height % multiple or width % multiple:
        near = [max(multiple, round(side / multiple) * multiple) for side in (height, width)]
        raise UserError(f"size is {[height, width]}, expected multiples of {multiple} for this model; take {near}")
    return height, width
