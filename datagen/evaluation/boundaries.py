"""Where a segmenter errs: how often, by the distance to the nearest boundary between two classes."""

from itertools import pairwise

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from decoders.labels import LabelSet, semantic_ids

BANDS_PX = (0, 1, 3, 7)
"""A band reaches from beyond one of these distances up to the next one, the last band to the end."""


class BoundaryErrors:
    """Generated pictures seldom keep edges exactly (FLEX-Seg, arXiv 2511.22948): errors far from any are another
    matter than errors at one. Void pixels do not count, and are no class that has a boundary."""

    def __init__(self) -> None:
        self._wrong = np.zeros(len(BANDS_PX), np.int64)
        self._all = np.zeros(len(BANDS_PX), np.int64)

    def add(self, found: LabelSet, truth: LabelSet) -> None:
        """Both have a class map."""
        ids, answers = semantic_ids(truth), semantic_ids(found)
        band = np.searchsorted(BANDS_PX, distance_to_boundary(ids), side="left") - 1
        counted = ids > 0
        self._all += np.bincount(band[counted], minlength=len(BANDS_PX))
        self._wrong += np.bincount(band[counted & (answers != ids)], minlength=len(BANDS_PX))

    def result(self) -> dict[str, float]:
        """Share of wrong pixels in each band, such as `error/1-3 px`."""
        names = [f"error/{low}-{high} px" for low, high in pairwise(BANDS_PX)] + [f"error/over {BANDS_PX[-1]} px"]
        pairs = zip(names, self._wrong, self._all, strict=True)
        return {name: float(wrong / total) for name, wrong, total in pairs if total}


def distance_to_boundary(ids: UInt8[np.ndarray, "height width"]) -> Float32[np.ndarray, "height width"]:
    """Pixels to the nearest one of another class, at least 1; infinite where there is one class only, and for void
    pixels (id 0), which have no class."""
    found = np.full(ids.shape, np.inf, np.float32)
    void = ids == 0
    present = np.unique(ids[~void])
    for value in present if len(present) > 1 else []:
        own = ids == value
        same = (own | void).astype(np.uint8)
        found[own] = cv2.distanceTransform(same, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[own]
    return found
