"""Which reading of a UNet says most about a user's labels: ridge regression on its features ranks many in minutes.

A ridge regression sees features only through the inner products of pixels. Those of joined features are the sum of
those of their parts, so each part (a timestep, a count of noises, a group of layers) is looked at once, and any
combination of parts costs a sum and a solve.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor
from torch.nn import functional

from decoders.augmentation import Augmentation, make_view
from decoders.errors import UserError
from decoders.features import FeatureBundle, Perceiver
from decoders.labels import CATEGORY, AnnotatedImage, DenseMap, InstanceSet, Label
from decoders.perceiving import perceive
from decoders.resizing import Size
from decoders.unet_pass import AttentionReduction

LAYERS = (("mid",), ("up",), ("mid", "up"), ("down", "mid", "up"))
"""The groups of layers that are tried."""
TIMESTEPS = (5, 20, 50, 100, 200)
NOISES = (1, 4)
ATTENTION: tuple[AttentionReduction, ...] = ("none", "mean", "heads")
_FOLDS = 4
_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Shares of the features' sum of squares that the ridge adds; each setting gets its best."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Choices of a `decoders.perceivers.unet.Reading`."""

    timesteps: tuple[int, ...]
    noises: int
    layers: tuple[str, ...]
    attention: AttentionReduction

    @property
    def passes(self) -> int:
        """Of the UNet, for each picture."""
        return len(self.timesteps) * self.noises


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """A setting and what it is worth."""

    setting: Setting
    merits: dict[str, float]
    """By label: the mIoU of classes, the explained share of the variance of anything else (0..1)."""
    channels: int
    """How many numbers describe a pixel."""

    @property
    def merit(self) -> float:
        return float(np.mean(list(self.merits.values())))


