"""A UNet as a pipeline sees it, which asks ControlNets first and may look at a large picture window by window.

Averaging noise predictions and stepping once equals MultiDiffusion's averaging of steps (arXiv 2302.08113) for samplers
whose step is linear in the prediction (DDIM, DPM-Solver++, UniPC), and needs no scheduler of its own for each window.
Since only the denoiser is wrapped, samplers, guidance, callbacks and LoRA files stay those of the stock pipelines.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from datagen.generators._tiles import Tile, feather


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """What one ControlNet is shown of a batch of pictures, and how strongly it acts."""

    network: nn.Module
    condition: Float[Tensor, "batch channels height width"]
    """0..1, in pixels."""
    scale: float = 1.0
    weights: Float[Tensor, "rows 1 height width"] | None = None
    """Strength at each pixel of the pictures, or of all rows of the pipeline's batch, times `scale`; 1 when None."""
    begin: float = 0.0
    end: float = 1.0
    """The part of the steps that are gone in which it acts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """How a picture is looked at in windows."""

    tiles: Sequence[Tile]
    """In latent cells; all of one size."""
    batch: int
    """How many (window, picture) pairs are computed at once."""
    contexts: Float[Tensor, "tiles batch tokens width"] | None = None
    """Text of each window, beginning with the part without guidance where there is one; the picture's own when None."""
    pooled: Float[Tensor, "tiles batch pooled"] | None = None
    """The same as one vector, for pipelines that have one (XL)."""
    settled: Bool[Tensor, "pictures rows columns"] | None = None
    """Cells whose content is overwritten after each step, so that windows of nothing else need no look."""


