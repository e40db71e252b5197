"""The COCO JSON files, ours and other people's, as checked values; our additions to the form are optional fields."""

from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, TypeVar, cast

import numpy as np
from jaxtyping import Bool, Float32, UInt8, UInt16
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from datagen.files import read_image, read_label_png
from datagen.instances import Rle, decode_counts, decode_mask, decode_polygons
from decoders.errors import UserError
from decoders.labels import Skeleton, Storage
from decoders.resizing import inside

_MAP_FILE = "_file"
_File = TypeVar("_File", bound=BaseModel)


class UncompressedRle(BaseModel):
    """Run lengths as plain numbers, as COCO's own crowds have them."""

    size: tuple[int, int]
    counts: list[int]


class CompressedRle(BaseModel):
    size: tuple[int, int]
    """height, width"""
    counts: str

    @property
    def rle(self) -> Rle:
        return Rle(size=list(self.size), counts=self.counts)


class MapInfo(BaseModel):
    """Of `info.X`: physical value = (pixel - offset) x scale, except where the pixel is `invalid`."""

    unit: str
    scale: Annotated[float, Field(gt=0)]
    offset: int = 0
    dtype: Literal["uint8", "uint16"]
    channels: Literal[1, 3] = 1
    invalid: Literal[0] = 0

    @property
    def storage(self) -> Storage:
        return Storage(unit=self.unit, quantum=self.scale, offset=self.offset, dtype=self.dtype)

    def read(self, path: Path) -> UInt8[np.ndarray, "..."] | UInt16[np.ndarray, "height width"]:
        """The whole numbers of one PNG of the map: (height, width), or (height, width, 3) of three channels.

        Raises:
            UserError: the file is missing, damaged or of another type than declared.
        """
        steps = read_label_png(path) if self.channels == 1 else read_image(path)
        if steps.dtype != self.dtype:
            raise UserError(f"{path} holds {steps.dtype}, expected {self.dtype} as `info` says; write the map again")
        return steps


class Picture(BaseModel):
    """One of `images`. Of our own: `X_file` names the PNG of map X; whatever else is there is kept in `model_extra`."""

    model_config = ConfigDict(extra="allow")

    id: int
    file_name: str
    width: Annotated[int, Field(ge=1)]
    height: Annotated[int, Field(ge=1)]
    caption: str = ""

    @property
    def path(self) -> PurePath:
        """Of its file, below the folder of pictures."""
        return PurePath(self.file_name)

    @property
    def maps(self) -> dict[str, str]:
        """Path of each map's PNG within the dataset, by the map's name, as far as it is text."""
        extra = sorted((self.model_extra or {}).items())
        return {key.removesuffix(_MAP_FILE): path for key, path in extra if is_map_key(key) and isinstance(path, str)}

    def repairs(self, map_name: str) -> int:
        """Specks of a map that took the class of their neighbours."""
        found = (self.model_extra or {}).get(repairs_key(map_name), 0)
        return found if isinstance(found, int) else 0


class Category(BaseModel):
    """One of `categories`; `semantic_id`, `color`, `phrase` and `sigmas` are ours."""

    id: int
    name: str
    isthing: Literal[0, 1] = 1
    semantic_id: int | None = None
    color: tuple[int, int, int] | None = None
    phrase: str | None = None
    keypoints: list[str] | None = None
    """Names of the points that objects of the category have."""
    skeleton: list[tuple[int, int]] = []
    """Points to join by a line, numbered from 1."""
    sigmas: list[float] = []

    @property
    def as_skeleton(self) -> Skeleton | None:
        """The joints of this category; None where it has none.

        Raises:
            UserError: the points or the lines between them are malformed.
        """
        if not self.keypoints:
            return None
        return Skeleton(
            class_name=self.name,
            points=tuple(self.keypoints),
            bones=tuple((first - 1, second - 1) for first, second in self.skeleton),
            sigmas=tuple(self.sigmas),
        )


