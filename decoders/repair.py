"""Specks in a map of classes: regions too small to be believed take the classes of what surrounds them."""

from typing import Any, cast

import numpy as np
from jaxtyping import Bool, UInt8
from scipy import ndimage

from decoders.regions import numbered_regions

_ndimage = cast(Any, ndimage)


def repair_specks(
    ids: UInt8[np.ndarray, "height width"], *, smallest_px: int
) -> tuple[UInt8[np.ndarray, "height width"], int]:
    """The map without connected regions of fewer than `smallest_px` pixels, and how many there were.

    Pixels that meet at a corner are connected. Each pixel of a speck takes the class of the nearest pixel that is in
    none. A map that is all specks stays as it is. JoDiffusion (arXiv 2512.13014) found +1.1 mIoU in such a repair.
    """
    specks, count = _specks(ids, smallest_px)
    if not count or specks.all():
        return ids, 0
    rows, columns = _ndimage.distance_transform_edt(specks, return_distances=False, return_indices=True)
    return ids[rows, columns], count


def _specks(ids: UInt8[np.ndarray, "height width"], smallest_px: int) -> tuple[Bool[np.ndarray, "height width"], int]:
    specks = np.zeros(ids.shape, bool)
    count = 0
    for value in np.unique(ids):
        regions, sizes = numbered_regions(ids == value)
        sizes[0] = smallest_px  # the rest of the picture
        specks |= (sizes < smallest_px)[regions]
        count += int((sizes < smallest_px).sum())
    return specks, count
