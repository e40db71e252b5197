"""What draws pictures."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from datagen.records import Recipe


@runtime_checkable
class Generator(Protocol):
    """Recipes in, pictures out. All batches of a run have one size; each picture depends on its own recipe alone."""

    def render(self, recipes: Sequence[Recipe]) -> UInt8[np.ndarray, "batch height width 3"]: ...
