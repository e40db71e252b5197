"""Pictures that keep a guide's geometry: any ControlNets on any Stable Diffusion, window by window where asked.

Style swap (DGInStyle, Jia et al., ECCV 2024) is nothing but a choice of parts: a ControlNet trained on a source
domain's UNet steers the untouched prior, `UNet_prior(x, t, c, residuals=scale * ControlNet_source(x, t, c, y))`.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from annotated_types import Ge, Gt, Le
from jaxtyping import Float32, UInt8

from datagen.controls import Control, Fusion, LocatedControl, locate_controls
from datagen.generators.stable_diffusion import LongPrompts, Scheduler, StableDiffusion
from datagen.guides import guide_of, pad_guide, resize_guide
from datagen.model import Model
from datagen.plugins import HOLDS_PATHS
from datagen.randomness import seed_for
from datagen.records import Guide, Recipe
from decoders.errors import UserError
from decoders.labels import Taxonomy
from decoders.resizing import Size, resize_image

if TYPE_CHECKING:
    from torch import Tensor

    from datagen.generators._controlled_unet import ControlledUnet, Signal


class Controlnet(StableDiffusion):
    """Draws at the size of the guides, whatever it is: the model sees them padded, and what is beyond is cut off."""

    def __init__(
        self,
        *,
        controls: Annotated[tuple[Control, ...], HOLDS_PATHS],
        fusion: Fusion | None = None,
        strength: Annotated[float, Gt(0), Le(1)] = 1.0,
        steps: Annotated[int, Ge(1), Le(1000)] = 25,
        guidance: Annotated[float, Ge(0)] = 7.5,
        guidance_rescale: Annotated[float, Ge(0), Le(1)] = 0.0,
        long_prompts: LongPrompts = "cut",
        scheduler: Scheduler | None = None,
        model: Model,
        taxonomy: Taxonomy,
    ) -> None:
        """
        Args:
            controls: what keeps the geometry; several add up.
            fusion: how small objects are drawn at a higher resolution; one drawing at the guide's size when None.
            strength: how far the guide's picture is drawn anew (image to image); 1 begins from pure noise.

        The others are those of `stable_diffusion`.

        Raises:
            UserError: a control is not there, does not fit the classes or never acts; nothing would guide.
        """
        super().__init__(
            steps=steps,
            guidance=guidance,
            guidance_rescale=guidance_rescale,
            long_prompts=long_prompts,
            scheduler=scheduler,
            model=model,
        )
        if not controls and strength == 1:
            raise UserError(
                "found no controls and strength 1, so that nothing would keep the geometry; name a ControlNet in "
                "`controls`, or lower `strength`"
            )
        if fusion is not None and strength < 1:
            raise UserError(
                f"found fusion beside strength {strength:g}, expected one of them: fusion draws from pure noise; "
                "remove `fusion`, or `strength`"
            )
        self._controls = locate_controls(controls, taxonomy, model)
        self._fusion = fusion
        self._strength = strength
        for at, share in {"strength": strength, "fusion.strength": fusion.strength if fusion else 1.0}.items():
            if not (drawn := self._steps_drawn(share)):
                raise UserError(
                    f"found {at} {share:g} of {steps} steps, which leaves no step to draw, expected one at least; "
                    f"set {at} to {math.ceil(100 / steps) / 100:g}, or raise `steps`"
                )
            for index, control in enumerate(controls):
                _check_acts(control, drawn, at=f"controls.{index}")
        self._taxonomy = taxonomy

    @property
    def digest(self) -> str:
        """Identity of the ControlNets' files, wherever they lie."""
        return hashlib.sha256("\n".join(control.digest for control in self._controls).encode()).hexdigest()

    def render(self, recipes: Sequence[Recipe]) -> UInt8[np.ndarray, "batch height width 3"]:
        """Draw one picture for each recipe, at its guide's size.

        Raises:
            UserError: a recipe has no guide, guides differ in size, or as `StableDiffusion.render`.
        """
        native = [guide_of(recipe) for recipe in recipes]
        height, width = _common_size(native)
        size = (self._padded(height), self._padded(width))
        guides = [pad_guide(guide, size) for guide in native]
        return self._draw_guided(recipes, guides, size)[:, :height, :width]

    def _padded(self, side: int) -> int:
        return math.ceil(side / self._size_multiple) * self._size_multiple

    def _draw_guided(
        self, recipes: Sequence[Recipe], guides: Sequence[Guide], size: Size
    ) -> UInt8[np.ndarray, "batch height width 3"]:
        if self._fusion is not None:
            return self._draw_twice(recipes, guides, self._fusion, size)
        signals = self._signals(guides)
        self._unet.show(signals, skipped=self._skipped(self._strength))
        if self._strength < 1:
            return self._draw(recipes, self._redrawing, image=_pictures(guides), strength=self._strength)
        return self._draw(recipes, height=size[0], width=size[1])

    def _steps_drawn(self, strength: float) -> int:
        """How many of the steps are gone, as the pipelines of diffusers count them."""
        return int(self._steps * strength)

    def _skipped(self, strength: float) -> int:
        """How many of the sampler's timesteps are left out at the beginning."""
        return (self._steps - self._steps_drawn(strength)) * self._pipeline.scheduler.order

    def _draw_twice(
        self, recipes: Sequence[Recipe], guides: Sequence[Guide], fusion: Fusion, size: Size
    ) -> UInt8[np.ndarray, "batch height width 3"]:
        """As a whole first, then larger and in windows, shrunk to the guide's size at the end."""
        from datagen.generators._fusion import Canvas, first_size

        checkpoint = self._model.checkpoint
        tile = fusion.tile or checkpoint.unet.config["sample_size"] * checkpoint.vae_scale_factor
        self._check_size({"tile": tile}, what="fusion.")
        whole = (size[0] * fusion.supersampling, size[1] * fusion.supersampling)
        if tile > min(whole):
            raise UserError(
                f"fusion looks through windows of {tile} pixels at a picture drawn at {whole[0]} x {whole[1]}, "
                "expected smaller ones; set fusion.tile, raise fusion.supersampling, or leave fusion out"
            )
        first = first_size(whole, tile, self._size_multiple)
        self._unet.show(self._signals([resize_guide(guide, first) for guide in guides]))
        pictures = self._draw(recipes, height=first[0], width=first[1])

        enlarged = [resize_guide(guide, whole) for guide in guides]
        canvas = Canvas(checkpoint, fusion, enlarged, tile=tile)
        windows = canvas.windows(self._pipeline, recipes, self._taxonomy.names, guided=self._guided)
        skipped = self._skipped(fusion.strength)
        self._unet.show(self._signals(enlarged), windows, skipped=skipped)
        anew = [replace(recipe, seed=seed_for(recipe.seed, recipe.id, "canvas")) for recipe in recipes]
        large = canvas.enlarged(pictures)
        kept = canvas.keep(large, [seed_for(recipe.seed, recipe.id, "kept") for recipe in recipes], skipped=skipped)
        if fusion.strength < 1:
            begun: dict[str, Any] = {"image": large.astype(np.float32) / 255, "strength": fusion.strength}
            drawn = self._draw(anew, self._redrawing, **begun, callback_on_step_end=kept)
        else:
            drawn = self._draw(anew, height=whole[0], width=whole[1], callback_on_step_end=kept)
        return np.stack([resize_image(picture, size) for picture in drawn])

    def _signals(self, guides: Sequence[Guide]) -> list["Signal"]:
        pairs = zip(self._controls, self._networks, strict=True)
        return [self._signal(control, network, guides) for control, network in pairs]

    @cached_property
    def _networks(self) -> list[Any]:
        return [control.load(self._model.checkpoint) for control in self._controls]

    @cached_property
    def _unet(self) -> "ControlledUnet":
        return self._pipeline.unet

    @cached_property
    def _pipeline(self) -> Any:
        """The stock pipeline with a UNet that asks the ControlNets first."""
        from datagen.generators._controlled_unet import ControlledUnet

        checkpoint = self._model.checkpoint
        pipeline = super()._pipeline
        unet = ControlledUnet(checkpoint.unet, cell=checkpoint.vae_scale_factor, scheduler=pipeline.scheduler)
        pipeline.register_modules(unet=unet)
        return pipeline

    @cached_property
    def _redrawing(self) -> Any:
        """The same, but it begins from pictures."""
        from diffusers import AutoPipelineForImage2Image

        pipeline = AutoPipelineForImage2Image.from_pipe(self._pipeline)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _signal(self, control: LocatedControl, network: Any, guides: Sequence[Guide]) -> "Signal":
        from datagen.generators._controlled_unet import Signal

        chosen = control.control
        weights = [found for guide in guides if (found := control.weights(guide)) is not None]
        if self._guided and network.config["global_pool_conditions"]:
            # What such a network says is of the whole picture, and guidance is to amplify it: it acts with the prompt
            # alone, as the pipelines of diffusers have it. Without the prompt come the first rows of their batch.
            weights = weights or [np.ones((1, *guide.size), np.float32) for guide in guides]
            weights = [*map(np.zeros_like, weights), *weights]
        return Signal(
            network=network,
            condition=self._tensor([control.condition.draw(guide) for guide in guides]),
            scale=chosen.scale,
            weights=self._tensor(weights) if weights else None,
            begin=chosen.begin,
            end=chosen.end,
        )

    def _tensor(self, maps: Sequence[Float32[np.ndarray, "channels height width"]]) -> "Tensor":
        import torch

        checkpoint = self._model.checkpoint
        return torch.from_numpy(np.stack(maps)).to(checkpoint.device, checkpoint.dtype)


