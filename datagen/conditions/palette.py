"""Class maps as colour pictures, as published segmentation ControlNets expect them."""

from typing import Annotated

import numpy as np
from annotated_types import Ge, Le
from jaxtyping import Float32

from datagen.records import Guide
from datagen.settings import check_classes
from decoders.labels import Taxonomy, semantic_ids

Level = Annotated[int, Ge(0), Le(255)]


class Palette:
    """Red, green and blue of each pixel's class, void black; the colours are the taxonomy's unless a plan says others.

    A published ControlNet knows the colours that it was trained with, mostly those of ADE20K. Its model card or the
    data set's own table lists them; give each class the colour of the nearest one there, as in
    `colors: {road: [140, 140, 140], sky: [6, 230, 230], car: [0, 102, 200]}`.
    """

    channels = 3

    def __init__(self, *, colors: dict[str, tuple[Level, Level, Level]] | None = None, taxonomy: Taxonomy) -> None:
        """
        Args:
            colors: class name -> RGB, 0..255; a class that is left out keeps the taxonomy's colour.

        Raises:
            UserError: a name is no class of the taxonomy.
        """
        given = colors or {}
        check_classes(given, taxonomy, at="colors")
        self.left_out = tuple(name for name in taxonomy.names if name not in given)
        """Classes that keep the taxonomy's colour."""
        own = zip(taxonomy.names, taxonomy.colors, strict=True)
        rows = [(0, 0, 0), *(given.get(name, color) for name, color in own)]
        self._rgb = np.array(rows, np.float32).T / np.float32(255)

    def draw(self, guide: Guide) -> Float32[np.ndarray, "channels height width"]:
        return self._rgb[:, semantic_ids(guide.labels)]
