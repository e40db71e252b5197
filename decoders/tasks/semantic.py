"""Which class each pixel belongs to."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from decoders.calibration import Reliability, best_factor
from decoders.class_losses import BALANCE, DICE, IGNORED, balanced_weights, class_loss, count_pixels
from decoders.decoder import Trunk, TrunkFeatures, TwoScaleHead, resize
from decoders.errors import UserError
from decoders.labels import CATEGORY, DenseMap, Label, Taxonomy, semantic_map
from decoders.looks import mean_class_logits
from decoders.open_vocabulary import PhraseHead
from decoders.repair import repair_specks
from decoders.resizing import Size
from decoders.tasks import Score, Task, sample_pixels


class Semantic(Task[Tensor]):
    """Classes 1..K; void pixels teach nothing and are never predicted. Background, where data have it, is an ordinary
    class.

    Confidence is the softmax probability of the class that won, at the temperature that fits held-out pictures best.
    Where a reader is asked for other classes, those it was fitted on stand behind them in each output: they are not
    said, but take their share of the probability.
    """

    any_classes = True
    class_weights: Tensor
    temperature: Tensor

    def __init__(
        self,
        trunk: Trunk,
        taxonomy: Taxonomy,
        *,
        balance: float = BALANCE,
        dice: float = DICE,
        label_smoothing: float = 0.02,
        smallest_px: int = 20,
    ) -> None:
        """Options.

        Args:
            balance: a class weighs (its share of the pixels) ** -balance in the cross-entropy; 0 = all pixels alike.
            dice: weight of the soft Dice loss (V-Net, arXiv 1606.04797) beside the cross-entropy: counts classes, not
                pixels.
            label_smoothing: share of the target probability spread over all classes.
            smallest_px: connected regions below, in pixels of the picture, take the class of their neighbours, with the
                confidence that the reader had in that class there; 0 = all stay.
        """
        super().__init__(taxonomy)
        if not 0 <= balance <= 1 or not 0 <= label_smoothing < 1 or dice < 0 or smallest_px < 0:
            raise UserError(
                f"task semantic: found balance {balance}, dice {dice}, label_smoothing {label_smoothing}, smallest_px "
                f"{smallest_px}; expected balance in 0..1, dice >= 0, label_smoothing in 0..1 and smallest_px >= 0; "
                "leave them out for the defaults"
            )
        self.smallest_px = smallest_px
        self.balance = balance
        self.dice = dice
        self.label_smoothing = label_smoothing
        self.head = PhraseHead(trunk) if trunk.open_vocabulary else TwoScaleHead(trunk, len(taxonomy))
        # Not kept with a reader, which may be asked for other classes and only learns with these.
        self.register_buffer("class_weights", torch.ones(len(taxonomy)), persistent=False)
        self.register_buffer("temperature", torch.ones(()))

    def calibrate(self, targets: Iterable[UInt8[Tensor, "1 height width"]]) -> None:
        pixels = count_pixels((target[0].long() - 1 for target in targets), len(self.taxonomy))
        self.class_weights.copy_(balanced_weights(pixels, self.balance))

    def forward(self, features: TrunkFeatures) -> Float[Tensor, "batch classes height width"]:
        return self.head(features)

    def target(self, label: Label) -> UInt8[Tensor, "1 height width"]:
        """Semantic ids, 0 where void."""
        ids = np.where(_semantic(label).valid, _semantic(label).values[..., 0], 0)
        if ids.min() < 0 or ids.max() > len(self.taxonomy):
            outside = sorted({int(value) for value in np.unique(ids) if not 0 <= value <= len(self.taxonomy)})
            raise UserError(
                f"label ids {outside} lie outside the taxonomy, which has 1..{len(self.taxonomy)} and 0 for void; "
                "add the missing classes to the taxonomy or map these ids to void"
            )
        return torch.from_numpy(ids.astype(np.uint8))[None]

    def loss(
        self, output: Float[Tensor, "batch classes height width"], target: UInt8[Tensor, "batch 1 height width"]
    ) -> Float[Tensor, ""]:
        ids = target[:, 0].long() - 1  # void is ignored
        return class_loss(output, ids, self.class_weights, dice=self.dice, label_smoothing=self.label_smoothing)

    def merge(self, looks: Sequence[Float[Tensor, "batch classes height width"]]) -> Tensor:
        return mean_class_logits(looks)

    @torch.no_grad()
    def tune_confidence(self, pairs: Iterable[tuple[Float[Tensor, "1 classes height width"], Label]]) -> None:
        """Temperature scaling (Guo et al., arXiv 1706.04599)."""
        logits: list[Tensor] = []
        truths: list[Tensor] = []
        for output, label in pairs:
            ids = self.target(label).flatten().long() - 1
            chosen = sample_pixels(ids != IGNORED)
            logits.append(output[0].flatten(1).T[chosen.to(output.device)].float().cpu())
            truths.append(ids[chosen])
        found, wanted = torch.cat(logits), torch.cat(truths)
        if len(wanted):
            factor = best_factor(lambda temperature: float(functional.cross_entropy(found / temperature, wanted)))
            self.temperature.fill_(factor)

    @torch.no_grad()
    def read(self, output: Float[Tensor, "batch classes height width"], size: Size) -> list[Label]:
        return [self._read_one(logits[None] / self.temperature, size) for logits in output]

    def _read_one(self, logits: Float[Tensor, "1 classes height width"], size: Size) -> DenseMap:
        probability = _probability(logits, size)[: len(self.taxonomy)]
        ids, repairs = repair_specks(probability.argmax(0).to(torch.uint8).cpu().numpy(), smallest_px=self.smallest_px)
        chosen = torch.from_numpy(ids).to(probability.device).long()
        confidence = probability.gather(0, chosen[None])[0].cpu().numpy()
        return semantic_map(ids + np.uint8(1), confidence, repairs=repairs)

    @torch.no_grad()
    def probability_of(
        self, output: Float[Tensor, "1 classes _ _"], ids: UInt8[np.ndarray, "height width"]
    ) -> Float32[np.ndarray, "height width"]:
        """How likely each pixel of one picture has the class that somebody else says, at the picture's size.

        Args:
            ids: 1..K; where they are 0 nothing is said, and the answer is 0.5.
        """
        probability = _probability(output / self.temperature, (ids.shape[0], ids.shape[1]))
        asked = torch.from_numpy(ids.astype(np.int64)).to(probability.device)
        found = probability.gather(0, (asked - 1).clamp_min(0)[None])[0]
        return torch.where(asked > 0, found, 0.5).cpu().numpy()

    def score(self) -> Score:
        return SemanticScore(self.taxonomy)


class SemanticScore:
    """Intersection over union from one confusion matrix over all pictures; pixels void in the truth do not count."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self._names = taxonomy.names
        self._confusion: Int64[np.ndarray, "truth found"] = np.zeros((len(taxonomy) + 1, len(taxonomy) + 1), np.int64)
        self.reliability = Reliability()

    def add(self, found: Label, truth: Label) -> None:
        side = len(self._names) + 1
        counted = _semantic(truth).valid
        true_ids, found_ids = (_semantic(label).values[counted, 0].astype(np.int64) for label in (truth, found))
        self._confusion += np.bincount(true_ids * side + found_ids, minlength=side**2).reshape(side, side)
        self.reliability.add(_semantic(found).confidence[counted], true_ids == found_ids)

    def result(self) -> dict[str, float]:
        """`miou` over the classes present in the truth, `pixel_accuracy`, the expected calibration error `ece` of the
        confidence, and `iou/<class>` for each class present.
        """
        hits = np.diag(self._confusion)[1:]
        in_truth, in_found = self._confusion.sum(1)[1:], self._confusion.sum(0)[1:]
        present = np.flatnonzero(in_truth)
        if not present.size:
            return {}
        iou = hits[present] / (in_truth + in_found - hits)[present]
        return {
            "miou": float(iou.mean()),
            "pixel_accuracy": float(hits.sum() / in_truth.sum()),
            "ece": self.reliability.expected_calibration_error,
            **{f"iou/{self._names[index]}": float(value) for index, value in zip(present, iou, strict=True)},
        }

    @property
    def merit(self) -> float | None:
        return self.result().get("miou")


def _semantic(label: Label) -> DenseMap:
    if not isinstance(label, DenseMap) or label.storage.unit != CATEGORY:
        raise UserError("the semantic label is no map of class ids; give a label map with one id per pixel")
    return label


def _probability(logits: Float[Tensor, "1 classes _ _"], size: Size) -> Float[Tensor, "classes _ _"]:
    """Of each class; stays where it is computed: 160 MB for a large photograph."""
    return resize(logits.float(), size)[0].softmax(0)
