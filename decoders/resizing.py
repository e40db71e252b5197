"""Pictures and maps at another size: one arithmetic for fitting and for reading, so that both see the same pixels."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from PIL import Image

from decoders.labels import NORMALS_STORAGE, InstanceSet, Label

Size = tuple[int, int]
"""Height and width in pixels."""

Pixel = TypeVar("Pixel", bound=np.generic)


def resize_image(image: UInt8[np.ndarray, "height width 3"], size: Size) -> UInt8[np.ndarray, "_ _ 3"]:
    """Bicubic, with a wider kernel when shrinking, so that thin things fade instead of flickering."""
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def resize_nearest(
    array: np.ndarray[tuple[int, ...], np.dtype[Pixel]], size: Size
) -> np.ndarray[tuple[int, ...], np.dtype[Pixel]]:
    """Each new pixel copies the old pixel under its centre; values are never blended. Array: (height, width, ...)."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp) for new, old in zip(size, array.shape[:2], strict=True)
    )
    return array[rows[:, None], columns[None, :]]


def resize_label(label: Label, size: Size) -> Label:
    """A label at another size, nowhere blended."""
    if isinstance(label, InstanceSet):
        masks = resize_nearest(label.masks.transpose(1, 2, 0), size).transpose(2, 0, 1)
        points = label.keypoints_px
        if points is not None:
            points = resize_points(points, label.masks.shape[1:], size)
        return replace(label, masks=np.ascontiguousarray(masks), keypoints_px=points)
    return replace(
        label,
        values=resize_nearest(label.values, size),
        valid=resize_nearest(label.valid, size),
        confidence=resize_nearest(label.confidence, size),
    )


def resize_points(
    points: Float32[np.ndarray, "objects points 3"], old: Size, new: Size
) -> Float32[np.ndarray, "objects points 3"]:
    """Points of a picture of `old` size in one of `new` size; those that are not given stay (0, 0, 0)."""
    scale = np.array([new[1] / old[1], new[0] / old[0]], np.float32)
    moved = np.concatenate([(points[..., :2] + 0.5) * scale - 0.5, points[..., 2:]], axis=-1)
    return np.where(points[..., 2:] > 0, moved, 0).astype(np.float32)


def inside(points: Float[np.ndarray, "*points 2"], size: Size) -> Bool[np.ndarray, "*points"]:
    """Whether places x, y lie on a pixel of a picture, whose first pixel spans -0.5..0.5; false for NaN."""
    return np.logical_and.reduce((points >= -0.5) & (points < np.array(size[::-1]) - 0.5), axis=-1)


def mirror_label(label: Label, swap: Sequence[int] = ()) -> Label:
    """Left and right exchanged, in the directions and the names of points that a label holds too.

    Args:
        swap: for each point of an object, the number of the one that takes its place.
    """
    if isinstance(label, InstanceSet):
        masks, points = np.ascontiguousarray(label.masks[:, :, ::-1]), label.keypoints_px
        if points is not None:
            last = label.masks.shape[2] - 1
            points = np.where(points[..., 2:] > 0, points * [-1, 1, 1] + [last, 0, 0], 0)[:, list(swap)]
            points = points.astype(np.float32)
        return replace(label, masks=masks, keypoints_px=points)
    values, valid, confidence = (plane[:, ::-1] for plane in (label.values, label.valid, label.confidence))
    if label.storage.unit == NORMALS_STORAGE.unit:
        values = values * np.array([-1, 1, 1], np.float32)
    return replace(
        label,
        values=np.ascontiguousarray(values),
        valid=np.ascontiguousarray(valid),
        confidence=np.ascontiguousarray(confidence),
    )


def round_size(size: Size | tuple[float, float], multiple: int) -> Size:
    """The nearest height and width that are multiples of `multiple`, at least one of each."""
    height, width = (max(multiple, int(side / multiple + 0.5) * multiple) for side in size)
    return height, width


def coarsening(size: Size | tuple[int, ...], side: int) -> int:
    """The power of two by which to shrink a size so that its shorter side is below twice `side`."""
    factor = 1
    while min(size) >= 2 * factor * side:
        factor *= 2
    return factor


def working_size(native: Size, *, short_side: int | None, multiple: int) -> Size:
    """The size at which a picture is read: scaled to `short_side`, or its own where that is 0 or None, rounded to what
    the perceiver takes.
    """
    scale = short_side / min(native) if short_side else 1.0
    return round_size((native[0] * scale, native[1] * scale), multiple)
