"""Which of two things is nearer, and by how much more than others: depth up to an unknown scale and shift.

For truth whose unit nobody knows (stereo films, other networks), and where only the order matters.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional

from decoders.decoder import Trunk, TrunkFeatures, TwoScaleHead, resize
from decoders.errors import UserError
from decoders.labels import METRIC_DEPTH_STORAGE, RELATIVE_DEPTH_STORAGE, DenseMap, Label, Taxonomy
from decoders.looks import mean_depth
from decoders.resizing import Size
from decoders.tasks import Score, Task

_SHARPEST_LOG_SCALE, _BLUNTEST_LOG_SCALE = -4.0, 2.0
_FEWEST_PIXELS = 16
"""Of a picture with a depth; a scale and a shift fit fewer too well."""
_CLOSE = 0.25
"""An error in the normalised inverse depth, whose mean absolute deviation in a picture is 1."""


class RelativeDepth(Task[Tensor]):
    """Inverse depth 0..1 within each picture (1 = nearest), learned from the label `depth`, in metres or relative.

    Both truth and output are shifted to median 0 and scaled to mean absolute deviation 1 before they are compared
    (scale-and-shift-invariant loss of MiDaS, arXiv 1907.01341, equation 5). Beside it the head says the logarithm of
    the spread of a Laplace distribution about its answer, and whether there is a depth at all; confidence as for
    `depth`, with an error below a quarter of the mean deviation for close.
    """

    learns_from = "depth"
    any_classes = True

    def __init__(self, trunk: Trunk, taxonomy: Taxonomy, *, validity: float = 0.25) -> None:
        """Options.

        Args:
            validity: weight of learning where there is no depth. 0 where invalid pixels mean "not measured".
        """
        super().__init__(taxonomy)
        if validity < 0:
            raise UserError(
                f"task relative_depth: found validity {validity}; expected a weight of at least 0; correct it"
            )
        self.validity = validity
        self.head = TwoScaleHead(trunk, 3)

    def calibrate(self, targets: Iterable[Float32[Tensor, "3 height width"]]) -> None:
        """Nothing is measured: scale and shift are free."""
        if not any(bool(target[1].any()) for target in targets):
            raise UserError("no picture has a valid depth; give depth maps or leave out the task relative_depth")

    def forward(self, features: TrunkFeatures) -> Float[Tensor, "batch 3 height width"]:
        """Inverse depth of any scale, log spread, and the logit of there being a depth."""
        raw = self.head(features)
        spread = raw[:, 1:2].clamp(_SHARPEST_LOG_SCALE, _BLUNTEST_LOG_SCALE)
        return torch.cat([raw[:, :1], spread, raw[:, 2:]], dim=1)

    def target(self, label: Label) -> Float32[Tensor, "3 height width"]:
        """Inverse depth, where it is valid, and where validity itself is known (not outside the picture)."""
        truth = _depth(label)
        given = truth.values[truth.valid]
        metric = truth.storage.unit == METRIC_DEPTH_STORAGE.unit
        if not np.isfinite(given).all() or (metric and (given <= 0).any()):
            raise UserError("valid depths must be finite and above 0; mark pixels without a measurement as invalid")
        return torch.from_numpy(np.stack([_inverse(truth), truth.valid, truth.confidence > 0]).astype(np.float32))

    def loss(
        self, output: Float[Tensor, "batch 3 height width"], target: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, ""]:
        found, spread, exists = output.unbind(1)
        inverse, valid, known = target.unbind(1)
        missing = functional.binary_cross_entropy_with_logits(exists, valid, weight=known, reduction="sum")
        losses = [output.sum() * 0]
        for one, log_spread, true, here in zip(found, spread, inverse, valid > 0, strict=True):
            if int(here.sum()) < 2:
                continue
            error = (_normalise(one[here]) - _normalise(true[here])).abs()
            unlikely = error.detach() * (-log_spread[here]).exp() + log_spread[here]
            losses.append(error.mean() + 0.1 * unlikely.mean())
        return torch.stack(losses).sum() / max(1, len(losses) - 1) + self.validity * missing / known.sum().clamp_min(1)

    def merge(self, looks: Sequence[Float[Tensor, "batch 3 height width"]]) -> Tensor:
        """Looks are brought to the scale and shift of the loss first: in that unit the spread is said."""
        return mean_depth([torch.stack([self._normalised(picture) for picture in look]) for look in looks])

    def _normalised(self, output: Float[Tensor, "3 height width"]) -> Float[Tensor, "3 height width"]:
        """One picture with median 0 and mean absolute deviation 1 where it says a depth, or everywhere if nowhere."""
        inverse, log_spread, logit = output
        seen = inverse[logit >= 0] if self.validity and bool((logit >= 0).any()) else inverse
        middle = seen.median()
        deviation = (seen - middle).abs().mean().clamp_min(1e-6)
        return torch.stack([(inverse - middle) / deviation, log_spread, logit])

    @torch.no_grad()
    def read(self, output: Float[Tensor, "batch 3 height width"], size: Size) -> list[Label]:
        return [self._read_one(resize(one[None].float(), size)[0]) for one in output]

    def _read_one(self, output: Float[Tensor, "3 height width"]) -> DenseMap:
        inverse, log_spread, logit = output
        exists = logit.sigmoid() if self.validity else torch.ones_like(logit)
        valid = exists >= 0.5
        close = 1 - torch.exp(-_CLOSE / log_spread.exp())
        values = torch.zeros_like(inverse)
        if bool(valid.any()):
            seen = inverse[valid]
            low, high = seen.min(), seen.max()
            values = torch.where(valid, (inverse - low) / (high - low).clamp_min(1e-6), 0.0)
        return DenseMap(
            values=values[..., None].cpu().numpy(),
            valid=valid.cpu().numpy(),
            confidence=torch.where(valid, close * exists, 1 - exists).cpu().numpy(),
            storage=RELATIVE_DEPTH_STORAGE,
        )

    def score(self) -> Score:
        return RelativeDepthScore(gaps=not self.validity)


class RelativeDepthScore:
    """Errors after the best scale and shift of each picture, averaged over pictures.

    They cover the pixels that have a true depth. Where the reader found none its answer is its median; near and far
    exchanged are no better than no answer at all, as scales are not negative.
    """

    reliability = None
    """An error without a unit is neither right nor wrong."""

    def __init__(self, *, gaps: bool = False) -> None:
        """
        Args:
            gaps: pixels without a true depth were not measured, so that no answer there is right or wrong.
        """
        self._gaps = gaps
        self._rows: list[dict[str, float]] = []

    def add(self, found: Label, truth: Label) -> None:
        found, truth = _depth(found), _depth(truth)
        row = {} if self._gaps else {"validity_accuracy": float((found.valid == truth.valid).mean())}
        self._rows.append(row)
        if truth.valid.sum() < _FEWEST_PIXELS:
            return
        answer = _inverse(found)
        middle = np.median(answer[found.valid]) if found.valid.any() else 0.0
        ours = np.where(found.valid, answer, middle)[truth.valid].astype(np.float64)
        true = _inverse(truth)[truth.valid].astype(np.float64)
        scale = max(0.0, float(np.cov(ours, true, bias=True)[0, 1])) / max(float(ours.var()), 1e-12)
        aligned = true.mean() + scale * (ours - ours.mean())
        error = np.abs(aligned - true)
        deviation = float(np.abs(true - np.median(true)).mean())
        row["deviation"] = float(error.mean()) / max(deviation, 1e-9)
        if truth.storage.unit == METRIC_DEPTH_STORAGE.unit:
            meters, aligned = 1 / true, 1 / np.maximum(aligned, 1 / 250)
            row["absrel"] = float((np.abs(aligned - meters) / meters).mean())
            row["delta1"] = float((np.maximum(aligned / meters, meters / aligned) < 1.25).mean())

    def result(self) -> dict[str, float]:
        """`deviation`, the error as a share of the truth's own mean deviation; with metric truth `absrel` and `delta1`;
        and `validity_accuracy`, the share of pixels rightly given or refused a depth, where that can be told.
        """
        names = ("deviation", "absrel", "delta1", "validity_accuracy")
        columns = {name: [row[name] for row in self._rows if name in row] for name in names}
        return {name: float(np.mean(column)) for name, column in columns.items() if column}

    @property
    def merit(self) -> float | None:
        result = self.result()
        return 1 / (1 + result["deviation"]) if "deviation" in result else None


def _normalise(values: Float[Tensor, " pixels"]) -> Float[Tensor, " pixels"]:
    centred = values - values.median()
    return centred / centred.abs().mean().clamp_min(1e-6)


def _inverse(label: DenseMap) -> Float32[np.ndarray, "height width"]:
    """Larger is nearer; 0 where invalid."""
    values = label.values[..., 0]
    if label.storage.unit == METRIC_DEPTH_STORAGE.unit:
        return np.divide(1, values, out=np.zeros_like(values), where=label.valid & (values > 0))
    return np.where(label.valid, values, 0).astype(np.float32)


def _depth(label: Label) -> DenseMap:
    units = (METRIC_DEPTH_STORAGE.unit, RELATIVE_DEPTH_STORAGE.unit)
    if not isinstance(label, DenseMap) or label.storage.unit not in units:
        raise UserError(f"the relative_depth label is no map of depths; give maps of one of the units {units}")
    return label
