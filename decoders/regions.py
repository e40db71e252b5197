"""Connected regions of a map of classes."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Int, UInt8
from scipy import ndimage

_ndimage = cast(Any, ndimage)
_EIGHT_NEIGHBOURS = np.ones((3, 3), bool)


def numbered_regions(
    mask: Bool[np.ndarray, "height width"],
) -> tuple[Int[np.ndarray, "height width"], Int[np.ndarray, " regions_and_rest"]]:
    """The region 1, 2, ... that each pixel of the mask belongs to, 0 outside; and how many pixels each number has.

    Pixels that meet at a corner are connected.
    """
    regions, count = _ndimage.label(mask, structure=_EIGHT_NEIGHBOURS)
    return regions, np.bincount(regions.ravel(), minlength=count + 1)


def large_regions(sizes: Int[np.ndarray, " regions_and_rest"], min_pixels: int) -> Int[np.ndarray, " large"]:
    """The numbers of the regions that have so many pixels; the rest outside is none."""
    return np.flatnonzero(sizes[1:] >= min_pixels) + 1


def connected_regions(
    ids: UInt8[np.ndarray, "height width"], wanted: Sequence[int], *, min_pixels: int
) -> Iterator[tuple[int, Bool[np.ndarray, "height width"]]]:
    """Each region of the wanted ids, id by id, from the top left; those below `min_pixels` are left out."""
    for value in wanted:
        regions, sizes = numbered_regions(ids == value)
        for region in large_regions(sizes, max(min_pixels, 1)):
            yield value, regions == region
