"""What travels through the factory: a recipe becomes a sample, a sample gets a verdict."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

from decoders.labels import LabelSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Guide:
    """Geometry to keep while a picture is drawn, and the labels that therefore stay true."""

    condition: UInt8[np.ndarray, "height width 3"]
    labels: LabelSet
    start: UInt8[np.ndarray, "height width 3"] | None = None
    """A picture to begin from instead of pure noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All that decides one picture."""

    id: str
    """Eight digits, the position in the source; also the file name."""
    prompt: str
    negative_prompt: str = ""
    seed: int
    wanted: tuple[str, ...] = ()
    """Class names the prompt asks for, so that a filter can look whether they came."""
    guide: Guide | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A finished picture with its labels."""

    recipe: Recipe
    image: UInt8[np.ndarray, "height width 3"]
    labels: LabelSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a filter says of a sample. A rejection is data: the sample stays in the store, with the reason."""

    keep: bool
    reason: str = ""
    """Empty when kept."""
    scores: Mapping[str, float] = field(default_factory=dict[str, float])
