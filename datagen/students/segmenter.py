"""The class of each pixel and, if asked, its depth: a network of segmentation-models-pytorch."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import numpy as np
from annotated_types import Gt
from jaxtyping import Float

from decoders.errors import UserError
from decoders.labels import DenseMap, Label, LabelSet, Taxonomy, metric_depth, semantic_ids, semantic_map

if TYPE_CHECKING:
    from torch import Tensor, nn

    from decoders.tasks import Score

_NEAREST_M, _FARTHEST_M = 0.1, 250.0
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels: what pretrained encoders expect, and harmless for others."""


class Segmenter:
    """Cross-entropy over the classes, void left out; depth, where it is learned, by the absolute error of its logarithm
    on one output plane more. Confidence is the softmax probability of the class that won."""

    headline = "semantic miou"
    size_multiple = 32

    def __init__(
        self,
        *,
        architecture: Literal["unet", "unetplusplus", "fpn", "deeplabv3plus", "segformer", "upernet"] = "unet",
        encoder: str = "resnet18",
        weights: str | None = None,
        depth_weight: Annotated[float, Gt(0)] | None = None,
        taxonomy: Taxonomy,
    ) -> None:
        """
        Args:
            architecture: of that library, under its name for it.
            encoder: any of segmentation-models-pytorch's, such as `resnet50`, `mit_b0` or `tu-<name of timm>`.
            weights: pretrained ones of the encoder by that library's name for them, such as `imagenet`, which are
                downloaded; it learns from scratch when None.
            depth_weight: of the depth beside the classes; depth is not learned when None.

        Raises:
            UserError: no such encoder, or segmentation-models-pytorch is not installed.
        """
        library = _library()
        if not encoder.startswith("tu-") and encoder not in library.encoders.get_encoder_names():
            raise UserError(
                f"encoder {encoder!r} is none of segmentation-models-pytorch; take one of "
                f"{', '.join(library.encoders.get_encoder_names()[:12])}, ..., or `tu-` before a name of timm"
            )
        self._made_of = {"arch": architecture, "encoder_name": encoder, "encoder_weights": weights}
        self._depth_weight = depth_weight
        self._taxonomy = taxonomy

    @property
    def labels(self) -> tuple[str, ...]:
        return ("semantic",) if self._depth_weight is None else ("semantic", "depth")

    def build(self) -> "nn.Module":
        planes = len(self._taxonomy) + (self._depth_weight is not None)
        try:
            return cast("nn.Module", _library().create_model(**self._made_of, in_channels=3, classes=planes))
        except Exception as error:  # a missing download fails in any of several libraries, each with its own exception
            raise UserError(
                f"student {self._made_of} could not be made ({type(error).__name__}: {error}); take another encoder, "
                "or `weights: null` to learn from scratch"
            ) from error

    def loss(
        self, network: "nn.Module", pictures: "Float[Tensor, 'batch 3 height width']", labels: Sequence[LabelSet]
    ) -> "Float[Tensor, '']":
        import torch
        from torch.nn import functional

        planes = network(_normalised(pictures))
        ids = torch.from_numpy(np.stack([semantic_ids(each) for each in labels])).to(planes.device).long() - 1
        known = (ids >= 0).sum().clamp_min(1)
        total = functional.cross_entropy(planes[:, : len(self._taxonomy)], ids, ignore_index=-1, reduction="sum")
        loss = total / known
        if self._depth_weight is not None:
            meters = torch.from_numpy(np.stack([_meters(each["depth"]) for each in labels])).to(planes.device)
            measured = meters > 0
            error = (planes[:, -1] - meters.clamp(_NEAREST_M, _FARTHEST_M).log()).abs() * measured
            loss = loss + self._depth_weight * error.sum() / measured.sum().clamp_min(1)
        return loss

    def read(self, network: "nn.Module", pictures: "Float[Tensor, 'batch 3 height width']") -> list[LabelSet]:
        import torch

        with torch.no_grad():
            planes = network(_normalised(pictures)).float().cpu()
        probability, ids = planes[:, : len(self._taxonomy)].softmax(1).max(1)
        found: list[LabelSet] = []
        for index in range(len(planes)):
            labels: dict[str, Label] = {
                "semantic": semantic_map((ids[index] + 1).byte().numpy(), probability[index].numpy())
            }
            if self._depth_weight is not None:
                bounds = np.log([_NEAREST_M, _FARTHEST_M])
                labels["depth"] = metric_depth(np.exp(planes[index, -1].numpy().clip(*bounds)).astype(np.float32))
            found.append(labels)
        return found

    def scores(self) -> "Mapping[str, Score]":
        from decoders.tasks.depth import DepthScore
        from decoders.tasks.semantic import SemanticScore

        scores: dict[str, Score] = {"semantic": SemanticScore(self._taxonomy), "depth": DepthScore(gaps=True)}
        return {name: scores[name] for name in self.labels}


def _library() -> Any:
    try:
        import segmentation_models_pytorch  # an extra: only who measures datasets needs it
    except ModuleNotFoundError as error:
        raise UserError(
            "the student `segmenter` needs segmentation-models-pytorch, which was not found; run "
            "`pip install 'datagen[students]'`"
        ) from error
    return segmentation_models_pytorch


def _normalised(pictures: "Float[Tensor, 'batch 3 height width']") -> "Float[Tensor, 'batch 3 height width']":
    mean, deviation = (pictures.new_tensor(values)[:, None, None] for values in (_MEAN, _DEVIATION))
    return (pictures - mean) / deviation


def _meters(label: Label) -> Float[np.ndarray, "height width"]:
    """Depths in metres, 0 where there is none."""
    if not isinstance(label, DenseMap) or label.storage.unit != "m":
        raise UserError("the depth label is no map in metres; leave `depth_weight` out, or give such depths")
    return np.where(label.valid, label.values[..., 0], np.float32(0))
