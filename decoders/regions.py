"""Connected regions of a map of classes."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, UInt8
from scipy import ndimage

_ndimage = cast(Any, ndimage)
_EIGHT_NEIGHBOURS = np.ones((3, 3), bool)


def connected_regions(
    ids: UInt8[np.ndarray, "height width"], wanted: Sequence[int], *, min_pixels: int
) -> Iterator[tuple[int, Bool[np.ndarray, "height width"]]]:
    """Each region of the wanted ids, id by id, from the top left; those below `min_pixels` are left out.

    Pixels that meet at a corner are connected.
    """
    for value in wanted:
        regions, count = _ndimage.label(ids == value, structure=_EIGHT_NEIGHBOURS)
        sizes = np.bincount(regions.ravel(), minlength=count + 1)
        for region in np.flatnonzero(sizes[1:] >= max(min_pixels, 1)) + 1:
            yield value, regions == region
