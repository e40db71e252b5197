"""The P-decoder: one trunk shared by all tasks turns a perceiver's features into picture-sized features.

After DatasetDM (arXiv 2308.06160), with three changes: features are projected *before* they are upsampled (a 1x1
convolution commutes with bilinear resizing, and is cheaper on the small grid), norms look at one picture at a time, and
a light path sees the picture itself: it makes edges sharp at full size, and learns the textures that the perceiver was
never shown.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from decoders.errors import UserError
from decoders.features import FeatureBundle, FeatureSpec
from decoders.peers import ALONE, Peers
from decoders.settings import DecoderSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class TrunkFeatures:
    """What task heads look at."""

    deep: Float[Tensor, "batch deep_channels deep_height deep_width"]
    """All perceiver levels fused with the picture, on the grid of the finest one: wide, knows what things are."""
    fine: Float[Tensor, "batch fine_channels height width"]
    """At picture size: narrow, knows where they end."""
    evidence: Float[Tensor, "batch classes evidence_channels deep_height deep_width"] | None = None
    """Attention to each class phrase on the grid of `deep`; None unless the vocabulary is open."""
    phrases: Float[Tensor, "classes phrase_width"] | None = None
    """Vectors of the phrases; None unless the vocabulary is open."""


class Standardise(nn.Module):
    """Zero mean and unit variance per channel, as measured once on the fit set.

    Diffusion features differ a thousandfold in scale between channels. Measured constants, unlike a norm over the
    picture, keep what is bright or dark for this picture as a whole.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("scale", torch.ones(channels, 1, 1))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        return (x - self.mean) * self.scale


