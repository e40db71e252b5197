"""Whether confidence means what it says: of the answers given with 0.8, four in five should be right."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

_BINS = 15
_LEAST = 1e-4
"""A score has a logit from here to 1 less that."""
_SLOTS = 20 * _BINS
PRIOR = 0.0025
"""How strongly a factor of 1 is preferred. Pixels of one picture are alike: a few pictures without any wrong answer are
no proof that there never is one, however many pixels they have."""


class Reliability:
    """Counts confidences and how often they were right, over any number of pictures, in slots of equal width."""

    def __init__(self) -> None:
        self._count = np.zeros(_SLOTS, np.int64)
        self._right = np.zeros(_SLOTS, np.int64)
        self._confidence = np.zeros(_SLOTS, np.float64)

    def add(self, confidence: Float[np.ndarray, " answers"], right: Bool[np.ndarray, " answers"]) -> None:
        """`confidence` in 0..1."""
        slot = np.minimum((confidence * _SLOTS).astype(np.intp), _SLOTS - 1)
        self._count += np.bincount(slot, minlength=_SLOTS)
        self._right += np.bincount(slot, weights=right, minlength=_SLOTS).astype(np.int64)
        self._confidence += np.bincount(slot, weights=confidence.astype(np.float64), minlength=_SLOTS)

    @property
    def count(self) -> int:
        """Answers so far."""
        return int(self._count.sum())

    @property
    def expected_calibration_error(self) -> float:
        """Mean distance of confidence and accuracy, 0..1, in 15 bins (Guo et al., arXiv 1706.04599, equation 3)."""
        distance = (self._confidence - self._right).reshape(_BINS, -1).sum(axis=1)
        return float(np.abs(distance).sum() / max(1, self.count))

    def risk_at(self, coverage: float) -> float:
        """Share of wrong answers among the surest `coverage` of all, slot by slot; 0 without any."""
        wanted = coverage * self.count
        taken = wrong = 0.0
        for count, right in zip(self._count[::-1], self._right[::-1], strict=True):
            part = min(float(count), wanted - taken)
            if part > 0:
                taken += part
                wrong += part * (1 - right / count)
        return wrong / taken if taken else 0.0

    def threshold_at(self, coverage: float) -> float:
        """The confidence that the surest `coverage` of all answers reach; 0 for all of them."""
        above = np.append(np.cumsum(self._count[::-1])[::-1], 0)
        enough = np.flatnonzero(above >= coverage * self.count)
        return float(enough[-1] / _SLOTS) if self.count and coverage < 1 else 0.0


def best_factor(
    mean_loss: Callable[[float], float], *, low: float = 0.01, high: float = 100.0, steps: int = 40
) -> float:
    """The factor of confidences with the smallest loss, by golden section over its logarithm; the loss is to have one
    minimum. Where factors are all but equally good, it is one near 1.
    """

    def loss(factor: float) -> float:
        return mean_loss(factor) + PRIOR / 2 * float(np.log(factor)) ** 2

    ratio = (np.sqrt(5) - 1) / 2
    left, right = np.log(low), np.log(high)
    inner, outer = right - ratio * (right - left), left + ratio * (right - left)
    at_inner, at_outer = loss(float(np.exp(inner))), loss(float(np.exp(outer)))
    for _ in range(steps):
        if at_inner <= at_outer:
            right, outer, at_outer = outer, inner, at_inner
            inner = right - ratio * (right - left)
            at_inner = loss(float(np.exp(inner)))
        else:
            left, inner, at_inner = inner, outer, at_outer
            outer = left + ratio * (right - left)
            at_outer = loss(float(np.exp(outer)))
    return float(np.exp((left + right) / 2))


def truthful_factor(confidence: Callable[[float], Float[Tensor, " answers"]], right: Bool[Tensor, " answers"]) -> float:
    """The factor under which confidences best say how often answers are right (least cross-entropy).

    Unlike the likeliest factor of a distribution of errors, it is not led by the few that are far off, whose size no
    confidence speaks of.

    Args:
        confidence: factor -> confidences, 0..1.
    """

    def surprise(factor: float) -> float:
        chance = confidence(factor).double().clamp(1e-6, 1 - 1e-6)
        return float(-torch.where(right, chance, 1 - chance).log().mean())

    return best_factor(surprise)


def through_sigmoid(scores: Float[Tensor, "*scores"], sigmoid: Float[Tensor, "2"]) -> Float[Tensor, "*scores"]:
    """Scores 0..1 whose logits are scaled and shifted, as `fit_sigmoid` finds it."""
    scale, shift = sigmoid
    return (scores.clamp(_LEAST, 1 - _LEAST).logit() * scale + shift).sigmoid()


def fit_sigmoid(
    answers: Sequence[tuple[Float[np.ndarray, " _"], Bool[np.ndarray, " _"]]], *, prior: float = 1.0
) -> tuple[float, float]:
    """Scale and shift of the scores' logits under which they say how often answers are right (Platt, 1999).

    Args:
        answers: scores 0..1 and whether each was right, picture by picture; without any, scores stay as they are.
        prior: how strongly scale 1 and shift 0 are preferred: with few answers little changes.
    """
    if not answers:
        return 1.0, 0.0
    scores, right = (np.concatenate(part) for part in zip(*answers, strict=True))
    scores = scores.astype(np.float64).clip(_LEAST, 1 - _LEAST)
    logits = np.log(scores / (1 - scores))
    columns = np.stack([logits, np.ones_like(logits)], axis=1)
    start = np.array([1.0, 0.0])

    def surprise(sigmoid: Float[np.ndarray, "2"]) -> tuple[float, Float[np.ndarray, "2"]]:
        said, away = columns @ sigmoid, sigmoid - start
        loss = np.logaddexp(0, said).sum() - said @ right + prior / 2 * (away @ away)
        return float(loss), columns.T @ (expit(said) - right) + prior * away

    # Never turned round: the order of the scores stays.
    scale, shift = minimize(surprise, start, jac=True, method="L-BFGS-B", bounds=[(0.05, None), (None, None)]).x
    return float(scale), float(shift)
