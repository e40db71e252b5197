"""Which pictures of a pool are most like a few real ones, by the features of a model."""

from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from rich.console import Console

from datagen.evaluation.feature_space import FeatureSpace
from datagen.evaluation.likeness import Features, nearest
from datagen.meter import meter
from decoders.files import atomic_file
from decoders.labels import AnnotatedImage


class Retrieval:
    """Features of both sides, computed once and kept in a folder."""

    def __init__(
        self,
        *,
        real: tuple[str, Sequence[AnnotatedImage]],
        pool: tuple[str, Sequence[AnnotatedImage]],
        space: FeatureSpace,
        folder: Path,
        console: Console,
        left_out: Collection[int] = (),
    ) -> None:
        """Args:
        real, pool: each with its digest in front.
        left_out: numbers of the pool's pictures that are not retrieved.
        """
        self._real = real
        self._pool = pool
        self._space = space
        self._folder = folder
        self._console = console
        self._left_out = left_out
        self.nearest = cache(self._nearest)

    def _nearest(self, count: int) -> tuple[int, ...]:
        """Numbers of the pool's pictures, the nearest to any of the first `count` real ones first."""
        real, pool = self._features(*self._real), self._features(*self._pool)
        spread = pool.std(axis=0) + np.float32(1e-6)
        found = nearest(pool / spread, real[:count] / spread)[:, 0]
        return tuple(index for index in np.argsort(found, kind="stable").tolist() if index not in self._left_out)

    def _features(self, digest: str, pictures: Sequence[AnnotatedImage]) -> Features:
        file = self._folder / f"{digest[:16]}_{self._space.digest[:16]}.npy"
        if not file.exists():
            rows: list[np.ndarray] = []
            with meter("look", console=self._console) as tick:
                for index, picture in enumerate(pictures):
                    rows.append(self._space.embed(picture))
                    tick(index + 1, len(pictures))
            with atomic_file(file) as opened:
                np.save(opened, np.stack(rows))
        return np.load(file)
