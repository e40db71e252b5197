"""A part of another picture, with its labels, in the place of one's own (CutMix, arXiv 1905.04899)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float
from torch import Tensor

from decoders.labels import DenseMap, Label, LabelSet
from decoders.resizing import Size

Box = tuple[slice, slice]
"""Rows and columns of a view."""

_SHARE = (0.02, 0.4)
"""Of the view, that a box covers; evenly drawn, as its proportions are (UniMatch, arXiv 2208.09910)."""
_PROPORTIONS = (0.3, 1 / 0.3)


def draw_box(stream: np.random.Generator, size: Size) -> Box | None:
    """What is replaced of a view of this height and width: nothing of every other view."""
    if stream.random() < 0.5:
        return None
    area = stream.uniform(*_SHARE) * size[0] * size[1]
    proportion = stream.uniform(*_PROPORTIONS)
    sides = np.minimum(np.rint(np.sqrt([area * proportion, area / proportion])), size).astype(int)
    top, left = (int(stream.integers(whole - side + 1)) for whole, side in zip(size, sides, strict=True))
    return slice(top, top + int(sides[0])), slice(left, left + int(sides[1]))


def mix_pictures(
    pictures: Float[Tensor, "views 3 height width"], boxes: Sequence[Box | None]
) -> Float[Tensor, "views 3 height width"]:
    """Each view with its box taken from the next one, the last from the first."""
    mixed = pictures.clone()
    for index, box in enumerate(boxes):
        if box is not None:
            mixed[index, :, *box] = pictures[(index + 1) % len(pictures), :, *box]
    return mixed


def mix_labels(labels: Sequence[LabelSet], boxes: Sequence[Box | None]) -> list[LabelSet]:
    """The same of their maps."""
    return [
        own if box is None else {name: _pasted(label, other[name], box) for name, label in own.items()}
        for own, other, box in zip(labels, [*labels[1:], *labels[:1]], boxes, strict=True)
    ]


def _pasted(own: Label, other: Label, box: Box) -> DenseMap:
    assert isinstance(own, DenseMap), "objects have no teacher, or the plan is refused"
    assert isinstance(other, DenseMap), "a student says the same kinds of labels of every picture"
    planes = {name: getattr(own, name).copy() for name in ("values", "valid", "confidence")}
    for name, plane in planes.items():
        plane[box] = getattr(other, name)[box]
    return replace(own, **planes)
