"""COCO JSON with its pictures: other people's objects, or a dataset that our own exporter wrote."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32

from datagen.coco_format import Annotation, Category, CocoFile, Picture, read_coco
from datagen.datasets import (
    BACKGROUND,
    AnnotatedImages,
    Names,
    check_categories,
    check_present,
    check_size,
    first_few,
    make_taxonomy,
    pictures_by_name,
    select,
    with_pixels,
)
from datagen.files import read_image
from datagen.packing import confidence_name, unpack_map
from datagen.palette import palette
from datagen.settings import listed, nearest
from decoders.errors import UserError
from decoders.labels import (
    CATEGORY,
    AnnotatedImage,
    DenseMap,
    InstanceSet,
    Label,
    Skeleton,
    Taxonomy,
    semantic_map,
)

ANNOTATIONS = "annotations/instances.json"
"""The file by which a folder is a COCO dataset of ours."""


class Coco(AnnotatedImages):
    """Objects (`instances`) and their union (`semantic`), in which smaller ones lie on top and crowds are void.

    A dataset with PNG maps of its own (`images[i].semantic_file`, `depth_file`, ...) is read through these instead, and
    one of ours that says no classes has only these.
    """

    def __init__(
        self,
        *,
        root: Path,
        annotations: str = ANNOTATIONS,
        images: str = "images",
        classes: Sequence[str] | None = None,
        unmarked: Literal["background", "void"] = BACKGROUND,
        boxes: Literal["refuse", "void"] = "refuse",
        colors: Mapping[str, tuple[int, int, int]] | None = None,
        names: Names | None = None,
        first: int | None = None,
        every: int = 1,
    ) -> None:
        """
        Args:
            root: folder that holds the others.
            annotations: JSON of the objects, below root.
            images: folder of the pictures, below root.
            classes: names of the categories to read, all when left out; objects of others are left out, and their
                pixels are unmarked.
            unmarked: pixels outside all objects are a class "background", listed last unless there is one, or void;
                a dataset with semantic PNGs has said so itself.
            boxes: objects that have a box, but neither outline nor mask, are refused, or the pixels of the box are
                void.
            colors: red, green and blue of classes on sheets and in palettes, 0..255; chosen when left out.
            names, first, every: which pictures: those named (a list, or a file with a name in each line), or each n-th
                and of these the first so many; all when left out.

        Raises:
            UserError: the JSON or a picture is missing, or the JSON contradicts itself.
        """
        self._root = root.expanduser()
        self._json = self._root / annotations
        file = read_coco(self._json)
        self._pictures = pictures_by_name(file.images, self._json)
        self.names = select(list(self._pictures), names=names, first=first, every=every, where=self._json)
        self._files = {name: self._root / images / self._pictures[name].file_name for name in self.names}
        check_present([self._pictures[name].file_name for name in self.names], root=self._root, images=images)
        tasks = {task for picture in file.images for task in picture.maps} & file.info.keys()
        has_maps = "semantic" in tasks
        # Without classes, all of a picture would be background, which its reader of depths never said.
        self._says_classes = "settings_digest" not in file.info or not file.info.keys().isdisjoint(
            {"semantic", "instances"}
        )
        has_own_table = has_maps or not self._says_classes
        check_categories(file.categories, self._json)
        if classes is not None and has_own_table:
            raise UserError(
                f"{self._json} names PNG maps, whose classes belong together, and `classes` chooses among objects; "
                "leave `classes` out"
            )
        chosen = _chosen(file.categories, classes, self._json)
        self.taxonomy = (
            _own_taxonomy(chosen, colors, self._json)
            if has_own_table
            else _taxonomy(chosen, unmarked, colors, highest_id=max((one.id for one in file.categories), default=0))
        )
        semantic_ids = {name: semantic_id for semantic_id, name in enumerate(self.taxonomy.names, start=1)}
        self.taxonomy = replace(self.taxonomy, skeleton=_skeleton(chosen, self._json))
        self._semantic_ids = {category.id: semantic_ids[category.name] for category in chosen}
        self._unmarked = 0 if has_own_table or unmarked == "void" else semantic_ids[BACKGROUND]
        self._has_objects = "instances" in file.info or (self._says_classes and not has_maps)
        self._maps = {task: file.map_info(task) for task in sorted(tasks)}
        self._annotations = self._by_picture(file)
        self._check_boxes(boxes)

    def _by_picture(self, file: CocoFile) -> Mapping[int, Sequence[Annotation]]:
        """Annotations of the chosen classes by image id; warns of those that have no picture."""
        found: dict[int, list[Annotation]] = {picture.id: [] for picture in file.images}
        known = {category.id for category in file.categories}
        strays: list[str] = []
        for annotation in file.annotations:
            if annotation.category_id not in known:
                raise UserError(
                    f"{self._json}: annotation {annotation.id} has category id {annotation.category_id}, expected one "
                    f"of {sorted(known)}; add it to `categories` or remove the annotation"
                )
            if annotation.image_id not in found:
                strays.append(f"annotation {annotation.id} of image id {annotation.image_id}")
            elif annotation.category_id in self._semantic_ids:
                found[annotation.image_id].append(annotation)
        if strays:
            told = f"{len(strays)} annotations belong to no picture of {self._json} and are left out: "
            self.warnings = [told + f"{first_few(strays)}; add their pictures to `images`, or remove them"]
        return found

    def _check_boxes(self, boxes: Literal["refuse", "void"]) -> None:
        pictures = [self._pictures[name] for name in self.names]
        objects = [(found, picture) for picture in pictures for found in self._annotations[picture.id]]
        unknown = [
            f"annotation {found.id} of {picture.file_name}"
            for found, picture in objects
            if not found.has_mask and (boxes == "refuse" or found.bbox is None)
        ]
        if unknown:
            lack, remedy = (
                ("no outline or mask, which a box does not give", "set `boxes: void` to ignore the pixels of boxes")
                if boxes == "refuse"
                else ("neither outline, mask nor box", "remove them")
            )
            raise UserError(
                f"{self._json}: {len(unknown)} of {len(objects)} objects have {lack}: {first_few(unknown)}; outline "
                f"them, or {remedy}"
            )

    def caption(self, name: str) -> str:
        """What `images[i].caption` says of the picture; empty when it says nothing."""
        return self._pictures[name].caption

    def load(self, name: str) -> AnnotatedImage:
        picture, path = self._pictures[name], self._files[name]
        image = read_image(path)
        check_size(image, (picture.height, picture.width), paths=(path, self._json))
        labels: dict[str, Label] = {}
        for task in sorted(self._maps.keys() & picture.maps.keys()):
            about, map_path = self._maps[task], self._root / picture.maps[task]
            steps = about.read(map_path)
            check_size(image, steps.shape, paths=(path, map_path))
            if about.unit == CATEGORY and steps.max() > len(self.taxonomy):
                raise UserError(
                    f"{map_path} holds semantic id {steps.max()}, expected 0..{len(self.taxonomy)}; write the "
                    "dataset again, or complete `categories`"
                )
            labels[task] = replace(unpack_map(steps, about.storage), repairs=picture.repairs(task))
        for task in [task for task in labels if confidence_name(task) in labels]:
            labels[task] = _with_confidence(labels[task], labels.pop(confidence_name(task)))
        objects, called, empty = self._instances(picture)
        if self._has_objects:
            labels["instances"] = objects
        if "semantic" not in labels and self._says_classes:
            labels["semantic"] = semantic_map(objects.painted(self._unmarked))
        return AnnotatedImage(name=name, image=image, labels=labels, object_names=called, empty_objects=empty)

    def _instances(self, picture: Picture) -> tuple[InstanceSet, tuple[str, ...], tuple[str, ...]]:
        """Its objects, what they are called, and what those without a pixel are."""
        annotations = self._annotations[picture.id]
        try:
            masks = [
                (found.mask if found.has_mask else found.box_mask)(height=picture.height, width=picture.width)
                for found in annotations
            ]
            points = self._points(annotations, picture)
        except UserError as error:
            raise UserError(f"{self._json}: {error}") from None
        objects = InstanceSet.collect(
            masks,
            [self._semantic_ids[found.category_id] for found in annotations],
            size=(picture.height, picture.width),
            scores=[found.score for found in annotations],
            is_crowd=[bool(found.iscrowd) or not found.has_mask for found in annotations],
            keypoints_px=points,
        )
        return with_pixels(objects, [f"annotation {found.id}" for found in annotations])

    def _points(
        self, annotations: Sequence[Annotation], picture: Picture
    ) -> Float32[np.ndarray, "objects points 3"] | None:
        skeleton = self.taxonomy.skeleton
        if skeleton is None:
            return None
        count = len(skeleton.points)
        points = np.zeros((len(annotations), count, 3), np.float32)
        for index, found in enumerate(annotations):
            if found.has_mask and self._semantic_ids[found.category_id] == self.taxonomy.jointed:
                points[index] = found.points(count, height=picture.height, width=picture.width)
        return points


def _chosen(categories: Sequence[Category], classes: Sequence[str] | None, json: Path) -> Sequence[Category]:
    """Those that are named, or all."""
    if classes is None:
        return categories
    if not classes:
        raise UserError("found an empty list of `classes`, expected at least one; leave `classes` out for all")
    known = [category.name for category in categories]
    for name in classes:
        if name not in known:
            raise UserError(
                f"`classes` names {name!r}, which is no category of {json}{nearest(name, known) or ';'} categories: "
                f"{listed(known)}"
            )
    return [category for category in categories if category.name in classes]


def _skeleton(categories: Sequence[Category], json: Path) -> Skeleton | None:
    try:
        found = [skeleton for category in categories if (skeleton := category.as_skeleton) is not None]
    except UserError as error:
        raise UserError(f"{json}: {error}") from None
    if len(found) > 1:
        raise UserError(
            f"{json}: categories {[skeleton.class_name for skeleton in found]} all have keypoints, and a reader learns "
            "those of one; take `keypoints` out of the other categories"
        )
    return found[0] if found else None


def _with_confidence(label: Label, confidence: Label) -> Label:
    assert isinstance(label, DenseMap), "maps were read above"
    assert isinstance(confidence, DenseMap), "maps were read above"
    return replace(label, confidence=confidence.values[..., 0])


def _taxonomy(
    categories: Sequence[Category],
    unmarked: Literal["background", "void"],
    colors: Mapping[str, tuple[int, int, int]] | None,
    *,
    highest_id: int,
) -> Taxonomy:
    """The chosen categories in the order of their ids, and behind them the background, with an id that none has."""
    categories = sorted(categories, key=lambda category: category.id)
    classes = {category.id: category.name for category in categories}
    things = [category.name for category in categories if category.isthing and category.name != BACKGROUND]
    if unmarked == BACKGROUND and BACKGROUND not in classes.values():
        classes[highest_id + 1] = BACKGROUND
    return make_taxonomy(classes, things=things, colors=colors)


def _own_taxonomy(
    categories: Sequence[Category], colors: Mapping[str, tuple[int, int, int]] | None, json: Path
) -> Taxonomy:
    """The table that we wrote."""
    given = dict(colors or {})
    table = sorted(categories, key=lambda category: category.semantic_id or 0)
    if [category.semantic_id for category in table] != list(range(1, len(table) + 1)):
        raise UserError(
            f"{json} names PNG maps, but its categories have semantic ids {[row.semantic_id for row in table]}, "
            f"expected 1..{len(table)}; write the dataset again"
        )
    return Taxonomy(
        names=tuple(row.name for row in table),
        is_thing=tuple(bool(row.isthing) for row in table),
        colors=tuple(
            given.get(row.name) or row.color or color for row, color in zip(table, palette(len(table)), strict=True)
        ),
        category_ids=tuple(row.id for row in table),
        phrases=tuple(row.phrase or row.name for row in table),
    )
