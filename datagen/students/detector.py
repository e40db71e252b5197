"""Which objects there are, each with its mask: torchvision's Mask R-CNN (arXiv 1703.06870)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, cast

import numpy as np
from annotated_types import Ge, Le
from jaxtyping import Bool, Float

from decoders.augmentation import BORDER_GREY
from decoders.errors import UserError
from decoders.labels import InstanceSet, LabelSet, Taxonomy, object_set

if TYPE_CHECKING:
    from torch import Tensor, nn

    from decoders.tasks import Score


class Detector:
    """Learns the countable classes.

    Crowds are regions of several objects that nobody separated, or objects of which a box alone is known. Where there
    is nothing but crowds, what it learns from is as grey as the border of a view: their objects must not pass for
    background.
    """

    headline = "instances ap"
    size_multiple = 32
    labels = ("instances",)

    def __init__(
        self,
        *,
        short_side: Annotated[int, Ge(32)] = 256,
        minimum_score: Annotated[float, Ge(0), Le(1)] = 0.05,
        pretrained: bool = False,
        taxonomy: Taxonomy,
    ) -> None:
        """
        Args:
            short_side: pixels to which it scales what it is shown; small objects need more than the picture has.
            minimum_score: less sure objects are not answered.
            pretrained: whether its ResNet-50 begins with ImageNet's weights, which are downloaded.

        Raises:
            UserError: no class is countable.
        """
        self._things = [number for number, thing in enumerate(taxonomy.is_thing, start=1) if thing]
        if not self._things:
            raise UserError(
                "the student `detector` learns objects, but no class is countable; name the countable ones under "
                "`things` of the dataset, or take `kind: segmenter`"
            )
        self._short_side = short_side
        self._minimum_score = minimum_score
        self._pretrained = pretrained
        self._taxonomy = taxonomy

    def build(self) -> "nn.Module":
        from torchvision.models import ResNet50_Weights
        from torchvision.models.detection import maskrcnn_resnet50_fpn

        make: Any = maskrcnn_resnet50_fpn
        try:
            return make(
                weights=None,
                weights_backbone=ResNet50_Weights.IMAGENET1K_V1 if self._pretrained else None,
                num_classes=len(self._things) + 1,
                trainable_backbone_layers=5 if self._pretrained else None,  # all of them
                min_size=self._short_side,
                max_size=4 * self._short_side,
                box_score_thresh=self._minimum_score,
            )
        except OSError as error:
            raise UserError(
                f"ImageNet's weights could not be downloaded ({error}); leave out `pretrained` to learn from scratch"
            ) from error

    def loss(
        self, network: "nn.Module", pictures: "Float[Tensor, 'batch 3 height width']", labels: Sequence[LabelSet]
    ) -> "Float[Tensor, '']":
        import torch

        objects = [object_set(each["instances"]) for each in labels]
        targets = [self.target(each, pictures.device) for each in objects]
        blank = torch.from_numpy(np.stack([_crowds_alone(each) for each in objects])).to(pictures.device)
        shown = pictures.masked_fill(blank[:, None], BORDER_GREY / 255)
        terms = cast("dict[str, Tensor]", network(list(shown), targets))
        return torch.stack(list(terms.values())).sum()

    def target(self, objects: InstanceSet, device: Any) -> dict[str, "Tensor"]:
        """What torchvision's loss compares with: `boxes`, `labels` (countable classes from 1) and `masks`."""
        import torch

        numbers = {thing: place for place, thing in enumerate(self._things, start=1)}
        kept: list[tuple[int, tuple[int, int, int, int]]] = []
        for index, mask in enumerate(objects.masks):
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            known = not objects.is_crowd[index] and int(objects.category_ids[index]) in numbers
            if known and len(rows):
                # Of a mask one pixel wide too, the box has an area, which the loss divides by.
                kept.append((index, (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)))
        chosen = [index for index, _ in kept]
        places = [numbers[int(objects.category_ids[index])] for index in chosen]
        target = {
            "boxes": torch.tensor([box for _, box in kept], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor(places, dtype=torch.int64),
            "masks": torch.from_numpy(objects.masks[chosen].astype(np.uint8)),
        }
        return {name: tensor.to(device) for name, tensor in target.items()}

    def read(self, network: "nn.Module", pictures: "Float[Tensor, 'batch 3 height width']") -> list[LabelSet]:
        import torch

        with torch.no_grad():
            answers = cast("list[dict[str, Tensor]]", network(list(pictures)))
        size = (pictures.shape[2], pictures.shape[3])
        return [{"instances": self._found(answer, size)} for answer in answers]

    def _found(self, answer: Mapping[str, "Tensor"], size: tuple[int, int]) -> InstanceSet:
        masks = (answer["masks"][:, 0] >= 0.5).cpu().numpy()
        return InstanceSet.collect(
            list(masks),
            [self._things[place - 1] for place in answer["labels"].tolist()],
            size=size,
            scores=answer["scores"].tolist(),
        )

    def scores(self) -> "Mapping[str, Score]":
        from decoders.average_precision import AveragePrecision

        return {"instances": AveragePrecision(self._taxonomy)}


def _crowds_alone(objects: InstanceSet) -> Bool[np.ndarray, "height width"]:
    """Pixels of crowds that are of no single object, too."""
    crowds, single = objects.masks[objects.is_crowd], objects.masks[~objects.is_crowd]
    return np.asarray(crowds.any(axis=0) & ~single.any(axis=0))
