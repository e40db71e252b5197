"""A user's own annotated pictures, each drawn anew in other styles; what is labelled stays where it is."""

from functools import cached_property
from typing import Annotated

from annotated_types import Ge, Le

from datagen.datasets import AnnotatedImages, data_digest
from datagen.guides import resize_guide
from datagen.plugins import OneOf
from datagen.records import Guide, Recipe
from datagen.sources._guided import GuidedRecipes
from datagen.sources.templates import Phrases
from decoders.resizing import Size


class Restyle:
    """Every picture of a dataset as a whole, `times` times in a row, and then no more.

    Its labels are the guide, and the picture itself: edges may be taken from it, and with `strength` below 1 of the
    generator drawing begins from it. A recipe tells its style and, as `source`, the picture's name.
    """

    def __init__(
        self,
        *,
        data: Annotated[AnnotatedImages, OneOf("datasets", at="source.data")],
        times: Annotated[int, Ge(1)] = 1,
        height: Annotated[int, Ge(1)] | None = None,
        width: Annotated[int, Ge(1)] | None = None,
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
            data: pictures with labels, each taken whole.
            times: styles for each picture.
            height, width: of every picture and its labels in pixels; their own where left out.
            prompt, style, words, minimum_visible, negative_prompt, plain_share: as of `layouts`.

        Raises:
            UserError: prompt, style or words name what is not there.
        """
        self.taxonomy = data.taxonomy
        self.length = times * len(data)
        self._data = data
        self._times = times
        self._size = (height, width)
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

    @cached_property
    def digest(self) -> str:
        """Stands for the pictures and labels of the dataset."""
        return data_digest(self._data)

    def recipe(self, index: int) -> Recipe:
        """
        Raises:
            UserError: the dataset has no semantic map, or a picture is damaged.
        """
        picture = self._data[index // self._times]
        size: Size = (self._size[0] or picture.image.shape[0], self._size[1] or picture.image.shape[1])
        guide = resize_guide(Guide(labels=picture.labels, image=picture.image), size)
        return self._recipes.recipe(index, guide, {"source": picture.name})
