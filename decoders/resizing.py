"""Pictures and maps at another size: one arithmetic for fitting and for reading, so that both see the same pixels."""

from dataclasses import replace
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from decoders.labels import NORMALS_STORAGE, DenseMap, InstanceSet, Label

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
        return replace(label, masks=np.ascontiguousarray(masks))
    return DenseMap(
        values=resize_nearest(label.values, size),
        valid=resize_nearest(label.valid, size),
        confidence=resize_nearest(label.confidence, size),
        storage=label.storage,
    )


def mirror_label(label: Label) -> Label:
    """Left and right exchanged, in the directions that a label holds too."""
    if isinstance(label, InstanceSet):
        return replace(label, masks=np.ascontiguousarray(label.masks[:, :, ::-1]))
    values, valid, confidence = (plane[:, ::-1] for plane in (label.values, label.valid, label.confidence))
    if label.storage.unit == NORMALS_STORAGE.unit:
        values = values * np.array([-1, 1, 1], np.float32)
    return DenseMap(
        values=np.ascontiguousarray(values),
        valid=np.ascontiguousarray(valid),
        confidence=np.ascontiguousarray(confidence),
        storage=label.storage,
    )


def round_size(size: Size | tuple[float, float], multiple: int) -> Size:
    """The nearest height and width that are multiples of `multiple`, at least one of each."""
    height, width = (max(multiple, int(side / multiple + 0.5) * multiple) for side in size)
    return height, width


def working_size(native: Size, *, short_side: int | None, multiple: int) -> Size:
    """The size at which a picture is read: its own, or scaled to `short_side`, rounded to what the perceiver takes."""
    scale = 1.0 if short_side is None else short_side / min(native)
    return round_size((native[0] * scale, native[1] * scale), multiple)
