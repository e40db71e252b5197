"""Read a dataset back as its users will, and say all that is wrong with it."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from datagen.coco_format import Annotation, Category, CocoFile, Picture, is_map_key, read_coco, read_panoptic
from datagen.datasets import name_apart
from datagen.files import read_image
from datagen.panoptic import from_colors
from decoders.average_precision import average_precision
from decoders.errors import UserError
from decoders.labels import CATEGORY

_LISTED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationReport:
    """What `validate` found; the dataset is sound when `problems` is empty."""

    folder: Path
    pictures: int
    objects: int
    stuff_regions: int
    self_score: float | None
    """AP of the objects scored against themselves by pycocotools; None where there are none, or other problems."""
    problems: tuple[str, ...]

    @property
    def sound(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        score = (
            "no objects to score" if self.self_score is None else f"scored against themselves: AP {self.self_score:.3f}"
        )
        counts = f"{self.pictures} pictures, {self.objects} objects ({score}), {self.stuff_regions} stuff regions"
        if self.sound:
            return f"{self.folder} is sound: {counts}"
        rest = len(self.problems) - _LISTED
        lines = [f"{self.folder} has {len(self.problems)} problems: {counts}", *self.problems[:_LISTED]]
        return "\n  ".join([*lines, f"... and {rest} more"] if rest > 0 else lines)

    def require_sound(self) -> None:
        """Let nothing but a sound dataset pass.

        Raises:
            UserError: there are problems; the text lists them.
        """
        if not self.sound:
            raise UserError(f"{self}\nwrite the dataset again, or correct what is listed")


def validate(folder: Path) -> ValidationReport:
    """Check a dataset folder that `exporters.coco` wrote, or one of the same form.

    Raises:
        UserError: there is no `annotations/instances.json` in the folder.
    """
    paths = {kind: folder / "annotations" / f"{kind}.json" for kind in ("instances", "stuff")}
    if not paths["instances"].is_file():
        raise UserError(f"{folder} is no dataset: {paths['instances']} not found; give the folder of a COCO export")
    problems: list[str] = []
    files: dict[str, CocoFile] = {}
    for kind, path in paths.items():
        try:
            files[kind] = read_coco(path, strict=True)
        except UserError as error:
            problems.append(str(error))
    score = None
    if len(files) == len(paths):
        instances, stuff = files["instances"], files["stuff"]
        problems += _check_tables(instances, stuff)
        for kind, file in files.items():
            problems += (f"{kind}.json: {problem}" for problem in _check_annotations(file))
        stuff_by_picture = _by_picture(stuff.annotations)
        for picture in instances.images:
            problems += _check_picture(folder, picture, instances, stuff_by_picture.get(picture.id, []))
        problems += _check_panoptic(folder, instances)
        if (folder / "parts").exists():
            problems.append("parts/ is there: the dataset was not finished; run the command that writes it again")
        if not problems:
            score = score_against_itself(instances)
            if score is not None and score < 1 - 1e-6:
                problems.append(f"objects scored against themselves by pycocotools give AP {score:.4f}, expected 1.000")
    return ValidationReport(
        folder=folder,
        pictures=len(files["instances"].images) if "instances" in files else 0,
        objects=len(files["instances"].annotations) if "instances" in files else 0,
        stuff_regions=len(files["stuff"].annotations) if "stuff" in files else 0,
        self_score=score,
        problems=tuple(problems),
    )


def _check_tables(instances: CocoFile, stuff: CocoFile) -> Iterator[str]:
    """What needs no file but the two: ids, names, and whether both speak of the same pictures and classes."""
    for what, ids in (
        ("image id", [picture.id for picture in instances.images]),
        ("category id", [category.id for category in instances.categories]),
        ("annotation id", [annotation.id for annotation in instances.annotations]),
        ("annotation id (stuff)", [annotation.id for annotation in stuff.annotations]),
    ):
        yield from (f"{what} {number} occurs {times} times" for number, times in Counter(ids).items() if times > 1)
        yield from (
            f"{what} {number} is below 1, which COCO's scorer takes for 'no match'" for number in ids if number < 1
        )
    for what, names in (
        ("image name", name_apart([picture.path for picture in instances.images])),
        ("category name", [category.name for category in instances.categories]),
    ):
        yield from (f"{what} {name!r} occurs {times} times" for name, times in Counter(names).items() if times > 1)
    if instances.images != stuff.images:
        yield "images of instances.json and stuff.json differ"
    if instances.categories != stuff.categories:
        yield "categories of instances.json and stuff.json differ"
    semantic_ids = [category.semantic_id for category in instances.categories]
    if sorted(number or 0 for number in semantic_ids) != list(range(1, len(semantic_ids) + 1)):
        yield f"semantic ids of the categories are {semantic_ids}, expected 1..{len(semantic_ids)}, each once"


def _check_annotations(file: CocoFile) -> Iterator[str]:
    pictures = {picture.id: picture for picture in file.images}
    categories = {category.id: category for category in file.categories}
    for annotation in file.annotations:
        where = f"annotation {annotation.id}"
        if annotation.category_id not in categories:
            yield f"{where} has category id {annotation.category_id}, which is not in `categories`"
        picture = pictures.get(annotation.image_id)
        if picture is None:
            yield f"{where} belongs to image id {annotation.image_id}, which is not in `images`"
            continue
        if not 0 <= annotation.score <= 1:
            yield f"{where} has score {annotation.score}, expected 0..1"
        try:
            mask = annotation.mask(height=picture.height, width=picture.width)
        except UserError as error:
            yield f"image {picture.file_name}: {error}"
            continue
        yield from _check_keypoints(annotation, categories.get(annotation.category_id), picture)
        area, box = int(mask.sum()), _box(mask)
        if not area:
            yield f"{where} of image {picture.file_name} has an empty mask"
        if annotation.area != area:
            yield f"{where} of image {picture.file_name} has area {annotation.area}, but its mask covers {area} pixels"
        if annotation.bbox != box:
            yield f"{where} of image {picture.file_name} has bbox {annotation.bbox}, but its mask lies in {box}"


def _check_keypoints(annotation: Annotation, category: Category | None, picture: Picture) -> Iterator[str]:
    if annotation.keypoints is None:
        return
    names = (category.keypoints if category else None) or []
    try:
        points = annotation.points(len(names), height=picture.height, width=picture.width)
    except UserError as error:
        yield f"image {picture.file_name}: {error}"
        return
    given = int((points[:, 2] > 0).sum())
    if annotation.num_keypoints != given:
        yield (
            f"annotation {annotation.id} of image {picture.file_name} has num_keypoints {annotation.num_keypoints}, "
            f"but gives {given}"
        )


def _box(mask: Any) -> tuple[float, float, float, float]:
    """x, y, width, height of a mask, counted on its pixels and not by the library that wrote the box."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return (0.0, 0.0, 0.0, 0.0)
    x, y = int(columns[0]), int(rows[0])
    return (float(x), float(y), float(columns[-1] + 1 - x), float(rows[-1] + 1 - y))


