"""Colours and textures of surfaces; a texture is a function of where on the surface a point lies, in metres."""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from jaxtyping import Float32
from scipy.ndimage import gaussian_filter

RGB = tuple[float, float, float]
Texture = Literal["plain", "noise", "brick", "windows", "leaves", "blinds"]

TILE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What a surface looks like before light falls on it. Colours are RGB, 0..1."""

    color: RGB
    texture: Texture = "plain"
    scale: float = 1.0
    """Size of one texture cell in metres."""
    strength: float = 0.2
    second: RGB = (0.2, 0.22, 0.26)
    """Mortar or window colour."""
    emission: float = 0.0
    """Light of its own, added after shading: lamps, lit windows at night."""
    opacity: float = 1.0
    """Below 1 the background shines through, but the label is this surface's: bicycle wheels."""


@cache
def noise_tile(octave: int) -> Float32[np.ndarray, "256 256"]:
    """A seamless tile of smooth noise with mean 0 and deviation 1; larger octaves are smoother."""
    white = np.random.default_rng(9000 + octave).standard_normal((TILE, TILE))
    smooth = gaussian_filter(white, sigma=0.7 * 2**octave, mode="wrap")
    return ((smooth - smooth.mean()) / smooth.std()).astype(np.float32)


def sample_noise(
    across: Float32[np.ndarray, "h w"], along: Float32[np.ndarray, "h w"], *, cell_m: float, octave: int = 1
) -> Float32[np.ndarray, "h w"]:
    """Noise at points given in metres."""
    column = (across * (1.0 / cell_m)).astype(np.int32) & (TILE - 1)
    row = (along * (1.0 / cell_m)).astype(np.int32) & (TILE - 1)
    return noise_tile(octave)[row, column]


def paint(
    material: Material, across: Float32[np.ndarray, "h w"], along: Float32[np.ndarray, "h w"]
) -> tuple[Float32[np.ndarray, "h w 3"], Float32[np.ndarray, "h w"]]:
    """Colour and emission at points of a surface (`across`, `along` in metres)."""
    color = np.empty((*across.shape, 3), np.float32)
    color[:] = material.color
    emission = np.full(across.shape, material.emission, np.float32)
    if material.texture == "noise":
        color *= 1 + material.strength * sample_noise(across, along, cell_m=material.scale / 8, octave=2)[..., None]
    elif material.texture == "leaves":
        blotches = sample_noise(across, along, cell_m=material.scale / 6, octave=1)
        color *= np.clip(1 + material.strength * blotches, 0.3, 1.8)[..., None]
    elif material.texture == "brick":
        row = np.floor(along / material.scale)
        brick = across / (2 * material.scale) + 0.5 * (row % 2)
        mortar = (along / material.scale - row < 0.18) | (brick - np.floor(brick) < 0.1)
        color *= 1 + 0.5 * material.strength * sample_noise(across, along, cell_m=0.2, octave=1)[..., None]
        color[mortar] = 0.6 * color[mortar] + 0.4 * np.asarray(material.second, np.float32)
    elif material.texture in ("windows", "blinds"):
        color *= 1 + 0.3 * material.strength * sample_noise(across, along, cell_m=0.15, octave=2)[..., None]
        column, row = across / (0.8 * material.scale), along / material.scale
        fx, fy = column - np.floor(column), row - np.floor(row)
        if material.texture == "blinds":  # long glass bands, as on offices
            glass = (fy > 0.35) & (fy < 0.85) & (fx > 0.06)
        else:
            glass = (fy > 0.3) & (fy < 0.78) & (fx > 0.25) & (fx < 0.75)
        glass &= along > 0.4
        lit = noise_tile(0)[np.floor(row).astype(np.int32) & 255, np.floor(column).astype(np.int32) & 255] > 0.2
        color[glass] = material.second
        emission[glass & lit] += 0.55
    return np.clip(color, 0, 1.5), emission
