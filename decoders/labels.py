"""What a reader says about a picture: one label per task, given per pixel or per object."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float32, Int64, Integer, UInt8

from decoders.errors import UserError

CATEGORY = "category"
"""Unit of a map whose values are semantic ids: 1..K of its taxonomy, 0 where unlabelled."""


_SIGMA = 0.07
_SIGMAS = {
    "nose": 0.026, "eye": 0.025, "ear": 0.035, "shoulder": 0.079, "elbow": 0.072, "wrist": 0.062,
    "hip": 0.107, "knee": 0.087, "ankle": 0.089,
}  # fmt: skip
_MIRRORED = {"left": "right", "right": "left"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    """The points that objects of one class have, such as the joints of a person."""

    class_name: str
    """The class of the taxonomy whose objects have them."""
    points: tuple[str, ...]
    """Names; two that differ by "left" and "right" only change places in a mirror."""
    bones: tuple[tuple[int, int], ...] = ()
    """Pairs of points, numbered from 0, to join by a line."""
    sigmas: tuple[float, ...] = ()
    """How far apart two annotators place each point, as a share of the object's scale; when left out, those of COCO's
    scorer for its own points (without "left" and "right"), 0.07 for others."""

    def __post_init__(self) -> None:
        count = len(self.points)
        if not count or len(set(self.points)) != count:
            raise UserError(f"a skeleton needs points of different names, found {self.points}; correct the list")
        if not self.sigmas:
            kinds = [point.removeprefix("left_").removeprefix("right_") for point in self.points]
            object.__setattr__(self, "sigmas", tuple(_SIGMAS.get(kind, _SIGMA) for kind in kinds))
        if len(self.sigmas) != count or min(self.sigmas) <= 0:
            raise UserError(f"a skeleton of {count} points has sigmas {self.sigmas}; give one above 0 for each point")
        if wrong := [bone for bone in self.bones if not all(0 <= end < count for end in bone)]:
            raise UserError(f"bones {wrong} of a skeleton join points that are not there; expected 0..{count - 1}")

    @property
    def mirrored(self) -> tuple[int, ...]:
        """For each point, the number of the one that takes its place in a mirror."""
        others = ("_".join(_MIRRORED.get(word, word) for word in point.split("_")) for point in self.points)
        return tuple(self.points.index(other) if other in self.points else index for index, other in enumerate(others))


@dataclass(frozen=True, slots=True, kw_only=True)
class Taxonomy:
    """The classes of a dataset. Semantic id n in 1..K is the n-th entry; 0 means unlabelled."""

    names: tuple[str, ...]
    is_thing: tuple[bool, ...]
    """True for classes that can be counted (car), False for stuff (sky)."""
    colors: tuple[tuple[int, int, int], ...]
    """RGB, 0..255, for overlays."""
    category_ids: tuple[int, ...] = ()
    """What the user's own files call each class, all >= 1; 1..K when left out."""
    phrases: tuple[str, ...] = ()
    """What the text encoder is asked for; the names when left out."""
    skeleton: Skeleton | None = None
    """The points of one of the classes; None where no class has any."""

    def __post_init__(self) -> None:
        count = len(self.names)
        if not self.category_ids:
            object.__setattr__(self, "category_ids", tuple(range(1, count + 1)))
        if not self.phrases:
            object.__setattr__(self, "phrases", self.names)
        for column in ("is_thing", "colors", "category_ids", "phrases"):
            found = len(getattr(self, column))
            if found != count:
                raise UserError(f"a taxonomy of {count} names came with {found} {column}; give one for each class")
        if not 1 <= count <= 254:
            raise UserError(f"a taxonomy holds 1 to 254 classes, found {count}; merge classes or name at least one")
        if len(set(self.names)) != count:
            raise UserError(f"class names must differ, found {sorted(self.names)}; rename the doubled one")
        if len(set(self.category_ids)) != count or min(self.category_ids) < 1:
            raise UserError(
                f"category ids must differ and be at least 1, found {self.category_ids}; number them from 1, as the "
                "COCO scorer takes 0 for 'no match'"
            )

        if self.skeleton is not None and self.skeleton.class_name not in self.names:
            raise UserError(
                f"the skeleton belongs to the class {self.skeleton.class_name!r}, which is not among {self.names}"
            )

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Taxonomy":
        """The inverse of `dataclasses.asdict`, after a way through JSON or YAML."""
        columns: dict[str, Any] = {key: _tuples(value) for key, value in data.items()}
        skeleton = data.get("skeleton")
        if skeleton is not None:
            columns["skeleton"] = Skeleton(**{key: _tuples(value) for key, value in skeleton.items()})
        return cls(**columns)

    @property
    def jointed(self) -> int:
        """Semantic id of the class that has a skeleton; 0 where none has."""
        return 0 if self.skeleton is None else self.names.index(self.skeleton.class_name) + 1