def all_settings(timesteps: Sequence[int], noises: Sequence[int]) -> Iterator[Setting]:
    """Every combination; of the timesteps, each alone and each two together."""
    for chosen in (*((one,) for one in timesteps), *combinations(timesteps, 2)):
        for count in noises:
            for layers in LAYERS:
                for attention in ATTENTION:
                    yield Setting(timesteps=chosen, noises=count, layers=layers, attention=attention)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What one group of layers gives at one timestep."""

    timestep: int
    noises: int
    group: str
    attention: AttentionReduction | None
    """None for the features themselves."""


PerceiverFactory = Callable[[int, int, str], Perceiver]
"""(timestep, noise seed, group of layers) -> a perceiver that reads all heads."""


def _quiet(_stage: str, _done: int, _total: int) -> None:
    """Nobody watches."""


def rank(
    perceiver: PerceiverFactory,
    pictures: Sequence[AnnotatedImage],
    *,
    labels: Sequence[str],
    classes: int,
    size: Size,
    timesteps: Sequence[int] = TIMESTEPS,
    noises: Sequence[int] = NOISES,
    pixels: int = 1600,
    batch_size: int = 4,
    seed: int = 0,
    on_progress: Callable[[str, int, int], None] = _quiet,
) -> list[Ranked]:
    """All settings, the best first; those of equal merit by their cost.

    Pictures are judged by regressions that learned from other pictures (four folds).

    Args:
        labels: which labels of the pictures to predict.
        classes: how many phrases the perceiver attends to.
        size: at which pictures are seen.
        pixels: that are looked at in all, the classes of each picture as evenly as they can be.
        on_progress: (stage, done, total).

    Raises:
        UserError: fewer than two pictures, or a label is missing.
    """
    if len(pictures) < 2:
        raise UserError(f"a probe compares pictures, found {len(pictures)}; give two or more")
    views = [
        make_view(_only(picture, labels), view=0, size=size, augmentation=Augmentation(), seed=(seed, index))
        for index, picture in enumerate(pictures)
    ]
    stream = np.random.default_rng(seed)
    places = [_places(view, max(8, pixels // len(views)), stream) for view in views]
    truths = {name: _truth([view.labels[name] for view in views], places) for name in labels}
    for name, truth in truths.items():
        if not truth.known.any():
            raise UserError(f"no picture has a known pixel of the label {name}; give labels, or do not probe for it")
    owner = np.repeat(np.arange(len(views)), [len(rows) for rows in places])
    folds = stream.permutation(len(views))[owner] % min(_FOLDS, len(views))
    kernels: dict[_Part, Float32[np.ndarray, "pixels pixels"]] = {}
    channels: dict[_Part, int] = {}
    total = len(timesteps) * 3
    for done, (timestep, group) in enumerate(
        ((timestep, group) for timestep in timesteps for group in ("down", "mid", "up")), start=1
    ):
        for part, features in _parts(perceiver, views, places, timestep, noises, group, classes, batch_size):
            channels[part] = features.shape[1]
            kernels[part] = _kernel(features)
        on_progress("look", done, total)
    ranked: list[Ranked] = []
    settings = list(all_settings(timesteps, noises))
    for done, setting in enumerate(settings, start=1):
        parts = [part for part in _parts_of(setting) if channels[part]]
        kernel = np.ones((len(owner), len(owner)))  # of the constant
        for part in parts:
            kernel += kernels[part]
        merits = {name: truth.merit(kernel, folds) for name, truth in truths.items()}
        ranked.append(Ranked(setting=setting, merits=merits, channels=sum(channels[part] for part in parts)))
        on_progress("rank", done, len(settings))
    return sorted(ranked, key=lambda one: (-round(one.merit, 4), one.setting.passes, one.channels))


def _only(picture: AnnotatedImage, labels: Sequence[str]) -> AnnotatedImage:
    missing = sorted(set(labels) - picture.labels.keys())
    if missing:
        raise UserError(
            f"picture {picture.name} has no label {missing[0]} (it has {', '.join(picture.labels) or 'none'}); add it, "
            "or do not probe for it"
        )
    return AnnotatedImage(
        name=picture.name, image=picture.image, labels={name: picture.labels[name] for name in labels}
    )


def _classes_of(label: Label) -> tuple[Int64[np.ndarray, "height width"], Bool[np.ndarray, "height width"]]:
    """Class of each pixel, 0 where there is none, and where that is known."""
    if isinstance(label, InstanceSet):
        ids = label.painted().astype(np.int64)
        known = ~label.masks[label.is_crowd].any(axis=0) | (ids > 0)
        return ids, known
    ids = np.where(label.valid, label.values[..., 0], 0).astype(np.int64)
    return ids, label.valid


def _is_classes(label: Label) -> bool:
    return isinstance(label, InstanceSet) or label.storage.unit == CATEGORY


def _places(view: AnnotatedImage, count: int, stream: np.random.Generator) -> Int64[np.ndarray, "pixels 2"]:
    """Rows and columns of pixels, as evenly over the classes of the picture as there are pixels of them."""
    known = np.zeros(view.image.shape[:2], bool)
    kinds = np.zeros(view.image.shape[:2], np.int64)
    for label in view.labels.values():
        if _is_classes(label):
            kinds, valid = _classes_of(label)
            known |= valid
        elif isinstance(label, DenseMap):
            known |= label.valid
    rows, columns = np.nonzero(known)
    if not len(rows):
        return np.zeros((0, 2), np.int64)
    found = kinds[rows, columns]
    shares = 1 / np.bincount(found)[found].astype(np.float64)
    chosen = stream.choice(len(rows), size=min(count, len(rows)), replace=False, p=shares / shares.sum())
    return np.stack([rows[chosen], columns[chosen]], axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Truth:
    """What a regression should say of each pixel."""

    values: Float64[np.ndarray, "pixels outputs"]
    known: Bool[np.ndarray, " pixels"]
    categorical: bool

    def merit(self, kernel: Float64[np.ndarray, "pixels pixels"], folds: Int64[np.ndarray, " pixels"]) -> float:
        return max(self._score(_predict(kernel, self.values, self.known, folds, penalty)) for penalty in _PENALTIES)

    def _score(self, found: Float64[np.ndarray, "pixels outputs"]) -> float:
        found, truth = found[self.known], self.values[self.known]
        if self.categorical:
            mine, true = found.argmax(axis=1), truth.argmax(axis=1)
            ious = [
                ((mine == index) & (true == index)).sum() / ((mine == index) | (true == index)).sum()
                for index in np.unique(true)
            ]
            return float(np.mean(ious))
        missed = ((found - truth) ** 2).sum() / max(((truth - truth.mean(axis=0)) ** 2).sum(), 1e-12)
        return float(max(0.0, 1 - missed))


def _truth(labels: Sequence[Label], places: Sequence[Int64[np.ndarray, "_ 2"]]) -> _Truth:
    if all(_is_classes(label) for label in labels):
        pairs = [_classes_of(label) for label in labels]
        ids = np.concatenate([ids[tuple(at.T)] for (ids, _), at in zip(pairs, places, strict=True)])
        known = np.concatenate([valid[tuple(at.T)] for (_, valid), at in zip(pairs, places, strict=True)])
        return _Truth(values=np.eye(int(ids.max(initial=0)) + 1)[ids], known=known, categorical=True)
    maps = [label for label in labels if isinstance(label, DenseMap)]
    values = np.concatenate([one.values[tuple(at.T)] for one, at in zip(maps, places, strict=True)]).astype(np.float64)
    known = np.concatenate([one.valid[tuple(at.T)] for one, at in zip(maps, places, strict=True)])
    if maps[0].storage.unit == "m":  # an error of 10 % counts alike near and far
        values = np.log(np.where(known[:, None], values, 1.0))
    return _Truth(values=values, known=known, categorical=False)


def _predict(
    kernel: Float64[np.ndarray, "pixels pixels"],
    values: Float64[np.ndarray, "pixels outputs"],
    known: Bool[np.ndarray, " pixels"],
    folds: Int64[np.ndarray, " pixels"],
    penalty: float,
) -> Float64[np.ndarray, "pixels outputs"]:
    """Ridge regression of each fold from all others, in its dual form."""
    found = np.zeros_like(values)
    for fold in np.unique(folds):
        learn, test = (folds != fold) & known, folds == fold
        if not learn.any():
            continue
        mean = values[learn].mean(axis=0)
        inner = kernel[np.ix_(learn, learn)]
        inner[np.diag_indices_from(inner)] += penalty * float(np.trace(inner))
        found[test] = kernel[np.ix_(test, learn)] @ np.linalg.solve(inner, values[learn] - mean) + mean
    return found


def _kernel(features: Float32[np.ndarray, "pixels channels"]) -> Float32[np.ndarray, "pixels pixels"]:
    """Inner products of standardised features."""
    spread = features.std(axis=0)
    scaled = (features - features.mean(axis=0)) / np.where(spread > 1e-6, spread, 1.0)
    return scaled @ scaled.T


def _parts_of(setting: Setting) -> Iterator[_Part]:
    for timestep in setting.timesteps:
        for group in setting.layers:
            yield _Part(timestep=timestep, noises=setting.noises, group=group, attention=None)
            if setting.attention != "none":
                yield _Part(timestep=timestep, noises=setting.noises, group=group, attention=setting.attention)


def _parts(
    perceiver: PerceiverFactory,
    views: Sequence[AnnotatedImage],
    places: Sequence[Int64[np.ndarray, "_ 2"]],
    timestep: int,
    noises: Sequence[int],
    group: str,
    classes: int,
    batch_size: int,
) -> Iterator[tuple[_Part, Float32[np.ndarray, "pixels channels"]]]:
    """Features of one group at one timestep, in the mean over each number of noises."""
    total: dict[AttentionReduction | None, np.ndarray] = {}
    for count in range(1, max(noises) + 1):
        seen = _look(perceiver(timestep, count - 1, group), views, places, classes, batch_size)
        total = {kind: total.get(kind, np.float32(0)) + features for kind, features in seen.items()}
        if count in noises:
            for attention, summed in total.items():
                part = _Part(timestep=timestep, noises=count, group=group, attention=attention)
                yield part, (summed / count).astype(np.float32)


def _look(
    perceiver: Perceiver,
    views: Sequence[AnnotatedImage],
    places: Sequence[Int64[np.ndarray, "_ 2"]],
    classes: int,
    batch_size: int,
) -> dict[AttentionReduction | None, Float32[np.ndarray, "pixels channels"]]:
    """Features (None) and attention in each reduction at the places, all levels side by side."""
    found: dict[AttentionReduction | None, list[np.ndarray]] = {None: [], "heads": [], "mean": []}
    for start in range(0, len(views), batch_size):
        batch = views[start : start + batch_size]
        bundle = perceive(
            perceiver, [view.image for view in batch], names=[view.name for view in batch], batch_size=batch_size
        )
        mean = [maps.unflatten(1, (-1, classes)).mean(1) for maps in bundle.attention if maps.shape[1]]
        for row, at in enumerate(places[start : start + batch_size]):
            found[None].append(_sample(bundle, bundle.levels, row, at))
            found["heads"].append(_sample(bundle, bundle.attention, row, at))
            found["mean"].append(_sample(bundle, mean, row, at))
    return {kind: np.concatenate(parts) for kind, parts in found.items()}


def _sample(
    bundle: FeatureBundle, levels: Sequence[Tensor], row: int, places: Int64[np.ndarray, "pixels 2"]
) -> Float32[np.ndarray, "pixels channels"]:
    """Bilinear, each level at its own grid."""
    sides = torch.tensor(bundle.image.shape[-2:], dtype=torch.float32)
    at = ((torch.from_numpy(places) + 0.5) / sides * 2 - 1).flip(-1)[None, None].to(bundle.image.device)
    found = [
        functional.grid_sample(level[row : row + 1].float(), at, padding_mode="border", align_corners=False)[0, :, 0].T
        for level in levels
        if level.shape[1]
    ]
    if not found:
        return np.zeros((len(places), 0), np.float32)
    return torch.cat(found, dim=1).cpu().numpy()