class Residual(nn.Module):
    """norm, SiLU, convolution, twice, added to the input; norms are over groups within one picture."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        return x + self.body(x)


class TwoScaleHead(nn.Module):
    """A linear reading of both trunk outputs: class from the deep one, border from the fine one."""

    def __init__(self, trunk: "Trunk", outputs: int) -> None:
        super().__init__()
        self.deep = nn.Conv2d(trunk.deep_channels, outputs, 1)
        self.fine = nn.Conv2d(trunk.fine_channels, outputs, 1)

    def forward(self, features: TrunkFeatures) -> Float[Tensor, "batch outputs height width"]:
        fine = self.fine(features.fine)
        return fine + resize(self.deep(features.deep), fine.shape[-2:])


class PicturePath(nn.Module):
    """The picture at scales 1, 1/2, 1/4, ..., at each with twice the channels of the one before, up to a width."""

    def __init__(self, scales: int, *, narrowest: int, widest: int) -> None:
        super().__init__()
        self.widths = [min(widest, narrowest * 2**scale) for scale in range(scales)]
        self.shrink = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2 if scale else 1, padding=1)
            for scale, (before, after) in enumerate(zip([3, *self.widths], self.widths, strict=False))
        )
        self.look = nn.ModuleList(Residual(width) for width in self.widths)

    def forward(self, picture: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        """From the finest scale to the coarsest."""
        found: list[Tensor] = []
        seen = picture
        for shrink, look in zip(self.shrink, self.look, strict=True):
            seen = look(shrink(functional.silu(seen) if found else seen))
            found.append(seen)
        return found


class Trunk(nn.Module):
    """Perceiver levels and the picture fused coarse -> fine, then refined to picture size beside the picture alone."""

    def __init__(self, spec: FeatureSpec, settings: DecoderSettings) -> None:
        super().__init__()
        width = settings.width
        self.open_vocabulary = settings.open_vocabulary
        self.phrase_width = spec.phrase_width or 0
        self.evidence_channels = 0
        if settings.open_vocabulary:
            inputs = list(spec.channels)
            self.evidence_channels = _evidence_channels(spec)
            self.standardise_evidence = Standardise(self.evidence_channels)
        else:
            inputs = [features + maps for features, maps in zip(spec.channels, spec.attention_maps, strict=True)]
        self.standardise = nn.ModuleList(Standardise(channels) for channels in inputs)
        self.project = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in inputs)
        self.drop = nn.Dropout2d(settings.dropout)
        self.fuse = nn.ModuleList(Residual(width) for _ in inputs)
        self.deep_norm = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU())
        self._scales = [round(math.log2(stride)) for stride in spec.strides]
        self.picture = PicturePath(1 + max(self._scales), narrowest=settings.fine_width, widest=width)
        self.join = nn.ModuleList(nn.Conv2d(self.picture.widths[scale], width, 1) for scale in self._scales)
        # Refined at the scales 1, 1/2, 1/4 ... down to the one above the finest grid.
        widths = self.picture.widths[: max(1, min(self._scales))]
        self.narrow = nn.ModuleList(
            nn.Conv2d(before, after, 1) for before, after in zip([*widths[1:], width], widths, strict=True)
        )
        self.refine = nn.ModuleList(Residual(channels) for channels in widths)
        self.fine_norm = nn.Sequential(nn.GroupNorm(8, widths[0]), nn.SiLU())
        self.deep_channels = width
        self.fine_channels = widths[0]

    @torch.no_grad()
    def calibrate(self, bundles: Iterable[FeatureBundle], peers: Peers = ALONE) -> None:
        """Measure mean and deviation of each input channel over the fit set, that of other processes included."""
        layers = [module for module in self.standardise if isinstance(module, Standardise)]
        if self.open_vocabulary:
            layers.append(self.standardise_evidence)
        totals = [torch.zeros(2, layer.mean.numel(), dtype=torch.float64) for layer in layers]
        counts = [0] * len(layers)
        for bundle in bundles:
            inputs = [*self._inputs(bundle), _evidence(bundle).flatten(0, 1)] if self.open_vocabulary else None
            for index, x in enumerate(inputs or self._inputs(bundle)):
                flat = x.transpose(0, 1).flatten(1).double().cpu()
                totals[index] += torch.stack([flat.sum(1), flat.square().sum(1)])
                counts[index] += flat.shape[1]
        for layer, own_total, own_count in zip(layers, totals, counts, strict=True):
            total, count = peers.total(own_total), peers.total(torch.tensor(float(own_count)))
            mean, square = total / count
            deviation = (square - mean.square()).clamp_min(0).sqrt()
            scale = torch.where(deviation > 1e-6, 1 / deviation.clamp_min(1e-6), 1.0)  # a dead channel stays as it is
            layer.mean.copy_(mean[:, None, None])
            layer.scale.copy_(scale[:, None, None])

    def forward(self, bundle: FeatureBundle) -> TrunkFeatures:
        picture = self.picture(bundle.image)
        x: Tensor | None = None
        for joined, scale, standardise, project, join, fuse in zip(
            self._inputs(bundle), self._scales, self.standardise, self.project, self.join, self.fuse, strict=True
        ):
            level = self.drop(project(standardise(joined)))
            level = level + resize(join(picture[scale]), level.shape[-2:])
            x = fuse(level if x is None else level + resize(x, level.shape[-2:]))
        if x is None:
            raise ValueError("a perceiver must give at least one level")
        deep = self.deep_norm(x)

        refined = zip(picture, self.narrow, self.refine, strict=False)  # the coarser ones were fused
        for seen, narrow, refine in reversed(list(refined)):
            x = refine(seen + resize(narrow(x), seen.shape[-2:]))
        fine = self.fine_norm(x)
        if not self.open_vocabulary:
            return TrunkFeatures(deep=deep, fine=fine)
        evidence = _evidence(bundle)
        standard = self.standardise_evidence(evidence.flatten(0, 1)).unflatten(0, evidence.shape[:2])
        return TrunkFeatures(deep=deep, fine=fine, evidence=standard, phrases=bundle.phrases)

    def _inputs(self, bundle: FeatureBundle) -> list[Tensor]:
        """What is fused, level by level: the features, with the class attention where the classes are always these."""
        if self.open_vocabulary:
            return list(bundle.levels)
        return [torch.cat(pair, dim=1) for pair in zip(bundle.levels, bundle.attention, strict=True)]


class PDecoder(nn.Module):
    """Trunk and task heads: all that is fitted of a reader."""

    def __init__(self, trunk: Trunk, tasks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.trunk = trunk
        self.tasks = nn.ModuleDict(dict(tasks))

    def forward(self, bundle: FeatureBundle, tasks: Collection[str] | None = None) -> dict[str, Any]:
        """Raw output of each task's head, or of these alone: tensors, the batch first."""
        features = self.trunk(bundle)
        return {name: task(features) for name, task in self.tasks.items() if tasks is None or name in tasks}


def resize(x: Float[Tensor, "batch channels _ _"], size: tuple[int, ...]) -> Float[Tensor, "batch channels _ _"]:
    """Bilinear; pixels keep their place relative to the picture's corners."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _evidence_channels(spec: FeatureSpec) -> int:
    classes = len(spec.settings.get("phrases", ()))
    if not classes or not sum(spec.attention_maps) or not spec.phrase_width:
        raise UserError(
            "an open vocabulary reads the attention to class phrases, and this perceiver gives none; set its "
            "`attention` to mean or heads, or `decoder.open_vocabulary` to false"
        )
    return sum(maps // classes for maps in spec.attention_maps)


def _evidence(bundle: FeatureBundle) -> Float[Tensor, "batch classes evidence_channels rows columns"]:
    """The maps of each class from all levels, on the finest grid."""
    assert bundle.phrases is not None, "the spec said so"
    classes, grid = len(bundle.phrases), bundle.levels[-1].shape[-2:]
    maps = [resize(level, grid).unflatten(1, (-1, classes)) for level in bundle.attention if level.shape[1]]
    return torch.cat(maps, dim=1).transpose(1, 2)
