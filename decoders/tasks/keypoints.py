"""Where the points of an object are, such as a person's joints: one heat map per point, grouped by the object.

A point belongs to the object on whose mask, or right beside it, its heat is greatest. The masks are those of the task
instances where it is read too; alone, the connected parts of what this task takes for the class with points.

Whether a point is seen or hidden is learned, too, unless the annotations follow the masks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from decoders.average_precision import ObjectKeypointSimilarity, keypoint_hits
from decoders.calibration import fit_sigmoid, through_sigmoid
from decoders.decoder import Residual, Trunk, TrunkFeatures, TwoScaleHead, resize
from decoders.errors import UserError
from decoders.labels import InstanceSet, Label, Taxonomy
from decoders.looks import mean_logits
from decoders.regions import large_regions, numbered_regions
from decoders.resizing import Size, coarsening, resize_nearest, resize_points
from decoders.tasks import Score, Task

_SPREAD = 1.5
"""Deviation of a point's heat in cells: narrow enough to tell neighbours, wide enough to learn."""
_HEAT_OF_A_POINT = 2 * np.pi * _SPREAD**2
_HEAT_SIDE = 128
"""Heat is kept at full size, or where both sides are longer than twice this, at a half, a quarter ..."""
_POINTLESS, _CROWD = 2, 255
"""Of the last plane of a target: an object whose points nobody gave; several objects that nobody separated."""
_HIDDEN, _SEEN = 1, 2
"""Of the planes of visibility, near a point; 0 elsewhere."""
_AGAINST_MASK = 2
"""More than those, where the mask says otherwise: hidden on it, seen beside it."""
_NEAR = 2.5
"""Cells around a point that say whether it is seen, about as far as its heat's top may be misplaced."""
_MASK_SAYS = 0.9
"""Share of the points from which on the mask is believed: more than can be learned from a few pictures."""
_SMALLEST_PX = 20
_REACH = 0.1
"""Of an object's height: how far outside its mask its points are looked for."""
_ndimage = cast(Any, ndimage)


