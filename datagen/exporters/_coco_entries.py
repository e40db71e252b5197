"""What COCO's JSON says of one picture, without ids: those are given when all pictures are known."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from datagen.instances import Rle, encode_mask, mask_area, mask_box, to_entries
from datagen.packing import INVALID, check_task_name
from datagen.panoptic import merge, segments_info, to_colors
from decoders.labels import CATEGORY, DenseMap, InstanceSet, LabelSet, Skeleton, Taxonomy, class_map

_FOLDERS = frozenset({"images", "annotations", "parts", "panoptic"})
_INFO_KEYS = frozenset({"instances", "settings_digest"})


def check_labels(labels: LabelSet, taxonomy: Taxonomy, *, size: tuple[int, int], name: str) -> None:
    """Refuse labels that do not fit their picture or the classes.

    Raises:
        ValueError: a label has another size than the picture, names an unknown class, or there are two of a kind.
    """
    for task, label in labels.items():
        is_map = isinstance(label, DenseMap)
        check_task_name(task, taken=_FOLDERS | _INFO_KEYS if is_map else _FOLDERS)
        found = label.valid.shape if is_map else label.masks.shape[1:]
        if found != size:
            raise ValueError(f"picture {name} has (height, width) {size}, but its {task} label has {found}")
        if is_map and label.storage.unit != CATEGORY:
            continue
        ids = label.values[label.valid] if is_map else label.category_ids
        if ids.size and not 1 <= ids.min() <= ids.max() <= len(taxonomy):
            raise ValueError(
                f"picture {name}: {task} holds semantic ids {ids.min():g}..{ids.max():g}, expected 1..{len(taxonomy)}"
            )
        if not is_map and label.keypoints_px is not None:
            expected = 0 if taxonomy.skeleton is None else len(taxonomy.skeleton.points)
            if label.keypoints_px.shape[1] != expected:
                raise ValueError(
                    f"picture {name}: objects of {task} have {label.keypoints_px.shape[1]} keypoints, the taxonomy's "
                    f"skeleton {expected}"
                )
    if sum(isinstance(label, InstanceSet) for label in labels.values()) > 1:
        raise ValueError(f"picture {name} has more than one set of objects among {sorted(labels)}; COCO holds one")
    if sum(isinstance(label, DenseMap) and label.storage.unit == CATEGORY for label in labels.values()) > 1:
        raise ValueError(f"picture {name} has more than one map of classes among {sorted(labels)}; COCO holds one")


def objects(instances: InstanceSet, taxonomy: Taxonomy) -> list[dict[str, Any]]:
    """One entry per object that has a pixel."""
    entries: list[dict[str, Any]] = []
    for found in to_entries(instances):
        entry = _entry(found["segmentation"], found["category"], found["score"], taxonomy, crowd=found["crowd"])
        if "keypoints_px" in found and found["category"] == taxonomy.jointed:
            entry["keypoints"] = [value for point in found["keypoints_px"] for value in point]
            entry["num_keypoints"] = sum(point[2] > 0 for point in found["keypoints_px"])
        if entry["area"]:
            entries.append(entry)
    return entries


def stuff(labels: LabelSet, taxonomy: Taxonomy) -> list[dict[str, Any]]:
    """One entry per stuff class that occurs in the categorical map."""
    semantic = class_map(labels)
    if semantic is None:
        return []
    ids = np.where(semantic.valid, semantic.values[..., 0], 0)
    entries: list[dict[str, Any]] = []
    for semantic_id in (int(value) for value in np.unique(ids) if value):
        if not taxonomy.is_thing[semantic_id - 1]:
            mask = ids == semantic_id
            score = round(float(semantic.confidence[mask].mean(dtype=np.float64)), 6)
            entries.append(_entry(encode_mask(mask), semantic_id, score, taxonomy, crowd=False))
    return entries


def panoptic(
    labels: LabelSet, instances: InstanceSet, taxonomy: Taxonomy
) -> tuple[UInt8[np.ndarray, "height width 3"], list[dict[str, Any]]] | None:
    """The panoptic PNG and its `segments_info`; None without a map of classes."""
    semantic = class_map(labels)
    if semantic is None:
        return None
    ids, segments = merge(semantic, instances, taxonomy)
    return to_colors(ids), segments_info(ids, segments, taxonomy)


def describe(label: DenseMap) -> Mapping[str, Any]:
    """How to read a map's PNGs: physical value = (pixel - offset) x scale, except where the pixel is `invalid`."""
    storage = label.storage
    return {
        "unit": storage.unit,
        "scale": storage.quantum,
        "offset": storage.offset,
        "dtype": storage.dtype,
        "channels": label.values.shape[2],
        "invalid": INVALID,
    }


def categories(taxonomy: Taxonomy) -> list[dict[str, Any]]:
    """All classes, in both files: the table of the semantic PNGs too."""
    rows = zip(taxonomy.category_ids, taxonomy.names, taxonomy.is_thing, taxonomy.colors, taxonomy.phrases, strict=True)
    points = {} if taxonomy.skeleton is None else {taxonomy.skeleton.class_name: _points(taxonomy.skeleton)}
    return [
        {
            "id": category_id,
            "name": name,
            "supercategory": "thing" if is_thing else "stuff",
            "isthing": int(is_thing),
            "color": list(color),
            "phrase": phrase,
            "semantic_id": semantic_id,
            **points.get(name, {}),
        }
        for semantic_id, (category_id, name, is_thing, color, phrase) in enumerate(rows, start=1)
    ]


def _points(skeleton: Skeleton) -> dict[str, Any]:
    """As COCO's person has them, which numbers points from 1; `sigmas` is ours."""
    return {
        "keypoints": list(skeleton.points),
        "skeleton": [[first + 1, second + 1] for first, second in skeleton.bones],
        "sigmas": list(skeleton.sigmas),
    }


def _entry(rle: Rle, semantic_id: int, score: float, taxonomy: Taxonomy, *, crowd: bool) -> dict[str, Any]:
    return {
        "segmentation": rle,
        "category_id": taxonomy.category_ids[semantic_id - 1],
        "area": mask_area(rle),
        "bbox": mask_box(rle),
        "iscrowd": int(crowd),
        "score": score,
    }
