"""Queries that look for objects: their layers, and which of them is compared with which object.

After Mask2Former (arXiv 2112.01527).
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional

UNKNOWN = 255
"""Number of pixels that belong to a crowd: neither this object nor not."""


class QueryLayer(nn.Module):
    """Cross-attention where the object was seen, self-attention, a feed-forward network; norms come first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.look = nn.MultiheadAttention(width, heads, batch_first=True)
        self.talk = nn.MultiheadAttention(width, heads, batch_first=True)
        self.think = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(
        self,
        queries: Float[Tensor, "batch queries width"],
        positions: Float[Tensor, "batch queries width"],
        memory: Float[Tensor, "batch cells width"],
        keys: Float[Tensor, "batch cells width"],
        hidden: Bool[Tensor, "batch_and_heads queries cells"],
    ) -> Float[Tensor, "batch queries width"]:
        normed = self.norms[0](queries) + positions
        queries = queries + self.look(normed, keys, memory, attn_mask=hidden, need_weights=False)[0]
        normed = self.norms[1](queries)
        asking = normed + positions
        queries = queries + self.talk(asking, asking, normed, need_weights=False)[0]
        return queries + self.think(self.norms[2](queries))


def sine_positions(grid: Float[Tensor, "batch width height_ width_"]) -> Float[Tensor, "1 width height_ width_"]:
    """Sines and cosines of the place, relative to the picture's sides, a quarter of the channels each."""
    _, width, rows, columns = grid.shape
    frequencies = 2 * torch.pi * 2.0 ** torch.linspace(-1, 4, width // 4, device=grid.device)
    y = ((torch.arange(rows, device=grid.device) + 0.5) / rows)[None] * frequencies[:, None]
    x = ((torch.arange(columns, device=grid.device) + 0.5) / columns)[None] * frequencies[:, None]
    down = torch.cat([y.sin(), y.cos()])[:, :, None].expand(-1, -1, columns)
    right = torch.cat([x.sin(), x.cos()])[:, None, :].expand(-1, rows, -1)
    return torch.cat([down, right])[None]


class Truth(NamedTuple):
    """The objects of a picture."""

    masks: Float[Tensor, "objects pixels"]
    """Over the pixels that are known."""
    kinds: Int64[Tensor, " objects"]
    known: Bool[Tensor, " all_pixels"] | None
    """None where all are: a crowd is seldom there, and picking pixels is slow."""

    def over_known(self, values: Float[Tensor, "queries all_pixels"]) -> Float[Tensor, "queries pixels"]:
        return values if self.known is None else values[:, self.known]


def unpack(target: UInt8[Tensor, "2 height width"]) -> Truth:
    numbers, kinds = target.flatten(1)
    known = numbers != UNKNOWN
    numbers, kinds = numbers[known], kinds[known]
    present = numbers.unique()
    masks = numbers[None] == present[present > 0][:, None]
    classes = torch.stack([kinds[mask][0] for mask in masks]) if len(masks) else kinds[:0]
    return Truth(masks.float(), classes.long(), None if known.all() else known)


def match(
    classes: Float[Tensor, "queries classes_and_none"], logits: Float[Tensor, "queries all_pixels"], truth: Truth
) -> tuple[Int64[Tensor, " objects"], Int64[Tensor, " objects"]]:
    """Numbers of queries and of the objects they stand for, one each, at the least cost in all."""
    cost = _matching_cost(classes, truth.over_known(logits), truth.masks, truth.kinds)
    # A fit that diverges is told by its loss, not by the matching.
    rows, columns = linear_sum_assignment(cost.nan_to_num().cpu().numpy())
    return torch.as_tensor(rows, device=cost.device), torch.as_tensor(columns, device=cost.device)


def _matching_cost(
    classes: Float[Tensor, "queries classes_and_none"],
    logits: Float[Tensor, "queries pixels"],
    masks: Float[Tensor, "objects pixels"],
    kinds: Int64[Tensor, " objects"],
) -> Float[Tensor, "queries objects"]:
    pixels = logits.shape[1]
    # BCE of a query with an object: softplus(-x) where the mask is, softplus(x) elsewhere = softplus(x) - x * mask.
    entropy = (functional.softplus(logits).sum(1, keepdim=True) - logits @ masks.T) / pixels
    probability = logits.sigmoid()
    dice = 1 - (2 * probability @ masks.T + 1) / (probability.sum(1, keepdim=True) + masks.sum(1)[None] + 1)
    return -2 * classes.softmax(1)[:, kinds] + 5 * entropy + 5 * dice
