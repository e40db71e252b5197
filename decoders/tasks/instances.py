"""Which objects there are: one mask, class and score for each.

Queries ask the deep features for one object each, layer after layer, each layer looking only where the one before saw
its object (masked attention: Mask2Former, arXiv 2112.01527). Masks are read off the deep and the fine features
together, as classes are. Unlike DatasetDM's, the objects have classes, and every layer is supervised.

Queries want many examples; which pixels belong to a class is learned from few. So connected parts of such a map are
proposed beside what the queries found, and the surer one of two sightings stays.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional

from decoders.average_precision import AveragePrecision, hits
from decoders.calibration import fit_sigmoid, through_sigmoid
from decoders.class_losses import IGNORED, balanced_weights, class_loss, count_pixels
from decoders.decoder import Trunk, TrunkFeatures, TwoScaleHead, resize
from decoders.errors import UserError
from decoders.labels import InstanceSet, Label, Taxonomy, object_set
from decoders.looks import mean_class_logits
from decoders.overlaps import owners
from decoders.queries import UNKNOWN, QueryLayer, Truth, match, sine_positions, unpack
from decoders.regions import large_regions, numbered_regions
from decoders.resizing import Size, coarsening
from decoders.tasks import Score, Task, picture_of

_FEWEST_PIXELS = 4
"""Of an object in a view; what is left of one that was cropped away teaches nothing."""
_MOST_NUMBERS = UNKNOWN - 1
_MOST_PARTS = 100
"""Of a map's connected parts, the surest: as many objects as COCO's scorer looks at in a picture."""
_LARGEST_PX = 1 << 20
"""Objects of larger pictures are told apart at this size: a hundred candidates take two kilobytes a pixel."""
_TUNED_FROM = 0.05
"""Scores below are noise: queries that found nothing."""
_MASK_SIDE = 128
"""Masks are compared at full size, or where both sides are longer than twice this, at a half, a quarter ..."""
_QUERIES_WEIGH = 0.2
"""Of the queries' loss: a sum of large terms, which would drown those of other tasks on the same trunk."""


class Objects(NamedTuple):
    """What the head says, before anything is decided."""

    classes: Float[Tensor, "batch layers queries classes_and_none"]
    """Logits of each countable class, the last of there being no object."""
    embeddings: Float[Tensor, "batch layers queries channels"]
    """The product with a pixel's features is the logit of the pixel belonging to the object."""
    deep: Float[Tensor, "batch deep_channels deep_height deep_width"]
    fine: Float[Tensor, "batch fine_channels height width"]
    seen: Float[Tensor, "batch classes_and_none height width"]
    """Logits of the class of the object at each pixel, the last of there being none; no channels where parts of a map
    are not asked for."""


class Candidates(NamedTuple):
    """What may be an object of a picture, before overlaps are resolved: queries first, then parts of the map."""

    masks: Bool[Tensor, "candidates height width"]
    inside: Float[Tensor, "candidates height width"]
    """Probability of belonging to it."""
    kinds: Int64[Tensor, " candidates"]
    scores: Float[Tensor, " candidates"]
    """As the head says them, not tuned yet."""
    is_part: Bool[Tensor, " candidates"]


