"""How two sets of pictures differ, told from features of each picture in one stated space."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor, nn

from decoders.checkpoint import Checkpoint
from decoders.labels import AnnotatedImage
from decoders.perceivers.unet import UnetPerceiver
from decoders.resizing import resize_image, working_size

Features = Float32[np.ndarray, "_ channels"]
_NEIGHBOURS = 3
_BLOCK = 1024
"""Pictures whose distances to all others are in memory at once."""
_SUBSETS, _SUBSET_SIZE = 100, 100
_COPY_PERCENTILE = 1.0
_SAME = 1e-6
"""Two pictures closer than this share of what pictures differ by are one: what is left is rounding."""


class Embedder:
    """The mean of each channel of a frozen diffusion UNet, at all of its levels: the model is the feature space."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._perceiver = UnetPerceiver(checkpoint, phrases=(), attention="none", layers=("down", "mid", "up"))
        self._short_side = int(checkpoint.unet.config["sample_size"]) * checkpoint.vae_scale_factor

    def embed(self, picture: AnnotatedImage) -> Float32[np.ndarray, " channels"]:
        height, width = picture.image.shape[:2]
        size = working_size((height, width), short_side=self._short_side, multiple=self._perceiver.size_multiple)
        levels = self._perceiver.perceive(resize_image(picture.image, size)[None]).levels
        return torch.cat([level.mean(dim=(2, 3))[0] for level in levels]).float().cpu().numpy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """What one set of pictures is to another."""

    kid: float
    """Kernel distance x 1000 (arXiv 1801.01401), unbiased: about 0 between halves of one set, at times below."""
    kid_deviation: float
    """Over the subsets it was computed from, each of at most half of the smaller side: equal ones would not deviate."""
    frechet: float | None
    """Fréchet distance (arXiv 1706.08500); None where a side has no more pictures than there are features, which would
    bias it beyond use."""
    precision: float
    """Share of the pictures that lie among the reference's (arXiv 1904.06991, 3 neighbours): are they true to life?"""
    recall: float
    """Share of the reference's that lie among the pictures: is everything there?"""
    copies: tuple[int, ...]
    """Numbers of pictures as near to one of the reference as, doubles aside, 1 % of the reference's are to another."""


def likeness(pictures: Features, reference: Features) -> Likeness:
    """Both sides of 4 or more with the same channels, brought to mean 0 and deviation 1 of the reference first."""
    mean, spread = reference.mean(axis=0), reference.std(axis=0) + np.float32(1e-6)
    mine, theirs = (pictures - mean) / spread, (reference - mean) / spread
    kid, deviation = _kernel_distance(mine, theirs)
    return Likeness(
        kid=1000 * kid,
        kid_deviation=1000 * deviation,
        frechet=_frechet(mine, theirs) if min(len(mine), len(theirs)) > mine.shape[1] else None,
        precision=float(_among(mine, theirs).mean()),
        recall=float(_among(theirs, mine).mean()),
        copies=tuple(int(index) for index in np.flatnonzero(_copied(mine, theirs))),
    )


class _Given(nn.Module):
    """Stands where torchmetrics expects the network that makes features, which are there already."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.num_features = channels

    def forward(self, features: Tensor) -> Tensor:
        return features


def _kernel_distance(mine: Features, theirs: Features) -> tuple[float, float]:
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(_SUBSET_SIZE, min(len(mine), len(theirs)) // 2)
    with warnings.catch_warnings(action="ignore"):  # it warns of the memory that features take, which is held anyway
        metric: Any = KernelInceptionDistance(feature=_Given(mine.shape[1]), subsets=_SUBSETS, subset_size=size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # which subsets are drawn
        mean, deviation = _compared(metric, mine, theirs)
    return float(mean), float(deviation)


def _frechet(mine: Features, theirs: Features) -> float:
    from torchmetrics.image.fid import FrechetInceptionDistance

    return float(_compared(FrechetInceptionDistance(feature=_Given(mine.shape[1])), mine, theirs))


def _compared(metric: Any, mine: Features, theirs: Features) -> Any:
    metric.update(torch.from_numpy(theirs), real=True)
    metric.update(torch.from_numpy(mine), real=False)
    return metric.compute()


def nearest(left: Features, right: Features, count: int = 1) -> Float32[np.ndarray, "left count"]:
    """Euclidean distances of each to the `count` nearest of `right`, rising; to itself too, where it is there."""
    return np.concatenate([np.sort(block, axis=1)[:, :count] for block in _distances(left, right)])


def _distances(left: Features, right: Features) -> Iterator[Float32[np.ndarray, "block right"]]:
    """Of a block of `left` to all of `right`: those of each to each of 50,000 would take 10 GB.

    In double precision, where the same picture twice is all but 0 apart.
    """
    theirs = torch.from_numpy(right).double()
    for start in range(0, len(left), _BLOCK):
        mine = torch.from_numpy(left[start : start + _BLOCK]).double()
        yield torch.cdist(mine, theirs).float().numpy()


def _among(left: Features, right: Features) -> Bool[np.ndarray, " left"]:
    """Whether each lies in the ball around one of `right` that reaches to that one's third neighbour there."""
    reach = nearest(right, right, min(_NEIGHBOURS, len(right) - 1) + 1)[:, -1]  # the first is the distance to itself
    return np.concatenate([np.any(block <= reach, axis=1) for block in _distances(left, right)])


def _copied(mine: Features, theirs: Features) -> Bool[np.ndarray, " mine"]:
    others = nearest(theirs, theirs, 2)[:, 1]
    same = _SAME * np.median(np.linalg.norm(theirs - theirs.mean(axis=0), axis=1))
    apart = others[others > same]  # a reference that shows a picture twice says nothing of what is near
    limit = np.percentile(apart, _COPY_PERCENTILE) if len(apart) else 0.0
    return nearest(mine, theirs)[:, 0] <= max(limit, same)
