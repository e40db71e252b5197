"""Cityscapes as it is distributed: `leftImg8bit` beside `gtFine`, with objects from the instance PNGs."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from datagen.datasets import AnnotatedImages, Names, check_size, list_images
from datagen.datasets.label_folder import LabelFolder
from datagen.files import read_label_png
from decoders.errors import UserError
from decoders.labels import AnnotatedImage, InstanceSet

CLASSES: Mapping[int, str] = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
"""The 19 classes that are scored, by label id; all other ids are void."""
THINGS = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
_IDS = range(34)
_OBJECTS_FROM = 1000
"""Instance ids: label id x 1000 + number; below, a region of several objects that nobody separated."""


class Cityscapes(AnnotatedImages):
    """Labels `semantic` and `instances`; regions of several unseparated objects are crowds."""

    def __init__(
        self,
        *,
        root: Path,
        split: str = "train",
        annotations: str = "gtFine",
        names: Names | None = None,
        first: int | None = None,
        every: int = 1,
    ) -> None:
        """
        Args:
            root: folder that holds `leftImg8bit` and `gtFine`.
            split: folder below each of these: train, val, ...
            annotations: `gtFine` or `gtCoarse`.
            names, first, every: which pictures: those named (a list, or a file with a name in each line), or each n-th
                and of these the first so many; all when left out.

        Raises:
            UserError: a folder is missing, or a picture has no label.
        """
        labels = f"{annotations}/{split}"
        self._folder = LabelFolder(
            root=root,
            classes=CLASSES,
            void=[label_id for label_id in _IDS if label_id not in CLASSES],
            images=f"leftImg8bit/{split}",
            labels=labels,
            image_ending="_leftImg8bit",
            label_ending=f"_{annotations}_labelIds",
            things=THINGS,
            names=names,
            first=first,
            every=every,
        )
        self.taxonomy = self._folder.taxonomy
        self.names = self._folder.names
        ending = f"_{annotations}_instanceIds"
        self._objects = list_images(root.expanduser() / labels, what="instances", ending=ending)
        if missing := [name for name in self.names if name not in self._objects]:
            raise UserError(
                f"{len(missing)} of {len(self.names)} pictures have no instances in {root / labels}, first "
                f"{missing[0]}{ending}.png; unpack the whole of {annotations}"
            )

    def load(self, name: str) -> AnnotatedImage:
        picture, path = self._folder.load(name), self._objects[name]
        ids = read_label_png(path).astype(np.int64)
        check_size(picture.image, ids.shape, paths=(Path(f"{name}_leftImg8bit.png"), path))
        label_ids = list(CLASSES)
        things = {label_id: number for number, label_id in enumerate(label_ids, start=1) if CLASSES[label_id] in THINGS}
        found = [
            (value, things[kind])
            for value in np.unique(ids).tolist()
            if (kind := value // _OBJECTS_FROM if value >= _OBJECTS_FROM else value) in things
        ]
        objects = InstanceSet.collect(
            [ids == value for value, _ in found],
            [semantic_id for _, semantic_id in found],
            size=(ids.shape[0], ids.shape[1]),
            is_crowd=[value < _OBJECTS_FROM for value, _ in found],
        )
        return replace(picture, labels={**picture.labels, "instances": objects})
