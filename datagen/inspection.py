"""The verb `inspect`: what was understood of annotated pictures, before anyone waits for a fit."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from rich.console import Console

from datagen.datasets import BACKGROUND, AnnotatedImages, first_few
from datagen.datasets.coco import ANNOTATIONS, Coco
from datagen.exporters import Entry
from datagen.files import encode_png, require_png
from datagen.meter import Counted, meter
from datagen.sheet import draw_sheet, spread
from decoders.errors import UserError
from decoders.files import write_atomic
from decoders.labels import CATEGORY, METRIC_DEPTH_STORAGE, AnnotatedImage, DenseMap, InstanceSet, Taxonomy

_EXPECTED = "give a COCO dataset of ours, or a plan whose `data:` says how your own files are laid out"
_SPARSE = 0.5
"""Depth of fewer pixels than that is a sensor's, with gaps, and no sky."""
_PLAUSIBLE_M = (0.3, 150.0)
"""Between these, in metres, lies the median depth of pictures that people take."""
_MILLIMETRE = 0.001
"""In metres; the other step that depth files often have."""


@dataclass(slots=True)
class ClassCount:
    """How much of a class there is."""

    pictures: int = 0
    pixels: int = 0
    objects: int = 0
    """Crowds aside, which nobody learns from."""


