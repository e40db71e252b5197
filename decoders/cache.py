"""Features of every augmented view, computed once and kept in half precision: updates never run the perceiver."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from decoders.augmentation import make_view
from decoders.errors import UserError
from decoders.features import FeatureBundle, FeatureSpec, Perceiver
from decoders.labels import AnnotatedImage, Label, LabelSet, classes_in
from decoders.perceiving import perceive, require_finite, select
from decoders.resizing import Size
from decoders.settings import FitSettings
from decoders.tasks import Task

_HALF_BYTES = 2
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitProgress:
    """One step of a fit, for whoever shows it."""

    stage: Literal["perceive", "fit"]
    done: int
    total: int
    message: str = ""
    """What the user should know; empty for a mere step."""


OnProgress = Callable[[FitProgress], None]


def log_progress(progress: FitProgress) -> None:
    """Messages go to the log, mere steps nowhere."""
    if progress.message:
        _log.info(progress.message)


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePlan:
    """Which views will be computed."""

    size: Size
    fitted: tuple[int, ...]
    """Numbers of the pictures learned from."""
    held_out: tuple[int, ...]
    """Numbers of the pictures that choose the best step: their plain view only."""
    views: int
    """Of each picture learned from."""
    view_bytes: int
    held_out_bytes: int
    """Of each held-out picture: all looks at it, and its labels as they are."""

    @property
    def total(self) -> int:
        return len(self.fitted) * self.views + len(self.held_out)

    @property
    def nbytes(self) -> int:
        return len(self.fitted) * self.views * self.view_bytes + len(self.held_out) * self.held_out_bytes

    def order(self) -> Iterator[tuple[int, int]]:
        """(picture number, view number), held-out pictures first, one picture's views together."""
        yield from ((index, 0) for index in self.held_out)
        yield from ((index, view) for index in self.fitted for view in range(self.views))


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedView:
    """A view as the decoder meets it."""

    picture: str
    features: FeatureBundle
    """Batch of one, half precision, on the CPU."""
    more: tuple[FeatureBundle, ...]
    """Further looks at held-out views."""
    targets: Mapping[str, Tensor]
    classes: frozenset[int]
    """Semantic ids that the view shows."""
    labels: LabelSet
    """The truth itself for held-out views; empty for those that are learned from."""
    device: torch.device
    """Where the perceiver computes, and the decoder with it."""


