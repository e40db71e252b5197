"""Labels of a dataset as layouts of new pictures: the labels stay, the prompt gives another look."""

from dataclasses import replace
from functools import cached_property
from random import Random
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le, MinLen

from datagen.datasets import AnnotatedImages, data_digest
from datagen.guides import resize_guide
from datagen.plugins import OneOf
from datagen.randomness import choose, seed_for
from datagen.rare_classes import Anchors, RareClasses, cached_counts, crop_around
from datagen.records import Guide, Recipe
from datagen.settings import check_classes
from datagen.sources import sample_id
from datagen.sources._guided import GuidedRecipes
from datagen.sources.templates import Phrases
from decoders.labels import AnnotatedImage, InstanceSet, Label, semantic_ids
from decoders.resizing import Size, inside


class Layouts:
    """Crops of a dataset's labels with their picture, described by `prompt`; there is no end of them.

    Without `rare_classes`, each picture is used once per round, in an order drawn anew for each round. A recipe tells
    its style, and as `source`, `crop` (top, left, height and width in pixels of the source), `scale` and `anchor` (the
    rare class that it was cropped around) where its labels come from. It wants no class: the labels are there already.
    """

    length = None

    def __init__(
        self,
        *,
        data: Annotated[AnnotatedImages, OneOf("datasets", at="source.data")],
        height: Annotated[int, Ge(1)] | None = None,
        width: Annotated[int, Ge(1)] | None = None,
        scale: Annotated[tuple[Annotated[float, Gt(0)], ...], MinLen(1)] = (1.0,),
        rare_classes: RareClasses | None = None,
        prompt: str = "{classes}",
        style: dict[str, Phrases] | None = None,
        words: dict[str, str] | None = None,
        minimum_visible: Annotated[int, Ge(1)] = 16,
        negative_prompt: str = "",
        plain_share: Annotated[float, Ge(0), Le(1)] = 0.0,
        seed: int,
    ) -> None:
        """
        Args:
            data: pictures with label maps, from which crops are taken.
            rare_classes: crops around classes that few pictures show; any place is as likely when None.
            negative_prompt: what the pictures should not show.
            height, width: size of the picture to draw in pixels; that of the source where left out.
            scale: magnifications of the source, of which one is drawn with equal chance; a larger one is taken where
                the picture to draw would not fit into the source.
            prompt: may hold `{classes}`, the words of the visible classes, and a slot for each attribute of `style`.
            style: texts by attribute, such as `weather: [fog, {text: rain, weight: 3}]`.
            words: what stands for a class in `{classes}` instead of its phrase, such as `road: wet asphalt`.
            minimum_visible: pixels of the picture to draw that make a class visible.
            plain_share: share of the recipes whose prompt is `{classes}` alone.

        Raises:
            UserError: prompt, style, words or quotas name what is not there.
        """
        self.taxonomy = data.taxonomy
        if rare_classes is not None:
            check_classes(rare_classes.quotas, data.taxonomy, at="rare_classes.quotas")
        self._recipes = GuidedRecipes(
            prompt=prompt,
            style=style,
            words=words,
            minimum_visible=minimum_visible,
            negative_prompt=negative_prompt,
            plain_share=plain_share,
            seed=seed,
            taxonomy=data.taxonomy,
        )
        self._data = data
        self._size = (height, width)
        self._scales = scale
        self._rare_classes = rare_classes
        self._seed = seed

    @cached_property
    def digest(self) -> str:
        """Stands for the pictures and labels of the dataset."""
        return data_digest(self._data)

    @cached_property
    def _anchors(self) -> Anchors | None:
        if self._rare_classes is None:
            return None
        return Anchors(cached_counts(self._data, self.digest), self._rare_classes, self.taxonomy.names)

    def recipe(self, index: int) -> Recipe:
        """
        Raises:
            UserError: the dataset has no semantic map, a picture is damaged, or no picture shows a class with a quota.
        """
        identity = sample_id(index)
        anchor, number = self._anchors.draw(self._seed, identity) if self._anchors else (0, self._in_turn(index))
        guide, origin = self._cut(self._data[number], anchor, identity)
        return self._recipes.recipe(index, guide, origin)

    def _in_turn(self, index: int) -> int:
        """Number of the picture at a position, when each comes once per round."""
        round_number, position = divmod(index, len(self._data))
        order = np.random.default_rng(seed_for(self._seed, f"round {round_number}", "order")).permutation
        return int(order(len(self._data))[position])

    def _cut(self, picture: AnnotatedImage, anchor: int, identity: str) -> tuple[Guide, dict[str, str]]:
        """A crop of a picture and its labels, and where it lies; `anchor` is a semantic id, 0 for none."""
        ids = semantic_ids(picture.labels)
        native: Size = (ids.shape[0], ids.shape[1])
        size = (self._size[0] or native[0], self._size[1] or native[1])
        drawn = choose(self._scales, [1.0] * len(self._scales), seed_for(self._seed, identity, "scale"))
        scale = max(drawn, size[0] / native[0], size[1] / native[1])
        # Cut first and scaled then: the same view as the other way round, without scaling what is thrown away.
        height, width = (max(1, min(whole, round(side / scale))) for side, whole in zip(size, native, strict=True))
        seed = seed_for(self._seed, identity, "crop")
        if anchor and self._rare_classes is not None:
            top, left = crop_around(ids, anchor, (height, width), self._rare_classes, seed)
        else:
            stream = Random(seed)
            top, left = stream.randint(0, native[0] - height), stream.randint(0, native[1] - width)
        window = (slice(top, top + height), slice(left, left + width))
        origin = {"source": picture.name, "crop": f"{top},{left},{height},{width}", "scale": f"{scale:g}"}
        if anchor:
            origin["anchor"] = self.taxonomy.names[anchor - 1]
        parts = {name: _within(label, window) for name, label in picture.labels.items()}
        cut = resize_guide(Guide(labels=parts, image=picture.image[window].copy()), size)
        return replace(cut, labels={name: _present(label) for name, label in cut.labels.items()}), origin


def _within(label: Label, window: tuple[slice, slice]) -> Label:
    """The part of a label within a window; points outside of it are not given."""
    if not isinstance(label, InstanceSet):
        return replace(
            label, values=label.values[window], valid=label.valid[window], confidence=label.confidence[window]
        )
    masks = label.masks[:, *window]
    points = label.keypoints_px
    if points is not None:
        moved = points - np.array([window[1].start, window[0].start, 0], np.float32)
        known = inside(moved[..., :2], (masks.shape[1], masks.shape[2]))[..., None] & (points[..., 2:] > 0)
        points = np.where(known, moved, np.float32(0))
    return replace(label, masks=masks, keypoints_px=points)


def _present(label: Label) -> Label:
    """Without the objects that no pixel shows."""
    return label.only(np.flatnonzero(label.masks.any(axis=(1, 2)))) if isinstance(label, InstanceSet) else label
