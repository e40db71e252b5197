"""Small objects at a higher resolution: a second, larger drawing in windows, with what was large kept from the first.

After DGInStyle's multi-resolution latent fusion, with its faults mended: windows reach every edge, what is kept is put
back at the noise level that the state has, windows whose result would be overwritten are not computed.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from datagen.controls import Fusion
from datagen.generators._controlled_unet import Windows
from datagen.generators._tiles import tiles
from datagen.generators.stable_diffusion import negative_prompts
from datagen.records import Guide, Recipe
from decoders.checkpoint import Checkpoint
from decoders.features import to_pixels
from decoders.labels import semantic_ids
from decoders.regions import numbered_regions
from decoders.resizing import Size, round_size


def first_size(canvas: Size, tile: int, multiple: int) -> Size:
    """Of the first drawing: the canvas' shape with `tile` as the shorter side, never larger than the canvas."""
    scale = min(1.0, tile / min(canvas))
    return round_size((canvas[0] * scale, canvas[1] * scale), multiple)


def large_regions(ids: UInt8[np.ndarray, "height width"], keep_above: float) -> Bool[np.ndarray, "height width"]:
    """Pixels in connected regions of one class that cover more than this share of the picture; never void."""
    kept = np.zeros(ids.shape, bool)
    for semantic_id in (int(value) for value in np.unique(ids) if value):
        regions, sizes = numbered_regions(ids == semantic_id)
        large = sizes > keep_above * ids.size
        large[0] = False  # what is not of this class
        kept |= large[regions]
    return kept


def settled_cells(kept: Sequence[Bool[np.ndarray, "height width"]], cell: int) -> Bool[Tensor, "batch rows columns"]:
    """Latent cells all of whose pixels are kept."""
    stacked = np.stack(kept)
    batch, height, width = stacked.shape
    return torch.from_numpy(stacked.reshape(batch, height // cell, cell, width // cell, cell).all(axis=(2, 4)))


def tile_prompt(recipe: Recipe, ids: UInt8[np.ndarray, "height width"], names: Sequence[str]) -> str:
    """The prompt with its list of classes cut down to those that a window shows; the whole prompt without a list."""
    whole = ", ".join(recipe.listed.values())
    if not whole or whole not in recipe.prompt:
        return recipe.prompt
    shown = {names[number - 1] for number in np.unique(ids) if number}
    part = ", ".join(words for name, words in recipe.listed.items() if name in shown)
    return " ".join(recipe.prompt.replace(whole, part, 1).split()) if part else recipe.prompt


class Canvas:
    """The second drawing of one batch."""

    def __init__(self, checkpoint: Checkpoint, settings: Fusion, guides: Sequence[Guide], *, tile: int) -> None:
        """
        Args:
            guides: at the size of the canvas.
            tile: pixels of a window's side.
        """
        self._checkpoint = checkpoint
        self._settings = settings
        self._ids = [semantic_ids(guide.labels) for guide in guides]
        self.size = guides[0].size
        cell = checkpoint.vae_scale_factor
        grid = (self.size[0] // cell, self.size[1] // cell)
        self.tiles = tiles(grid, (tile // cell, tile // cell), settings.overlap)
        self.settled = settled_cells([large_regions(ids, settings.keep_above) for ids in self._ids], cell)

    def windows(self, pipeline: Any, recipes: Sequence[Recipe], names: Sequence[str], *, guided: bool) -> Windows:
        """What the UNet is told of this canvas; `guided` when the pipeline computes every picture twice."""
        contexts = pooled = None
        if self._settings.tile_prompts and any(recipe.listed for recipe in recipes):
            contexts, pooled = self._contexts(pipeline, recipes, names, guided=guided)
        settled = self.settled.to(self._checkpoint.device)
        batch = self._settings.tile_batch
        return Windows(tiles=self.tiles, batch=batch, contexts=contexts, pooled=pooled, settled=settled)

    def _contexts(
        self, pipeline: Any, recipes: Sequence[Recipe], names: Sequence[str], *, guided: bool
    ) -> tuple[Float[Tensor, "tiles batch tokens width"], Float[Tensor, "tiles batch pooled"] | None]:
        """The text of each window of each picture, encoded as the pipeline itself does it."""
        cell = self._checkpoint.vae_scale_factor
        tokens: list[Tensor] = []
        pooled: list[Tensor] = []
        for tile in self.tiles:
            window = tile.times(cell).window
            parts: tuple[Any, ...] = pipeline.encode_prompt(
                prompt=[
                    tile_prompt(recipe, ids[window], names) for recipe, ids in zip(recipes, self._ids, strict=True)
                ],
                negative_prompt=negative_prompts(recipes),
                device=self._checkpoint.device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=guided,
            )
            tokens.append(_both(parts[:2], guided=guided))
            if len(parts) > 2:  # XL
                pooled.append(_both(parts[2:], guided=guided))
        return torch.stack(tokens), torch.stack(pooled) if pooled else None

    def enlarged(self, pictures: UInt8[np.ndarray, "batch _ _ 3"]) -> UInt8[np.ndarray, "batch height width 3"]:
        """The first drawing at the size of this one."""
        return np.stack([cv2.resize(each, self.size[::-1], interpolation=cv2.INTER_LANCZOS4) for each in pictures])

    def keep(
        self, first: UInt8[np.ndarray, "batch height width 3"], seeds: Sequence[int], *, skipped: int
    ) -> Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]:
        """A step callback of pipelines: puts the large regions of the first drawing back after each step.

        They get the noise level that the state has then, always with the same noise, and none after the last step.

        Args:
            first: the first drawing, enlarged.
            seeds: of that noise, one for each picture.
            skipped: how many of the scheduler's timesteps are left out at the beginning.
        """
        # In the layout that noise has: the latents take it over, and the UNet rounds otherwise in another.
        clean = self._checkpoint.encode(to_pixels(first, self._checkpoint.device)).contiguous()
        noise = torch.stack([torch.randn(clean.shape[1:], generator=_stream(seed)) for seed in seeds]).to(clean)
        mask = self.settled[:, None].to(clean.device)

        def put_back(pipeline: Any, step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            # A copy, as some samplers then leave their noise levels on the GPU, where what they compute is rounded to
            # half precision earlier: a picture would depend on whether another was drawn before.
            scheduler = copy.copy(pipeline.scheduler)
            latents: Tensor = tensors["latents"]
            state = clean
            if (reached := skipped + step + 1) < len(scheduler.timesteps):
                state = scheduler.add_noise(clean, noise, scheduler.timesteps[reached].repeat(len(clean)))
            return {"latents": torch.where(mask, state.to(latents.dtype), latents)}

        return put_back


def _both(parts: Sequence[Tensor], *, guided: bool) -> Tensor:
    """(with prompt, without) as a pipeline's batch: first without, then with."""
    return torch.cat([parts[1], parts[0]]) if guided else parts[0]


def _stream(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)
