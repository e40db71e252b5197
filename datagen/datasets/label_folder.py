"""Pictures beside label PNGs of the same name: CamVid, Cityscapes, most people's own data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from datagen.datasets import (
    AnnotatedImages,
    Names,
    check_size,
    list_images,
    make_taxonomy,
    place,
    select,
    to_semantic_ids,
)
from datagen.files import LABEL_SUFFIXES, read_image, read_label_file
from decoders.errors import UserError
from decoders.labels import AnnotatedImage, DenseMap, Label, metric_depth, relative_depth, semantic_map

_UNNAMED = "scene"
"""The one class where nobody named any: what is read of a model is the attention to some phrase."""
_DEPTH_SCALE = 1 / 256
"""Metres per step, as KITTI has it."""


class LabelFolder(AnnotatedImages):
    """`root/images/a.jpg` with `root/labels/a.png` and, if wanted, `root/depth/a.png`; NPY arrays serve as well.

    Where pictures in several subfolders share a name, their label files must lie in equal subfolders.
    """

    def __init__(
        self,
        *,
        root: Path,
        classes: Mapping[int, str] | Sequence[str] = (),
        void: Sequence[int] = (),
        images: str = "images",
        labels: str | None = "labels",
        depth: str | None = None,
        depth_kind: Literal["distance", "inverse"] = "distance",
        depth_scale: float | None = None,
        image_ending: str = "",
        label_ending: str = "",
        depth_ending: str = "",
        things: Sequence[str] = (),
        colors: Mapping[str, tuple[int, int, int]] | None = None,
        names: Names | None = None,
        first: int | None = None,
        every: int = 1,
    ) -> None:
        """
        Args:
            root: folder that holds the others.
            images: folder of the pictures, below root.
            depth: folder of the depth files, below root; none when left out.
            classes: names by label id; of a list, the position is the id, from 0. May be left out where `labels` is
                null.
            labels: folder of the label files; null where there are depths only, and `classes` is no more than what the
                model is asked to look for: `scene` when left out.
            void: label ids of pixels that nobody knows; losses and metrics skip them.
            depth_kind: `inverse` where larger values are nearer and the unit is anybody's guess (disparity, MiDaS):
                such maps teach the task relative_depth.
            depth_scale: of distances, metres per step of the depth files, in which 0 means unknown: 1/256 as KITTI has
                it when left out, 0.001 for millimetres (NYU), 1 for NPY arrays of metres.
            image_ending, label_ending, depth_ending: what a stem has after the name, as `_gtFine_labelIds`.
            things: names of the classes that can be counted.
            colors: red, green and blue of classes on sheets and in palettes, 0..255; chosen when left out.
            names, first, every: which pictures: those named (a list, or a file with a name in each line), or each n-th
                and of these the first so many; all when left out.

        Raises:
            UserError: a folder is missing, a picture has no label, labels have no classes, or classes and void
                contradict each other.
        """
        if labels is None and depth is None:
            raise UserError("found neither `labels` nor `depth`; name at least one folder of what is known")
        if labels is not None and not classes:
            raise UserError(
                "found no `classes`, expected the name of each label id; name them, or set `labels: null` where there "
                "are depths only"
            )
        root = root.expanduser()
        classes = classes or (_UNNAMED,)
        table = dict(classes) if isinstance(classes, Mapping) else dict(enumerate(classes))
        if both := sorted(table.keys() & set(void)):
            raise UserError(f"label ids {both} are named in `classes` and in `void`; take them out of one")
        self.taxonomy = make_taxonomy(table, things=things, colors=colors)
        self._table = {label_id: semantic_id for semantic_id, label_id in enumerate(table, start=1)}
        self._table |= dict.fromkeys(void, 0)
        self._images = list_images(root / images, what="pictures", ending=image_ending)
        self._places = {
            name: place(path.relative_to(root / images), image_ending) for name, path in self._images.items()
        }
        self.names = select(list(self._images), names=names, first=first, every=every, where=root / images)
        self._labels = None if labels is None else self._partners(root / labels, what="labels", ending=label_ending)
        self._depths = None if depth is None else self._partners(root / depth, what="depths", ending=depth_ending)
        self._depth_kind = depth_kind
        self._depth_scale = _DEPTH_SCALE if depth_scale is None else depth_scale
        steps = [path for path in (self._depths or {}).values() if path.suffix.lower() != ".npy"]
        if steps and depth_scale is None and depth_kind == "distance":
            self.assumed_depth_scale = _DEPTH_SCALE

    def _partners(self, folder: Path, *, what: str, ending: str) -> dict[str, Path]:
        """Files by the names of the pictures: of an equal subfolder, or else of an equal name."""
        found = list_images(folder, what=what, ending=ending, suffixes=LABEL_SUFFIXES)
        by_place = {place(path.relative_to(folder), ending): path for path in found.values()}
        beside = {name: by_place[where] for name, where in self._places.items() if where in by_place}
        taken = set(beside.values())
        partners = {name: path for name, path in found.items() if path not in taken} | beside
        if missing := [name for name in self.names if name not in partners]:
            first = self._places[missing[0]]
            expected = first if missing[0] == first.replace("/", "__") else missing[0]
            raise UserError(
                f"{len(missing)} of {len(self.names)} pictures have no file among the {what} in {folder}, first "
                f"{self._images[missing[0]].name}, expected {expected}{ending}.png or .npy; "
                "add it, or list others in `names`"
            )
        return partners

    def load(self, name: str) -> AnnotatedImage:
        path = self._images[name]
        image = read_image(path)
        labels: dict[str, Label] = {}
        if self._labels is not None:
            label_path = self._labels[name]
            label_ids = read_label_file(label_path)
            check_size(image, label_ids.shape, paths=(path, label_path))
            labels["semantic"] = semantic_map(to_semantic_ids(label_ids, self._table, path=label_path))
        if self._depths is not None:
            labels["depth"] = self._depth(image, path, self._depths[name])
        return AnnotatedImage(name=name, image=image, labels=labels)

    def _depth(self, image: UInt8[np.ndarray, "height width 3"], path: Path, depth_path: Path) -> DenseMap:
        steps = read_label_file(depth_path, floats=True)
        check_size(image, steps.shape, paths=(path, depth_path))
        if self._depth_kind == "inverse":
            return relative_depth(steps.astype(np.float32))
        return metric_depth((steps * np.float64(self._depth_scale)).astype(np.float32))