class Annotation(BaseModel):
    id: int
    image_id: int
    category_id: int
    segmentation: CompressedRle | UncompressedRle | list[list[float]] | None = None
    area: float | None = None
    bbox: tuple[float, float, float, float] | None = None
    iscrowd: Literal[0, 1] = 0
    score: float = 1.0
    keypoints: list[float] | None = None
    """x, y, visibility of each point, one after the other."""
    num_keypoints: int | None = None

    @property
    def has_mask(self) -> bool:
        """Whether anything says which pixels are the object's; a box does not."""
        return bool(self.segmentation)

    def box_mask(self, *, height: int, width: int) -> Bool[np.ndarray, "{height} {width}"]:
        """The pixels that the box touches; none without a box."""
        x, y, across, down = self.bbox or (0.0, 0.0, 0.0, 0.0)
        columns, rows = np.arange(width), np.arange(height)
        return ((rows + 1 > y) & (rows < y + down))[:, None] & (columns + 1 > x) & (columns < x + across)

    def points(self, count: int, *, height: int, width: int) -> Float32[np.ndarray, "{count} 3"]:
        """x, y and visibility 0, 1 or 2 of each of `count` points; zeros where none are given.

        Raises:
            UserError: another number of points, another visibility, or a point outside the picture.
        """
        if self.keypoints is None:
            return np.zeros((count, 3), np.float32)
        if len(self.keypoints) != 3 * count:
            raise UserError(
                f"annotation {self.id} has {len(self.keypoints)} numbers in `keypoints`, expected 3 for each of the "
                f"{count} points of its category; correct it"
            )
        points = np.array(self.keypoints, np.float32).reshape(count, 3)
        seen = points[:, 2] > 0
        if not np.isin(points[:, 2], (0, 1, 2)).all():
            raise UserError(
                f"annotation {self.id} has a keypoint of visibility {points[:, 2].max():g}, expected 0 (not given), 1 "
                "(hidden) or 2 (seen); correct it"
            )
        outside = seen & ~inside(points[:, :2], (height, width))
        if outside.any():
            number = int(np.flatnonzero(outside)[0])
            raise UserError(
                f"annotation {self.id} has keypoint {number + 1} at x {points[number, 0]:g}, y {points[number, 1]:g}, "
                f"outside its picture of {width} x {height} pixels; correct it, or set its visibility to 0"
            )
        return np.where(seen[:, None], points, 0).astype(np.float32)

    def mask(self, *, height: int, width: int) -> Bool[np.ndarray, "{height} {width}"]:
        """The object's pixels.

        Raises:
            UserError: there is no mask, it is malformed, or it belongs to a picture of another size.
        """
        try:
            match self.segmentation:
                case None | []:
                    raise ValueError("no outline or mask, which a box alone does not give")
                case list():
                    return decode_polygons(self.segmentation, height=height, width=width)
                case CompressedRle() | UncompressedRle() if self.segmentation.size != (height, width):
                    raise ValueError(
                        f"a mask of size {self.segmentation.size}; expected the picture's {(height, width)}"
                    )
                case CompressedRle():
                    return decode_mask(self.segmentation.rle)
                case UncompressedRle():
                    return decode_counts(self.segmentation.counts, height=height, width=width)
        except ValueError as error:
            raise UserError(f"annotation {self.id} has {error}; correct or remove it") from None


class SegmentEntry(BaseModel):
    """One of `segments_info`."""

    id: Annotated[int, Field(ge=1)]
    category_id: int
    area: int
    bbox: tuple[float, float, float, float]
    iscrowd: Literal[0, 1] = 0
    score: float = 1.0


class PanopticPicture(BaseModel):
    """One of `annotations` of a panoptic file: the segments of one picture."""

    image_id: int
    file_name: str
    segments_info: list[SegmentEntry]


