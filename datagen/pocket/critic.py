"""The critic that teaches the codec's decoder sharp detail: it tells decoded patches from rendered ones."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional


class Opinion(NamedTuple):
    """What a critic says of pictures."""

    verdict: Float[Tensor, "batch 1 rows columns"]
    """One number for each patch; above 0 means rendered."""
    features: list[Tensor]
    """Of each hidden layer, (batch, channels, rows, columns)."""


class Critic(nn.Module):
    """A patch discriminator (https://arxiv.org/abs/1611.07004): each verdict sees 26 x 26 pixels."""

    def __init__(self, channels: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for index, wider in enumerate(channels):
            last = index == len(channels) - 1
            convolution = nn.Conv2d(width, wider, 3 if last else 4, stride=1 if last else 2, padding=1)
            norm = nn.GroupNorm(8, wider) if index else nn.Identity()
            layers.append(nn.Sequential(convolution, norm, nn.LeakyReLU(0.2)))
            width = wider
        self.layers = nn.ModuleList(layers)
        self.verdict = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, pictures: Float[Tensor, "batch 3 height width"]) -> Opinion:
        features: list[Tensor] = []
        for layer in self.layers:
            pictures = layer(pictures)
            features.append(pictures)
        return Opinion(self.verdict(pictures), features)


def compare(
    critic: Critic, found: Float[Tensor, "batch 3 height width"], truth: Float[Tensor, "batch 3 height width"]
) -> dict[str, Tensor]:
    """Losses for both sides of the game, from one batch.

    Returns:
        critic: the hinge loss of the critic; moves the critic alone.
        realism: minus the mean verdict on `found`; moves what made `found`, as does
        matching: mean absolute difference of the features of `found` and `truth` (https://arxiv.org/abs/1711.11585).
    """
    real, fake = critic(truth), critic(found.detach())
    hinge = functional.relu(1 - real.verdict).mean() + functional.relu(1 + fake.verdict).mean()
    frozen = {name: parameter.detach() for name, parameter in critic.named_parameters()}
    opinion: Opinion = functional_call(critic, frozen, (found,))
    matching = [
        functional.l1_loss(features, target.detach())
        for features, target in zip(opinion.features, real.features, strict=True)
    ]
    return {"critic": hinge / 2, "realism": -opinion.verdict.mean(), "matching": torch.stack(matching).mean()}
