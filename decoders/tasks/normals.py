"""Which way each surface faces, as a unit vector in camera axes, and where there is no surface (the sky)."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float16
from torch import Tensor
from torch.nn import functional

from decoders.calibration import Reliability, truthful_factor
from decoders.decoder import Trunk, TrunkFeatures, TwoScaleHead, resize
from decoders.errors import UserError
from decoders.labels import NORMALS_STORAGE, DenseMap, Label, Taxonomy, surface_normals
from decoders.looks import mean_logits
from decoders.resizing import Size
from decoders.tasks import Score, Task, sample_pixels

_CLOSE = math.radians(22.5)


class Normals(Task[Tensor]):
    """Directions right, up and toward the camera.

    The head gives five numbers per pixel: a direction, the logarithm of its concentration k in a distribution over the
    angle of error that falls as exp(-k angle) (Bae et al., arXiv 2109.09881), and whether there is a surface. The
    confidence of a valid pixel is the probability, under that distribution, of an error below 22.5 degrees, times the
    probability that there is a surface; the confidence of an invalid pixel is the probability that there is none.
    """

    any_classes = True
    concentration_factor: Tensor
    """What the concentrations are multiplied with, so that they fit held-out pictures."""

    def __init__(self, trunk: Trunk, taxonomy: Taxonomy, *, validity: float = 0.25) -> None:
        """Options.

        Args:
            validity: weight of learning where there is no surface. 0 where invalid pixels mean "not measured": every
                pixel then gets a direction.
        """
        super().__init__(taxonomy)
        if validity < 0:
            raise UserError(f"task normals: found validity {validity}; expected a weight of at least 0; correct it")
        self.validity = validity
        self.head = TwoScaleHead(trunk, 5)
        self.register_buffer("concentration_factor", torch.ones(()))

    def calibrate(self, targets: Iterable[Float16[Tensor, "4 height width"]]) -> None:
        if not any(bool(target[:3].any()) for target in targets):
            raise UserError("no picture has a valid normal; give maps of normals or leave out the task normals")

    def forward(self, features: TrunkFeatures) -> Float[Tensor, "batch 5 height width"]:
        """A unit vector, log k, and the logit of there being a surface."""
        raw = self.head(features)
        return torch.cat([functional.normalize(raw[:, :3], dim=1), raw[:, 3:4].clamp(-2.0, 5.0), raw[:, 4:]], dim=1)

    def target(self, label: Label) -> Float16[Tensor, "4 height width"]:
        """Unit vectors, 0 where invalid; and 1 where validity itself is known (not outside the picture)."""
        truth = _normals(label)
        vectors = np.where(truth.valid[..., None], truth.values, 0.0)
        length = np.linalg.norm(vectors[truth.valid], axis=-1)
        if length.size and not np.allclose(length, 1, atol=0.05):
            raise UserError(
                f"valid normals of lengths {length.min():.2f}..{length.max():.2f} found, expected 1; make them unit "
                "vectors, and mark pixels without a surface as invalid (0, 0, 0)"
            )
        planes = [*np.moveaxis(vectors, -1, 0), truth.confidence > 0]
        return torch.from_numpy(np.stack(planes).astype(np.float16))

    def loss(
        self, output: Float[Tensor, "batch 5 height width"], target: Float16[Tensor, "batch 4 height width"]
    ) -> Float[Tensor, ""]:
        target = target.to(output.dtype)
        valid = (target[:, :3].abs().sum(1) > 0).to(output.dtype)
        # Angles blow up in the gradient near 0 and pi, so the cosine stays a little inside.
        angle = (output[:, :3] * target[:, :3]).sum(1).clamp(-0.9999, 0.9999).acos()
        # The concentration learns from the angle, not the angle from the concentration: a hundredfold where a road is
        # sure to face up, that would drown hard pixels, and on a shared trunk the other tasks.
        unlikely = _unlikelihood(angle.detach(), output[:, 3].exp())
        missing = functional.binary_cross_entropy_with_logits(output[:, 4], valid, weight=target[:, 3], reduction="sum")
        known = target[:, 3].sum().clamp_min(1)
        found = (angle + 0.1 * unlikely) * valid
        return found.sum() / valid.sum().clamp_min(1) + self.validity * missing / known

    def merge(self, looks: Sequence[Float[Tensor, "batch 5 height width"]]) -> Tensor:
        """The mean direction; its mean error, 1 / k, is that of the looks and the angle at which they lie about it."""
        stacked = torch.stack(list(looks))
        direction = functional.normalize(stacked[:, :, :3].mean(0), dim=1)
        chord = (stacked[:, :, :3] - direction).norm(dim=2, keepdim=True)
        apart = 2 * (chord / 2).clamp_max(1).asin()  # an arc cosine would be rough where the looks agree
        error = (stacked[:, :, 3:4].neg().exp() + apart).mean(0)
        return torch.cat([direction, -error.log(), mean_logits([look[:, 4:] for look in looks])], dim=1)

    @torch.no_grad()
    def tune_confidence(self, pairs: Iterable[tuple[Float[Tensor, "1 5 height width"], Label]]) -> None:
        """Confidences as often right as they say, of the pixels with a surface."""
        rights: list[Tensor] = []
        concentrations: list[Tensor] = []
        for output, label in pairs:
            target = self.target(label).float().flatten(1)
            chosen = sample_pixels(target[:3].abs().sum(0) > 0)
            found = output[0].flatten(1).float().cpu()[:, chosen]
            rights.append((found[:3] * target[:3, chosen]).sum(0) > math.cos(_CLOSE))
            concentrations.append(found[3].exp())
        right, k = torch.cat(rights), torch.cat(concentrations)
        if len(right):
            self.concentration_factor.fill_(truthful_factor(lambda factor: _close(factor * k), right))

    @torch.no_grad()
    def read(self, output: Float[Tensor, "batch 5 height width"], size: Size) -> list[Label]:
        return [self._read_one(resize(one[None].float(), size)[0]) for one in output]

    def _read_one(self, output: Float[Tensor, "5 height width"]) -> DenseMap:
        close = _close(self.concentration_factor * output[3].exp())
        exists = output[4].sigmoid() if self.validity else torch.ones_like(close)
        valid = exists >= 0.5
        confidence = torch.where(valid, close * exists, 1 - exists)
        vectors = torch.where(valid, output[:3], 0.0).permute(1, 2, 0)
        return surface_normals(vectors.cpu().numpy(), confidence.cpu().numpy())

    def score(self) -> Score:
        return NormalsScore(gaps=not self.validity)


def _close(k: Float[Tensor, "*pixels"]) -> Float[Tensor, "*pixels"]:
    """How likely the truth lies within the angle."""
    miss = torch.exp(-k * _CLOSE) * (k * math.sin(_CLOSE) + math.cos(_CLOSE))
    return (1 - miss) / (1 + torch.exp(-math.pi * k))


def _unlikelihood(angle: Float[Tensor, "*pixels"], k: Float[Tensor, "*pixels"]) -> Float[Tensor, "*pixels"]:
    return k * angle - (k.square() + 1).log() + functional.softplus(-math.pi * k)


class NormalsScore:
    """Angles between true and found directions, over all pixels that have a true one; none found counts as 90."""

    def __init__(self, *, gaps: bool = False) -> None:
        """
        Args:
            gaps: pixels without a true direction were not measured, so that no answer there is right or wrong.
        """
        self._gaps = gaps
        self._sum = 0.0
        self._count = 0
        self._within = np.zeros(3, np.int64)
        self.reliability = Reliability()

    def add(self, found: Label, truth: Label) -> None:
        found, truth = _normals(found), _normals(truth)
        cosine = (found.values * truth.values).sum(axis=-1)
        right = np.where(truth.valid & found.valid, cosine > math.cos(_CLOSE), found.valid == truth.valid)
        asked = truth.valid if self._gaps else np.ones_like(truth.valid)
        self.reliability.add(found.confidence[asked], right[asked])
        degrees = np.degrees(np.arccos(cosine[truth.valid].clip(-1, 1).astype(np.float64)))
        self._sum += float(degrees.sum())
        self._count += degrees.size
        self._within += [(degrees < limit).sum() for limit in (11.25, 22.5, 30.0)]

    def result(self) -> dict[str, float]:
        """`mean_angle_deg`, the shares of pixels `within_11`, `within_22` and `within_30` degrees, and the expected
        calibration error `ece` of the confidence.
        """
        if not self._count:
            return {}
        shares = (self._within / self._count).tolist()
        return {
            "mean_angle_deg": self._sum / self._count,
            **dict(zip(("within_11", "within_22", "within_30"), shares, strict=True)),
            "ece": self.reliability.expected_calibration_error,
        }

    @property
    def merit(self) -> float | None:
        return self.result().get("within_22")


def _normals(label: Label) -> DenseMap:
    if not isinstance(label, DenseMap) or label.storage.unit != NORMALS_STORAGE.unit:
        raise UserError("the normals label is no map of unit vectors; give maps of three components per pixel")
    return label