class PanopticFile(BaseModel):
    """COCO's panoptic JSON; the PNGs lie in the folder of the same name."""

    images: list[Picture]
    annotations: list[PanopticPicture]
    categories: list[Category]


class CocoFile(BaseModel):
    info: dict[str, Any] = {}
    images: list[Picture]
    annotations: list[Annotation]
    categories: list[Category]

    def map_info(self, name: str) -> MapInfo:
        """What the values of the map of a task mean.

        Raises:
            UserError: `info` does not say how to read the map.
        """
        try:
            return MapInfo.model_validate(self.info.get(name))
        except ValidationError as error:
            raise UserError(
                f"info.{name} is {self.info.get(name)!r}, expected unit, scale and dtype of the map {name}; write the "
                "dataset again"
            ) from error


def is_map_key(key: str) -> bool:
    """Whether a key of `images[i]` names the PNG of a map."""
    return key.endswith(_MAP_FILE)


def map_key(name: str) -> str:
    """The key of `images[i]` that names the PNG of map `name`."""
    return f"{name}{_MAP_FILE}"


def repairs_key(name: str) -> str:
    """The key of `images[i]` that counts the repairs of map `name`."""
    return f"{name}_repairs"


def read_coco(path: Path, *, strict: bool = False) -> CocoFile:
    """Objects or stuff; `strict` refuses what others' files may do, such as a number written as text, null for what is
    not known, or annotations without ids.

    Raises:
        UserError: the file is missing, no JSON or not of the COCO form; names the first places.
    """
    return _read(path, CocoFile, strict=strict)


def read_panoptic(path: Path, *, strict: bool = False) -> PanopticFile:
    """As `read_coco`, of a panoptic file."""
    return _read(path, PanopticFile, strict=strict)


def _read(path: Path, kind: type[_File], *, strict: bool) -> _File:
    try:
        content = path.read_bytes()
        if strict:
            return kind.model_validate_json(content, strict=True)
        try:
            return kind.model_validate_json(content)
        except ValidationError:  # not before: it takes a while, and more memory
            return kind.model_validate(_tolerated(from_json(content.removeprefix(BOM_UTF8))))
    except FileNotFoundError:
        exported = path.parent.parent / "exports/coco"
        remedy = f"name the export of that run, {exported}" if exported.is_dir() else "check the path"
        raise UserError(f"COCO file not found: {path}; {remedy}") from None
    except OSError as error:
        raise UserError(f"COCO file {path} cannot be read: {error.strerror}; check the path") from error
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
        places = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'file'}: {fault['msg']}" for fault in faults[:5])
        raise UserError(
            f"{path} is not of the COCO form (images, annotations, categories) at {len(faults)} places: {places}; "
            "correct the file"
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is not of the COCO form, as it is no JSON: {error}; correct the file") from error


def _tolerated(file: Any) -> Any:
    """Others' JSON in our form: what is null, no box and no colour is not said, and who has no id has a number."""
    file = _without_nulls(file)
    if isinstance(file, dict):
        for number, annotation in enumerate(_rows(file, "annotations"), start=1):
            annotation.setdefault("id", number)
            if annotation.get("bbox") == []:
                del annotation["bbox"]
        for category in _rows(file, "categories"):
            if not _is_color(category.get("color")):
                category.pop("color", None)
    return file


def _is_color(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(cast("list[Any]", value)) == 3
        and all(isinstance(part, int) and 0 <= part <= 255 for part in cast("list[Any]", value))
    )


def _rows(file: dict[str, Any], table: str) -> Iterator[dict[str, Any]]:
    rows = file.get(table)
    return (row for row in (rows if isinstance(rows, list) else []) if isinstance(row, dict))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in cast("dict[str, Any]", value).items() if part is not None}
    if isinstance(value, list) and value and isinstance(value[0], dict):  # outlines are long, and hold numbers only
        return [_without_nulls(part) for part in cast("list[Any]", value)]
    return value