@dataclass(slots=True, kw_only=True)
class Inspection:
    """What the annotated pictures hold, and what is odd about them."""

    taxonomy: Taxonomy
    of_files: Sequence[str] = ()
    """Warnings that need no picture."""
    assumed_depth_scale: float | None = None
    """Metres per step of the depth files, where nobody said it."""
    pictures: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter[tuple[int, int]])
    """(height, width) -> pictures."""
    labels: Counter[str] = field(default_factory=Counter[str])
    """Label name -> pictures that have it."""
    classes: list[ClassCount] = field(default_factory=list[ClassCount])
    """In the order of the taxonomy."""
    void_pixels: int = 0
    most_objects: int = 0
    """Of one picture, crowds aside."""
    pointed: int = 0
    """Objects that have a keypoint."""
    measured_pixels: int = 0
    """With a valid depth."""
    depth_pixels: int = 0
    """Of all pictures that have depths."""
    depths_m: list[tuple[float, float, float]] = field(default_factory=list[tuple[float, float, float]])
    """Smallest, middle and largest valid depth of each picture that has one."""
    overlapping: list[str] = field(default_factory=list[str])
    empty: list[str] = field(default_factory=list[str])
    implausible: list[str] = field(default_factory=list[str])
    without_pixels: list[str] = field(default_factory=list[str])
    """Objects that were left out."""

    def add(self, picture: AnnotatedImage) -> None:
        self.pictures += 1
        height, width = picture.image.shape[:2]
        self.sizes[height, width] += 1
        self.labels.update(picture.labels.keys())
        self.without_pixels += (f"{called} of {picture.name}" for called in picture.empty_objects)
        marked = False
        seen: set[int] = set()
        for name, label in sorted(picture.labels.items()):
            if isinstance(label, InstanceSet):
                marked |= self._objects(picture, label, seen)
            elif label.storage.unit == CATEGORY:
                marked |= self._map(label, seen)
            elif label.storage.unit == METRIC_DEPTH_STORAGE.unit:
                marked |= self._depth(f"{picture.name} ({name})", label)
            else:
                marked |= bool(label.valid.any())
        for semantic_id in seen:
            self.classes[semantic_id - 1].pictures += 1
        if not marked:
            self.empty.append(picture.name)

    def _objects(self, picture: AnnotatedImage, label: InstanceSet, seen: set[int]) -> bool:
        single = np.flatnonzero(~label.is_crowd)
        for semantic_id in label.category_ids[single].tolist():
            self.classes[semantic_id - 1].objects += 1
            seen.add(semantic_id)
        if label.keypoints_px is not None:
            self.pointed += int((label.keypoints_px[..., 2] > 0).any(axis=1).sum())
        self.most_objects = max(self.most_objects, len(single))
        if overlap := _largest_overlap(label.masks[single]):
            first, second, pixels = overlap
            called = picture.object_names or [f"object {number}" for number in range(1, len(label.masks) + 1)]
            kinds = [self.taxonomy.names[semantic_id - 1] for semantic_id in label.category_ids.tolist()]
            named = " and ".join(f"{called[index]} {kinds[index]}" for index in single[[first, second]].tolist())
            self.overlapping.append(f"{picture.name} ({named} share {pixels} pixels)")
        return bool(len(label.masks))

    def _map(self, label: DenseMap, seen: set[int]) -> bool:
        ids = np.where(label.valid, label.values[..., 0], 0).astype(np.intp)
        counts = np.bincount(ids.ravel(), minlength=len(self.taxonomy) + 1)
        self.void_pixels += int(counts[0])
        for semantic_id in np.flatnonzero(counts[1:]) + 1:
            self.classes[semantic_id - 1].pixels += int(counts[semantic_id])
            seen.add(int(semantic_id))
        return any(count and name != BACKGROUND for count, name in zip(counts[1:], self.taxonomy.names, strict=True))

    def _depth(self, name: str, label: DenseMap) -> bool:
        meters = label.values[label.valid]
        self.measured_pixels += meters.size
        self.depth_pixels += label.valid.size
        if not meters.size:
            self.implausible.append(f"{name}: no valid pixel")
            return False
        low, middle, high = (float(value) for value in (meters.min(), np.median(meters), meters.max()))
        self.depths_m.append((low, middle, high))
        if not _PLAUSIBLE_M[0] <= middle <= _PLAUSIBLE_M[1]:
            self.implausible.append(f"{name}: half of it nearer than {middle:.2f} m")
        return True

    def warnings(self, *, gaps: bool = False) -> Iterator[str]:
        """Each with what it is about and what to do."""
        yield from self.of_files
        absent = [name for name, count in zip(self.taxonomy.names, self.classes, strict=True) if not count.pictures]
        if absent and self._shows_classes:
            yield (
                f"no example of {', '.join(absent)}: a reader cannot learn them; annotate one, or take them out of the "
                "classes"
            )
        for pictures, what in (
            (self.empty, "nothing is annotated in {}: leave them out, or check that their labels are the right files"),
            (
                self.overlapping,
                "objects overlap in {}: the smaller one is taken to be in front; correct the masks where that is wrong",
            ),
            (
                self.implausible,
                "depths of an unlikely range in {}: check the unit, such as `depth_scale` (metres per step)",
            ),
        ):
            if pictures:
                yield what.format(first_few(pictures))
        if self.depths_m and self.assumed_depth_scale is not None:
            steps = self._middle_m / self.assumed_depth_scale
            yield (
                f"depth files are taken as 1/{1 / self.assumed_depth_scale:g} m a step, so that half of it is nearer "
                f"than {self._middle_m:.2f} m; were they millimetres, it would be {steps * _MILLIMETRE:.2f} m: say "
                "`depth_scale` (metres per step)"
            )
        if self.without_pixels:
            yield (
                f"{len(self.without_pixels)} objects have no pixel in their picture and are left out: "
                f"{first_few(self.without_pixels)}; correct or remove them"
            )
        if self.depth_pixels and self._measured < _SPARSE and not gaps:
            yield (
                f"depth is known of {self._measured:.1%} of the pixels only: where the others are gaps of a sensor, "
                "set `depth: {validity: 0}` among the tasks, or a reader learns that there is none"
            )

    @property
    def _shows_classes(self) -> bool:
        return bool(self.labels.keys() & {"semantic", "instances"})

    @property
    def _middle_m(self) -> float:
        """Half of the pictures have their middle depth nearer than that."""
        return float(np.median([middle for _, middle, _ in self.depths_m]))

    @property
    def _measured(self) -> float:
        return self.measured_pixels / self.depth_pixels

    def __str__(self) -> str:
        sizes = ", ".join(f"{width} x {height} ({count})" for (height, width), count in self.sizes.most_common(4))
        rest = f", {len(self.sizes) - 4} other sizes" if len(self.sizes) > 4 else ""
        lines = [
            f"{self.pictures} pictures, width x height: {sizes}{rest}",
            "labels: " + (", ".join(f"{name} ({count})" for name, count in sorted(self.labels.items())) or "none"),
        ]
        known = sum(count.pixels for count in self.classes)
        if self._shows_classes:
            lines += self._table(known)
        if known:
            lines.append(f"void: {self.void_pixels / (known + self.void_pixels):.2%} of the pixels")
        if self.most_objects:
            lines.append(
                f"objects: up to {self.most_objects} in a picture; `queries` of the task instances are to match"
            )
        if self.taxonomy.skeleton is not None:
            skeleton = self.taxonomy.skeleton
            lines.append(f"keypoints: {len(skeleton.points)} of each {skeleton.class_name}, on {self.pointed} of them")
        if self.depths_m:
            low, high = min(low for low, _, _ in self.depths_m), max(high for _, _, high in self.depths_m)
            lines.append(
                f"depth: {low:.2f} to {high:.2f} m, half nearer than {self._middle_m:.2f} m, known of "
                f"{self._measured:.1%} of the pixels"
            )
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings())])

    def _table(self, known: int) -> Iterator[str]:
        """What there is of each class, with its share of the `known` pixels."""
        yield f"{'id':>5}  {'class':24}{'kind':8}{'pictures':>9}{'pixels':>9}{'objects':>9}"
        for category_id, name, thing, count in zip(
            self.taxonomy.category_ids, self.taxonomy.names, self.taxonomy.is_thing, self.classes, strict=True
        ):
            share = f"{count.pixels / known:.2%}" if known else "-"
            objects = str(count.objects) if thing and self.labels["instances"] else "-"
            kind = "thing" if thing else "stuff"
            yield f"{category_id:>5}  {name:24}{kind:8}{count.pictures:>9}{share:>9}{objects:>9}"


