"""Guides of recipes, also at other sizes; labels are never blended."""

from dataclasses import replace

import numpy as np

from datagen.records import Guide, Recipe
from decoders.errors import UserError
from decoders.labels import InstanceSet, Label
from decoders.resizing import Size, resize_image, resize_label


def guide_of(recipe: Recipe) -> Guide:
    """The guide of a recipe that must have one.

    Raises:
        UserError: it has none.
    """
    if recipe.guide is None:
        raise UserError(
            f"recipe {recipe.id} brings no geometry, expected a guide; use a source that has one, such as layouts"
        )
    return recipe.guide


def resize_guide(guide: Guide, size: Size) -> Guide:
    """A guide as large as asked for."""
    return Guide(
        labels={task: resize_label(label, size) for task, label in guide.labels.items()},
        image=None if guide.image is None else resize_image(guide.image, size),
    )


def pad_guide(guide: Guide, size: Size) -> Guide:
    """A guide enlarged to the right and below, where its last pixels are repeated."""
    height, width = guide.size
    if (height, width) == size:
        return guide
    margins = ((0, size[0] - height), (0, size[1] - width))

    def padded(array: np.ndarray, axis: int = 0) -> np.ndarray:
        around = [(0, 0)] * array.ndim
        around[axis : axis + 2] = margins
        return np.pad(array, around, mode="edge")

    labels: dict[str, Label] = {}
    for task, label in guide.labels.items():
        if isinstance(label, InstanceSet):
            labels[task] = replace(label, masks=padded(label.masks, axis=1))
        else:
            planes = {name: padded(getattr(label, name)) for name in ("values", "valid", "confidence")}
            labels[task] = replace(label, **planes)
    return Guide(labels=labels, image=None if guide.image is None else padded(guide.image))
