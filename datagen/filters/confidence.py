"""Keep samples whose labels the reader itself believes in."""

from typing import Annotated

import numpy as np
from annotated_types import Ge, Le
from jaxtyping import Float32

from datagen.records import Sample, Verdict
from decoders.errors import UserError
from decoders.labels import InstanceSet, Label, categorical

Share = Annotated[float, Ge(0), Le(1)]


class Confidence:
    """Asks for a mean over the labelled pixels, and for a share of all pixels labelled with at least `sure_from`; of
    objects, for both over the objects.

    With `sure_from: 0`, `minimum_sure` is the share of the pixels that the labeller did not leave void: its `coverage`
    finds the threshold for that on the annotated pictures that were held out of the fit. Objects it leaves out are not
    counted.
    """

    def __init__(
        self, *, label: str | None = None, minimum: Share = 0.5, sure_from: Share = 0.5, minimum_sure: Share = 0.0
    ) -> None:
        """
        Args:
            label: whose confidence counts, such as `depth` or `instances`; that of the class map when left out.
            minimum: of the mean over all labelled pixels, or objects.
            sure_from: confidence from which one counts as sure ...
            minimum_sure: ... and the share of them that must be.
        """
        self._label = label
        self._minimum = minimum
        self._sure_from = sure_from
        self._minimum_sure = minimum_sure

    def judge(self, sample: Sample) -> Verdict:
        labelled, places = _confidences(self._chosen(sample))
        mean = float(labelled.mean()) if labelled.size else 0.0
        sure = float(np.count_nonzero(labelled >= self._sure_from) / max(places, 1))
        reason = ""
        if mean < self._minimum:
            reason = "low confidence"
        elif sure < self._minimum_sure:
            reason = "too few sure pixels"
        return Verdict(keep=not reason, reason=reason, scores={"confidence": mean, "sure_share": sure})

    def _chosen(self, sample: Sample) -> Label:
        if self._label is None:
            return categorical(sample.labels)
        if self._label not in sample.labels:
            raise UserError(
                f"the filter confidence asks for the label {self._label!r}, but samples have "
                f"{', '.join(sorted(sample.labels))}; name one of these as its `label`"
            )
        return sample.labels[self._label]


def _confidences(label: Label) -> tuple[Float32[np.ndarray, " labelled"], int]:
    """Of what is labelled, and how many pixels or objects there are in all."""
    if isinstance(label, InstanceSet):
        return label.scores, len(label.scores)
    return label.confidence[label.valid], label.valid.size
