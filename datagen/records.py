"""What travels through the factory: a recipe becomes a sample, a sample gets a verdict."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

from decoders.labels import DenseMap, LabelSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Guide:
    """Geometry to keep while a picture is drawn, and the labels that therefore stay true."""

    labels: LabelSet
    image: UInt8[np.ndarray, "height width 3"] | None = None
    """The picture that the labels were made for, where there is one: its edges may guide, and drawing may begin from
    it instead of pure noise."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels.

        Raises:
            ValueError: there is neither a picture nor a label.
        """
        if self.image is not None:
            return self.image.shape[0], self.image.shape[1]
        for label in self.labels.values():
            height, width = label.valid.shape if isinstance(label, DenseMap) else label.masks.shape[1:]
            return height, width
        raise ValueError("a guide needs a label or a picture")


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
    listed: Mapping[str, str] = field(default_factory=dict[str, str])
    """Where the prompt holds a list of classes, ", " between them: class name -> its words there, in that order. So a
    part of the picture can be asked for by what is in that part."""
    attributes: Mapping[str, str] = field(default_factory=dict[str, str])
    """What its source drew by chance or took from a file, by name: weather, source picture, crop."""


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
