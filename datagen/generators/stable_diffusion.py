"""Pictures from Stable Diffusion 1.x, 2.x or XL, whichever the plan's model is: the pipeline itself knows."""

import copy
import inspect
import logging
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Le
from jaxtyping import UInt8

from datagen.model import Model
from datagen.records import Recipe
from datagen.settings import listed
from decoders.errors import UserError

if TYPE_CHECKING:
    import torch

LongPrompts = Literal["refuse", "cut"]
Scheduler = Literal["ddim", "ddpm", "dpm_solver", "euler", "euler_ancestral", "heun", "unipc"]

_log = logging.getLogger(__name__)
_CLASSES: dict[str, str] = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpm_solver": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
}
_PIPELINE_MULTIPLE = 8
"""What the pipelines of diffusers ask of a size, whatever their VAE."""


class StableDiffusion:
    """Calls the checkpoint's own pipeline, with a stream of noise for each recipe, drawn on the CPU in float32.

    So the noise that a drawing begins with is the same on every device, and a picture does not depend on its neighbours
    in a batch.
    """

    def __init__(
        self,
        *,
        steps: Annotated[int, Ge(1), Le(1000)] = 25,
        guidance: Annotated[float, Ge(0)] = 7.5,
        guidance_rescale: Annotated[float, Ge(0), Le(1)] = 0.0,
        height: Annotated[int, Ge(1)] | None = None,
        width: Annotated[int, Ge(1)] | None = None,
        long_prompts: LongPrompts = "cut",
        scheduler: Scheduler | None = None,
        model: Model,
    ) -> None:
        """
        Args:
            steps: of the sampler.
            guidance: classifier-free guidance (arXiv 2207.12598) as diffusers counts it: 1 or less switches it off.
            guidance_rescale: share of the correction for over-exposure under v-prediction (arXiv 2305.08891, section
                3.4).
            height, width: in pixels; those the model was made for when left out.
            long_prompts: what becomes of a prompt that is longer than the model's text encoder reads: its end is left
                out, which is said of the 1st, 2nd, 4th, 8th, ... such prompt, or it is an error (`refuse`).
            scheduler: another sampler, with the noise schedule of the checkpoint's own; that one itself when left out.
        """
        self._steps = steps
        self._guidance = guidance
        self._guidance_rescale = guidance_rescale
        self._size = {"height": height, "width": width}
        self._long_prompts: LongPrompts = long_prompts
        self._scheduler = scheduler
        self._model = model
        self._cut: set[str] = set()

    def render(self, recipes: Sequence[Recipe]) -> UInt8[np.ndarray, "batch height width 3"]:
        """Draw one picture for each recipe.

        Raises:
            UserError: the size does not fit the model, or the model gives numbers that are no colours.
        """
        return self._draw(recipes, **self._size)

    def _draw(
        self, recipes: Sequence[Recipe], pipeline: Any = None, **more: Any
    ) -> UInt8[np.ndarray, "batch height width 3"]:
        """Call the pipeline, or another one, with what else it takes."""
        import torch  # here, not above: checking a plan and going past finished shards must not wait for it

        self._check_lengths(recipes)
        pipeline = pipeline or self._pipeline
        if self._guidance_rescale:  # not given otherwise: the image-to-image pipelines of 1.x and 2.x do without
            more["guidance_rescale"] = self._guidance_rescale
            if "guidance_rescale" not in inspect.signature(pipeline.__call__).parameters:
                raise UserError(
                    f"generator.guidance_rescale is {self._guidance_rescale}, which this model's pipeline from "
                    "pictures does not know; leave it out, or draw with strength 1"
                )
        streams = [torch.Generator("cpu").manual_seed(recipe.seed) for recipe in recipes]
        if "image" not in more:
            more |= self._begin(streams, more["height"], more["width"])
        pictures = pipeline(
            prompt=[recipe.prompt for recipe in recipes],
            negative_prompt=negative_prompts(recipes),
            generator=streams,
            num_inference_steps=self._steps,
            guidance_scale=self._guidance,
            output_type="np",
            **more,
        ).images
        if not np.isfinite(pictures).all():
            dtype = self._model.checkpoint.precision
            raise UserError(
                f"the model draws pixels that are no numbers (NaN) in {dtype}, expected colours; its activations "
                "overflow: set model.dtype to bfloat16 or float32"
            )
        return np.rint(pictures * 255).astype(np.uint8)

    def _begin(self, streams: Sequence["torch.Generator"], height: int | None, width: int | None) -> dict[str, Any]:
        """Size and noise, as a pipeline would choose them itself, but for two faults.

        It draws noise in the model's number format, in which torch 2.11 and older have other noise from the same seed,
        and in bfloat16 too little of it; and when one side is left out, the pipelines of 1.x and 2.x ignore the other.
        """
        import torch

        checkpoint = self._model.checkpoint
        cell, own = checkpoint.vae_scale_factor, checkpoint.unet.config["sample_size"]
        size = {"height": height or own * cell, "width": width or own * cell}
        shape = (checkpoint.latent_channels, *(pixels // cell for pixels in size.values()))
        noise = torch.stack([torch.randn(shape, generator=stream) for stream in streams])
        return {**size, "latents": noise.to(checkpoint.dtype)}

    @cached_property
    def _pipeline(self) -> Any:
        """A shallow copy of the checkpoint's with a scheduler of its own, as schedulers remember where they are."""
        checkpoint = self._model.checkpoint
        self._check_size(self._size, what="generator.")
        pipeline = copy.copy(checkpoint.pipeline)
        found = pipeline.scheduler
        scheduler_class: Any = type(found)
        if self._scheduler:
            import diffusers

            scheduler_class = getattr(diffusers, _CLASSES[self._scheduler])
        known = inspect.signature(scheduler_class.__init__).parameters
        if found.config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in known:
            raise UserError(
                f"generator.scheduler is {self._scheduler}, but this model draws from pure noise (zero terminal SNR), "
                f"which that sampler cannot; leave it out, or take one of {listed(_CLASSES.keys() - {self._scheduler})}"
            )
        # Left to its default, a sampler that clips would do so to latents of a checkpoint whose own does not know it.
        unclipped = {"clip_sample": found.config.get("clip_sample", False)} if "clip_sample" in known else {}
        pipeline.register_modules(scheduler=scheduler_class.from_config(found.config, **unclipped))
        return pipeline

    def _check_lengths(self, recipes: Sequence[Recipe]) -> None:
        for tokenizer in self._model.checkpoint.tokenizers:
            limit = int(tokenizer.model_max_length)
            for text in dict.fromkeys(text for each in recipes for text in (each.prompt, each.negative_prompt)):
                count = len(tokenizer(text, truncation=False, verbose=False).input_ids)
                if count <= limit or text in self._cut:
                    continue
                told = f"prompt {text!r} has {count} tokens, its text encoder reads {limit}, start and end included"
                if self._long_prompts == "refuse":
                    raise UserError(f"{told}; say less, or leave out `long_prompts: refuse`, and its end is cut off")
                self._cut.add(text)
                if len(self._cut).bit_count() == 1:  # not of each: thousands may be as long
                    _log.warning("%s: its end is left out; so far, prompts cut in this way: %d", told, len(self._cut))

    @property
    def _guided(self) -> bool:
        """Whether the pipeline computes every picture twice, without its prompt and with it."""
        return self._guidance > 1 and self._model.checkpoint.unet.config["time_cond_proj_dim"] is None

    @property
    def _size_multiple(self) -> int:
        return math.lcm(self._model.checkpoint.vae_scale_factor, _PIPELINE_MULTIPLE)

    def _check_size(self, size: Mapping[str, int | None], *, what: str) -> None:
        multiple = self._size_multiple
        for name, pixels in size.items():
            if pixels is not None and pixels % multiple:
                near = max(multiple, round(pixels / multiple) * multiple)
                raise UserError(
                    f"{what}{name} is {pixels}, expected a multiple of {multiple} for this model; take {near}"
                )


def negative_prompts(recipes: Sequence[Recipe]) -> list[str] | None:
    """Those of a batch; None where there is none, which XL takes for zeros and not for an empty prompt."""
    negative = [recipe.negative_prompt for recipe in recipes]
    return negative if any(negative) else None
