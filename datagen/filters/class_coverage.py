"""Keep samples that show what their prompt asked for."""

from typing import Annotated

import numpy as np
from annotated_types import Ge, Le

from datagen.records import Sample, Verdict
from datagen.settings import check_classes
from decoders.labels import Taxonomy, semantic_ids


class ClassCoverage:
    """Every wanted class covers a least part of the picture, and a least number of classes is there at all."""

    def __init__(
        self,
        *,
        minimum_share: Annotated[float, Ge(0), Le(1)] = 0.002,
        minimum_pixels: Annotated[int, Ge(1)] = 1,
        minimum_classes: Annotated[int, Ge(0)] = 0,
        taxonomy: Taxonomy,
    ) -> None:
        """A class counts as shown when it has both the share of the pixels and the number of them.

        Args:
            minimum_share: of the picture's pixels, from which a class counts as shown.
            minimum_pixels: and so many of them.
            minimum_classes: that a picture must show, whatever was asked for.
        """
        self._minimum_share = minimum_share
        self._minimum_pixels = minimum_pixels
        self._minimum_classes = minimum_classes
        self._taxonomy = taxonomy

    def judge(self, sample: Sample) -> Verdict:
        check_classes(sample.recipe.wanted, self._taxonomy, at=f"recipe {sample.recipe.id}")
        ids = semantic_ids(sample.labels)
        pixels = np.bincount(ids.ravel(), minlength=len(self._taxonomy) + 1)[1:]
        shown = pixels >= max(self._minimum_pixels, self._minimum_share * ids.size)
        positions = [self._taxonomy.names.index(name) for name in sample.recipe.wanted]
        scores = {f"share.{self._taxonomy.names[at]}": float(pixels[at] / ids.size) for at in positions}
        scores["classes"] = float(np.count_nonzero(shown))
        missing = [self._taxonomy.names[at] for at in positions if not shown[at]]
        reason = ""
        if missing:
            reason = f"no {missing[0]}"
        elif scores["classes"] < self._minimum_classes:
            reason = "too few classes"
        return Verdict(keep=not reason, reason=reason, scores=scores)
