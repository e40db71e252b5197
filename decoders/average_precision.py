"""COCO's average precision of objects, by their masks or their keypoints, as pycocotools computes it."""

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Float, Int64
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from decoders.calibration import Reliability
from decoders.errors import UserError
from decoders.labels import InstanceSet, Label, Taxonomy

_coco = cast(Any, coco_mask)  # compiled, without types


def hits(
    found: InstanceSet, truth: InstanceSet, *, iou: float = 0.5
) -> tuple[Bool[np.ndarray, " found"], Bool[np.ndarray, " found"]]:
    """Which found objects are right, the surest choosing first; and which count, as crowds and empty masks do not."""
    counted = np.asarray(found.masks.any(axis=(1, 2)))
    if not len(found.masks) or not len(truth.masks):
        return np.zeros(len(found.masks), bool), counted
    ours, theirs = _flat(found.masks), _flat(truth.masks)
    shared = ours @ theirs.T
    areas = ours.sum(axis=1, keepdims=True)
    union = np.where(truth.is_crowd, areas, areas + theirs.sum(axis=1) - shared)  # as COCO compares with crowds
    overlap = np.where(found.category_ids[:, None] == truth.category_ids, shared / np.maximum(union, 1), 0.0)
    chosen, excused = _choose(found.scores, overlap, excusing=truth.is_crowd, least=iou)
    return chosen >= 0, counted & ~excused


def keypoint_hits(
    found: InstanceSet, truth: InstanceSet, taxonomy: Taxonomy, *, similarity: float = 0.5
) -> tuple[Int64[np.ndarray, " found"], Bool[np.ndarray, " found"]]:
    """Number of the true object whose keypoints each found object has, by COCO's similarity (OKS), -1 for none; and
    which count, as other classes, crowds and objects whose points nobody gave do not.
    """
    assert taxonomy.skeleton is not None, "whoever has keypoints has a skeleton"
    counted = found.category_ids == taxonomy.jointed
    if found.keypoints_px is None or truth.keypoints_px is None or not len(found.masks) or not len(truth.masks):
        return np.full(len(found.masks), -1, np.int64), counted
    distance = np.square(found.keypoints_px[:, None, :, :2] - truth.keypoints_px[None, :, :, :2]).sum(axis=3)
    area = truth.masks.sum(axis=(1, 2))[None, :, None]
    near = np.exp(-distance / (2 * np.square(2 * np.array(taxonomy.skeleton.sigmas)) * np.maximum(area, 1)))
    given = truth.keypoints_px[..., 2] > 0
    alike = (near * given).sum(axis=2) / np.maximum(given.sum(axis=1), 1)
    # Whose points nobody gave is compared by its mask, as a crowd is.
    untold = truth.is_crowd | ~given.any(axis=1)
    ours, theirs = _flat(found.masks), _flat(truth.masks[untold])
    alike[:, untold] = ours @ theirs.T / np.maximum(ours.sum(axis=1, keepdims=True), 1)
    alike = np.where(counted[:, None] & (truth.category_ids == taxonomy.jointed), alike, 0.0)
    chosen, excused = _choose(found.scores, alike, excusing=untold, least=similarity)
    return chosen, counted & ~excused


def _flat(masks: Bool[np.ndarray, "objects height width"]) -> Float[np.ndarray, "objects pixels"]:
    """As numbers, which are multiplied much faster."""
    return masks.reshape(len(masks), math.prod(masks.shape[1:])).astype(np.float32)


def _choose(
    scores: Float[np.ndarray, " found"],
    alike: Float[np.ndarray, "found true"],
    *,
    excusing: Bool[np.ndarray, " true"],
    least: float,
) -> tuple[Int64[np.ndarray, " found"], Bool[np.ndarray, " found"]]:
    """The free true object most like each found one, the surest choosing first, -1 for none; and who chose nothing,
    but is like one of the true that excuse it.
    """
    chosen = np.full(len(scores), -1, np.int64)
    excused = np.zeros(len(scores), bool)
    free = ~excusing
    for index in np.argsort(-scores, kind="stable"):
        best = int(np.where(free, alike[index], -1).argmax())
        if free[best] and alike[index, best] >= least:
            chosen[index], free[best] = best, False
        elif (alike[index, excusing] >= least).any():
            excused[index] = True
    return chosen, excused


