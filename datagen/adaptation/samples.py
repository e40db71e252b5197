"""What a model in training draws now, as a row of pictures: the loss hardly says what a look does."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from datagen.adaptation.hardware import half_precision
from datagen.files import encode_png
from datagen.generators.stable_diffusion import StableDiffusion
from datagen.model import Model
from datagen.randomness import seed_for
from datagen.records import Recipe
from decoders.files import write_atomic


class SampleRow:
    """Always the same prompts from the same noise."""

    def __init__(
        self,
        model: Model,
        prompts: Sequence[str],
        *,
        size: tuple[int, int],
        guidance: float,
        seed: int,
        folder: Path,
    ) -> None:
        """`size` is height and width in pixels; pictures go to `<folder>/000500.png`."""
        names = [f"{index:08d}" for index in range(len(prompts))]
        self._recipes = [
            Recipe(id=name, prompt=prompt, seed=seed_for(seed, name, "sample"))
            for name, prompt in zip(names, prompts, strict=True)
        ]
        self._model = model
        self._generator = StableDiffusion(guidance=guidance, height=size[0], width=size[1], model=model)
        self._folder = folder

    def draw(self, step: int) -> UInt8[np.ndarray, "prompts height width 3"]:
        """Draw with the weights that are in place, and write the row after `step` updates."""
        checkpoint = self._model.checkpoint
        mixed = checkpoint.unet.dtype != checkpoint.vae.dtype  # what is trained whole is in float32
        with half_precision(checkpoint.device, needed=mixed):
            pictures = np.concatenate([self._generator.render([recipe]) for recipe in self._recipes])
        write_atomic(self._folder / f"{step:06d}.png", encode_png(np.concatenate(list(pictures), axis=1)))
        return pictures
