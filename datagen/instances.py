"""Masks of single objects: as COCO run lengths in a file, and found as the connected parts of a semantic map."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NotRequired, TypedDict, cast

import numpy as np
from jaxtyping import Bool, Int64
from pycocotools import mask as coco_mask

from decoders.labels import DenseMap, InstanceSet, LabelSet, Taxonomy, class_map
from decoders.regions import connected_regions

GIVEN = "given with the pictures"
LEAST_PIXELS = 16
"""Of an object that is a part of a class map, where objects are counted or judged; smaller ones are specks."""
COMPONENTS = "connected components of the semantic map"
_SIZES = (0.001, 0.01, 0.1)
_BOUNDS = ["0", *(f"{size:.1%}" for size in _SIZES), "all"]
SIZE_BANDS = tuple(f"{low} to {high} of it" for low, high in pairwise(_BOUNDS))
"""Shares of the picture by which objects are counted."""
_coco = cast(Any, coco_mask)  # compiled, without types


class Rle(TypedDict):
    """COCO's compressed run lengths, column by column."""

    size: list[int]
    """[height, width]"""
    counts: str


class ObjectEntry(TypedDict):
    """One object as a JSON value; `category` is a semantic id, 1..K of the taxonomy."""

    segmentation: Rle
    category: int
    score: float
    crowd: bool
    keypoints_px: NotRequired[list[list[float]]]


def encode_mask(mask: Bool[np.ndarray, "height width"]) -> Rle:
    """Exact: holes, several parts and single pixels survive."""
    rle = _coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return Rle(size=[int(side) for side in rle["size"]], counts=rle["counts"].decode("ascii"))


def decode_mask(rle: Rle) -> Bool[np.ndarray, "height width"]:
    """By hand, since pycocotools gives uninitialised memory for run lengths that do not fill the picture.

    Raises:
        ValueError: the runs are no run lengths, or do not fill the picture.
    """
    height, width = rle["size"]
    return decode_counts(_runs(rle["counts"]), height=height, width=width)


def decode_polygons(
    polygons: Sequence[Sequence[float]], *, height: int, width: int
) -> Bool[np.ndarray, "{height} {width}"]:
    """The union of outlines [x1, y1, x2, y2, ...] in pixels, each of three points or more.

    Raises:
        ValueError: an outline has fewer points, which pycocotools would take for a box, or an odd count of numbers.
    """
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"an outline of {len(polygon)} numbers; expected x, y of three points or more")
    if not polygons:
        return np.zeros((height, width), bool)
    rle = _coco.merge(_coco.frPyObjects([list(polygon) for polygon in polygons], height, width))
    return decode_mask(Rle(size=[height, width], counts=rle["counts"].decode("ascii")))


def decode_counts(counts: Sequence[int], *, height: int, width: int) -> Bool[np.ndarray, "{height} {width}"]:
    """A mask of uncompressed run lengths, column by column, beginning with zeros.

    Raises:
        ValueError: the runs do not fill the picture.
    """
    if sum(counts) != height * width or min(counts, default=0) < 0:
        raise ValueError(f"run lengths of {sum(counts)} pixels in all; expected {height} x {width}")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T


def mask_area(rle: Rle) -> int:
    """Pixels that the mask covers."""
    return int(_coco.area(rle))


def mask_box(rle: Rle) -> list[float]:
    """[x, y, width, height] in pixels, the smallest box around the mask; zeros for an empty one."""
    return [float(value) for value in _coco.toBbox(rle)]


def to_entries(instances: InstanceSet) -> list[ObjectEntry]:
    """One JSON value per object, in order; empty masks are kept, as a store may not drop what it was given."""
    entries: list[ObjectEntry] = []
    for index, mask in enumerate(instances.masks):
        entry = ObjectEntry(
            segmentation=encode_mask(mask),
            category=int(instances.category_ids[index]),
            score=round(float(instances.scores[index]), 6),
            crowd=bool(instances.is_crowd[index]),
        )
        if instances.keypoints_px is not None:
            entry["keypoints_px"] = instances.keypoints_px[index].tolist()
        entries.append(entry)
    return entries


def from_entries(entries: Sequence[ObjectEntry], *, height: int, width: int) -> InstanceSet:
    """The inverse of `to_entries`, for a picture of `height` x `width`."""
    keypoints = [entry["keypoints_px"] for entry in entries if "keypoints_px" in entry]
    return InstanceSet.collect(
        [decode_mask(entry["segmentation"]) for entry in entries],
        [entry["category"] for entry in entries],
        size=(height, width),
        scores=[entry["score"] for entry in entries],
        is_crowd=[entry["crowd"] for entry in entries],
        keypoints_px=np.array(keypoints, np.float32) if keypoints else None,
    )


def components(semantic: DenseMap, taxonomy: Taxonomy, *, min_pixels: int) -> InstanceSet:
    """Each connected region of a thing class as one object (touching objects of one class become one).

    Pixels that meet at a corner are connected; regions below `min_pixels` are left out. The score is the region's mean
    confidence. Ordered by class, then from the top left.
    """
    ids = np.where(semantic.valid, semantic.values[..., 0], 0).astype(np.uint8)
    masks: list[Bool[np.ndarray, "height width"]] = []
    categories: list[int] = []
    scores: list[float] = []
    things = [index for index, thing in enumerate(taxonomy.is_thing, start=1) if thing]
    for semantic_id, mask in connected_regions(ids, things, min_pixels=min_pixels):
        masks.append(mask)
        categories.append(semantic_id)
        scores.append(float(semantic.confidence[mask].mean(dtype=np.float64)))
    return InstanceSet.collect(masks, categories, size=(ids.shape[0], ids.shape[1]), scores=scores)


def find_objects(labels: LabelSet, taxonomy: Taxonomy, *, min_pixels: int) -> tuple[InstanceSet, str] | None:
    """The objects of a picture and where they come from; None where there can be none."""
    given = [label for label in labels.values() if isinstance(label, InstanceSet)]
    semantic = class_map(labels)
    if given:
        return given[0], GIVEN
    return None if semantic is None else (components(semantic, taxonomy, min_pixels=min_pixels), COMPONENTS)


def count_sizes(objects: InstanceSet) -> Int64[np.ndarray, " bands"]:
    """Single objects by their share of the picture, as `SIZE_BANDS` names them."""
    shares = objects.masks[~objects.is_crowd].mean(axis=(1, 2))
    bands = np.searchsorted(_SIZES, shares[shares > 0])
    return np.bincount(bands, minlength=len(SIZE_BANDS)).astype(np.int64)


def _runs(counts: str) -> list[int]:
    """Run lengths from COCO's string: five bits a character, from the fourth on the difference to the last but one."""
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"the character {character!r} among its run lengths, which is none of theirs")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the last of this run
            value -= (bits & 16) << (shift - 4)  # the sign
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("run lengths that end in the middle of one")
    return runs
