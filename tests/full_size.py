"""The UNets of Stable Diffusion 1.5, 2.1 and XL at full size, from their published configurations, without weights."""

import resource
import time
from dataclasses import dataclass
from typing import Any

import diffusers
import torch

from decoders.phrases import ReadingContext
from decoders.unet_pass import read_unet

_DOWN = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
_UP = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")

CONFIGS: dict[str, dict[str, Any]] = {
    "sd15": {
        "down_block_types": _DOWN,
        "up_block_types": _UP,
        "block_out_channels": (320, 640, 1280, 1280),
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
    },
    "sd21": {
        "down_block_types": _DOWN,
        "up_block_types": _UP,
        "block_out_channels": (320, 640, 1280, 1280),
        "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    },
    "xl": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (320, 640, 1280),
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
PARAMETERS = {"sd15": 859_520_964, "sd21": 865_910_724, "xl": 2_567_463_684}
CLASSES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One tapped pass."""

    levels: tuple[tuple[int, ...], ...]
    attention: tuple[tuple[int, ...], ...]
    finite: bool
    seconds: float
    peak_gib: float
    """Of the whole process, from its start: run it in one of its own."""


def build(name: str) -> Any:
    """On the default device, with diffusers' own random weights."""
    unet_class: Any = diffusers.UNet2DConditionModel
    return unet_class(**CONFIGS[name])


def read(unet: Any, rows: int, columns: int, layers: tuple[str, ...] = ("mid", "up")) -> tuple[Any, Any]:
    """A tapped pass over random latents on the default device; 8 pixels per cell, as all three VAEs have."""
    config = unet.config
    pooled = config.projection_class_embeddings_input_dim
    context = ReadingContext(
        tokens=torch.randn(1, 77 + CLASSES, config.cross_attention_dim),
        pooled=None if pooled is None else torch.randn(1, pooled - 6 * config.addition_time_embed_dim),
    )
    with torch.no_grad():
        return read_unet(
            unet,
            torch.randn(1, 4, rows, columns),
            context,
            timestep=50,
            layers=layers,
            classes=CLASSES,
            image_size=(8 * rows, 8 * columns),
        )


def measure(name: str, side: int) -> Measured:
    """Build and read a UNet for real, in float32 on the CPU."""
    torch.manual_seed(0)
    unet = build(name).eval()
    start = time.perf_counter()
    levels, attention = read(unet, side, side)
    return Measured(
        levels=tuple(tuple(level.shape) for level in levels),
        attention=tuple(tuple(maps.shape) for maps in attention),
        finite=all(bool(tensor.isfinite().all()) for tensor in (*levels, *attention)),
        seconds=time.perf_counter() - start,
        peak_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    )
