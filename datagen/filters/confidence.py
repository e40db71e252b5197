"""Keep samples whose labels the reader itself believes in."""

from typing import Annotated

import numpy as np
from annotated_types import Ge, Le

from datagen.records import Sample, Verdict
from decoders.labels import categorical

Share = Annotated[float, Ge(0), Le(1)]


class Confidence:
    """Asks for a mean over the labelled pixels, and for a share of all pixels labelled with at least `sure_from`."""

    def __init__(self, *, minimum: Share = 0.5, sure_from: Share = 0.5, minimum_sure: Share = 0.0) -> None:
        self._minimum = minimum
        self._sure_from = sure_from
        self._minimum_sure = minimum_sure

    def judge(self, sample: Sample) -> Verdict:
        label = categorical(sample.labels)
        labelled = label.confidence[label.valid]
        mean = float(labelled.mean()) if labelled.size else 0.0
        sure = float(np.count_nonzero(labelled >= self._sure_from) / label.valid.size)
        reason = ""
        if mean < self._minimum:
            reason = "low confidence"
        elif sure < self._minimum_sure:
            reason = "too few sure pixels"
        return Verdict(keep=not reason, reason=reason, scores={"confidence": mean, "sure_share": sure})
