"""Pictures -> features of the UNet of Stable Diffusion 1.x, 2.x and XL: a look at the finished picture."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from jaxtyping import Float, UInt8
from torch import Tensor

from decoders.checkpoint import Checkpoint
from decoders.errors import UserError
from decoders.features import FeatureBundle, FeatureSpec, to_pixels
from decoders.phrases import ReadingContext, reading_context
from decoders.unet_pass import AttentionReduction, coarsest_cell, expand_layers, read_unet


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a UNet is read; stored with every reader, as each choice changes the numbers."""

    phrases: tuple[str, ...]
    """What to attend to, one per class, in the order of the taxonomy."""
    timesteps: tuple[int, ...] = (50,)
    """How much noise is added, in the training schedule; near-clean features are not the best (CleanDIFT, 2025). The
    features of several are joined, for the decoder to mix at each pixel; each costs a pass."""
    noises: int = 1
    """How many noises are added, one after the other; the features are averaged. Each costs a pass."""
    noise_seed: int = 0
    """Of the first noise; the following numbers are those of the others."""
    layers: tuple[str, ...] = ("mid", "up")
    """`down`, `mid`, `up` (the last features of each block at its own grid) or paths of modules in the UNet."""
    attention: AttentionReduction = "mean"
    """What becomes of the class attention: its mean over heads and blocks, every head of every block, or nothing."""
    keep_loras: bool = False
    """Whether the model is read with its LoRA adapters on."""

    def __post_init__(self) -> None:
        if self.attention != "none" and not self.phrases:
            raise UserError(
                "attention maps were asked for without phrases; give one per class, or set `attention: none`"
            )
        if not self.timesteps or len(set(self.timesteps)) != len(self.timesteps) or self.noises < 1:
            raise UserError(
                f"found timesteps {list(self.timesteps)} and noises {self.noises}; expected different timesteps, one "
                "at least, and at least one noise"
            )
        if not self.layers:
            raise UserError("no layers to read; name some of down, mid, up or paths of modules in the UNet")

    @property
    def classes(self) -> int:
        """Number of attention maps at a level that has any."""
        return 0 if self.attention == "none" else len(self.phrases)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "Reading":
        """Back from `FeatureSpec.settings`."""
        values: dict[str, Any] = {name: settings[name] for name in cls.__dataclass_fields__}
        values |= {name: tuple(values[name]) for name in ("phrases", "layers", "timesteps")}
        return cls(**values)


