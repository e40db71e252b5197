"""Rendered scenes of the pocket world with their exact truth, drawn when they are asked for."""

import hashlib
from typing import Annotated

from annotated_types import Ge

from datagen.datasets import AnnotatedImages
from datagen.pocket import world
from decoders.labels import AnnotatedImage


class PocketScenes(AnnotatedImages):
    """Labels `semantic`, `depth` (metres), `normals` and `instances`, people with keypoints.

    The same settings always give the same pictures.
    """

    def __init__(
        self,
        *,
        count: Annotated[int, Ge(1)] = 20,
        seed: Annotated[int, Ge(0)] = 0,
        split: str = "few_shot",
        held_out: bool = False,
        close_up: bool = False,
        height: Annotated[int, Ge(16)] = world.SIZE,
        width: Annotated[int, Ge(16)] = world.SIZE,
    ) -> None:
        """
        Args:
            seed: number of the first scene within the split.
            split: range of seeds: `few_shot` to fit readers, `test` to measure them.
            held_out: whether the look and the weather that the pocket model never saw occur too.
            close_up: the same streets through a longer lens, each with somebody large enough for keypoints.

        Raises:
            UserError: no such split, or it does not have that many scenes.
        """
        self.taxonomy = world.TAXONOMY
        self._seeds = {f"{one:08d}": one for one in world.seeds_of(split, first=seed, count=count)}
        self.names = tuple(self._seeds)
        self._held_out = held_out
        self._close_up = close_up
        self._size = (height, width)

    @property
    def digest(self) -> str:
        """Stands for the pictures, which need not be drawn to be told from others."""
        return hashlib.sha256(repr((self.names, self._held_out, self._close_up, self._size)).encode()).hexdigest()

    def scene(self, name: str) -> world.Scene:
        """The scene itself, with its captions and domain."""
        height, width = self._size
        return world.render_scene(
            self._seeds[name], held_out=self._held_out, close_up=self._close_up, height=height, width=width
        )

    def load(self, name: str) -> AnnotatedImage:
        scene = self.scene(name)
        return AnnotatedImage(name=name, image=scene.image, labels=scene.labels)
