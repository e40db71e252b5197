"""What all sources of guides share: the words for what a guide shows, and the settings that say them."""

from collections.abc import Mapping

import numpy as np

from datagen.randomness import seed_for
from datagen.records import Guide, Recipe
from datagen.sources import sample_id
from datagen.sources.templates import Phrases
from datagen.style_prompts import StylePrompts
from decoders.labels import Taxonomy, semantic_ids

ATTRIBUTES = ("source", "crop", "scale", "anchor")
"""What a recipe tells beside its style; no attribute of style may have these names."""


class GuidedRecipes:
    """From a guide to a recipe. It wants no class: the labels are there already."""

    def __init__(
        self,
        *,
        prompt: str,
        style: Mapping[str, Phrases] | None,
        words: Mapping[str, str] | None,
        minimum_visible: int,
        negative_prompt: str,
        plain_share: float,
        seed: int,
        taxonomy: Taxonomy,
    ) -> None:
        """Arguments and errors as those of `layouts`."""
        self._prompts = StylePrompts(
            prompt=prompt,
            style=style or {},
            words=words or {},
            plain_share=plain_share,
            taxonomy=taxonomy,
            reserved=ATTRIBUTES,
        )
        self._minimum_visible = minimum_visible
        self._negative_prompt = negative_prompt
        self._seed = seed
        self._names = taxonomy.names

    def recipe(self, index: int, guide: Guide, origin: Mapping[str, str]) -> Recipe:
        """The recipe at a position; `origin` tells where the guide comes from, by names of `ATTRIBUTES`."""
        identity = sample_id(index)
        counts = np.bincount(semantic_ids(guide.labels).ravel(), minlength=len(self._names) + 1)[1:]
        visible = [name for name, count in zip(self._names, counts, strict=True) if count >= self._minimum_visible]
        prompt, style = self._prompts.compose(self._seed, identity, visible)
        return Recipe(
            id=identity,
            prompt=prompt,
            negative_prompt=self._negative_prompt,
            seed=seed_for(self._seed, identity, "picture"),
            guide=guide,
            listed=self._prompts.listed(visible),
            attributes={**style, **origin},
        )
