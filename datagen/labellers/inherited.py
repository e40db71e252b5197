"""Labels that a picture inherits from the guide it was drawn after, as sure as a reader agrees with them."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from jaxtyping import Bool, Float32, UInt8

from datagen.labellers.decoded import Decoded
from datagen.model import Model
from datagen.records import Guide, Recipe
from decoders.errors import UserError
from decoders.labels import InstanceSet, Label, LabelSet, Taxonomy, semantic_ids
from decoders.regions import numbered_regions


class Inherited:
    """The guide's own labels, never edited in place; void stays void.

    With a reader, each pixel's confidence is the probability that the reader gives the inherited class: its confidence
    where it names the same class, at most the rest where it names another. An object has the mean over its pixels.
    """

    def __init__(
        self,
        *,
        reader: Path | None = None,
        fit: Path | None = None,
        void_below: Annotated[float, Ge(0), Lt(1)] = 0.0,
        undrawn_below: Annotated[float, Ge(0), Lt(1)] = 0.0,
        undrawn_up_to: Annotated[float, Gt(0), Le(1)] = 0.05,
        boundary: Annotated[int, Ge(0)] = 0,
        model: Model | None = None,
        taxonomy: Taxonomy | None,
    ) -> None:
        """
        Args:
            reader: folder of a reader that knows the same classes, in any order; without one the labels are sure.
            fit: plan to fit it with, if that folder holds no reader yet.
            void_below: pixels less sure than this become void in every map, objects less sure are marked to be ignored.
            undrawn_below: connected regions of a class, and objects, less sure than this in the mean over their
                pixels were hardly drawn: the former become void in every map, the latter are marked to be ignored.
            undrawn_up_to: share of the picture up to which a region or an object may be missing. A larger one is there,
                only that a reader of clear days may not know it in the fog.
            boundary: pixels on either side of a class boundary that become void; drawn edges are seldom exact
                (FLEX-Seg, arXiv 2511.22948).

        Raises:
            UserError: the source brings no labels, or the reader knows other classes.
        """
        del fit  # `prepare` has used it
        if taxonomy is None:
            raise UserError(
                "found a source that brings no labels, expected one whose pictures keep a geometry, such as layouts; "
                "or let a reader say the labels: `kind: decoded`"
            )
        if reader is None and (void_below or undrawn_below):
            which = "void_below" if void_below else "undrawn_below"
            raise UserError(f"{which} needs a `reader` that says how sure a label is; name one, or leave it out")
        self._taxonomy = taxonomy
        self._void_below = void_below
        self._undrawn_below = undrawn_below
        self._undrawn_up_to = undrawn_up_to
        self._boundary = boundary
        self._reader = None if reader is None else Decoded(reader=reader, model=model)
        if self._reader is not None:
            self._ids = translation(taxonomy, self._reader.taxonomy)

    @staticmethod
    def prepare(*, reader: Path | None = None, fit: Path | None = None, **_: Any) -> None:
        """Fit the reader if it is absent and a plan says how."""
        if reader is not None:
            Decoded.prepare(reader=reader, fit=fit)

    @property
    def taxonomy(self) -> Taxonomy:
        """The source's."""
        return self._taxonomy

    @property
    def digest(self) -> str:
        """Identity of the reader, if there is one, and of what is made of its answers."""
        read = None if self._reader is None else self._reader.digest
        chosen = (self._void_below, self._undrawn_below, self._undrawn_up_to, self._boundary)
        return hashlib.sha256(repr((read, *chosen)).encode()).hexdigest()

    def label(self, recipes: Sequence[Recipe], images: UInt8[np.ndarray, "batch height width 3"]) -> Sequence[LabelSet]:
        """
        Raises:
            UserError: a recipe has no guide, or its picture has another size.
        """
        guides = [_guide(recipe, (images.shape[1], images.shape[2])) for recipe in recipes]
        if self._reader is None:
            sure = np.ones(images.shape[1:3], np.float32)
            return [self._inherit(guide.labels, sure) for guide in guides]
        claims = [self._ids[semantic_ids(guide.labels)] for guide in guides]
        sures = self._reader.agreement(images, claims)
        return [self._inherit(guide.labels, sure) for guide, sure in zip(guides, sures, strict=True)]

    def _inherit(self, labels: LabelSet, agreement: Float32[np.ndarray, "height width"]) -> LabelSet:
        doubtful = agreement < self._void_below
        if self._undrawn_below:
            doubtful |= self._undrawn(semantic_ids(labels), agreement)
        if self._boundary:
            doubtful |= near_boundaries(semantic_ids(labels), self._boundary)
        return {task: self._one(label, agreement, doubtful) for task, label in labels.items()}

    def _undrawn(
        self, ids: UInt8[np.ndarray, "height width"], agreement: Float32[np.ndarray, "height width"]
    ) -> Bool[np.ndarray, "height width"]:
        """The small connected regions in which the reader sees something else."""
        found = np.zeros(ids.shape, bool)
        for semantic_id in np.unique(ids[ids > 0]):
            regions, sizes = numbered_regions(ids == semantic_id)
            sums = np.bincount(regions.ravel(), agreement.ravel(), minlength=len(sizes))
            missing = (sums < self._undrawn_below * sizes) & (sizes <= self._undrawn_up_to * ids.size)
            missing[0] = False  # the rest of the picture
            found |= missing[regions]
        return found

    def _one(
        self,
        label: Label,
        agreement: Float32[np.ndarray, "height width"],
        doubtful: Bool[np.ndarray, "height width"],
    ) -> Label:
        if isinstance(label, InstanceSet):
            pixels = np.maximum(label.masks.sum(axis=(1, 2)), 1)
            scores = ((label.masks * agreement).sum(axis=(1, 2)) / pixels).astype(np.float32)
            ignored = scores < self._void_below
            ignored |= (scores < self._undrawn_below) & (pixels <= self._undrawn_up_to * agreement.size)
            return replace(label, scores=scores, is_crowd=label.is_crowd | ignored)
        valid = label.valid & ~doubtful
        values = np.where(valid[..., None], label.values, np.float32(0))
        return replace(label, values=values, valid=valid, confidence=label.confidence * agreement)


def near_boundaries(ids: UInt8[np.ndarray, "height width"], pixels: int) -> Bool[np.ndarray, "height width"]:
    """Whether another class, or void, begins within so many pixels."""
    square = np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8)
    return cv2.dilate(ids, square) != cv2.erode(ids, square)


def _guide(recipe: Recipe, size: tuple[int, int]) -> Guide:
    if recipe.guide is None:
        raise UserError(f"recipe {recipe.id} has no guide to inherit labels from; use a source such as layouts")
    if recipe.guide.size != size:
        raise UserError(
            f"recipe {recipe.id} has labels of {recipe.guide.size} (height, width), but its picture is {size}; let the "
            "source crop the labels to the size that is drawn, or draw with `controlnet`, which takes theirs"
        )
    return recipe.guide


def translation(own: Taxonomy, other: Taxonomy) -> UInt8[np.ndarray, " ids"]:
    """Semantic ids of the one -> those of the other, of a reader and of the labels it looks at."""
    if set(own.names) != set(other.names):
        different = sorted(set(own.names) ^ set(other.names))
        raise UserError(
            f"the reader and the source differ in the classes {different}, expected the same ones in both; fit a "
            "reader on the source's classes, or leave `reader` out"
        )
    return np.array([0, *(other.names.index(name) + 1 for name in own.names)], np.uint8)
