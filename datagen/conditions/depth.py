"""How near things are, as published depth ControlNets expect it."""

from pathlib import Path

import numpy as np
from jaxtyping import Float32

from datagen.labellers.decoded import Decoded
from datagen.model import Model
from datagen.records import Guide
from decoders.errors import UserError
from decoders.labels import METRIC_DEPTH_STORAGE, RELATIVE_DEPTH_STORAGE, DenseMap, LabelSet

_UNITS = (METRIC_DEPTH_STORAGE.unit, RELATIVE_DEPTH_STORAGE.unit)


class Depth:
    """Three equal planes of inverse depth: 1 at the nearest valid pixel of the picture, 0 at the farthest.

    Inverse and stretched picture by picture, since that is what MiDaS answers (arXiv 1907.01341), whose maps published
    depth ControlNets were trained with. Pixels without a depth, such as the sky, are 0; where all depths are equal they
    are 1, to stand out from the sky.
    """

    channels = 3

    def __init__(self, *, reader: Path | None = None, model: Model | None = None) -> None:
        """
        Args:
            reader: folder of a reader that says depth, asked about the guide's picture where the guide has none.
            model: a checkpoint that the reader may borrow.
        """
        self._reader = None if reader is None else Decoded(reader=reader, model=model)

    @property
    def digest(self) -> str | None:
        """Identity of the reader; None where there is none."""
        return None if self._reader is None else self._reader.digest

    def draw(self, guide: Guide) -> Float32[np.ndarray, "3 height width"]:
        depth = self._depth(guide)
        values = depth.values[..., 0]
        valid = depth.valid & np.isfinite(values)
        if depth.storage.unit == METRIC_DEPTH_STORAGE.unit:
            valid &= values > 0
            values = np.divide(1, values, out=np.zeros_like(values), where=valid)
        near = np.zeros(values.shape, np.float32)
        if valid.any():
            low, high = values[valid].min(), values[valid].max()
            near[valid] = (values[valid] - low) / (high - low) if high - low > 0 else 1
        return np.repeat(near[None], self.channels, axis=0)

    def _depth(self, guide: Guide) -> DenseMap:
        found = _depth_in(guide.labels)
        if found is None and self._reader is not None and guide.image is not None:
            found = _depth_in(self._reader.label([], guide.image[None])[0])
        if found is None:
            raise UserError(
                f"depth needs a map of one of the units {_UNITS}, found the labels {sorted(guide.labels)} in a guide; "
                "use a source whose pictures have depths, or a `reader` that says depth and a source with pictures"
            )
        return found


def _depth_in(labels: LabelSet) -> DenseMap | None:
    """The first by name, so that metres in `depth` come before what is relative."""
    for _, label in sorted(labels.items()):
        if isinstance(label, DenseMap) and label.storage.unit in _UNITS:
            return label
    return None
