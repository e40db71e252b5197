"""How far away each pixel is, in metres along the optical axis, and where there is no distance to give (the sky)."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional

from decoders.calibration import Reliability, truthful_factor
from decoders.decoder import Trunk, TrunkFeatures, TwoScaleHead, resize
from decoders.errors import UserError
from decoders.labels import METRIC_DEPTH_STORAGE, DenseMap, Label, Taxonomy, metric_depth
from decoders.looks import mean_depth
from decoders.resizing import Size
from decoders.tasks import Score, Task, sample_pixels

NEAREST_M = 0.1
FARTHEST_M = 250.0
_CLOSE_RATIO = 1.25
_SHARPEST_LOG_SCALE, _BLUNTEST_LOG_SCALE = -5.0, 1.0


class Depth(Task[Tensor]):
    """Metric depth, found in log space.

    The head gives three numbers per pixel: the logarithm of the depth, the logarithm of the spread b of a Laplace
    distribution about it, and whether there is a depth at all. The confidence of a valid pixel is the probability,
    under that distribution, that the truth lies within a factor of 1.25 (the delta1 criterion), times the probability
    that there is a depth; the confidence of an invalid pixel is the probability that there is none.
    """

    any_classes = True
    log_mean: Tensor
    log_scale: Tensor
    spread_factor: Tensor
    """What the spreads are multiplied with, so that they fit held-out pictures."""

    def __init__(
        self,
        trunk: Trunk,
        taxonomy: Taxonomy,
        *,
        silog: float = 0.5,
        validity: float = 0.25,
    ) -> None:
        """Options.

        Args:
            silog: weight of the scale-invariant loss (Eigen et al., arXiv 1406.2283) beside the mean absolute log
                error.
            validity: weight of learning where there is no depth. 0 where invalid pixels mean "not measured" (sparse
                LiDAR): every pixel then gets a depth.
        """
        super().__init__(taxonomy)
        if silog < 0 or validity < 0:
            raise UserError(
                f"task depth: found silog {silog}, validity {validity}; expected weights of at least 0; correct them"
            )
        self.silog = silog
        self.validity = validity
        self.head = TwoScaleHead(trunk, 3)
        self.register_buffer("log_mean", torch.zeros(()))
        self.register_buffer("log_scale", torch.ones(()))
        self.register_buffer("spread_factor", torch.ones(()))

    def calibrate(self, targets: Iterable[Float32[Tensor, "2 height width"]]) -> None:
        """Mean and deviation of the log depth, so that the untrained head already answers the commonest distance."""
        total = torch.zeros(3, dtype=torch.float64)
        for target in targets:
            logs = target[0][target[0] > 0].double().log()
            total += torch.stack(
                [torch.tensor(float(logs.numel()), dtype=torch.float64), logs.sum(), logs.square().sum()]
            )
        count, first, second = total.tolist()
        if count == 0:
            raise UserError("no picture has a valid depth; give depth maps in metres or leave out the task depth")
        mean = first / count
        self.log_mean.fill_(mean)
        self.log_scale.fill_(max(0.1, math.sqrt(max(0.0, second / count - mean**2))))

    def forward(self, features: TrunkFeatures) -> Float[Tensor, "batch 3 height width"]:
        """Log depth in log metres, log b, and the logit of there being a depth."""
        raw = self.head(features)
        log_depth = self.log_mean + self.log_scale * raw[:, :1]
        log_spread = raw[:, 1:2].clamp(_SHARPEST_LOG_SCALE, _BLUNTEST_LOG_SCALE)
        return torch.cat([log_depth, log_spread, raw[:, 2:]], dim=1)

    def target(self, label: Label) -> Float32[Tensor, "2 height width"]:
        """Metres, 0 where invalid; and 1 where validity itself is known (not outside the picture)."""
        truth = _depth(label)
        meters = np.where(truth.valid, truth.values[..., 0], 0.0)
        if not np.isfinite(meters).all() or meters.min() < 0:
            raise UserError(
                "valid depths must be finite and not negative; mark pixels without a measurement as invalid (0 in a "
                "depth file)"
            )
        meters = np.where(meters > 0, meters.clip(NEAREST_M, FARTHEST_M), 0.0)
        return torch.from_numpy(np.stack([meters, truth.confidence > 0]).astype(np.float32))

    def loss(
        self, output: Float[Tensor, "batch 3 height width"], target: Float[Tensor, "batch 2 height width"]
    ) -> Float[Tensor, ""]:
        log_depth, log_spread, exists = output.unbind(1)
        meters, known = target.unbind(1)
        valid = (meters > 0).to(output.dtype)
        count = valid.sum().clamp_min(1)
        error = (log_depth - meters.clamp_min(NEAREST_M).log()) * valid
        absolute = error.abs().sum() / count
        variance = error.square().sum() / count - 0.5 * (error.sum() / count).square()
        # The spread learns from the error, not the error from the spread, which would give up on hard pixels.
        unlikely = (error.detach().abs() * (-log_spread).exp() + log_spread) * valid
        missing = functional.binary_cross_entropy_with_logits(exists, valid, weight=known, reduction="sum")
        return (
            absolute
            + self.silog * (variance.clamp_min(0) + 1e-6).sqrt()
            + 0.1 * unlikely.sum() / count
            + self.validity * missing / known.sum().clamp_min(1)
        )

    def merge(self, looks: Sequence[Float[Tensor, "batch 3 height width"]]) -> Tensor:
        return mean_depth(looks)

    @torch.no_grad()
    def tune_confidence(self, pairs: Iterable[tuple[Float[Tensor, "1 3 height width"], Label]]) -> None:
        """Confidences as often right as they say, of the pixels with a depth."""
        spreads: list[Tensor] = []
        rights: list[Tensor] = []
        for output, label in pairs:
            meters = self.target(label)[0].flatten()
            chosen = sample_pixels(meters > 0)
            log_depth, log_spread, _ = output[0].flatten(1).float().cpu()[:, chosen]
            spreads.append(log_spread.exp())
            rights.append((log_depth - meters[chosen].log()).abs() < math.log(_CLOSE_RATIO))
        spread, right = torch.cat(spreads), torch.cat(rights)
        if len(right):
            self.spread_factor.fill_(truthful_factor(lambda factor: _close(factor * spread), right))

    @torch.no_grad()
    def read(self, output: Float[Tensor, "batch 3 height width"], size: Size) -> list[Label]:
        return [self._read_one(resize(one[None].float(), size)[0]) for one in output]

    def _read_one(self, output: Float[Tensor, "3 height width"]) -> DenseMap:
        log_depth, log_spread, logit = output
        meters = log_depth.clamp(math.log(NEAREST_M), math.log(FARTHEST_M)).exp()
        close = _close(self.spread_factor * log_spread.exp())
        exists = logit.sigmoid() if self.validity else torch.ones_like(logit)
        valid = exists >= 0.5
        confidence = torch.where(valid, close * exists, 1 - exists)
        return metric_depth(torch.where(valid, meters, 0.0).cpu().numpy(), confidence.cpu().numpy())

    def score(self) -> Score:
        return DepthScore(gaps=not self.validity)


def _close(spread: Float[Tensor, "*pixels"]) -> Float[Tensor, "*pixels"]:
    """How likely the truth lies within the ratio."""
    return 1 - torch.exp(-math.log(_CLOSE_RATIO) / spread)


class DepthScore:
    """The usual figures (Eigen et al., arXiv 1406.2283), each computed per picture and averaged over pictures.

    They cover the pixels that have a true depth; where the reader found none it answered 0 m and is scored so.
    """

    def __init__(self, *, gaps: bool = False) -> None:
        """
        Args:
            gaps: pixels without a true depth were not measured, so that no answer there is right or wrong.
        """
        self._gaps = gaps
        self._rows: list[dict[str, float]] = []
        self.reliability = Reliability()

    def add(self, found: Label, truth: Label) -> None:
        found, truth = _depth(found), _depth(truth)
        right = found.valid == truth.valid
        row = {} if self._gaps else {"validity_accuracy": float(right.mean())}
        if truth.valid.any():
            true_m, found_m = (label.values[truth.valid, 0].astype(np.float64) for label in (truth, found))
            ratio = np.maximum(true_m, found_m) / np.minimum(true_m, found_m).clip(min=1e-9)
            row["absrel"] = float((np.abs(found_m - true_m) / true_m).mean())
            row["rmse_m"] = float(np.sqrt(np.square(found_m - true_m).mean()))
            row["delta1"] = float((ratio < _CLOSE_RATIO).mean())
            right[truth.valid] = ratio < _CLOSE_RATIO
        asked = truth.valid if self._gaps else np.ones_like(truth.valid)
        self.reliability.add(found.confidence[asked], right[asked])
        self._rows.append(row)

    def result(self) -> dict[str, float]:
        """`absrel`, `rmse_m`, `delta1`, where it can be told `validity_accuracy`: the share of pixels rightly given or
        refused a depth; and the expected calibration error `ece` of the confidence.
        """
        names = ("absrel", "rmse_m", "delta1", "validity_accuracy")
        columns = {name: [row[name] for row in self._rows if name in row] for name in names}
        ece = {"ece": self.reliability.expected_calibration_error} if self._rows else {}
        return {name: float(np.mean(column)) for name, column in columns.items() if column} | ece

    @property
    def merit(self) -> float | None:
        result = self.result()
        return 1 / (1 + result["absrel"]) if "absrel" in result else None


def _depth(label: Label) -> DenseMap:
    if not isinstance(label, DenseMap) or label.storage.unit != METRIC_DEPTH_STORAGE.unit:
        raise UserError("the depth label is no map in metres; give depth maps with the unit m")
    return label