class UnetPerceiver:
    """VAE encode, noise at a timestep, one UNet pass under a tap: no guidance half, no sampling.

    The same for real photographs and generated pictures, so that a reader is measured on what it is used for. After
    DatasetDM (Wu et al., NeurIPS 2023), which records during sampling, and VPD (Zhao et al., ICCV 2023).
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        phrases: Sequence[str],
        timesteps: Sequence[int] = (50,),
        noises: int = 1,
        noise_seed: int = 0,
        layers: Sequence[str] = ("mid", "up"),
        attention: AttentionReduction = "mean",
        keep_loras: bool = False,
    ) -> None:
        """Borrow a checkpoint; arguments as the fields of `Reading`.

        Raises:
            UserError: a layer or timestep that the model does not have.
        """
        self.checkpoint = checkpoint
        self.reading = Reading(
            phrases=tuple(phrases),
            timesteps=tuple(timesteps),
            noises=noises,
            noise_seed=noise_seed,
            layers=tuple(layers),
            attention=attention,
            keep_loras=keep_loras,
        )
        self._schedule = _schedule(checkpoint.pipeline.scheduler.config, self.reading.timesteps)
        self.spec = _describe(
            checkpoint.unet,
            self.reading,
            vae_scale_factor=checkpoint.vae_scale_factor,
            schedule=self._schedule,
            dtype=checkpoint.dtype,
            model_digest=checkpoint.digest if keep_loras else checkpoint.base_digest,
        )

    @classmethod
    def from_settings(cls, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> "UnetPerceiver":
        """The perceiver of a stored reader, from its `FeatureSpec.settings`."""
        reading = Reading.from_settings(settings)
        choices: dict[str, Any] = asdict(reading)
        return cls(checkpoint, **choices)

    @property
    def size_multiple(self) -> int:
        """Height and width of a picture must be multiples of this, the VAE's cell; diffusers' UNets make up for a
        grid that does not halve evenly on their way up."""
        return self.checkpoint.vae_scale_factor

    @torch.no_grad()
    def perceive(self, images: UInt8[np.ndarray, "batch height width 3"], *, look: int = 0) -> FeatureBundle:
        """Features in float32 on the checkpoint's device; attention 1.0 = what an even spread over all tokens gives.

        At each level the features of the timesteps lie one after the other.

        Args:
            look: number of the look; each uses noises of its own.

        Raises:
            UserError: a size that is no multiple of `size_multiple`, or so small that levels fall together; features
                that are not finite.
        """
        self._check_size(*images.shape[1:3])
        checkpoint, reading = self.checkpoint, self.reading
        pixels = to_pixels(images, checkpoint.device)
        with checkpoint.bare(keep_loras=reading.keep_loras):
            clean = checkpoint.encode(pixels)
            first_seed = reading.noise_seed + look * reading.noises
            passes = [self._pass(clean, timestep, first_seed, size=pixels.shape[2:]) for timestep in reading.timesteps]
        levels, attention = (
            tuple(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1) for parts in zip(*group, strict=True))
            for group in zip(*passes, strict=True)
        )
        self._check_finite((*levels, *attention))
        phrases = self._context.tokens[0, -len(reading.phrases) :].float() if reading.phrases else None
        return FeatureBundle(image=pixels, levels=levels, attention=attention, phrases=phrases)

    def _pass(
        self,
        clean: Float[Tensor, "batch channels rows columns"],
        timestep: int,
        first_seed: int,
        *,
        size: tuple[int, ...],
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Levels and attention at one timestep, in the mean over the noises."""
        checkpoint, reading = self.checkpoint, self.reading
        step = torch.full((len(clean),), timestep, device=clean.device)
        total: list[Tensor] = []
        levels = 0
        for seed in range(first_seed, first_seed + reading.noises):
            generator = torch.Generator("cpu").manual_seed(seed)
            noise = torch.randn(clean.shape[1:], generator=generator).to(clean).expand_as(clean)
            noisy: Any = self._schedule.add_noise(clean, noise, step)
            features, attention = read_unet(
                checkpoint.unet,
                noisy.to(checkpoint.dtype),
                self._context,
                timestep=timestep,
                layers=reading.layers,
                classes=reading.classes,
                reduction=reading.attention,
                image_size=(size[0], size[1]),
            )
            levels = len(features)
            found = [*features, *attention]
            total = [before + now for before, now in zip(total, found, strict=True)] if total else found
        mean = total if reading.noises == 1 else [tensor / reading.noises for tensor in total]
        return tuple(mean[:levels]), tuple(mean[levels:])

    @cached_property
    def _context(self) -> ReadingContext:
        with self.checkpoint.bare(keep_loras=self.reading.keep_loras):
            return reading_context(self.checkpoint, self.reading.phrases)

    def _check_size(self, height: int, width: int) -> None:
        cell = self.size_multiple
        smallest = cell * coarsest_cell(self.checkpoint.unet)
        if height % cell or width % cell or min(height, width) < smallest:
            near = " x ".join(str(max(smallest, round(side / cell) * cell)) for side in (height, width))
            raise UserError(
                f"a picture of {height} x {width} pixels (height x width) found, this model reads multiples of {cell} "
                f"from {smallest} on; resize it, say to {near} (in a plan: `fit.size`, `reading.short_side`)"
            )

    def _check_finite(self, tensors: tuple[Tensor, ...]) -> None:
        if not all(bool(tensor.isfinite().all()) for tensor in tensors):
            dtype = self.checkpoint.precision
            remedy = (
                "the weights or the picture are damaged: check the model's files"
                if self.checkpoint.dtype == torch.float32
                else f"{dtype} has probably overflowed: set the model's `dtype: float32` (or bfloat16) and fit with it"
            )
            raise UserError(
                f"features of the UNet in {dtype} are not finite (NaN or infinity), expected finite ones; {remedy}"
            )


def _schedule(config: Any, timesteps: Sequence[int]) -> Any:
    """The training noise, whatever scheduler the pipeline samples with."""
    schedule: Any = DDPMScheduler.from_config(config)
    steps = schedule.config.num_train_timesteps
    for timestep in timesteps:
        if not 0 <= timestep < steps:
            raise UserError(f"timestep {timestep} found, this model knows 0..{steps - 1}; near 50 is a good start")
    return schedule


def _describe(
    unet: UNet2DConditionModel,
    reading: Reading,
    *,
    vae_scale_factor: int,
    schedule: Any,
    dtype: torch.dtype,
    model_digest: str,
) -> FeatureSpec:
    """Measure the levels on a twin of the UNet without weights, on the meta device: no size is a constant."""
    config: Any = unet.config
    side = 4 * coarsest_cell(unet)
    with torch.device("meta"):
        skeleton: Any = UNet2DConditionModel.from_config(config)
        text_time = config.addition_embed_type == "text_time"
        context = ReadingContext(
            tokens=torch.zeros(1, 1 + len(reading.phrases), config.cross_attention_dim),
            pooled=torch.zeros(1, config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim)
            if text_time
            else None,
        )
        latents = torch.zeros(1, config.in_channels, side, side)
        image_size = (side * vae_scale_factor, side * vae_scale_factor)
        levels, attention = read_unet(
            skeleton,
            latents,
            context,
            timestep=reading.timesteps[0],
            layers=reading.layers,
            classes=reading.classes,
            reduction=reading.attention,
            image_size=image_size,
        )
    looks = len(reading.timesteps)
    settings = asdict(reading) | {
        "phrases": list(reading.phrases),
        "layers": list(expand_layers(unet, reading.layers)),
        "dtype": _name(dtype),
        "timesteps": list(reading.timesteps),
        "signal": [round(float(schedule.alphas_cumprod[timestep]), 6) for timestep in reading.timesteps],
    }
    return FeatureSpec(
        model_digest=model_digest,
        strides=tuple(image_size[0] // level.shape[2] for level in levels),
        channels=tuple(looks * level.shape[1] for level in levels),
        attention_maps=tuple(looks * maps.shape[1] for maps in attention),
        settings=settings,
        phrase_width=context.tokens.shape[2] if reading.phrases else 0,
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
