"""Which pixels a phrase means: one small network judges every class alike, so it can be asked for ones it never met."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from decoders.decoder import Residual, Trunk, TrunkFeatures, resize

_WIDTH = 48
_FORGET = 0.5


class PhraseHead(nn.Module):
    """Logits of any number of classes: what the attention to a phrase says, plus how well its vector fits the place.

    While fitting, the second is left out for half of the classes of each picture: the few classes of a fit teach little
    about words, and the attention alone must do for a new one.
    """

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.attended = nn.Sequential(
            nn.Conv2d(2 * trunk.evidence_channels, _WIDTH, 1),
            Residual(_WIDTH),
            nn.GroupNorm(8, _WIDTH),
            nn.SiLU(),
            nn.Conv2d(_WIDTH, 1, 1),
        )
        self.place = nn.Conv2d(trunk.deep_channels, _WIDTH, 1)
        self.phrase = nn.Linear(trunk.phrase_width, _WIDTH, bias=False)
        self.look = nn.Conv2d(trunk.fine_channels, trunk.fine_channels, 1)
        self.sharpness = nn.Parameter(torch.zeros(()))

    def forward(self, features: TrunkFeatures) -> Float[Tensor, "batch classes height width"]:
        evidence, phrases = features.evidence, features.phrases
        if evidence is None or phrases is None:
            raise ValueError("an open vocabulary needs a trunk that hands on the class attention and the phrases")
        batch, classes = evidence.shape[:2]
        # What a class has more of than the others, as attention is shared out among them.
        compared = torch.cat([evidence, evidence - evidence.mean(1, keepdim=True)], dim=2)
        attended = self.attended(compared.flatten(0, 1)).unflatten(0, (batch, classes))[:, :, 0]
        meant = self.phrase(functional.normalize(phrases, dim=1) * math.sqrt(phrases.shape[1]))
        fitting = torch.einsum("cw,bwyx->bcyx", meant, self.place(features.deep)) / math.sqrt(_WIDTH)
        if self.training:
            fitting = fitting * (torch.rand(batch, classes, 1, 1, device=fitting.device) >= _FORGET)
        return self._sharpen(attended + fitting, features.fine)

    def _sharpen(
        self, logits: Float[Tensor, "batch classes _ _"], fine: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes height width"]:
        """To picture size: a pixel leans to the class whose other pixels look like it."""
        rows, columns = logits.shape[-2:]
        look = self.look(fine)
        shares = logits.softmax(1)
        shares = shares / shares.sum((2, 3), keepdim=True).clamp_min(1e-6)
        typical = torch.einsum("bcyx,bfyx->bcf", shares, functional.adaptive_avg_pool2d(look, (rows, columns)))
        alike = torch.einsum("bcf,bfyx->bcyx", typical, look) / math.sqrt(look.shape[1])
        return resize(logits, look.shape[-2:]) + self.sharpness * alike