class Instances(Task[Objects]):
    """Objects of the countable classes.

    The score is the class probability times the mean probability in the mask, of a part of the map its mean class
    probability, through the sigmoid that fits held-out pictures best: how likely the object is there, with that class
    and an IoU of 0.5 or more.
    """

    score_sigmoids: Tensor
    """Scale and shift of the scores' logits, of queries and of parts."""
    class_weights: Tensor

    def __init__(
        self,
        trunk: Trunk,
        taxonomy: Taxonomy,
        *,
        queries: int = 40,
        layers: int = 3,
        heads: int = 4,
        no_object: float = 0.1,
        parts: bool = True,
        minimum_score: float = 0.2,
    ) -> None:
        """Options.

        Args:
            queries: most objects that they can find in a picture.
            layers: of the transformer decoder.
            heads: of its attention; they divide the decoder's width.
            no_object: weight of queries without an object in the class loss; there are many more of them.
            parts: whether connected parts of a map of classes are proposed, too.
            minimum_score: objects below are not reported.
        """
        super().__init__(taxonomy)
        self.things = [number for number, thing in enumerate(taxonomy.is_thing, start=1) if thing]
        if not self.things:
            raise UserError(
                "task instances: no class of the taxonomy is countable; name the countable ones under `things`, or "
                "leave the task out"
            )
        width = trunk.deep_channels
        if queries < 1 or layers < 1 or heads < 1 or width % heads:
            raise UserError(
                f"task instances: found queries {queries}, layers {layers}, heads {heads}; expected at least 1 of "
                f"each, and heads that divide the decoder's width {width}"
            )
        if not 0 < no_object <= 1 or not 0 <= minimum_score < 1:
            raise UserError(
                f"task instances: found no_object {no_object}, minimum_score {minimum_score}; expected 0 < no_object "
                "<= 1 and 0 <= minimum_score < 1"
            )
        self.heads = heads
        self.no_object = no_object
        self.minimum_score = minimum_score
        self.register_buffer("score_sigmoids", torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        self.register_buffer("class_weights", torch.ones(len(self.things) + 1), persistent=False)
        self.seen = TwoScaleHead(trunk, len(self.things) + 1) if parts else None
        self.memory = nn.Conv2d(width, width, 1)
        self.deep = nn.Conv2d(width, width, 1)
        self.fine = nn.Conv2d(trunk.fine_channels, trunk.fine_channels, 1)
        self.contents = nn.Parameter(torch.randn(queries, width))
        self.positions = nn.Parameter(torch.randn(queries, width))
        self.layers = nn.ModuleList(QueryLayer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.classify = nn.Linear(width, len(self.things) + 1)
        self.embed = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width + trunk.fine_channels))

    def calibrate(self, targets: Iterable[UInt8[Tensor, "2 height width"]]) -> None:
        """Shares of the classes among the pixels."""
        pixels = count_pixels((self._kinds_of(target[None])[0] for target in targets), len(self.things) + 1)
        if not pixels[:-1].any():
            raise UserError(
                "no picture has an object to learn from; give instance masks, or leave out the task instances"
            )
        self.class_weights.copy_(balanced_weights(pixels))

    def forward(self, features: TrunkFeatures) -> Objects:
        deep, fine = self.deep(features.deep), self.fine(features.fine)
        memory = self.memory(features.deep)
        grid = memory.shape[-2:]
        keys = (memory + sine_positions(memory)).flatten(2).transpose(1, 2)
        memory = memory.flatten(2).transpose(1, 2)
        coarse = torch.cat([deep, functional.adaptive_avg_pool2d(fine, grid)], dim=1)
        batch = len(memory)
        positions = self.positions.expand(batch, -1, -1)
        queries = self.contents.expand(batch, -1, -1)
        classes, embeddings = self._predict(queries)
        found = [(classes, embeddings)]
        for layer in self.layers:
            logits = torch.einsum("bqw,bwyx->bqyx", embeddings.detach(), coarse.detach()).flatten(2)
            hidden = logits < 0
            hidden &= ~hidden.all(dim=2, keepdim=True)  # who saw nothing may look everywhere
            queries = layer(queries, positions, memory, keys, hidden.repeat_interleave(self.heads, dim=0))
            classes, embeddings = self._predict(queries)
            found.append((classes, embeddings))
        if not self.training:
            found = found[-1:]
        return Objects(
            classes=torch.stack([classes for classes, _ in found], dim=1),
            embeddings=torch.stack([embeddings for _, embeddings in found], dim=1),
            deep=deep,
            fine=fine,
            seen=fine[:, :0] if self.seen is None else self.seen(features),
        )

    def _predict(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.norm(queries)
        return self.classify(normed), self.embed(normed)

    def target(self, label: Label) -> UInt8[Tensor, "2 height width"]:
        """Number of the object each pixel belongs to (0 = none, 255 = a crowd), and its class counted from 0.

        Where objects overlap, the smaller one is on top. More objects than queries teach the queries that fit best; of
        more than 254, the smallest are taken for a crowd.
        """
        objects = object_set(label)
        unknown = sorted(set(objects.category_ids.tolist()) - set(self.things))
        if unknown:
            raise UserError(
                f"objects of the classes {unknown} found, countable are {self.things} of 1..{len(self.taxonomy)}; "
                "mark these classes as things or remove the objects"
            )
        wanted = ~objects.is_crowd & (objects.masks.sum(axis=(1, 2)) >= _FEWEST_PIXELS)
        single = [index for index in objects.back_to_front if wanted[index]]
        packed = np.zeros((2, *objects.masks.shape[1:]), np.uint8)
        packed[0, objects.masks[objects.is_crowd].any(axis=0)] = UNKNOWN
        for number, index in enumerate(single[:_MOST_NUMBERS], start=1):
            packed[:, objects.masks[index]] = [[number], [self.things.index(int(objects.category_ids[index]))]]
        packed[0, objects.masks[single[_MOST_NUMBERS:]].any(axis=0)] = UNKNOWN
        return torch.from_numpy(packed)

    def loss(self, output: Objects, target: UInt8[Tensor, "batch 2 height width"]) -> Float[Tensor, ""]:
        """Class, mask and Dice loss of matched queries, weighted 2, 5 and 5, in the mean over layers; and that of the
        map of classes.
        """
        has_map = output.seen.shape[1] > 0
        mapped = class_loss(output.seen, self._kinds_of(target), self.class_weights) if has_map else 0.0
        factor = coarsening(output.fine.shape[-2:], _MASK_SIDE)
        fine = functional.avg_pool2d(output.fine, factor) if factor > 1 else output.fine
        target = target[:, :, factor // 2 :: factor, factor // 2 :: factor][:, :, : fine.shape[2], : fine.shape[3]]
        truths = [unpack(each) for each in target]
        losses: list[Tensor] = []
        for index in range(output.classes.shape[1]):
            classes, embeddings = output.classes[:, index], output.embeddings[:, index]
            losses.append(self._layer_loss(classes, embeddings, output.deep, fine, truths))
        return _QUERIES_WEIGH * torch.stack(losses).mean() + mapped

    def _kinds_of(self, target: UInt8[Tensor, "batch 2 height width"]) -> Int64[Tensor, "batch height width"]:
        """Class of the object at each pixel, the last where there is none; crowds are ignored."""
        numbers, kinds = target.long().unbind(1)
        found = torch.where(numbers > 0, kinds, len(self.things))
        return torch.where(numbers == UNKNOWN, IGNORED, found)

    def _layer_loss(
        self,
        classes: Float[Tensor, "batch queries classes_and_none"],
        embeddings: Float[Tensor, "batch queries channels"],
        deep: Float[Tensor, "batch deep_channels deep_height deep_width"],
        fine: Float[Tensor, "batch fine_channels height width"],
        truths: Sequence[Truth],
    ) -> Float[Tensor, ""]:
        with torch.no_grad():
            logits = _mask_logits(embeddings, deep, fine).flatten(2)
            matches = [match(*each) for each in zip(classes, logits, truths, strict=True)]
        none = len(self.things)
        wanted = torch.full(classes.shape[:2], none, device=classes.device)
        chosen = wanted.new_zeros(len(truths), max(1, *(len(queries) for queries, _ in matches)))
        for picture, ((queries, objects), truth) in enumerate(zip(matches, truths, strict=True)):
            wanted[picture, queries] = truth.kinds[objects]
            chosen[picture, : len(queries)] = queries
        # Masks once more, with gradients, of the few queries that found an object: the others have none.
        few = embeddings.gather(1, chosen[..., None].expand(-1, -1, embeddings.shape[2]))
        found = _mask_logits(few, deep, fine).flatten(2)
        mask_loss = dice_loss = classes.sum() * 0
        for picture, ((queries, objects), truth) in enumerate(zip(matches, truths, strict=True)):
            mine, true = truth.over_known(found[picture, : len(queries)]), truth.masks[objects]
            entropy = functional.binary_cross_entropy_with_logits(mine, true, reduction="none")
            mask_loss = mask_loss + entropy.mean(1).sum()
            probability = mine.sigmoid()
            overlap = 2 * (probability * true).sum(1)
            dice_loss = dice_loss + (1 - (overlap + 1) / (probability.sum(1) + true.sum(1) + 1)).sum()
        weight = torch.ones(none + 1, device=classes.device)
        weight[none] = self.no_object
        class_loss = functional.cross_entropy(classes.transpose(1, 2), wanted, weight=weight)
        return 2 * class_loss + 5 * (mask_loss + dice_loss) / max(sum(len(queries) for queries, _ in matches), 1)

    def merge(self, looks: Sequence[Objects]) -> Objects:
        """Each query asks the same at every look: class probabilities and mask logits are averaged query by query."""
        count, deep_width = len(looks), looks[0].deep.shape[1]
        wide = [look.embeddings[..., :deep_width] / count for look in looks]
        narrow = [look.embeddings[..., deep_width:] / count for look in looks]
        return Objects(
            classes=torch.stack([look.classes.softmax(-1) for look in looks]).mean(0).clamp_min(1e-9).log(),
            embeddings=torch.cat([*wide, *narrow], dim=-1),  # products with the joined features add up
            deep=torch.cat([look.deep for look in looks], dim=1),
            fine=torch.cat([look.fine for look in looks], dim=1),
            seen=mean_class_logits([look.seen for look in looks]),
        )

    @torch.no_grad()
    def tune_confidence(self, pairs: Iterable[tuple[Objects, Label]]) -> None:
        """Platt scaling of the scores, of queries and of parts, each as if there were no others."""
        answers: tuple[list[tuple[np.ndarray, np.ndarray]], ...] = ([], [])
        self.score_sigmoids.copy_(torch.tensor([1.0, 0.0]))
        for output, label in pairs:
            truth = object_set(label)
            candidates = self._candidates(output, (truth.masks.shape[1], truth.masks.shape[2]))
            for source, said in enumerate(answers):
                chosen = candidates.is_part == bool(source)
                found = self._resolve(Candidates(*(part[chosen] for part in candidates)), minimum_score=_TUNED_FROM)
                right, counted = hits(found, truth)
                said.append((found.scores[counted], right[counted]))
        self.score_sigmoids.copy_(torch.tensor([fit_sigmoid(one) for one in answers]))

    @torch.no_grad()
    def read(self, output: Objects, size: Size) -> list[Label]:
        pictures = (picture_of(output, index) for index in range(len(output.classes)))
        bounded = _bounded(size)
        found = (self._resolve(self._candidates(one, bounded), minimum_score=self.minimum_score) for one in pictures)
        return [_enlarged(objects, size) for objects in found]

    def _candidates(self, output: Objects, size: Size) -> Candidates:
        """Of one picture."""
        logits = _mask_logits(output.embeddings[:, -1], output.deep, output.fine)
        inside = resize(logits.float(), size)[0].sigmoid()
        masks = inside > 0.5
        certainty, kinds = output.classes[0, -1].float().softmax(1)[:, :-1].max(1)
        scores = certainty * _mean_in(masks, inside)
        queries = Candidates(masks, inside, kinds, scores, torch.zeros_like(kinds, dtype=torch.bool))
        if not output.seen.shape[1]:
            return queries
        parts = self._parts(resize(output.seen.float(), size)[0].softmax(0))
        return Candidates(*(torch.cat(both) for both in zip(queries, parts, strict=True)))

    def _parts(self, probability: Float[Tensor, "classes_and_none height width"]) -> Candidates:
        """The surest connected parts of the map of the likeliest classes."""
        ids = probability.argmax(0).cpu().numpy()
        present = [int(kind) for kind in np.unique(ids) if kind < len(self.things)]
        numbered = {kind: numbered_regions(ids == kind) for kind in present}
        found: list[tuple[float, int, int]] = []
        for kind, (regions, sizes) in numbered.items():
            sums = np.bincount(regions.ravel(), weights=probability[kind].cpu().numpy().ravel(), minlength=len(sizes))
            large = large_regions(sizes, _FEWEST_PIXELS)
            found += [(float(sums[region] / sizes[region]), kind, int(region)) for region in large]
        # In the order of the map again. Masks are made for those alone: a noisy map has thousands of parts.
        surest = sorted(sorted(found, reverse=True)[:_MOST_PARTS], key=lambda part: part[1:])
        kinds = torch.tensor([kind for _, kind, _ in surest], dtype=torch.long, device=probability.device)
        parts = np.array([numbered[kind][0] == region for _, kind, region in surest], bool).reshape(-1, *ids.shape)
        masks, inside = torch.from_numpy(parts).to(probability.device), probability[kinds]
        return Candidates(masks, inside, kinds, _mean_in(masks, inside), torch.ones_like(kinds, dtype=torch.bool))

    def _resolve(self, candidates: Candidates, *, minimum_score: float) -> InstanceSet:
        """No pixel belongs to two objects, and no object is said twice."""
        masks, inside, kinds, raw, is_part = candidates
        tuned = [through_sigmoid(raw, sigmoid) for sigmoid in self.score_sigmoids]
        scores = torch.where(is_part, tuned[1], tuned[0])
        kept = torch.nonzero((scores >= minimum_score) & masks.any(2).any(1))[:, 0]
        kept = kept[scores[kept].argsort(descending=True, stable=True)]
        owner = owners(scores[kept, None, None] * inside[kept] * masks[kept])
        alone = owner == torch.arange(len(kept), device=owner.device)[:, None, None]
        found = alone.any(2).any(1)
        kept, alone = kept[found], alone[found]
        things = np.array(self.things, np.int64)
        return InstanceSet(
            masks=alone.cpu().numpy(),
            category_ids=things[kinds[kept].cpu().numpy()],
            scores=scores[kept].cpu().numpy().astype(np.float32),
            is_crowd=np.zeros(len(kept), bool),
        )

    def score(self) -> Score:
        return AveragePrecision(self.taxonomy)


def _bounded(size: Size) -> Size:
    """The size at which objects of a picture are told apart."""
    scale = min(1.0, math.sqrt(_LARGEST_PX / (size[0] * size[1])))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _enlarged(objects: InstanceSet, size: Size) -> InstanceSet:
    """Masks at another size, one after the other; of masks that share no pixel none will."""
    if objects.masks.shape[1:] == size:
        return objects
    masks = np.zeros((len(objects.masks), *size), bool)
    for index, mask in enumerate(objects.masks):
        masks[index] = resize(torch.from_numpy(mask)[None, None].float(), size)[0, 0].numpy() > 0.5
    return replace(objects, masks=masks)


def _mean_in(
    masks: Bool[Tensor, "candidates height width"], values: Float[Tensor, "candidates height width"]
) -> Float[Tensor, " candidates"]:
    """Of each candidate over its mask; 0 where that is empty."""
    return (values * masks).sum((1, 2)) / masks.sum((1, 2)).clamp_min(1)


def _mask_logits(
    embeddings: Float[Tensor, "batch queries channels"],
    deep: Float[Tensor, "batch deep_width _ _"],
    fine: Float[Tensor, "batch fine_width height width"],
) -> Float[Tensor, "batch queries height width"]:
    wide, narrow = embeddings.split([deep.shape[1], fine.shape[1]], dim=2)
    coarse = torch.einsum("bqw,bwyx->bqyx", wide, deep)
    return resize(coarse, fine.shape[-2:]) + torch.einsum("bqw,bwyx->bqyx", narrow, fine)
