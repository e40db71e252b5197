"""Several looks at one picture, each with another noise, as one answer that is less sure where they disagree."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def mean_class_logits(logits: Sequence[Float[Tensor, "*batch classes _ _"]]) -> Float[Tensor, "*batch classes _ _"]:
    """Logits whose softmax over the third axis from the end is the mean of the looks' softmax."""
    return torch.stack([one.log_softmax(-3) for one in logits]).logsumexp(0)


def mean_logits(logits: Sequence[Float[Tensor, "*shape"]]) -> Float[Tensor, "*shape"]:
    """Logits whose sigmoid is the mean of the looks' sigmoids."""
    return torch.stack([one.sigmoid() for one in logits]).mean(0).logit(eps=1e-6)


def mean_laplace(
    centers: Sequence[Float[Tensor, "*shape"]], log_spreads: Sequence[Float[Tensor, "*shape"]]
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Centre and log spread of the looks' Laplace distributions as one: their mean spread, and how far they lie apart.

    The spread of a Laplace distribution is its mean absolute deviation, and deviations of the looks add to it.
    """
    stacked = torch.stack(list(centers))
    center = stacked.mean(0)
    spread = torch.stack([one.exp() for one in log_spreads]).mean(0) + (stacked - center).abs().mean(0)
    return center, spread.log()


def mean_depth(looks: Sequence[Float[Tensor, "batch 3 height width"]]) -> Float[Tensor, "batch 3 height width"]:
    """Of outputs with a Laplace distribution's centre and log spread, and the logit that there is a depth at all."""
    center, log_spread = mean_laplace([look[:, :1] for look in looks], [look[:, 1:2] for look in looks])
    return torch.cat([center, log_spread, mean_logits([look[:, 2:] for look in looks])], dim=1)
