"""Views of an annotated picture: seen nearer or farther, mirrored, in other light; labels move along, never blended.

The one file that imports albumentations (2.0.8, the last MIT release), and only when a view is asked for: the import
takes seconds.
"""

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import UInt8

from decoders.errors import UserError
from decoders.labels import AnnotatedImage, InstanceSet, Label
from decoders.resizing import Size, inside, mirror_label, resize_image, resize_label

BORDER_GREY = 127
"""Of what lies outside a picture, 0..255."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """How far a view may differ from the plain picture."""

    zoom: tuple[float, float] = (0.8, 1.6)
    """Smallest and largest magnification relative to the plain view, drawn evenly in log space."""
    mirror: bool = True
    """Whether half of the views are mirrored."""
    jitter: float = 0.2
    """Largest relative change of brightness, contrast and saturation; hue moves by a tenth of it. 0 = off."""

    def __post_init__(self) -> None:
        low, high = self.zoom
        if not 0.1 <= low <= high <= 10:
            raise UserError(
                f"zoom must be two rising numbers within 0.1..10, found {list(self.zoom)}; [1, 1] switches it off"
            )
        if not 0 <= self.jitter < 1:
            raise UserError(f"jitter must be at least 0 and below 1, found {self.jitter}; 0 switches it off")


def make_view(
    picture: AnnotatedImage,
    *,
    view: int,
    size: Size,
    augmentation: Augmentation,
    seed: Sequence[int],
    mirrored_points: Sequence[int] = (),
) -> AnnotatedImage:
    """View number `view` of a picture at `size`, a pure function of its arguments.

    View 0 is the plain picture, scaled to cover `size` and cropped about its centre (no crop at equal proportions).
    Other views are magnified, cropped at random, mirrored and recoloured. What lies outside the picture is grey, its
    labels invalid with confidence 0: nothing is known there, not even that there is no depth.

    Args:
        seed: what makes the draw unique, such as (run seed, picture number); the view number is added here.
        mirrored_points: which keypoint takes the place of which in a mirror (`Skeleton.mirrored`).

    Raises:
        UserError: a label differs from the picture in size.
    """
    _check(picture)
    native = picture.image.shape[:2]
    cover = max(size[0] / native[0], size[1] / native[1])
    stream = np.random.default_rng([*seed, view])
    low, high = augmentation.zoom
    zoom = 1.0 if view == 0 else float(np.exp(stream.uniform(np.log(low), np.log(high))))
    scaled = (max(1, round(native[0] * cover * zoom)), max(1, round(native[1] * cover * zoom)))
    # A reader scales pictures by their short side; against that, this view shows things larger by `magnification`.
    magnification = cover * zoom / (min(size) / min(native))
    labels = {name: _nearer(resize_label(label, scaled), magnification) for name, label in picture.labels.items()}
    image, labels = _move(
        resize_image(picture.image, scaled), labels, view, size, augmentation, int(stream.integers(2**31))
    )
    if view and augmentation.mirror and stream.random() < 0.5:
        image = np.ascontiguousarray(image[:, ::-1])
        labels = {name: mirror_label(label, mirrored_points) for name, label in labels.items()}
    return AnnotatedImage(name=picture.name, image=image, labels=labels)


def recolour(image: UInt8[np.ndarray, "height width 3"], *, seed: int) -> UInt8[np.ndarray, "height width 3"]:
    """Strongly changed colours and sharpness, every pixel in its place; a pure function of its arguments.

    Other light in four of five pictures, grey in one of five, blur in every other (UniMatch, arXiv 2208.09910).
    """
    compose = _composed.recolouring()
    compose.set_random_seed(seed)
    return np.ascontiguousarray(compose(image=image)["image"])


def _check(picture: AnnotatedImage) -> None:
    for name, label in picture.labels.items():
        size = label.masks.shape[1:] if isinstance(label, InstanceSet) else label.valid.shape
        if size != picture.image.shape[:2]:
            raise UserError(
                f"picture {picture.name} has {picture.image.shape[:2]} pixels (height, width), its {name} label "
                f"{size}; both must be of one size"
            )


def _nearer(label: Label, magnification: float) -> Label:
    """Lengths at a magnification: through the same lens, what looks twice as large is half as far away."""
    if isinstance(label, InstanceSet) or label.storage.unit != "m":
        return label
    return replace(label, values=(label.values / np.float32(magnification)).astype(np.float32))


def _move(
    image: np.ndarray[Any, np.dtype[np.uint8]],
    labels: dict[str, Label],
    view: int,
    size: Size,
    augmentation: Augmentation,
    seed: int,
) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], dict[str, Label]]:
    """Crop and recolour; maps travel as masks, which albumentations moves without interpolation."""
    masks = {f"{name}/{part}": array for name, label in labels.items() for part, array in _planes(label).items()}
    points = {f"{name}/points": array for name, label in labels.items() if (array := _points(label)) is not None}
    compose = _composed.mover(size, view > 0, augmentation.jitter, tuple(masks), tuple(points))
    compose.set_random_seed(seed)
    arrays: dict[str, Any] = {"image": image, **masks, **points}
    moved = {name: np.ascontiguousarray(array) for name, array in compose(**arrays).items()}
    return moved["image"], {name: _moved(label, f"{name}/", moved) for name, label in labels.items()}


def _make_mover(size: Size, random: bool, jitter: float, masks: tuple[str, ...], points: tuple[str, ...]) -> Any:
    """
    Args:
        random: crops anywhere and recolours; else about the centre, and the colours stay.
    """
    albumentations = _albumentations()
    height, width = size
    crop = albumentations.RandomCrop if random else albumentations.CenterCrop
    steps: list[Any] = [
        albumentations.PadIfNeeded(min_height=height, min_width=width, fill=BORDER_GREY, fill_mask=0),
        crop(height=height, width=width),
    ]
    if random and jitter:
        span, hue = (1 - jitter, 1 + jitter), (-jitter / 10, jitter / 10)
        steps.append(albumentations.ColorJitter(brightness=span, contrast=span, saturation=span, hue=hue, p=0.8))
    targets = dict.fromkeys(masks, "mask") | dict.fromkeys(points, "keypoints")
    # Points that leave the view keep their place in the order; `_moved` takes them out.
    how = albumentations.KeypointParams(format="xy", remove_invisible=False) if points else None
    return albumentations.Compose(steps, additional_targets=targets, keypoint_params=how)


def _make_recolouring() -> Any:
    albumentations = _albumentations()
    half = (0.5, 1.5)
    return albumentations.Compose(
        [
            albumentations.ColorJitter(brightness=half, contrast=half, saturation=half, hue=(-0.25, 0.25), p=0.8),
            albumentations.ToGray(p=0.2),
            albumentations.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=0.5),
        ]
    )


def _albumentations() -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks a server for its newest version when imported
    import albumentations

    return albumentations


class _Composed(threading.local):
    """Pipelines by what they are for: to make one takes as long as to use it. It has a random state, so each thread has
    its own."""

    def __init__(self) -> None:
        self.mover = lru_cache(maxsize=64)(_make_mover)
        self.recolouring = lru_cache(maxsize=1)(_make_recolouring)


_composed = _Composed()


def _planes(label: Label) -> dict[str, np.ndarray]:
    """A label as arrays of [height, width] or [height, width, channels]."""
    if isinstance(label, InstanceSet):
        return {str(index): mask.astype(np.uint8) for index, mask in enumerate(label.masks)}
    return {"values": label.values, "valid": label.valid.astype(np.uint8), "confidence": label.confidence}


def _points(label: Label) -> np.ndarray | None:
    """Places of all keypoints of all objects, one below the other."""
    if not isinstance(label, InstanceSet) or label.keypoints_px is None:
        return None
    return label.keypoints_px[..., :2].reshape(-1, 2)


def _moved(label: Label, prefix: str, planes: Mapping[str, np.ndarray]) -> Label:
    """The label with what became of its planes; objects that left the view keep their place with an empty mask."""
    if isinstance(label, InstanceSet):
        masks = [planes[f"{prefix}{index}"].astype(bool) for index in range(len(label.masks))]
        size = planes["image"].shape[:2]
        points = label.keypoints_px
        if points is not None:
            places = planes[f"{prefix}points"].reshape(*points.shape[:2], 2)
            known = inside(places, size)[..., None] & (points[..., 2:] > 0)
            points = np.where(known, np.concatenate([places, points[..., 2:]], axis=-1), 0).astype(np.float32)
        return replace(label, masks=np.stack(masks) if masks else np.zeros((0, *size), bool), keypoints_px=points)
    return replace(
        label,
        values=planes[f"{prefix}values"],
        valid=planes[f"{prefix}valid"].astype(bool),
        confidence=planes[f"{prefix}confidence"],
    )
