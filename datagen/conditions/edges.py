"""Lines: those of the picture, or those between what is labelled."""

from typing import Annotated, Literal

import cv2
import numpy as np
from annotated_types import Ge
from jaxtyping import Bool, Float32, Int64

from datagen.records import Guide
from decoders.errors import UserError
from decoders.labels import CATEGORY, InstanceSet

Threshold = Annotated[float, Ge(0)]
_LOW, _HIGH = 100.0, 200.0
"""What published edge ControlNets were trained with."""


class Edges:
    """Three equal planes, 1 on a line and 0 beside it, at the guide's own size.

    Of a picture: Canny's edges, which keep more than the labels say, such as windows and lane markings. Of labels:
    where a class or an object ends, one pixel wide: the last pixel before the border, seen from the left or from above.
    """

    channels = 3

    def __init__(
        self, *, of: Literal["picture", "labels"] = "picture", low: Threshold = _LOW, high: Threshold = _HIGH
    ) -> None:
        """
        Args:
            of: edges of the picture that the guide comes with, or of its label map.
            low, high: Canny's thresholds for the gradient of 8-bit colours: above `high` an edge begins, and it goes on
                while it stays above `low`.

        Raises:
            UserError: `low` is above `high`, or there are thresholds for labels.
        """
        if low > high:
            raise UserError(f"edges: found low {low:g} above high {high:g}; expected the smaller number in `low`")
        if of == "labels" and (low, high) != (_LOW, _HIGH):
            raise UserError("edges: `of: labels` has no thresholds; remove `low` and `high`, or set `of: picture`")
        self._of = of
        self._low = low
        self._high = high

    def draw(self, guide: Guide) -> Float32[np.ndarray, "3 height width"]:
        lines = _borders(guide) if self._of == "labels" else self._canny(guide)
        return np.repeat(lines[None].astype(np.float32), self.channels, axis=0)

    def _canny(self, guide: Guide) -> Bool[np.ndarray, "height width"]:
        if guide.image is None:
            raise UserError(
                "edges: `of: picture` needs the picture that the labels were made for, and this guide has none; set "
                "`of: labels`, or use a source with pictures"
            )
        return cv2.Canny(guide.image, self._low, self._high) > 0


def _borders(guide: Guide) -> Bool[np.ndarray, "height width"]:
    lines = np.zeros(guide.size, bool)
    known = False
    for label in guide.labels.values():
        if isinstance(label, InstanceSet):
            regions = _numbered(label)
        elif label.storage.unit == CATEGORY:
            regions = np.where(label.valid, label.values[..., 0], 0)
        else:
            continue
        known = True
        lines[:, :-1] |= regions[:, :-1] != regions[:, 1:]
        lines[:-1] |= regions[:-1] != regions[1:]
    if not known:
        raise UserError(
            f"edges: `of: labels` needs classes or objects, found the labels {sorted(guide.labels)} in a guide; set "
            "`of: picture`, or use a source with such labels"
        )
    return lines


def _numbered(objects: InstanceSet) -> Int64[np.ndarray, "height width"]:
    """Each single object as a number of its own, the smaller one on top; 0 elsewhere and in crowds."""
    numbers = np.zeros(objects.masks.shape[1:], np.int64)
    for index in objects.back_to_front:
        if not objects.is_crowd[index]:
            numbers[objects.masks[index]] = index + 1
    return numbers
