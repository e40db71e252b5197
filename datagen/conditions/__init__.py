"""What a ControlNet is shown of a guide: the file name is the kind in a plan, its CamelCase is the class."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from datagen.records import Guide


@runtime_checkable
class Condition(Protocol):
    """A guide in, a condition at the guide's own size out: a pure function, so that a picture can be drawn again."""

    @property
    def channels(self) -> int:
        """Never 4: diffusers takes that many for latents."""
        ...

    def draw(self, guide: Guide) -> Float32[np.ndarray, "channels height width"]:
        """Values 0..1.

        Raises:
            UserError: the guide lacks what this condition is made from.
        """
        ...
