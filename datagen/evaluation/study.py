"""What a student looks at: batches of views of real and synthetic pictures, and test pictures at the same scale."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Lock

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from datagen.adaptation.batches import Rounds
from datagen.datasets import AnnotatedImages
from datagen.evaluation.cutmix import Box, draw_box, mix_pictures
from decoders.augmentation import Augmentation, make_view, recolour
from decoders.errors import UserError
from decoders.labels import AnnotatedImage, InstanceSet, LabelSet
from decoders.resizing import Size, resize_image, resize_label, working_size

_MEMORY = 2 * 2**30
"""Bytes of pictures and labels kept, so that small datasets are read once."""


class Kept:
    """The pictures of a dataset with the labels that are learned from; those used last stay in memory."""

    def __init__(self, data: AnnotatedImages, *, labels: Sequence[str], memory: int = _MEMORY) -> None:
        self._data = data
        self._labels = labels
        self._memory = memory
        self._held: OrderedDict[int, AnnotatedImage] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()  # the next batch is made in another thread than the teacher's

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> AnnotatedImage:
        """The picture with the labels that are learned from alone.

        Raises:
            UserError: a label that is learned from is missing.
        """
        with self._lock:
            if index in self._held:
                self._held.move_to_end(index)
                return self._held[index]
            picture = self._data[index]
            if missing := [name for name in self._labels if name not in picture.labels]:
                raise UserError(
                    f"picture {picture.name} has no label {missing[0]!r}, only {', '.join(sorted(picture.labels))}; "
                    "take a student that learns from these, or a dataset that has it"
                )
            picture = replace(picture, labels={name: picture.labels[name] for name in self._labels})
            self._held[index] = picture
            self._bytes += _bytes(picture)
            while self._bytes > self._memory and len(self._held) > 1:
                _, dropped = self._held.popitem(last=False)
                self._bytes -= _bytes(dropped)
            return picture


def _bytes(picture: AnnotatedImage) -> int:
    total = picture.image.nbytes
    for label in picture.labels.values():
        total += label.masks.nbytes if isinstance(label, InstanceSet) else label.values.nbytes + 5 * label.valid.nbytes
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Pictures that a batch is partly made of."""

    pictures: Kept
    chosen: Sequence[int]
    """Which of them, by number."""
    slots: int
    """How many of each batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyBatch:
    """Views side by side: those of real pictures first."""

    pictures: Float[Tensor, "batch 3 height width"]
    """0..1."""
    labels: Sequence[LabelSet]
    weak: Float[Tensor, "synthetic 3 height width"] | None = None
    """The synthetic ones again in their own colours, for a teacher."""
    boxes: Sequence[Box | None] = ()
    """Of each of these, where the student sees the next one instead: `mix_labels` does so to what a teacher says."""


class Study:
    """Batch `number` is a function of its number."""

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        size: Size,
        augmentation: Augmentation,
        taught: bool,
        seed: int,
    ) -> None:
        """
        Args:
            taught: whether a teacher labels the last part. It sees that in its own colours, the student in others, and
                partly covered by another picture: strong and weak views, as those who learn from such labels have them
                (UniMatch, arXiv 2208.09910).
        """
        self._parts = parts
        self._rounds = [Rounds(len(part.chosen), seed=seed + place) for place, part in enumerate(parts)]
        self._size = size
        self._augmentation = augmentation
        self._plain = replace(augmentation, jitter=0.0)
        self._taught = taught
        self._seed = seed

    def __call__(self, number: int) -> StudyBatch:
        """Batch number 0, 1, ..., the same whenever it is asked for.

        Raises:
            UserError: a picture cannot be read, or has no such label.
        """
        *others, last = (self._views(place, number) for place in range(len(self._parts)))
        views = [view for part in others for view in part]
        labels = [view.labels for view in (*views, *last)]
        pictures = [view.image for view in views]
        if not self._taught:
            return StudyBatch(pictures=as_tensor([*pictures, *(view.image for view in last)]), labels=labels)
        stream = np.random.default_rng([self._seed, number])
        boxes = [draw_box(stream, self._size) for _ in last]
        strong = as_tensor([recolour(view.image, seed=int(stream.integers(2**31))) for view in last])
        seen = mix_pictures(strong, boxes)
        return StudyBatch(
            pictures=torch.cat([as_tensor(pictures), seen]) if pictures else seen,
            labels=labels,
            weak=as_tensor([view.image for view in last]),
            boxes=boxes,
        )

    def _views(self, place: int, number: int) -> list[AnnotatedImage]:
        """Those of one part in a batch: each picture gets another view in each round."""
        part = self._parts[place]
        plain = self._taught and place == len(self._parts) - 1
        views: list[AnnotatedImage] = []
        for slot in range(part.slots):
            turn, position = self._rounds[place].at(number * part.slots + slot)
            index = part.chosen[position]
            views.append(
                make_view(
                    part.pictures[index],
                    view=turn + 1,
                    size=self._size,
                    augmentation=self._plain if plain else self._augmentation,
                    seed=(self._seed, place, index),
                )
            )
        return views


def as_tensor(images: Sequence[UInt8[np.ndarray, "height width 3"]]) -> Float[Tensor, "batch 3 height width"]:
    """0..1."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def shown(picture: AnnotatedImage, size: Size, multiple: int) -> Float[Tensor, "1 3 height width"]:
    """A whole picture, its short side as long as that of the views: the scale at which depths are what they say."""
    height, width = picture.image.shape[:2]
    scaled = working_size((height, width), short_side=min(size), multiple=multiple)
    return as_tensor([resize_image(picture.image, scaled)])


def at_native_size(labels: LabelSet, picture: AnnotatedImage) -> LabelSet:
    """What was said of a picture, in its own pixels."""
    height, width = picture.image.shape[:2]
    return {name: resize_label(label, (height, width)) for name, label in labels.items()}
