"""A ControlNet in training: what it is begun with, how it steers, and the batches that it learns from."""

import copy
import logging
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import ControlNetModel
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from datagen.adaptation.batches import check_share
from datagen.adaptation.denoising import Predict
from datagen.adaptation.hardware import autocasts
from datagen.adaptation.loop import stream
from datagen.conditions import Condition
from datagen.controls import read_control
from datagen.sources import Source
from decoders.checkpoint import Checkpoint
from decoders.errors import UserError
from decoders.peers import Peers

_log = logging.getLogger(__name__)
_SHOWN = "controlnet_cond_embedding.conv_in.weight"
"""Of a ControlNet, the one tensor whose shape follows from the number of channels that it is shown."""
_EMBEDDING_CHANNELS = (16, 32, 96, 256)
"""Of the convolutions that bring a condition from pixels to latent cells, each halving it but the first."""


def new_control(checkpoint: Checkpoint, channels: int, *, begin_with: Path | None, seed: int) -> nn.Module:
    """A ControlNet of the model's own shape, in float32 and trainable.

    Args:
        begin_with: one to go on from, be it of another condition: then the layer that is shown the condition begins
            anew; when None, a copy of the UNet's encoder that says nothing yet.

    Raises:
        UserError: `begin_with` is none, or of another shape.
    """
    unet = _with_loras_fused(checkpoint.unet)
    halvings = int(math.log2(checkpoint.vae_scale_factor))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        control: Any = ControlNetModel.from_unet(
            unet,
            conditioning_channels=channels,
            conditioning_embedding_out_channels=_EMBEDDING_CHANNELS[-halvings - 1 :],
        )
    if begin_with is not None:
        _go_on_from(begin_with, control, channels)
    return cast(nn.Module, control.float().to(checkpoint.device).requires_grad_(True))


def _go_on_from(folder: Path, control: Any, channels: int) -> None:
    found = read_control(folder, torch.float32)
    weights = found.state_dict()
    shown = found.config["conditioning_channels"]
    if shown != channels:
        told = "begin_with: %s is shown %s channels, this condition has %s; the layer that sees them begins anew"
        _log.warning(told, folder, shown, channels)
        weights[_SHOWN] = control.state_dict()[_SHOWN]
    try:
        control.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"begin_with: {folder} cannot be gone on from ({str(error).splitlines()[0]}), expected a ControlNet for "
            "the same model"
        ) from error


def _with_loras_fused(unet: Any) -> Any:
    """The UNet itself, or a copy that has its active LoRA adapters in its weights; a reader needs the one without."""
    if not getattr(unet, "peft_config", None):
        return unet
    fused = copy.deepcopy(unet)
    fused.fuse_lora()
    fused.unload_lora()
    return fused


def steered(unet: nn.Module, control: nn.Module, condition: Float32[Tensor, "batch channels height width"]) -> Predict:
    """The UNet with a ControlNet that is shown this condition."""
    return cast(Predict, partial(_predict, unet, control, condition))


def _predict(
    unet: nn.Module,
    control: nn.Module,
    condition: Tensor,
    sample: Tensor,
    timestep: Tensor,
    *,
    encoder_hidden_states: Tensor,
    added_cond_kwargs: dict[str, Tensor] | None,
    return_dict: bool,
) -> Any:
    wide: torch.dtype = cast(Any, control).dtype  # what is trained is not in half precision; the model may be
    down, middle = control(
        sample.to(wide),
        timestep,
        encoder_hidden_states=encoder_hidden_states.to(wide),
        controlnet_cond=condition,
        added_cond_kwargs=added_cond_kwargs and {name: each.to(wide) for name, each in added_cond_kwargs.items()},
        return_dict=False,
    )
    if not autocasts(sample.device):
        # Else they stay as they are, as their gradients would: those of the deep levels are less than float16 can say.
        down, middle = [residual.to(sample.dtype) for residual in down], middle.to(sample.dtype)
    return unet(
        sample,
        timestep,
        down_block_additional_residuals=down,
        mid_block_additional_residual=middle,
        encoder_hidden_states=encoder_hidden_states,
        added_cond_kwargs=added_cond_kwargs,
        return_dict=return_dict,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidedBatch:
    """What one call of the loss looks at: of several processes, the share of this one."""

    pictures: UInt8[np.ndarray, "batch height width 3"]
    conditions: Float32[np.ndarray, "batch channels height width"]
    captions: tuple[str, ...]
    random: torch.Generator
    """The rest of the stream that this batch was drawn from, at the same state in all processes."""


class GuidedBatches:
    """Batch `number` is a function of its number: the next recipes of a source, with what their guides show."""

    def __init__(
        self,
        source: Source,
        condition: Condition,
        *,
        batch_size: int,
        caption_dropout: float,
        multiple: int,
        seed: int,
        peers: Peers,
    ) -> None:
        """Args:
        batch_size: of all processes together.
        multiple: height and width of pictures must be a multiple of it.

        Raises:
            UserError: the batch cannot be divided among the processes.
        """
        check_share(batch_size, peers)
        self._source = source
        self._condition = condition
        self._batch_size = batch_size
        self._dropout = caption_dropout
        self._multiple = multiple
        self._seed = seed
        self._peers = peers

    def __call__(self, number: int) -> GuidedBatch:
        """Batch number 0, 1, ..., the same whenever it is asked for.

        Raises:
            UserError: a recipe has no guide or no picture, or their sizes differ.
        """
        random = stream(self._seed, number)
        drops = (torch.rand(self._batch_size, generator=random) < self._dropout).tolist()
        pictures: list[np.ndarray] = []
        conditions: list[np.ndarray] = []
        captions: list[str] = []
        for place in range(self._peers.rank, self._batch_size, self._peers.count):
            recipe = self._source.recipe(number * self._batch_size + place)
            guide = recipe.guide
            if guide is None or guide.image is None:
                raise UserError(
                    f"source: recipe {recipe.id} has no {'guide' if guide is None else 'picture'}, expected labels "
                    "with the picture that they were made for; take `layouts` of a dataset"
                )
            pictures.append(guide.image)
            conditions.append(self._condition.draw(guide))
            captions.append("" if drops[place] else recipe.prompt)
        if len(sizes := {picture.shape[:2] for picture in pictures}) > 1:
            raise UserError(
                f"source: pictures of sizes {sorted(sizes)} (height, width) in one batch, expected one size; give the "
                "source a `height` and a `width`"
            )
        height, width = sizes.pop()
        if height % self._multiple or width % self._multiple:
            raise UserError(
                f"source: pictures of {height} x {width} (height x width), expected multiples of {self._multiple} for "
                "this model; give the source a `height` and a `width` that are"
            )
        return GuidedBatch(
            pictures=np.stack(pictures), conditions=np.stack(conditions), captions=tuple(captions), random=random
        )