def _check_picture(folder: Path, picture: Picture, file: CocoFile, stuff: list[Annotation]) -> Iterator[str]:
    """The picture and its maps: there, whole, of the stated size and type, and agreeing with the stuff regions."""
    size = (picture.height, picture.width)
    sources: dict[str, Callable[[], Integer[np.ndarray, ...]]] = {
        "image": partial(read_image, folder / "images" / picture.file_name)
    }
    for task, path in picture.maps.items():
        sources[task] = partial(_read_map, folder, task, path, file)
    for key, value in (picture.model_extra or {}).items():
        if is_map_key(key) and not isinstance(value, str):
            yield f"image {picture.file_name} names {value!r} as {key}, expected a path within the dataset"
    for task, read in sources.items():
        try:
            pixels = read()
        except UserError as error:
            yield str(error)
            continue
        if pixels.shape[:2] != size:
            yield f"{task} of {picture.file_name} is {pixels.shape[:2]} (height, width), but images say {size}"
        elif task != "image" and file.map_info(task).unit == CATEGORY:
            yield from _check_semantic(pixels, picture, file, stuff)


def _check_panoptic(folder: Path, instances: CocoFile) -> Iterator[str]:
    """Every segment is in its PNG and every colour of a PNG is a segment; pixels, boxes and classes agree."""
    try:
        panoptic = read_panoptic(folder / "annotations" / "panoptic.json", strict=True)
    except UserError as error:
        yield str(error)
        return
    if panoptic.images != instances.images or panoptic.categories != instances.categories:
        yield "images or categories of instances.json and panoptic.json differ"
    sizes = {picture.id: (picture.height, picture.width) for picture in instances.images}
    categories = {category.id for category in instances.categories}
    for number, times in Counter(one.image_id for one in panoptic.annotations).items():
        if times > 1 or number not in sizes:
            yield f"panoptic.json has {times} entries of image id {number}, expected one of each picture"
            return
    for one in panoptic.annotations:
        where = f"panoptic/{one.file_name}"
        try:
            ids = from_colors(read_image(folder / where))
        except UserError as error:
            yield str(error)
            continue
        if ids.shape != sizes[one.image_id]:
            yield f"{where} is {ids.shape} (height, width), but images say {sizes[one.image_id]}"
            continue
        found, wanted = set(np.unique(ids).tolist()) - {0}, [segment.id for segment in one.segments_info]
        if found != set(wanted) or len(set(wanted)) != len(wanted):
            yield f"{where} holds segments {sorted(found)}, but panoptic.json {sorted(wanted)}"
            continue
        for segment in one.segments_info:
            mask = ids == segment.id
            if segment.category_id not in categories:
                yield f"segment {segment.id} of {where} has category id {segment.category_id}, not in `categories`"
            if segment.area != mask.sum() or segment.bbox != _box(mask):
                yield f"segment {segment.id} of {where} covers other pixels than its area and bbox say"