def _check_acts(control: Control, steps: int, *, at: str) -> None:
    """Refuse a part of the steps that holds none as a whole: pictures would not keep the labels that they inherit."""
    if any(control.begin <= step / steps and (step + 1) / steps <= control.end for step in range(steps)):
        return
    first = min(int(control.begin * steps), steps - 1)
    begin, end = math.floor(100 * first / steps) / 100, math.ceil(100 * (first + 1) / steps) / 100
    raise UserError(
        f"{at}: {control.source} acts from {control.begin:g} (`begin`) to {control.end:g} (`end`) of the steps, which "
        f"of the {steps} that are drawn holds none, expected one whole step at least; set begin to {begin:g} and end "
        f"to {end:g} or more, or leave both out"
    )


def _common_size(guides: Sequence[Guide]) -> Size:
    sizes = {guide.size for guide in guides}
    if len(sizes) > 1:
        raise UserError(
            f"guides of sizes {sorted(sizes)} (height, width) in one batch, expected one size; draw those of each size "
            "apart, or let the source bring them to one: its `height` and `width`"
        )
    return sizes.pop()


def _pictures(guides: Sequence[Guide]) -> Float32[np.ndarray, "batch height width 3"]:
    """0..1, as the pipelines take arrays."""
    pictures = [guide.image for guide in guides]
    if any(picture is None for picture in pictures):
        raise UserError(
            "strength below 1 begins from the guide's picture, but the source brings none; leave strength out, or use "
            "a source of pictures"
        )
    return np.stack([picture for picture in pictures if picture is not None]).astype(np.float32) / 255