class AveragePrecision:
    """Class-aware: a car found as a bus is wrong. Crowds count neither for nor against."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self._taxonomy = taxonomy
        self._truth: list[dict[str, Any]] = []
        self._found: list[dict[str, Any]] = []
        self._images: list[dict[str, int]] = []
        self.reliability = Reliability()

    def add(self, found: Label, truth: Label) -> None:
        if not isinstance(found, InstanceSet) or not isinstance(truth, InstanceSet):
            raise UserError("objects can only be scored against objects; give instance masks")
        right, counted = hits(found, truth)
        self.reliability.add(found.scores[counted], right[counted])
        _, height, width = truth.masks.shape
        self._images.append({"id": len(self._images) + 1, "height": height, "width": width})
        for entries, objects in ((self._truth, truth), (self._found, found)):
            for index in np.flatnonzero(objects.masks.any(axis=(1, 2))):
                entries.append(_entry(objects, int(index), number=len(entries) + 1, image_id=len(self._images)))

    def result(self) -> dict[str, float]:
        """`ap` (IoU 0.50 to 0.95), `ap50`, the calibration error `ece` of the scores (right is an IoU of 0.50),
        and `ap/<class>` of each class with an object in the truth.
        """
        present = sorted({entry["category_id"] for entry in self._truth if not entry["iscrowd"]})
        if not present:
            return {}
        precision = (
            average_precision(self._truth, self._found, images=self._images, categories=present)
            if self._found
            else np.zeros((10, 1, len(present)))
        )
        names = [self._taxonomy.names[category - 1] for category in present]
        return {
            "ap": float(precision.mean()),
            "ap50": float(precision[0].mean()),
            "ece": self.reliability.expected_calibration_error,
            **{f"ap/{name}": float(precision[..., index].mean()) for index, name in enumerate(names)},
        }

    @property
    def merit(self) -> float | None:
        return self.result().get("ap50")


class ObjectKeypointSimilarity:
    """COCO's average precision of keypoints (OKS), over the objects of the class with points.

    Objects none of whose points are given, and crowds, count neither for nor against.
    """

    def __init__(self, taxonomy: Taxonomy) -> None:
        if taxonomy.skeleton is None:
            raise UserError("keypoints cannot be scored: no class of the taxonomy has any")
        self._taxonomy = taxonomy
        self._class = taxonomy.jointed
        self._sigmas = taxonomy.skeleton.sigmas
        self._truth: list[dict[str, Any]] = []
        self._found: list[dict[str, Any]] = []
        self._images: list[dict[str, int]] = []
        self._told = self._told_right = 0
        self.reliability = Reliability()

    def add(self, found: Label, truth: Label) -> None:
        if not isinstance(found, InstanceSet) or not isinstance(truth, InstanceSet):
            raise UserError("keypoints can only be scored on objects; give instances with their keypoints")
        chosen, counted = keypoint_hits(found, truth, self._taxonomy)
        self.reliability.add(found.scores[counted], chosen[counted] >= 0)
        right = chosen >= 0
        if right.any():
            assert found.keypoints_px is not None
            assert truth.keypoints_px is not None
            ours, theirs = found.keypoints_px[right, :, 2], truth.keypoints_px[chosen[right], :, 2]
            both = (ours > 0) & (theirs > 0)
            self._told += int(both.sum())
            self._told_right += int((both & (ours == theirs)).sum())
        self._images.append({"id": len(self._images) + 1})
        for entries, objects in ((self._truth, truth), (self._found, found)):
            if objects.keypoints_px is None:
                continue
            for index in np.flatnonzero(objects.category_ids == self._class):
                points = objects.keypoints_px[index]
                entry = _entry(objects, int(index), number=len(entries) + 1, image_id=len(self._images))
                entry["keypoints"] = [float(value) for value in points.ravel()]
                entry["num_keypoints"] = 0 if entry["iscrowd"] else int((points[:, 2] > 0).sum())
                entries.append(entry)

    def result(self) -> dict[str, float]:
        """`oks_ap` (similarity 0.50 to 0.95), `oks_ap50`, the calibration error `ece` of the scores (right is a
        similarity of 0.50) and, of the points that such objects share with the truth, `visibility_accuracy`: the share
        that is rightly called seen or hidden.
        """
        if not any(entry["num_keypoints"] for entry in self._truth):
            return {}
        if not self._found:
            return {"oks_ap": 0.0, "oks_ap50": 0.0, "ece": 0.0}
        precision = average_precision(
            self._truth, self._found, images=self._images, categories=[self._class], sigmas=self._sigmas
        )
        return {
            "oks_ap": float(precision.mean()),
            "oks_ap50": float(precision[0].mean()),
            "ece": self.reliability.expected_calibration_error,
            **({"visibility_accuracy": self._told_right / self._told} if self._told else {}),
        }

    @property
    def merit(self) -> float | None:
        return self.result().get("oks_ap")


def average_precision(
    truth: Sequence[Mapping[str, Any]],
    found: Sequence[Mapping[str, Any]],
    *,
    images: Sequence[Mapping[str, Any]],
    categories: Sequence[int],
    sigmas: Sequence[float] | None = None,
) -> Float[np.ndarray, "ious recalls classes"]:
    """pycocotools' precision at IoU 0.50 to 0.95 and recall 0 to 1, objects of all sizes; -1 for a class without truth.

    Args:
        truth, found: COCO annotations with `id`, `area`, `iscrowd` and, the found ones, `score`.
        sigmas: of each keypoint: the similarity of keypoints takes the place of the IoU of masks.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        evaluation = cast(Any, COCOeval)(
            _dataset(truth, images, categories),
            _dataset(found, images, categories),
            "segm" if sigmas is None else "keypoints",
        )
        if sigmas is not None:
            evaluation.params.kpt_oks_sigmas = np.array(sigmas)
        # By default the 100 surest of a picture count; more than there are makes it all.
        evaluation.params.maxDets = [len(found)]
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, :, 0, 0]


def _entry(objects: InstanceSet, index: int, *, number: int, image_id: int) -> dict[str, Any]:
    """An object as COCO's scorer wants it; `number` counts from 1, as it takes 0 for "no match"."""
    rle = _coco.encode(np.asfortranarray(objects.masks[index], dtype=np.uint8))
    return {
        "id": number,
        "image_id": image_id,
        "category_id": int(objects.category_ids[index]),
        "segmentation": rle,
        "area": int(objects.masks[index].sum()),
        "bbox": [float(value) for value in _coco.toBbox(rle)],
        "iscrowd": int(objects.is_crowd[index]),
        "score": float(objects.scores[index]),
    }


def _dataset(
    annotations: Sequence[Mapping[str, Any]], images: Sequence[Mapping[str, Any]], categories: Sequence[int]
) -> COCO:
    dataset = cast(Any, COCO)()
    dataset.dataset = {
        "images": list(images),
        "categories": [{"id": category} for category in categories],
        "annotations": [dict(annotation) for annotation in annotations],  # the scorer writes into them
    }
    dataset.createIndex()
    return dataset
