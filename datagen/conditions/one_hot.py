"""A plane for each class: what a ControlNet of your own learns labels from most directly."""

import numpy as np
from jaxtyping import Float32

from datagen.records import Guide
from decoders.labels import Taxonomy, semantic_ids

_LATENT_CHANNELS = 4


class OneHot:
    """K classes in the order of the taxonomy, then void: at each pixel exactly one of these K + 1 planes is 1.

    Where that makes 4 planes, which diffusers takes for latents and does not resize, an empty fifth one follows.
    """

    def __init__(self, *, taxonomy: Taxonomy) -> None:
        self._void = len(taxonomy)
        planes = self._void + 1
        self.channels = planes if planes != _LATENT_CHANNELS else planes + 1

    def draw(self, guide: Guide) -> Float32[np.ndarray, "channels height width"]:
        ids = semantic_ids(guide.labels)
        planes = np.zeros((self.channels, *ids.shape), np.float32)
        plane = np.where(ids > 0, ids.astype(np.intp) - 1, self._void)
        np.put_along_axis(planes, plane[None], 1, axis=0)
        return planes
