"""Objects and classes as one map in which every pixel belongs to one segment: COCO's panoptic form."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, UInt8

from datagen.instances import encode_mask, mask_box
from decoders.labels import DenseMap, InstanceSet, Taxonomy

_SMALLEST_SHARE = 0.5
"""Of an object, that must be left when surer objects have taken their pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One object, one region of a crowd, or all pixels of one stuff class."""

    id: int
    """Its value in the map, from 1."""
    semantic_id: int
    score: float
    crowd: bool


def merge(
    semantic: DenseMap, instances: InstanceSet, taxonomy: Taxonomy
) -> tuple[Int32[np.ndarray, "height width"], list[Segment]]:
    """Objects, the surest in front, over the stuff of the semantic map; 0 where neither is.

    Where the semantic map sees a thing and no object claims the pixel, nobody can say whose it is: it stays 0.
    """
    ids = np.zeros(semantic.valid.shape, np.int32)
    segments: list[Segment] = []

    def add(mask: Bool[np.ndarray, "height width"], semantic_id: int, score: float, *, crowd: bool = False) -> None:
        ids[mask] = len(segments) + 1
        segments.append(Segment(id=len(segments) + 1, semantic_id=semantic_id, score=score, crowd=crowd))

    # Of equal scores, as in given truth, the smaller object is in front.
    areas = instances.masks.sum(axis=(1, 2))
    for index in np.lexsort((areas, -instances.scores, instances.is_crowd)):
        free = instances.masks[index] & (ids == 0)
        if free.sum() > _SMALLEST_SHARE * areas[index]:
            add(
                free,
                int(instances.category_ids[index]),
                float(instances.scores[index]),
                crowd=bool(instances.is_crowd[index]),
            )
    classes = np.where(semantic.valid, semantic.values[..., 0], 0)
    for semantic_id, thing in enumerate(taxonomy.is_thing, start=1):
        mask = (classes == semantic_id) & (ids == 0)
        if not thing and mask.any():
            add(mask, semantic_id, float(semantic.confidence[mask].mean(dtype=np.float64)))
    return ids, segments


def to_colors(ids: Int32[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width 3"]:
    """COCO's PNG: id = red + 256 green + 65536 blue."""
    return np.stack([(ids >> shift) & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)


def from_colors(colors: UInt8[np.ndarray, "height width 3"]) -> Int32[np.ndarray, "height width"]:
    """The inverse of `to_colors`."""
    wide = colors.astype(np.int32)
    return wide[..., 0] + (wide[..., 1] << 8) + (wide[..., 2] << 16)


def segments_info(
    ids: Int32[np.ndarray, "height width"], segments: list[Segment], taxonomy: Taxonomy
) -> list[dict[str, Any]]:
    """`segments_info` of COCO's JSON, with the scores."""
    entries: list[dict[str, Any]] = []
    for segment in segments:
        mask = ids == segment.id
        entries.append(
            {
                "id": segment.id,
                "category_id": taxonomy.category_ids[segment.semantic_id - 1],
                "area": int(mask.sum()),
                "bbox": mask_box(encode_mask(mask)),
                "iscrowd": int(segment.crowd),
                "score": round(segment.score, 6),
            }
        )
    return entries