def plan_cache(
    spec: FeatureSpec,
    first: AnnotatedImage,
    tasks: Mapping[str, Task],
    *,
    size: Size,
    fitted: Sequence[int],
    held_out: Sequence[int],
    settings: FitSettings,
    looks: int = 1,
) -> CachePlan:
    """As many of the wanted views as the cache may hold, found out before any feature is computed.

    Args:
        looks: see `cache_views`.

    Raises:
        UserError: not even the plain view of each picture fits.
    """
    sample = _view(learnable(first, tasks), 0, tasks, size, settings, 0)
    features = _feature_bytes(spec, size)
    per_view = features + sum(target.nbytes for target in make_targets(sample, tasks).values())
    per_held_out = per_view + (looks - 1) * features + sum(_label_bytes(label) for label in sample.labels.values())
    room = (int(settings.cache_gb * 2**30) - len(held_out) * per_held_out) // per_view
    if room < len(fitted):
        needed = len(fitted) * per_view + len(held_out) * per_held_out
        raise UserError(
            f"{len(fitted) + len(held_out)} pictures need a cache of {needed / 2**30:.3f} GiB even at one view each, "
            f"and cache_gb is {settings.cache_gb:g}; raise cache_gb, lower size, or fit on fewer pictures"
        )
    return CachePlan(
        size=size,
        fitted=tuple(fitted),
        held_out=tuple(held_out),
        views=min(settings.views, room // len(fitted)),
        view_bytes=per_view,
        held_out_bytes=per_held_out,
    )


def cache_views(
    perceiver: Perceiver,
    annotated: Sequence[AnnotatedImage],
    tasks: Mapping[str, Task],
    plan: CachePlan,
    settings: FitSettings,
    on_progress: OnProgress,
    *,
    looks: int = 1,
) -> tuple[list[CachedView], list[CachedView]]:
    """The views to learn from and the held-out ones.

    Pictures are loaded one at a time, so `annotated` may read from disk.

    Args:
        looks: at the held-out views, which are to be read as the reader will read.

    Raises:
        UserError: a label or a feature is wrong; names the picture.
    """
    cached: list[CachedView] = []
    pending: list[AnnotatedImage] = []
    for position, view in enumerate(_views(annotated, tasks, plan, settings), start=1):
        pending.append(view)
        if len(pending) < settings.perceive_batch and position < plan.total:
            continue
        held = len(cached) < len(plan.held_out)
        bundles = [
            perceive(
                perceiver,
                [one.image for one in pending],
                names=[one.name for one in pending],
                batch_size=settings.perceive_batch,
                look=look,
            )
            for look in range(looks if held else 1)
        ]
        device = bundles[0].image.device
        for index, one in enumerate(pending):
            half, *more = (select(bundle, index).to("cpu", torch.float16) for bundle in bundles)
            require_finite(half, one.name)
            held = len(cached) < len(plan.held_out)
            cached.append(
                CachedView(
                    picture=one.name,
                    features=half,
                    more=tuple(more) if held else (),
                    targets=make_targets(one, tasks),
                    classes=classes_in(one.labels),
                    labels=one.labels if held else {},
                    device=device,
                )
            )
        pending = []
        on_progress(FitProgress(stage="perceive", done=position, total=plan.total))
    return cached[len(plan.held_out) :], cached[: len(plan.held_out)]


def make_targets(picture: AnnotatedImage, tasks: Mapping[str, Task]) -> dict[str, Tensor]:
    """What each task's loss compares with; `picture` as it comes from `learnable`.

    Raises:
        UserError: a label is wrong; names the picture.
    """
    targets: dict[str, Tensor] = {}
    for name, task in tasks.items():
        try:
            targets[name] = task.target(picture.labels[name])
        except UserError as error:
            raise UserError(f"picture {picture.name}: {error}") from error
    return targets


def learnable(picture: AnnotatedImage, tasks: Mapping[str, Task]) -> AnnotatedImage:
    """The picture with only those labels that a task learns, by the names of the tasks.

    Raises:
        UserError: a label is missing or, be it outside of every crop, wrong; names the picture.
    """
    labels: dict[str, Label] = {}
    for name, task in tasks.items():
        source = task.learns_from or name
        if source not in picture.labels:
            raise UserError(
                f"picture {picture.name} has no label {source} (it has {', '.join(picture.labels) or 'none'}); "
                f"add it, leave the picture out, or do not ask for the task {name}"
            )
        labels[name] = picture.labels[source]
    found = AnnotatedImage(name=picture.name, image=picture.image, labels=labels)
    make_targets(found, tasks)
    return found


def _views(
    annotated: Sequence[AnnotatedImage], tasks: Mapping[str, Task], plan: CachePlan, settings: FitSettings
) -> Iterator[AnnotatedImage]:
    loaded: AnnotatedImage | None = None
    before = -1
    for index, view in plan.order():
        if loaded is None or index != before:
            loaded, before = learnable(annotated[index], tasks), index
        yield _view(loaded, view, tasks, plan.size, settings, index)


def _view(
    picture: AnnotatedImage, view: int, tasks: Mapping[str, Task], size: Size, settings: FitSettings, index: int
) -> AnnotatedImage:
    skeleton = next(iter(tasks.values())).taxonomy.skeleton
    return make_view(
        picture,
        view=view,
        size=size,
        augmentation=settings.augmentation,
        seed=(settings.seed, index),
        mirrored_points=skeleton.mirrored if skeleton else (),
    )


def _label_bytes(label: Label) -> int:
    arrays = [getattr(label, field.name) for field in fields(label)]
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))


def _feature_bytes(spec: FeatureSpec, size: Size) -> int:
    cells = [-(-size[0] // stride) * -(-size[1] // stride) for stride in spec.strides]
    values = sum(
        (channels + maps) * cell for channels, maps, cell in zip(spec.channels, spec.attention_maps, cells, strict=True)
    )
    return (values + 3 * size[0] * size[1]) * _HALF_BYTES
