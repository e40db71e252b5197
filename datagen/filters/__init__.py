"""What is kept: each filter looks at a finished sample and says yes, or no with a reason."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from datagen.records import Sample, Verdict


@runtime_checkable
class Filter(Protocol):
    """One judgement. The reason is made of a few fixed words, since reasons are counted; numbers go into the scores."""

    def judge(self, sample: Sample) -> Verdict: ...


def judge(sample: Sample, filters: Sequence[Filter]) -> Verdict:
    """The verdict of all filters: the first that rejects names the reason, and every score is kept."""
    verdicts = [each.judge(sample) for each in filters]
    scores: dict[str, float] = {}
    for position, verdict in enumerate(verdicts):
        for name, score in verdict.scores.items():
            scores[name if name not in scores else f"{name}.{position}"] = (
                score  # the same filter may stand there twice
            )
    reason = next((verdict.reason for verdict in verdicts if not verdict.keep), "")
    return Verdict(keep=all(verdict.keep for verdict in verdicts), reason=reason, scores=scores)
