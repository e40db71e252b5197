"""Rendered scenes of the pocket world with their exact truth, drawn when they are asked for."""

import hashlib
from dataclasses import replace
from typing import Annotated

import numpy as np
from annotated_types import Ge, MinLen

from datagen.datasets import AnnotatedImages
from datagen.pocket import world
from datagen.pocket.atmosphere import LOOKS, TIMES, WEATHERS, Domain, draw_domain
from datagen.settings import listed, nearest
from decoders.errors import UserError
from decoders.labels import AnnotatedImage

Words = Annotated[tuple[str, ...], MinLen(1)]


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
        look: Words | None = None,
        weather: Words | None = None,
        time: Words | None = None,
        height: Annotated[int, Ge(16)] = world.SIZE,
        width: Annotated[int, Ge(16)] = world.SIZE,
    ) -> None:
        """
        Args:
            count: scenes, one after the other from `seed` on.
            height, width: of each in pixels.
            seed: number of the first scene within the split.
            split: range of seeds: `few_shot` to fit readers, `test` to measure them.
            held_out: whether the look and the weather that the pocket model never saw occur too.
            look, weather, time: the same streets in one of these, drawn for each scene; all that there are, less the
                held-out ones, when None.
            close_up: the same streets through a longer lens, each with somebody large enough for keypoints.

        Raises:
            UserError: no such split, look, weather or time, or the split does not have that many scenes.
        """
        self.taxonomy = world.TAXONOMY
        self._seeds = {f"{one:08d}": one for one in world.seeds_of(split, first=seed, count=count)}
        self.names = tuple(self._seeds)
        self._held_out = held_out
        self._close_up = close_up
        self._size = (height, width)
        self._chosen = {
            name: words for name, words in (("look", look), ("weather", weather), ("time", time)) if words is not None
        }
        for name, words in self._chosen.items():
            known = {"look": LOOKS, "weather": WEATHERS, "time": TIMES}[name]
            if unknown := [word for word in words if word not in known]:
                raise UserError(
                    f"{name}: unknown {unknown[0]!r}{nearest(unknown[0], known) or ';'} known: {listed(known)}"
                )

    @property
    def digest(self) -> str:
        """Stands for the pictures, which need not be drawn to be told from others."""
        decisive = (self.names, self._held_out, self._close_up, self._size, *self._chosen.items(), *world.CHANGES)
        return hashlib.sha256(repr(decisive).encode()).hexdigest()

    def scene(self, name: str) -> world.Scene:
        """The scene itself, with its captions and domain."""
        height, width = self._size
        seed = self._seeds[name]
        return world.render_scene(seed, domain=self._domain(seed), close_up=self._close_up, height=height, width=width)

    def _domain(self, seed: int) -> Domain:
        """The scene's own, but for what was chosen."""
        own = draw_domain(np.random.default_rng([seed, 0]), held_out=self._held_out)
        stream = np.random.default_rng([seed, 5])
        return replace(own, **{name: str(stream.choice(words)) for name, words in self._chosen.items()})

    def load(self, name: str) -> AnnotatedImage:
        scene = self.scene(name)
        return AnnotatedImage(name=name, image=scene.image, labels=scene.labels)
