"""Keep pictures in which a reader finds what their inherited labels say."""

from typing import Annotated

import numpy as np
from annotated_types import Ge, Le

from datagen.records import Sample, Verdict
from decoders.errors import UserError
from decoders.labels import Taxonomy, categorical, semantic_ids

Share = Annotated[float, Ge(0), Le(1)]


class Agreement:
    """Asks for a mean agreement over all pixels that the guide labels, and over those of each class."""

    def __init__(
        self,
        *,
        minimum: Share = 0.5,
        minimum_of_class: Share = 0.0,
        class_pixels: Annotated[int, Ge(1)] = 64,
        taxonomy: Taxonomy,
    ) -> None:
        """Agreement is the confidence of labels that say what the guide says, as `inherited` gives it; what was made
        void, or says another class, counts as 0.

        Args:
            minimum: of the mean over all pixels that the guide labels.
            minimum_of_class: of the mean over those of every class that the guide shows with at least `class_pixels`.
            class_pixels: from so many on a class is asked about.
        """
        self._minimum = minimum
        self._minimum_of_class = minimum_of_class
        self._class_pixels = class_pixels
        self._taxonomy = taxonomy

    def judge(self, sample: Sample) -> Verdict:
        """
        Raises:
            UserError: the sample was not drawn after a guide.
        """
        if sample.recipe.guide is None:
            raise UserError(
                f"sample {sample.recipe.id} has no guide, so that nothing can agree with it; use this filter with the "
                "labeller `inherited`, or remove it from the plan"
            )
        ids, found = semantic_ids(sample.recipe.guide.labels), categorical(sample.labels)
        agreement = np.where(found.valid & (found.values[..., 0] == ids), found.confidence, 0)
        pixels = np.bincount(ids.ravel(), minlength=len(self._taxonomy) + 1)
        sums = np.bincount(ids.ravel(), agreement.ravel(), minlength=len(self._taxonomy) + 1)
        labelled = int(pixels[1:].sum())
        scores = {"agreement": float(sums[1:].sum() / labelled) if labelled else 1.0}
        reason = "disagrees with its labels" if scores["agreement"] < self._minimum else ""
        for name, count, total in zip(self._taxonomy.names, pixels[1:], sums[1:], strict=True):
            if count >= self._class_pixels:
                scores[f"agreement.{name}"] = float(total / count)
                if not reason and scores[f"agreement.{name}"] < self._minimum_of_class:
                    reason = f"{name} disagrees"
        return Verdict(keep=not reason, reason=reason, scores=scores)