def _tuples(value: Any) -> Any:
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list | tuple) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """How physical values become whole numbers in a file, the same for every picture of a dataset.

    A scale chosen per picture would let two files with equal pixels mean different distances.
    """

    unit: str
    quantum: float
    """Size of one step, in `unit`."""
    offset: int = 0
    """Whole number that stands for zero; lets an unsigned file hold negative values."""
    dtype: Literal["uint8", "uint16"] = "uint16"

    def pack(self, values: Float32[np.ndarray, "*shape"]) -> Integer[np.ndarray, "*shape"]:
        """Round physical values to the steps a file holds; refuse what it cannot hold.

        Raises:
            ValueError: a value is not finite or lies outside the range of `dtype`.
        """
        steps = np.rint(values / self.quantum) + self.offset
        limits = np.iinfo(self.dtype)
        if not np.all((limits.min <= steps) & (steps <= limits.max)):  # so written that NaN fails too
            low, high = ((limit - self.offset) * self.quantum for limit in (limits.min, limits.max))
            raise ValueError(
                f"values {values.min():g}..{values.max():g} {self.unit} do not fit {self.dtype}, which holds "
                f"{low:g}..{high:g} {self.unit}; mark such pixels invalid or choose a larger quantum"
            )
        return steps.astype(self.dtype)

    def unpack(self, steps: Integer[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
        """The physical values that a file's whole numbers stand for."""
        return ((steps.astype(np.float32) - self.offset) * self.quantum).astype(np.float32)


SEMANTIC_STORAGE = Storage(unit=CATEGORY, quantum=1.0, dtype="uint8")
METRIC_DEPTH_STORAGE = Storage(unit="m", quantum=1 / 256, dtype="uint16")
"""KITTI's convention: metres x 256, 0 = no measurement, up to 255.99 m."""

RELATIVE_DEPTH_STORAGE = Storage(unit="relative inverse depth", quantum=1 / 65534, offset=1, dtype="uint16")
"""0..1 from the farthest to the nearest point of each picture; two pictures cannot be compared."""
NORMALS_STORAGE = Storage(unit="unit vector", quantum=1 / 127, offset=128, dtype="uint8")
"""Components right, up and toward the camera, -1..1, as red, green and blue; 0, 0, 0 = none."""

CONFIDENCE_STORAGE = Storage(unit="probability", quantum=1 / 254, offset=1, dtype="uint8")


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseMap:
    """One value per pixel, with what is known about its truth."""

    values: Float32[np.ndarray, "height width channels"]
    valid: Bool[np.ndarray, "height width"]
    """False where there is no truth, as in the sky of a depth map; losses and metrics skip these."""
    confidence: Float32[np.ndarray, "height width"]
    """0..1, how likely the value is right; 1 where the label is given truth, 0 where not even validity is known."""
    storage: Storage
    repairs: int = 0
    """Specks that took the class of their neighbours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSet:
    """One entry per object."""

    masks: Bool[np.ndarray, "objects height width"]
    category_ids: Int64[np.ndarray, " objects"]
    """Semantic ids, 1..K of the taxonomy."""
    scores: Float32[np.ndarray, " objects"]
    """0..1; 1 for given truth."""
    is_crowd: Bool[np.ndarray, " objects"]
    """True for a region of several objects that nobody separated: scorers ignore it."""
    keypoints_px: Float32[np.ndarray, "objects points 3"] | None = None
    """x, y in pixels (0, 0 is the centre of the top left pixel) and COCO's visibility: 2 seen, 1 hidden, 0 not given
    (x and y are then 0). The points are those of the taxonomy's skeleton, all 0 for objects of another class."""

    @classmethod
    def collect(
        cls,
        masks: Sequence[Bool[np.ndarray, "height width"]],
        category_ids: Sequence[int],
        *,
        size: tuple[int, int],
        scores: Sequence[float] | None = None,
        is_crowd: Sequence[bool] | None = None,
        keypoints_px: Float32[np.ndarray, "objects points 3"] | None = None,
    ) -> "InstanceSet":
        """A set, be it empty, of objects given one by one; by default each is sure and single.

        Args:
            size: height and width of the picture.
        """
        count = len(masks)
        return cls(
            masks=np.stack(masks) if count else np.zeros((0, *size), bool),
            category_ids=np.array(category_ids, np.int64),
            scores=np.ones(count, np.float32) if scores is None else np.array(scores, np.float32),
            is_crowd=np.zeros(count, bool) if is_crowd is None else np.array(is_crowd, bool),
            keypoints_px=keypoints_px,
        )

    def only(self, kept: Bool[np.ndarray, " objects"] | Int64[np.ndarray, " kept"]) -> "InstanceSet":
        """These objects and no others, by a mark for each or by their numbers."""
        return replace(
            self,
            masks=self.masks[kept],
            category_ids=self.category_ids[kept],
            scores=self.scores[kept],
            is_crowd=self.is_crowd[kept],
            keypoints_px=None if self.keypoints_px is None else self.keypoints_px[kept],
        )

    @property
    def back_to_front(self) -> Int64[np.ndarray, " objects"]:
        """Numbers of the objects, the larger ones first: painted so, the smaller one is on top where two overlap."""
        return np.argsort(-self.masks.sum(axis=(1, 2)), kind="stable")

    def painted(self, unmarked: int = 0) -> UInt8[np.ndarray, "height width"]:
        """Semantic ids, the smaller object on top: 0 in crowds, `unmarked` outside of all objects."""
        ids = np.full(self.masks.shape[1:], unmarked, np.uint8)
        ids[self.masks[self.is_crowd].any(axis=0)] = 0
        for index in self.back_to_front:
            if not self.is_crowd[index]:
                ids[self.masks[index]] = self.category_ids[index]
        return ids


Label = DenseMap | InstanceSet
LabelSet = Mapping[str, Label]
"""Task name -> label. Exporters know the two kinds, never a task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotatedImage:
    """A picture with its truth: what readers are fitted on and measured against."""

    name: str
    """File name without folder or suffix, unique in its dataset."""
    image: UInt8[np.ndarray, "height width 3"]
    labels: LabelSet = field(default_factory=dict[str, Label])
    object_names: tuple[str, ...] = ()
    """What the files call each object of the label `instances`; empty where they are only numbered."""
    empty_objects: tuple[str, ...] = ()
    """What the files call objects that have no pixel in the picture; no label holds them."""


def class_map(labels: LabelSet) -> DenseMap | None:
    """The label that gives each pixel a class, if there is one."""
    maps = (label for label in labels.values() if isinstance(label, DenseMap) and label.storage.unit == CATEGORY)
    return next(maps, None)


def categorical(labels: LabelSet) -> DenseMap:
    """The label that gives each pixel a class.

    Raises:
        UserError: there is none.
    """
    found = class_map(labels)
    if found is not None:
        return found
    raise UserError(
        f"found the labels {sorted(labels)}, expected one that gives each pixel a class; use a reader with the task "
        "semantic, or data with label maps"
    )


def semantic_ids(labels: LabelSet) -> UInt8[np.ndarray, "height width"]:
    """The class of each pixel, 1..K, 0 where void, in an array of its own; errors as `categorical`."""
    label = categorical(labels)
    return np.where(label.valid, label.values[..., 0], 0).astype(np.uint8)


def class_pixels(labels: LabelSet, ids: int) -> Int64[np.ndarray, " ids"]:
    """Pixels of each semantic id 0 .. ids - 1 in the class map, void as 0; none at all where there is no such map."""
    try:
        return np.bincount(semantic_ids(labels).ravel(), minlength=ids)
    except UserError:
        return np.zeros(ids, np.int64)


def object_set(label: Label) -> InstanceSet:
    """The label `instances` as what it must be.

    Raises:
        UserError: it is a map.
    """
    if not isinstance(label, InstanceSet):
        raise UserError("the instances label is no set of objects; give one mask and class per object")
    return label


def classes_in(labels: LabelSet) -> frozenset[int]:
    """Semantic ids that a picture shows: those of its class maps and of its single objects."""
    found: set[int] = set()
    for label in labels.values():
        if isinstance(label, InstanceSet):
            single = label.masks.any(axis=(1, 2)) & ~label.is_crowd
            found.update(label.category_ids[single].tolist())
        elif label.storage.unit == CATEGORY:
            found.update(int(value) for value in np.unique(label.values[label.valid]))
    return frozenset(found)


def without_unsure(label: Label, threshold: float) -> Label:
    """The label with what is less sure than `threshold` taken out: pixels become void, objects are left out."""
    if isinstance(label, InstanceSet):
        return label.only(label.scores >= threshold)
    valid = label.valid & (label.confidence >= threshold)
    return replace(label, values=np.where(valid[..., None], label.values, np.float32(0)), valid=valid)


def semantic_map(
    ids: UInt8[np.ndarray, "height width"],
    confidence: Float32[np.ndarray, "height width"] | None = None,
    *,
    repairs: int = 0,
) -> DenseMap:
    """Semantic ids (0 = void) as a label; confidence is 1 where none is given."""
    return DenseMap(
        values=ids[..., None].astype(np.float32),
        valid=ids > 0,
        confidence=np.ones(ids.shape, np.float32) if confidence is None else confidence,
        storage=SEMANTIC_STORAGE,
        repairs=repairs,
    )


def metric_depth(
    meters: Float32[np.ndarray, "height width"], confidence: Float32[np.ndarray, "height width"] | None = None
) -> DenseMap:
    """Depth along the optical axis; what is not finite, not positive or beyond the file's range is invalid, and 0."""
    valid = np.isfinite(meters) & (meters >= METRIC_DEPTH_STORAGE.quantum) & (meters < 255.9)
    return DenseMap(
        values=np.where(valid, meters, 0.0).astype(np.float32)[..., None],
        valid=valid,
        confidence=np.ones(meters.shape, np.float32) if confidence is None else confidence,
        storage=METRIC_DEPTH_STORAGE,
    )


def relative_depth(nearness: Float32[np.ndarray, "height width"]) -> DenseMap:
    """Inverse depth or disparity of any scale, brought to 0..1 (1 = nearest); 0 and what is not finite is invalid."""
    valid = np.isfinite(nearness) & (nearness > 0)
    low, high = (nearness[valid].min(), nearness[valid].max()) if valid.any() else (0.0, 1.0)
    scaled = np.where(valid, (nearness - low) / ((high - low) or 1.0), 0)
    return DenseMap(
        values=scaled.astype(np.float32)[..., None],
        valid=valid,
        confidence=np.ones(nearness.shape, np.float32),
        storage=RELATIVE_DEPTH_STORAGE,
    )


def surface_normals(
    directions: Float32[np.ndarray, "height width 3"], confidence: Float32[np.ndarray, "height width"] | None = None
) -> DenseMap:
    """Directions that surfaces face (right, up, toward the camera), made unit vectors; zero vectors are invalid."""
    length = np.linalg.norm(directions, axis=-1, keepdims=True)
    valid = (length > 1e-6) & np.isfinite(length)
    return DenseMap(
        values=np.where(valid, directions / np.where(valid, length, 1), 0).astype(np.float32),
        valid=valid[..., 0],
        confidence=np.ones(valid.shape[:2], np.float32) if confidence is None else confidence,
        storage=NORMALS_STORAGE,
    )
