"""Read a dataset back as its users will, and say all that is wrong with it."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from datagen.coco_format import (
    Annotation,
    Category,
    CocoFile,
    CompressedRle,
    Picture,
    is_map_key,
    read_coco,
    read_panoptic,
)
from datagen.datasets import check_present, first_few, name_apart
from datagen.datasets.coco import ANNOTATIONS
from datagen.files import read_image
from datagen.instances import encode_mask
from datagen.panoptic import from_colors
from decoders.average_precision import average_precision
from decoders.errors import UserError
from decoders.labels import CATEGORY

_Box = tuple[float, float, float, float]
_LISTED = 20
_BOX_SLACK = 2.0
"""Pixels by which others' boxes may miss the mask, as outlines run between pixels."""
_AREA_SLACK = 0.1
"""Share by which others' areas may miss the mask."""


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
    foreign: bool = False
    """Not written by us: objects and pictures alone were checked."""

    @property
    def sound(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        score = (
            "no objects to score" if self.self_score is None else f"scored against themselves: AP {self.self_score:.3f}"
        )
        counts = f"{self.pictures} pictures, {self.objects} objects ({score})"
        checked = str(self.folder)
        if self.foreign:
            checked += (
                ", checked as a foreign dataset (info has no settings_digest of ours: objects and pictures alone),"
            )
        else:
            counts += f", {self.stuff_regions} stuff regions"
        if self.sound:
            return f"{checked} is sound: {counts}"
        rest = len(self.problems) - _LISTED
        lines = [f"{checked} has {len(self.problems)} problems: {counts}", *self.problems[:_LISTED]]
        return "\n  ".join([*lines, f"... and {rest} more"] if rest > 0 else lines)

    def require_sound(self) -> None:
        """Let nothing but a sound dataset pass.

        Raises:
            UserError: there are problems; the text lists them.
        """
        if not self.sound:
            remedy = "correct what is listed" if self.foreign else "write the dataset again, or correct what is listed"
            raise UserError(f"{self}\n{remedy}")


def validate(folder: Path, *, annotations: str = ANNOTATIONS, images: str = "images") -> ValidationReport:
    """Check all of a dataset folder that `exporters.coco` wrote, or the objects and pictures of others' COCO.

    Args:
        annotations: JSON of the objects, below the folder.
        images: folder of the pictures, below the folder; ours are where we put them.

    Raises:
        UserError: there is no such JSON in the folder.
    """
    json = folder / annotations
    if not json.is_file():
        raise UserError(
            f"{folder} is no dataset: {json} not found; give the folder of a COCO export, and where its JSON lies "
            "with --annotations"
        )
    try:
        file = read_coco(json)
    except UserError as error:
        return ValidationReport(
            folder=folder, pictures=0, objects=0, stuff_regions=0, self_score=None, problems=(str(error),)
        )
    if "settings_digest" not in file.info:
        return _validate_foreign(folder, images, file)
    del file  # as large as the dataset, and read again, strictly
    return _validate_own(folder)


def _validate_own(folder: Path) -> ValidationReport:
    paths = {kind: folder / "annotations" / f"{kind}.json" for kind in ("instances", "stuff")}
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
            problems += (f"{kind}.json: {problem}" for problem in _check_annotations(file, exact=True))
        stuff_by_picture = _by_picture(stuff.annotations)
        for picture in instances.images:
            problems += _check_picture(folder, picture, instances, stuff_by_picture.get(picture.id, []))
        problems += _check_panoptic(folder, instances)
        if (folder / "parts").exists():
            problems.append("parts/ is there: the dataset was not finished; run the command that writes it again")
        if not problems:
            score = score_against_itself(instances)
            problems += _check_score(score)
    return ValidationReport(
        folder=folder,
        pictures=len(files["instances"].images) if "instances" in files else 0,
        objects=len(files["instances"].annotations) if "instances" in files else 0,
        stuff_regions=len(files["stuff"].annotations) if "stuff" in files else 0,
        self_score=score,
        problems=tuple(problems),
    )


def _validate_foreign(folder: Path, images: str, file: CocoFile) -> ValidationReport:
    """Others may number from 0, round boxes and areas, and leave out what we always say."""
    outlined = [annotation for annotation in file.annotations if annotation.has_mask]
    boxes = [f"annotation {annotation.id}" for annotation in file.annotations if not annotation.has_mask]
    known = file.model_copy(update={"annotations": outlined})
    problems = [*_check_doubled(file), *_check_annotations(known, exact=False), *_check_files(folder, images, file)]
    if boxes:
        problems.append(
            f"{len(boxes)} of {len(file.annotations)} objects have no outline or mask, which a box does not give: "
            f"{first_few(boxes)}; the option `boxes: void` of a dataset ignores them"
        )
    score = None
    if not problems:
        score = score_against_itself(_measured(known))
        problems += _check_score(score)
    return ValidationReport(
        folder=folder,
        pictures=len(file.images),
        objects=len(file.annotations),
        stuff_regions=0,
        self_score=score,
        problems=tuple(problems),
        foreign=True,
    )


def _check_score(score: float | None) -> Iterator[str]:
    if score is not None and score < 1 - 1e-6:
        yield f"objects scored against themselves by pycocotools give AP {score:.4f}, expected 1.000"


def _measured(file: CocoFile) -> CocoFile:
    """With what COCO's scorer needs: ids from 1, areas, and masks of one form."""
    sizes = {picture.id: (picture.height, picture.width) for picture in file.images}
    annotations: list[Annotation] = []
    for number, annotation in enumerate(file.annotations, start=1):
        height, width = sizes[annotation.image_id]
        mask = annotation.mask(height=height, width=width)
        rle = CompressedRle.model_validate(encode_mask(mask))
        told = {"id": number, "area": float(mask.sum()), "segmentation": rle}
        annotations.append(annotation.model_copy(update=told))
    return file.model_copy(update={"annotations": annotations})


def _check_files(folder: Path, images: str, file: CocoFile) -> Iterator[str]:
    """The pictures: there, whole and of the stated size."""
    try:
        check_present([picture.file_name for picture in file.images], root=folder, images=images)
    except UserError as error:
        yield str(error)
    for picture in file.images:
        path = folder / images / picture.file_name
        if not path.is_file():
            continue
        try:
            found = read_image(path).shape[:2]
        except UserError as error:
            yield str(error)
            continue
        if found != (picture.height, picture.width):
            yield _other_size("image", picture, found)


def _other_size(what: str, picture: Picture, found: tuple[int, ...]) -> str:
    expected = (picture.height, picture.width)
    return f"{what} of {picture.file_name} is {found} (height, width), but images say {expected}"


def _check_doubled(file: CocoFile) -> Iterator[str]:
    for what, keys in (
        ("image id", [picture.id for picture in file.images]),
        ("category id", [category.id for category in file.categories]),
        ("annotation id", [annotation.id for annotation in file.annotations]),
        ("image name", name_apart([picture.path for picture in file.images])),
        ("category name", [category.name for category in file.categories]),
    ):
        yield from (f"{what} {key!r} occurs {times} times" for key, times in Counter(keys).items() if times > 1)


def _check_tables(instances: CocoFile, stuff: CocoFile) -> Iterator[str]:
    """What needs no file but the two: ids, names, and whether both speak of the same pictures and classes."""
    yield from _check_doubled(instances)
    stuff_ids = Counter(annotation.id for annotation in stuff.annotations)
    yield from (
        f"annotation id (stuff) {number} occurs {times} times" for number, times in stuff_ids.items() if times > 1
    )
    for what, ids in (
        ("image id", [picture.id for picture in instances.images]),
        ("category id", [category.id for category in instances.categories]),
        ("annotation id", [annotation.id for annotation in instances.annotations]),
        ("annotation id (stuff)", stuff_ids),
    ):
        yield from (
            f"{what} {number} is below 1, which COCO's scorer takes for 'no match'" for number in ids if number < 1
        )
    if instances.images != stuff.images:
        yield "images of instances.json and stuff.json differ"
    if instances.categories != stuff.categories:
        yield "categories of instances.json and stuff.json differ"
    semantic_ids = [category.semantic_id for category in instances.categories]
    if sorted(number or 0 for number in semantic_ids) != list(range(1, len(semantic_ids) + 1)):
        yield f"semantic ids of the categories are {semantic_ids}, expected 1..{len(semantic_ids)}, each once"


def _check_annotations(file: CocoFile, *, exact: bool) -> Iterator[str]:
    """Each on its own; `exact` where boxes, areas and counts of points are to be there and to the pixel."""
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
        yield from _check_keypoints(annotation, categories.get(annotation.category_id), picture, exact=exact)
        area, box = int(mask.sum()), _box(mask)
        if not area:
            yield f"{where} of image {picture.file_name} has an empty mask"
            if not exact:
                continue
        if annotation.area != area if exact else _is_other_area(annotation, area, box):
            yield f"{where} of image {picture.file_name} has area {annotation.area}, but its mask covers {area} pixels"
        if annotation.bbox != box if exact else _is_other_box(annotation, box, picture):
            yield f"{where} of image {picture.file_name} has bbox {annotation.bbox}, but its mask lies in {box}"


def _is_other_area(annotation: Annotation, area: int, box: _Box) -> bool:
    """Whether others' area is given and far from that of the mask; some tools say that of the box."""
    if annotation.area is None:
        return False
    across, down = annotation.bbox[2:] if annotation.bbox else box[2:]
    slack = max(_AREA_SLACK * area, box[2] + box[3])
    return min(abs(annotation.area - area), abs(annotation.area - across * down)) > slack


def _is_other_box(annotation: Annotation, box: _Box, picture: Picture) -> bool:
    """Whether others' box is given and, within the picture, far from that around the mask."""
    if annotation.bbox is None:
        return False
    limits = (picture.width, picture.height) * 2
    corners = (np.clip([x, y, x + across, y + down], 0, limits) for x, y, across, down in (annotation.bbox, box))
    return bool(np.abs(np.subtract(*corners)).max() > _BOX_SLACK)


def _check_keypoints(
    annotation: Annotation, category: Category | None, picture: Picture, *, exact: bool
) -> Iterator[str]:
    if annotation.keypoints is None:
        return
    names = (category.keypoints if category else None) or []
    try:
        points = annotation.points(len(names), height=picture.height, width=picture.width)
    except UserError as error:
        yield f"image {picture.file_name}: {error}"
        return
    given = int((points[:, 2] > 0).sum())
    if annotation.num_keypoints != given and (exact or annotation.num_keypoints is not None):
        yield (
            f"annotation {annotation.id} of image {picture.file_name} has num_keypoints {annotation.num_keypoints}, "
            f"but gives {given}"
        )


def _box(mask: Any) -> _Box:
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
            yield _other_size(task, picture, pixels.shape[:2])
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
