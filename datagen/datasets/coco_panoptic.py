"""COCO's panoptic form: one PNG of segment ids for each picture, and a JSON that says what the segments are."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from datagen.coco_format import SegmentEntry, read_panoptic
from datagen.datasets import (
    AnnotatedImages,
    Names,
    check_categories,
    check_present,
    check_size,
    make_taxonomy,
    pictures_by_name,
    select,
    with_pixels,
)
from datagen.files import read_image
from datagen.panoptic import from_colors
from decoders.errors import UserError
from decoders.labels import AnnotatedImage, InstanceSet, semantic_map


class CocoPanoptic(AnnotatedImages):
    """Labels `semantic` and `instances`; pixels of no segment and of crowds are void."""

    def __init__(
        self,
        *,
        root: Path,
        annotations: str = "annotations/panoptic.json",
        segments: str = "panoptic",
        images: str = "images",
        colors: Mapping[str, tuple[int, int, int]] | None = None,
        names: Names | None = None,
        first: int | None = None,
        every: int = 1,
    ) -> None:
        """
        Args:
            root: folder that holds the others.
            annotations: JSON of the segments, below root.
            segments: folder of the PNGs that the JSON's annotations name.
            images: folder of the pictures, below root.
            colors: red, green and blue of classes on sheets and in palettes, 0..255; chosen when left out.
            names, first, every: which pictures: those named (a list, or a file with a name in each line), or each n-th
                and of these the first so many; all when left out.

        Raises:
            UserError: the JSON or a picture is missing, or the JSON contradicts itself.
        """
        self._root = root.expanduser()
        self._json = self._root / annotations
        file = read_panoptic(self._json)
        check_categories(file.categories, self._json)
        classes = {category.id: category for category in sorted(file.categories, key=lambda category: category.id)}
        self.taxonomy = make_taxonomy(
            {number: category.name for number, category in classes.items()},
            things=[category.name for category in classes.values() if category.isthing],
            colors=colors,
        )
        self._semantic_ids = {number: semantic_id for semantic_id, number in enumerate(classes, start=1)}
        by_name = pictures_by_name(file.images, self._json)
        pictures = {picture.id: (name, picture) for name, picture in by_name.items()}
        self._segments: dict[str, tuple[Path, list[SegmentEntry]]] = {}
        self._files: dict[str, Path] = {}
        for one in file.annotations:
            if one.image_id not in pictures:
                raise UserError(
                    f"{self._json}: segments of image id {one.image_id}, which is not in `images`; "
                    "add it or remove them"
                )
            name, picture = pictures[one.image_id]
            if name in self._files:
                raise UserError(f"{self._json}: the segments of {picture.file_name} are given twice; remove one")
            self._files[name] = self._root / images / picture.file_name
            self._segments[name] = (self._root / segments / one.file_name, one.segments_info)
        self.names = select(list(self._files), names=names, first=first, every=every, where=self._json)
        check_present([by_name[name].file_name for name in self.names], root=self._root, images=images)

    def load(self, name: str) -> AnnotatedImage:
        (path, segments), image = self._segments[name], read_image(self._files[name])
        ids = from_colors(read_image(path))
        check_size(image, ids.shape, paths=(self._files[name], path))
        known = {segment.id: segment for segment in segments}
        if unknown := sorted(set(np.unique(ids).tolist()) - known.keys() - {0}):
            raise UserError(
                f"{path} holds segment {unknown[0]}, which {self._json} does not describe; expected "
                f"{sorted(known)[:9]} ...: take the JSON that belongs to these PNGs"
            )
        semantic = np.zeros(ids.shape, np.uint8)
        things: list[tuple[SegmentEntry, int]] = []
        for segment in segments:
            semantic_id = self._semantic_ids.get(segment.category_id)
            if semantic_id is None:
                raise UserError(
                    f"{self._json}: segment {segment.id} of {path.name} has category id {segment.category_id}, "
                    f"expected one of {sorted(self._semantic_ids)}; add it to `categories`"
                )
            if not segment.iscrowd:
                semantic[ids == segment.id] = semantic_id
            if self.taxonomy.is_thing[semantic_id - 1]:
                things.append((segment, semantic_id))
        found = InstanceSet.collect(
            [ids == segment.id for segment, _ in things],
            [semantic_id for _, semantic_id in things],
            size=(ids.shape[0], ids.shape[1]),
            scores=[segment.score for segment, _ in things],
            is_crowd=[bool(segment.iscrowd) for segment, _ in things],
        )
        objects, called, empty = with_pixels(found, [f"segment {segment.id}" for segment, _ in things])
        labels = {"semantic": semantic_map(semantic), "instances": objects}
        return AnnotatedImage(name=name, image=image, labels=labels, object_names=called, empty_objects=empty)