def _largest_overlap(masks: Bool[np.ndarray, "objects height width"]) -> tuple[int, int, int] | None:
    """Numbers of the two masks that share most pixels, and how many; None where no pixel belongs to two."""
    if len(masks) < 2 or not (masks.sum(axis=0) > 1).any():
        return None
    flat = masks.reshape(len(masks), -1).astype(np.float32)
    shared = np.triu(flat @ flat.T, k=1)
    first, second = np.unravel_index(shared.argmax(), shared.shape)
    return int(first), int(second), int(shared[first, second])


def inspect(data: AnnotatedImages, *, console: Console | None = None) -> Inspection:
    """Read every picture and label once.

    Raises:
        UserError: a picture or label is missing, damaged or contradicts another; names the file.
    """
    found = Inspection(
        taxonomy=data.taxonomy,
        of_files=data.warnings,
        assumed_depth_scale=data.assumed_depth_scale,
        classes=[ClassCount() for _ in data.taxonomy.names],
    )
    with meter("inspect", console=console) as tick:
        for picture in Counted(data, tick):
            found.add(picture)
    return found


def oddities(data: AnnotatedImages, *, gaps: bool = False) -> list[str]:
    """What is odd about pictures that somebody annotated; of made ones, which know their digest, all is well.

    Args:
        gaps: who asks knows already that unknown depths are gaps.

    Raises:
        UserError: as `inspect`.
    """
    if getattr(data, "digest", None) is not None:
        return []
    return list(inspect(data, console=Console(quiet=True)).warnings(gaps=gaps))


def inspect_sources(path: Path, overrides: Sequence[str] = ()) -> dict[str, AnnotatedImages]:
    """The datasets that a plan of `datagen fit` names (`data` and `validation`), or the one in a COCO folder.

    Raises:
        UserError: it is neither, its settings are wrong, or there are overrides and no plan.
    """
    if path.suffix.lower() == ".json":
        raise UserError(f"{path} is a JSON file; {_EXPECTED}, as `data: {{format: coco, root: FOLDER}}`")
    if path.is_dir():
        if not (path / ANNOTATIONS).is_file():
            raise UserError(f"{path} holds no {ANNOTATIONS}; {_EXPECTED}")
        if overrides:
            raise UserError(
                f"--set {overrides[0]} changes a key of a plan, and {path} is a dataset; leave it out, or give a plan "
                "whose `data:` names this dataset"
            )
        return {"data": Coco(root=path)}
    from datagen.fit_plan import load_fit_plan

    plan = load_fit_plan(path, overrides)
    sources = {"data": plan.data.build()}
    if plan.validation is not None:
        sources["validation"] = plan.validation.build()
    return sources


def overlay_sheet(data: AnnotatedImages, *, to: Path, count: int = 16) -> None:
    """Write a PNG of some pictures, spread over the dataset, with their labels beside them.

    Raises:
        UserError: `to` is no name of a PNG, or as `inspect`.
    """
    require_png(to)
    entries: list[Entry] = []
    for position in spread(len(data), count):
        picture = data[position]
        entries.append(Entry(picture.name, picture.image, picture.labels, {"caption": picture.name}))
    write_atomic(to, encode_png(draw_sheet(entries, data.taxonomy)))
