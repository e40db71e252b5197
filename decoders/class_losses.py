"""Losses over classes of pixels that do not forget the rare ones."""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn import functional

IGNORED = -1
"""Class of a pixel that teaches nothing."""
BALANCE = 0.5
"""How far rare classes are made up for, where nothing else is said: see `balanced_weights`."""
DICE = 0.5
"""Weight of the Dice loss beside the cross-entropy, where nothing else is said."""
_HEAVIEST = 10.0


def count_pixels(ids: Iterable[Int64[Tensor, "height width"]], classes: int) -> Float64[Tensor, " {classes}"]:
    """How many pixels each class 0..classes-1 has."""
    start = torch.zeros(classes, dtype=torch.float64)
    return sum((torch.bincount(each.flatten() + 1, minlength=classes + 1)[1:].double() for each in ids), start=start)


def balanced_weights(pixels: Float64[Tensor, " classes"], balance: float = BALANCE) -> Float64[Tensor, " classes"]:
    """(Share of the pixels) ** -balance, 10 at most; the mean pixel weighs 1 whatever the balance."""
    share = pixels / pixels.sum().clamp_min(1)
    weights = torch.where(share > 0, share.clamp_min(1e-9) ** -balance, 1.0)
    weights = weights / (weights * share).sum().clamp_min(1e-9)
    return torch.where(share > 0, weights.clamp_max(_HEAVIEST), 1.0)


def class_loss(
    logits: Float[Tensor, "batch classes height width"],
    ids: Int64[Tensor, "batch height width"],
    weights: Float[Tensor, " classes"],
    *,
    dice: float = DICE,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Cross-entropy in the weighted mean over known pixels, 0 without any, and `dice` times the soft Dice loss."""
    entropy = functional.cross_entropy(
        logits, ids, weight=weights, ignore_index=IGNORED, label_smoothing=label_smoothing, reduction="sum"
    )
    entropy = entropy / (weights[ids.clamp_min(0)] * (ids != IGNORED)).sum().clamp_min(1e-6)
    return entropy + dice * _dice_loss(logits, ids) if dice else entropy


def _dice_loss(
    logits: Float[Tensor, "batch classes height width"], ids: Int64[Tensor, "batch height width"]
) -> Float[Tensor, ""]:
    """1 - Dice (V-Net, arXiv 1606.04797), in the mean over the classes of the batch: counts classes, not pixels."""
    known = (ids != IGNORED)[:, None]
    probability = logits.softmax(1) * known
    truth = torch.zeros_like(probability).scatter_(1, ids.clamp_min(0)[:, None], known.to(logits.dtype))
    truth_area = truth.sum((0, 2, 3))
    overlap = (probability * truth).sum((0, 2, 3))
    dice = (2 * overlap + 1) / (probability.sum((0, 2, 3)) + truth_area + 1)
    present = (truth_area > 0).to(logits.dtype)
    return ((1 - dice) * present).sum() / present.sum().clamp_min(1)