def _read_map(folder: Path, task: str, path: str, file: CocoFile) -> Integer[np.ndarray, "..."]:
    return file.map_info(task).read(folder / path)


def _check_semantic(
    ids: Integer[np.ndarray, "height width"], picture: Picture, file: CocoFile, stuff: list[Annotation]
) -> Iterator[str]:
    category_of = {category.semantic_id: category for category in file.categories}
    present = {int(value) for value in np.unique(ids)} - {0}
    if unknown := sorted(present - category_of.keys()):
        yield f"semantic map of {picture.file_name} holds ids {unknown}, expected 0..{len(category_of)}"
        return
    regions = {annotation.category_id: annotation for annotation in stuff}
    if len(regions) != len(stuff):
        yield f"stuff.json has two regions of one class for {picture.file_name}, expected one per class"
    expected = {category_of[value].id: value for value in present if not category_of[value].isthing}
    if regions.keys() != expected.keys():
        yield (
            f"stuff.json has classes {sorted(regions)} for {picture.file_name}, but its semantic map {sorted(expected)}"
        )
        return
    for category_id, value in expected.items():
        try:
            mask = regions[category_id].mask(height=picture.height, width=picture.width)
        except UserError:  # told by the check of the annotations
            continue
        if not np.array_equal(mask, ids == value):
            yield (
                f"stuff.json and the semantic map of {picture.file_name} differ in "
                f"{int((mask != (ids == value)).sum())} pixels of category {category_id}"
            )


def score_against_itself(file: CocoFile) -> float | None:
    """Mean AP (segmentation, IoU 0.5..0.95) of all objects but crowds against themselves; None without objects.

    All objects of a picture count: at the scorer's default of 100, more would cap AP below 1.
    """
    entries: list[dict[str, Any]] = [annotation.model_dump() for annotation in file.annotations]
    objects = [entry for entry in entries if not entry["iscrowd"]]
    if not objects:
        return None
    precision = average_precision(
        entries,
        objects,
        images=[{"id": picture.id, "height": picture.height, "width": picture.width} for picture in file.images],
        categories=[category.id for category in file.categories],
    )
    return float(precision[precision > -1].mean())


def _by_picture(annotations: list[Annotation]) -> dict[int, list[Annotation]]:
    grouped: dict[int, list[Annotation]] = {}
    for annotation in annotations:
        grouped.setdefault(annotation.image_id, []).append(annotation)
    return grouped