class Keypoints(Task[Tensor]):
    """The points of the taxonomy's skeleton, each seen or hidden.

    Where nine in ten annotated points are seen on the object's mask and hidden beside it, that is the rule; else
    visibility is what was learned. The score of an object found alone is the mean probability of its pixels times that
    of its points, through the sigmoid that fits held-out pictures best: how likely its points are right (OKS of 0.5).
    """

    learns_from = "instances"
    adds_to = "instances"

    score_sigmoid: Tensor
    """Scale and shift of the scores' logits."""
    mask_says: Tensor
    """Whether a point is seen exactly where it lies on its object's mask."""

    def __init__(self, trunk: Trunk, taxonomy: Taxonomy, *, minimum_confidence: float = 0.25) -> None:
        """Options.

        Args:
            minimum_confidence: points whose heat is nowhere above this are not given.
        """
        super().__init__(taxonomy)
        if taxonomy.skeleton is None:
            raise UserError(
                "task keypoints: no class of the taxonomy has points; give a dataset with a skeleton (COCO: "
                "`keypoints` of a category), or leave the task out"
            )
        if not 0 < minimum_confidence < 1:
            raise UserError(
                f"task keypoints: found minimum_confidence {minimum_confidence}; expected above 0 and below 1"
            )
        self.skeleton = taxonomy.skeleton
        self.minimum_confidence = minimum_confidence
        self.refine = Residual(trunk.fine_channels)
        self.head = TwoScaleHead(trunk, 2 * len(taxonomy.skeleton.points) + 1)
        self.register_buffer("score_sigmoid", torch.tensor([1.0, 0.0]))
        self.register_buffer("mask_says", torch.tensor(True))

    @torch.no_grad()
    def calibrate(self, targets: Iterable[UInt8[Tensor, "planes height width"]]) -> None:
        """Begin where every plane says its mean: almost everywhere there is no point. Find out what the masks say."""
        planes = 2 * len(self.skeleton.points) + 1
        said, counted = torch.zeros(planes), torch.zeros(planes)
        marked = against = 0
        for target in targets:
            truth, known = _truth(target[None])
            said += (truth * known).sum((0, 2, 3))
            counted += known.sum((0, 2, 3))
            visibility = target[len(self.skeleton.points) : -1]
            marked += int((visibility > 0).sum())
            against += int((visibility > _AGAINST_MASK).sum())
        if not marked:
            raise UserError("no picture has a keypoint to learn from; give keypoints, or leave out the task keypoints")
        self.mask_says.fill_(against <= (1 - _MASK_SAYS) * marked)
        assert self.head.fine.bias is not None, "it is built with one"
        self.head.fine.bias.copy_((said / counted.clamp_min(1)).clamp(1e-4, 1 - 1e-4).logit())

    def forward(self, features: TrunkFeatures) -> Float[Tensor, "batch planes rows columns"]:
        """Logits of each point's heat, of each being seen, and of the class with points, at the size of the target."""
        fine = replace(features, fine=self.refine(features.fine))
        logits = self.head(fine)
        factor = coarsening(logits.shape[-2:], _HEAT_SIDE)
        return logits if factor == 1 else functional.avg_pool2d(logits, factor, ceil_mode=True)

    def target(self, label: Label) -> UInt8[Tensor, "planes rows columns"]:
        """Heat of each point, 255 at its place; near each, whether it is hidden (1, 3 on its object's mask) or seen (2,
        4 beside the mask); and last where objects are: 1, 2 without points, 255 a crowd.
        """
        objects = _objects(label)
        points = objects.keypoints_px
        if points is None and not len(objects.masks):
            points = np.zeros((0, len(self.skeleton.points), 3), np.float32)
        if points is None:
            raise UserError("the objects have no keypoints; give them, or leave out the task keypoints")
        if points.shape[1] != len(self.skeleton.points):
            raise UserError(
                f"the objects have {points.shape[1]} keypoints each, the skeleton of {self.skeleton.class_name} "
                f"{len(self.skeleton.points)}; give all of them, in its order"
            )
        native = objects.masks.shape[1:]
        factor = coarsening(native, _HEAT_SIDE)
        size = (-(-native[0] // factor), -(-native[1] // factor))
        mine = objects.category_ids == self.taxonomy.jointed
        where = np.zeros(size, np.uint8)
        masks = resize_nearest(objects.masks.transpose(1, 2, 0), size).transpose(2, 0, 1)
        given = (points[..., 2] > 0).any(axis=1)
        for value, chosen in ((1, given), (_POINTLESS, ~given), (_CROWD, objects.is_crowd)):
            where[masks[mine & chosen].any(axis=0)] = value
        single = mine & ~objects.is_crowd
        points, on_mask = resize_points(points[single], native, size), _on_masks(points[single], objects.masks[single])
        planes = [*_draw_heat(points, size), *_draw_visibility(points, on_mask, size), where]
        return torch.from_numpy(np.stack(planes))

    def loss(
        self, output: Float[Tensor, "batch planes rows columns"], target: UInt8[Tensor, "batch planes rows columns"]
    ) -> Float[Tensor, ""]:
        """Quality focal loss (arXiv 2006.04388, equation 3) of the heat, cross-entropy of visibility and class."""
        truth, known = _truth(target)
        entropy = functional.binary_cross_entropy_with_logits(output, truth.to(output.dtype), reduction="none") * known
        points = len(self.skeleton.points)
        miss = (truth - output.sigmoid())[:, :points].square()
        # By the heat there is, not by the points: a loss fourteen times that of the other tasks would drown them.
        heat = (miss * entropy[:, :points]).sum() / truth[:, :points].sum().clamp_min(_HEAT_OF_A_POINT)
        seen, there = (
            entropy[:, part].sum() / known[:, part].sum().clamp_min(1) for part in (slice(points, -1), slice(-1, None))
        )
        return heat + seen + there

    def merge(self, looks: Sequence[Float[Tensor, "batch planes rows columns"]]) -> Tensor:
        return mean_logits(looks)

    @torch.no_grad()
    def tune_confidence(self, pairs: Iterable[tuple[Float[Tensor, "1 planes rows columns"], Label]]) -> None:
        """Platt scaling of the scores of objects found alone."""
        self.score_sigmoid.copy_(torch.tensor([1.0, 0.0]))
        answers: list[tuple[np.ndarray, np.ndarray]] = []
        for output, label in pairs:
            truth = _objects(label)
            found = self._read_alone(output[0].float(), (truth.masks.shape[1], truth.masks.shape[2]))
            right, counted = keypoint_hits(found, truth, self.taxonomy)
            answers.append((found.scores[counted], right[counted] >= 0))
        self.score_sigmoid.copy_(torch.tensor(fit_sigmoid(answers)))

    @torch.no_grad()
    def read(self, output: Float[Tensor, "batch planes rows columns"], size: Size) -> list[Label]:
        return [self._read_alone(one, size) for one in output.float()]

    def _read_alone(self, output: Float[Tensor, "planes rows columns"], size: Size) -> InstanceSet:
        probability = resize(output[None, -1:], size)[0, 0].sigmoid().cpu().numpy()
        regions, sizes = numbered_regions(probability > 0.5)
        kept = large_regions(sizes, _SMALLEST_PX)
        masks = regions[None] == kept[:, None, None]
        points, confidence = self._find(output, masks)
        given = points[..., 2] > 0
        certainty = (confidence * given).sum(axis=1) / np.maximum(given.sum(axis=1), 1)
        inside = (probability * masks).sum(axis=(1, 2)) / np.maximum(masks.sum(axis=(1, 2)), 1)
        scores = through_sigmoid(torch.from_numpy(inside * certainty), self.score_sigmoid.cpu())
        return InstanceSet(
            masks=masks,
            category_ids=np.full(len(kept), self.taxonomy.jointed, np.int64),
            scores=scores.numpy().astype(np.float32),
            is_crowd=np.zeros(len(kept), bool),
            keypoints_px=points,
        )

    @torch.no_grad()
    def complete(self, output: Float[Tensor, "1 planes rows columns"], objects: Label) -> Label:
        """Give the objects of the class their points."""
        objects = _objects(objects)
        mine = np.flatnonzero(objects.category_ids == self.taxonomy.jointed)
        points = np.zeros((len(objects.masks), len(self.skeleton.points), 3), np.float32)
        points[mine] = self._find(output[0].float(), objects.masks[mine])[0]
        return replace(objects, keypoints_px=points)

    def _find(
        self, output: Float[Tensor, "planes rows columns"], masks: Bool[np.ndarray, "objects height width"]
    ) -> tuple[Float32[np.ndarray, "objects points 3"], Float32[np.ndarray, "objects points"]]:
        """The points of each object, and how sure each is."""
        heat, visible = output[:-1].sigmoid().cpu().numpy().reshape(2, -1, *output.shape[1:])
        small = resize_nearest(masks.transpose(1, 2, 0), heat.shape[1:]).transpose(2, 0, 1)
        points = np.zeros((len(masks), len(heat), 3), np.float32)
        confidence = np.zeros((len(masks), len(heat)), np.float32)
        seen = np.zeros((len(masks), len(heat)), bool)
        for index, mask in enumerate(small):
            if not mask.any():
                continue
            rows = np.flatnonzero(mask.any(axis=1))
            reach = max(2, round(_REACH * float(rows[-1] - rows[0] + 1)))
            others = np.delete(small, index, axis=0).any(axis=0)
            near = _ndimage.binary_dilation(mask, iterations=reach) & ~(others & ~mask)
            for number, plane in enumerate(heat):
                row, column = np.unravel_index(int(np.where(near, plane, -1.0).argmax()), plane.shape)
                points[index, number, :2] = _peak(plane, int(row), int(column))
                confidence[index, number] = plane[row, column]
                seen[index, number] = visible[number, row, column] > 0.5
        points[..., 2] = confidence >= self.minimum_confidence
        points = resize_points(points, heat.shape[1:], masks.shape[1:])
        points[..., 2] *= 1 + (_on_masks(points, masks) if self.mask_says else seen)
        return points, confidence

    def score(self) -> Score:
        return ObjectKeypointSimilarity(self.taxonomy)


def _truth(
    target: UInt8[Tensor, "batch planes rows columns"],
) -> tuple[Float[Tensor, "batch planes rows columns"], Float[Tensor, "batch planes rows columns"]]:
    """What each plane should say, 0..1, and where it is known (1) or not (0)."""
    heat, visibility, where = target.split([target.shape[1] // 2, target.shape[1] // 2, 1], dim=1)
    seen = (visibility == _SEEN) | (visibility == _SEEN + _AGAINST_MASK)
    truth = torch.cat([heat.float() / 255, seen.float(), ((where == 1) | (where == _POINTLESS)).float()], dim=1)
    pointed = ((where != _POINTLESS) & (where != _CROWD)).expand_as(heat)
    return truth, torch.cat([pointed, visibility > 0, where != _CROWD], dim=1).float()


def _draw_heat(
    points: Float32[np.ndarray, "objects points 3"], size: Size
) -> UInt8[np.ndarray, "points {size[0]} {size[1]}"]:
    """The greatest of the objects' bells, each 255 at its top."""
    heat = np.zeros((points.shape[1], *size), np.float32)
    for places in points:
        for plane, (x, y, visibility) in zip(heat, places, strict=True):
            if visibility:
                down = np.exp(-((np.arange(size[0]) - y) ** 2) / (2 * _SPREAD**2))
                across = np.exp(-((np.arange(size[1]) - x) ** 2) / (2 * _SPREAD**2))
                np.maximum(plane, down[:, None] * across[None], out=plane)
    return np.rint(heat * 255).astype(np.uint8)


def _draw_visibility(
    points: Float32[np.ndarray, "objects points 3"], on_mask: Bool[np.ndarray, "objects points"], size: Size
) -> UInt8[np.ndarray, "points {size[0]} {size[1]}"]:
    """Around each point how it is seen, and whether its mask says otherwise."""
    planes = np.zeros((points.shape[1], *size), np.uint8)
    rows, columns = np.ogrid[: size[0], : size[1]]
    for places, believed in zip(points, on_mask, strict=True):
        for plane, (x, y, visibility), covered in zip(planes, places, believed, strict=True):
            if visibility:
                seen = visibility == _SEEN
                near = (columns - x) ** 2 + (rows - y) ** 2 < _NEAR**2
                plane[near] = (_SEEN if seen else _HIDDEN) + (_AGAINST_MASK if seen != covered else 0)
    return planes


def _on_masks(
    points: Float32[np.ndarray, "objects points 3"], masks: Bool[np.ndarray, "objects height width"]
) -> Bool[np.ndarray, "objects points"]:
    """Whether each object's points lie on its mask."""
    columns, rows = np.rint(points[..., :2]).astype(np.int64).transpose(2, 0, 1)
    rows, columns = rows.clip(0, masks.shape[1] - 1), columns.clip(0, masks.shape[2] - 1)
    return masks[np.arange(len(masks))[:, None], rows, columns]


def _peak(heat: Float32[np.ndarray, "rows columns"], row: int, column: int) -> tuple[float, float]:
    """x and y of the top of the bell around a cell: the logarithm of a bell is a parabola, and three points give it."""
    return column + _shift(heat[row], column), row + _shift(heat[:, column], row)


def _shift(heat: Float32[np.ndarray, " cells"], top: int) -> float:
    if not 0 < top < len(heat) - 1:
        return 0.0
    before, here, after = np.log(np.maximum(heat[top - 1 : top + 2], 1e-6)).tolist()
    bend = 2 * here - before - after
    return min(max((after - before) / (2 * bend), -0.5), 0.5) if bend > 1e-6 else 0.0


def _objects(label: Label) -> InstanceSet:
    if not isinstance(label, InstanceSet):
        raise UserError("the keypoints label is no set of objects; give one mask, class and list of points per object")
    return label
