"""What says what is in a picture."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from datagen.records import Recipe
from decoders.labels import LabelSet, Taxonomy


@runtime_checkable
class Labeller(Protocol):
    """Finished pictures in, labels out.

    A labeller whose files can be made may have a static method `prepare(**settings)`: it is called before any is built,
    in one process only.
    """

    @property
    def taxonomy(self) -> Taxonomy:
        """The classes it knows; available before any weight loads."""
        ...

    def label(
        self, recipes: Sequence[Recipe], images: UInt8[np.ndarray, "batch height width 3"]
    ) -> Sequence[LabelSet]: ...