class ControlledUnet(nn.Module):
    """Stands in for `unet`; whatever is asked of it besides is the UNet's own answer."""

    def __init__(self, unet: nn.Module, *, cell: int, scheduler: Any) -> None:
        """
        Args:
            cell: pixels per latent cell, in each direction.
            scheduler: the pipeline's, which knows the steps.
        """
        super().__init__()
        self.unet = unet
        self._cell = cell
        self._scheduler = scheduler
        self.show(())

    def show(self, signals: Sequence[Signal], windows: Windows | None = None, *, skipped: int = 0) -> None:
        """Say what the next run of the pipeline is guided by; pictures as a whole without windows.

        Args:
            skipped: how many of the scheduler's timesteps the run leaves out at the beginning (image to image).
        """
        self._signals = signals
        self._windows = windows
        self._chunks: dict[int, list[_Chunk]] = {}
        self._skipped = skipped
        self._step = -1

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("unet"), name)

    def forward(
        self,
        sample: Float[Tensor, "batch channels rows columns"],
        timestep: Any,
        encoder_hidden_states: Float[Tensor, "batch tokens width"],
        added_cond_kwargs: dict[str, Tensor] | None = None,
        return_dict: bool = False,
        **more: Any,
    ) -> tuple[Tensor]:
        """As the UNet's own; `batch` is that of the pictures, or twice as many with guidance."""
        del return_dict  # pipelines take the tuple
        active = self._active(timestep)
        added = added_cond_kwargs or {}
        if self._windows is None or len(self._windows.tiles) == 1:
            everything = Tile(0, 0, *sample.shape[2:])
            rows = torch.arange(len(sample), device=sample.device)
            return (self._look(sample, timestep, encoder_hidden_states, added, more, active, [everything], rows),)
        return (self._fuse(self._windows, sample, timestep, encoder_hidden_states, added, more, active),)

    def _active(self, timestep: Any) -> list[Signal]:
        """The controls that act in this step; some samplers (PNDM, Heun) visit a timestep twice."""
        steps = self._scheduler.timesteps[self._skipped :]
        self._step = next(at for at in (steps == timestep).nonzero()[:, 0].tolist() if at > self._step)
        first, last = self._step / len(steps), (self._step + 1) / len(steps)
        return [signal for signal in self._signals if signal.begin <= first and last <= signal.end]

    def _fuse(
        self,
        windows: Windows,
        sample: Tensor,
        timestep: Any,
        context: Tensor,
        added: dict[str, Tensor],
        more: dict[str, Any],
        active: Sequence[Signal],
    ) -> Tensor:
        """The feathered mean of what all windows say."""
        weight = torch.from_numpy(feather(windows.tiles[0].height, windows.tiles[0].width)).to(sample)
        total, weights = torch.zeros_like(sample), sample.new_zeros(len(sample), 1, *sample.shape[2:])
        if len(sample) not in self._chunks:
            self._chunks[len(sample)] = list(_chunks_of(windows, len(sample)))
        for chosen, count in self._chunks[len(sample)]:
            numbers, rows = (torch.tensor(column, device=sample.device) for column in zip(*chosen, strict=True))
            places = [windows.tiles[number] for number, _ in chosen]
            cut = torch.stack([sample[(row, slice(None), *windows.tiles[number].window)] for number, row in chosen])
            text = context[rows] if windows.contexts is None else windows.contexts[numbers, rows]
            extra = {name: value[rows] for name, value in added.items()}
            if "time_ids" in added:  # XL is told which part of what picture it sees
                extra["time_ids"] = added["time_ids"].new_tensor(
                    [self._micro_conditions(tile, sample) for tile in places]
                )
            if windows.pooled is not None:
                extra["text_embeds"] = windows.pooled[numbers, rows]
            said = self._look(cut, timestep, text, extra, more, active, places, rows)
            for (_, row), tile, part in list(zip(chosen, places, said, strict=True))[:count]:
                total[(row, slice(None), *tile.window)] += part * weight
                weights[(row, slice(None), *tile.window)] += weight
        return total / weights.clamp(min=torch.finfo(sample.dtype).tiny)

    def _micro_conditions(self, tile: Tile, sample: Tensor) -> list[int]:
        """Height and width of the whole picture, top and left, height and width of the window, in pixels."""
        whole = Tile(0, 0, *sample.shape[2:]).times(self._cell)
        part = tile.times(self._cell)
        return [whole.height, whole.width, part.top, part.left, part.height, part.width]

    def _look(
        self,
        sample: Tensor,
        timestep: Any,
        context: Tensor,
        added: dict[str, Tensor],
        more: dict[str, Any],
        active: Sequence[Signal],
        tiles: Sequence[Tile],
        rows: Tensor,
    ) -> Tensor:
        """One pass; entry i lies at `tiles[i]` (one for all when alone) of row `rows[i]` of the pipeline's batch."""
        down: list[Tensor] | None = None
        middle: Tensor | None = None
        for signal in active:
            condition = self._cut(signal.condition, tiles, rows)
            found, found_middle = signal.network(
                sample,
                timestep,
                encoder_hidden_states=context,
                controlnet_cond=condition.to(sample.dtype),
                conditioning_scale=signal.scale,
                added_cond_kwargs=added or None,
                return_dict=False,
            )
            if signal.weights is not None:
                strength = self._cut(signal.weights, tiles, rows).to(sample.dtype)
                found = [_weighted(residual, strength) for residual in found]
                found_middle = _weighted(found_middle, strength)
            if down is None or middle is None:
                down, middle = list(found), found_middle
            else:
                down = [one + other for one, other in zip(down, found, strict=True)]
                middle = middle + found_middle
        return self.unet(
            sample,
            timestep,
            encoder_hidden_states=context,
            added_cond_kwargs=added or None,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            return_dict=False,
            **more,
        )[0]

    def _cut(self, maps: Tensor, tiles: Sequence[Tile], rows: Tensor) -> Tensor:
        """The windows of maps in pixels; with guidance the pipeline's batch holds every picture twice."""
        places = tiles if len(tiles) == len(rows) else [tiles[0]] * len(rows)
        parts = [
            maps[(row % len(maps), slice(None), *tile.times(self._cell).window)]
            for row, tile in zip(rows.tolist(), places, strict=True)
        ]
        return torch.stack(parts)


_Chunk = tuple[list[tuple[int, int]], int]
"""(window, row of the pipeline's batch) pairs that are computed at once, and how many of them count."""


def _chunks_of(windows: Windows, rows: int) -> Iterator[_Chunk]:
    """Found once for all steps: on a GPU each question whether a window is settled waits for it."""
    pairs = [
        (number, row)
        for number, tile in enumerate(windows.tiles)
        for row in range(rows)
        if not _is_settled(windows.settled, row, tile)
    ]
    for start in range(0, len(pairs), windows.batch):
        chosen = pairs[start : start + windows.batch]
        # Always a full batch: the last digits of a window must not depend on how many others are left.
        yield chosen + [chosen[-1]] * (windows.batch - len(chosen)), len(chosen)


def _is_settled(settled: Tensor | None, row: int, tile: Tile) -> bool:
    return settled is not None and bool(settled[(row % len(settled), *tile.window)].all())


def _weighted(residual: Tensor, strength: Tensor) -> Tensor:
    size = (residual.shape[2], residual.shape[3])
    return residual * functional.interpolate(strength, size=size, mode="area")
