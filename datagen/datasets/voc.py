"""PASCAL VOC's form: palette PNGs in which 0 is the background and 255 nobody's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from datagen.datasets import (
    BACKGROUND,
    AnnotatedImages,
    Names,
    check_size,
    list_images,
    make_taxonomy,
    normal,
    read_names,
    select,
    to_semantic_ids,
)
from datagen.files import read_image, read_label_png
from decoders.errors import UserError
from decoders.labels import AnnotatedImage, semantic_map

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table", "dog",
    "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor",
)  # fmt: skip
"""Of VOC2012; the first has label id 1."""
_VOID = 255


class Voc(AnnotatedImages):
    """`JPEGImages`, `SegmentationClass` and `ImageSets/Segmentation/<split>.txt` under one root."""

    def __init__(
        self,
        *,
        root: Path,
        split: str | None = None,
        classes: Sequence[str] = VOC_CLASSES,
        unmarked: Literal["background", "void"] = BACKGROUND,
        images: str = "JPEGImages",
        labels: str = "SegmentationClass",
        things: Sequence[str] | None = None,
        colors: Mapping[str, tuple[int, int, int]] | None = None,
        names: Names | None = None,
        first: int | None = None,
        every: int = 1,
    ) -> None:
        """
        Args:
            root: folder that holds the others.
            images, labels: folders of the pictures and the label files, below root.
            split: a list in `ImageSets/Segmentation`, such as train; every picture with a label when left out.
            classes: names of label ids 1, 2, ...
            unmarked: pixels of id 0 are a class "background", listed last, or void.
            things: names of the classes that can be counted; all but the background when left out.
            colors: red, green and blue of classes on sheets and in palettes, 0..255; chosen when left out.
            names, first, every: which pictures: those named (a list, or a file with a name in each line), or each n-th
                and of these the first so many; all when left out.

        Raises:
            UserError: a folder, the list or a picture is missing.
        """
        root = root.expanduser()
        table = dict(enumerate(classes, start=1))
        self._table = {label_id: label_id for label_id in table} | {0: 0, _VOID: 0}
        if unmarked == BACKGROUND:
            self._table[0] = len(table) + 1
            table[len(table) + 1] = BACKGROUND
        self.taxonomy = make_taxonomy(table, things=classes if things is None else things, colors=colors)
        self._images = list_images(root / images, what="pictures")
        self._labels = list_images(root / labels, what="labels")
        found = list(self._labels) if split is None else _read_split(root / "ImageSets/Segmentation" / f"{split}.txt")
        for name in found:
            if name not in self._labels or name not in self._images:
                folder = root / (labels if name in self._images else images)
                raise UserError(f"{name!r} has no file in {folder}; add it or take it out of the list")
        self.names = select(found, names=names, first=first, every=every, where=root)

    def load(self, name: str) -> AnnotatedImage:
        path, label_path = self._images[name], self._labels[name]
        image = read_image(path)
        label_ids = read_label_png(label_path)
        check_size(image, label_ids.shape, paths=(path, label_path))
        semantic = semantic_map(to_semantic_ids(label_ids, self._table, path=label_path))
        return AnnotatedImage(name=name, image=image, labels={"semantic": semantic})


def _read_split(path: Path) -> list[str]:
    return [normal(line.split()[0]) for line in read_names(path)]
