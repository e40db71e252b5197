"""Few-shot fit of a decoder on cached features: one to some hundred annotated pictures, minutes on a CPU."""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from decoders.cache import (
    CachedView,
    CachePlan,
    FitProgress,
    OnProgress,
    cache_views,
    learnable,
    log_progress,
    plan_cache,
)
from decoders.decoder import PDecoder, Trunk
from decoders.errors import UserError
from decoders.features import FeatureSpec, Perceiver
from decoders.labels import AnnotatedImage, Taxonomy
from decoders.optimisation import Calibration, FitPoint, optimise, tune_confidence
from decoders.peers import ALONE, Peers
from decoders.resizing import Size, round_size
from decoders.settings import DecoderSettings, FitSettings
from decoders.tasks import Task, build_task, find_task

TrunkBuilder = Callable[[FeatureSpec, DecoderSettings], Trunk]
_MOST_HELD_OUT = 256
"""Enough to choose a step and to tune confidence by; each process has all of them in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitReport:
    """What happened in a fit."""

    points: tuple[FitPoint, ...]
    best_step: int
    """The step whose weights were kept."""
    size: tuple[int, int]
    """Height and width of the views."""
    views: int
    """Per picture, after the cache's limit."""
    cache_bytes: int
    fitted: tuple[str, ...]
    """Names of the pictures learned from."""
    held_out: tuple[str, ...]
    calibration: Mapping[str, Calibration]
    """By task name; empty without held-out pictures."""
    seconds: float


def fit(
    perceiver: Perceiver,
    annotated: Sequence[AnnotatedImage],
    taxonomy: Taxonomy,
    tasks: Mapping[str, Mapping[str, Any]],
    settings: FitSettings,
    *,
    decoder_settings: DecoderSettings,
    trunk: TrunkBuilder = Trunk,
    looks: int = 1,
    state_file: Path | None = None,
    on_progress: OnProgress = log_progress,
    peers: Peers = ALONE,
) -> tuple[PDecoder, dict[str, Task], FitReport]:
    """Fit a decoder for `tasks` (name -> options); the perceiver stays as it is.

    On a CPU the result is a pure function of the arguments. `annotated` may load its pictures when asked: each is asked
    for once, the first one twice.

    Args:
        trunk: what the task heads stand on; another one than ours makes a baseline that is fitted the same way.
        looks: at each held-out picture, when confidences are tuned: as often as the reader will look.
        state_file: see `decoders.optimisation.optimise`: an interrupted fit goes on there, on views computed anew.
        peers: other processes that fit the same decoder. Each perceives its share of the pictures to learn from, and
            all of the held-out ones; the batch is divided among them, and all end with the same weights. Another number
            of processes gives another, equally good decoder.

    Returns:
        The decoder in evaluation mode, its tasks by name (they are modules of the decoder) and the report.

    Raises:
        UserError: wrong or missing labels, features or loss not finite, cache too small, unknown task or option.
    """
    started = time.perf_counter()
    if not annotated or not tasks:
        raise UserError(
            f"a fit needs at least one annotated picture and one task, found {len(annotated)} and {len(tasks)}; add "
            "what is missing"
        )
    with _reproducible(settings):
        decoder, modules = build_decoder(perceiver.spec, taxonomy, tasks, decoder_settings, trunk=trunk)
        fitted, held_out = split(len(annotated), holdout=settings.holdout, seed=settings.seed)
        _check_peers(peers, len(fitted), settings)
        fitted = fitted[peers.rank :: peers.count]
        first = annotated[0]
        plan = plan_cache(
            perceiver.spec,
            first,
            modules,
            size=fit_size(settings, first, perceiver.size_multiple),
            fitted=fitted,
            held_out=held_out,
            settings=settings,
            looks=looks,
        )
        plan = replace(plan, views=peers.agree(plan.views))  # rank 0 has the largest share
        on_progress(FitProgress(stage="perceive", done=0, total=plan.total, message=_announce(plan, settings)))
        fit_views, held_views = cache_views(perceiver, annotated, modules, plan, settings, on_progress, looks=looks)
        lost = _held_out_alone(fit_views, held_views, taxonomy, peers)
        if lost and peers.rank == 0:
            on_progress(FitProgress(stage="perceive", done=plan.total, total=plan.total, message=_warn_of(lost)))
        decoder.trunk.calibrate((view.features for view in fit_views), peers)
        for name, task in modules.items():
            task.calibrate(peers.everyone(view.targets[name] for view in fit_views))
        points, best_step = optimise(
            decoder,
            modules,
            fitted=fit_views,
            held_out=held_views,
            settings=settings,
            on_progress=on_progress,
            state_file=state_file,
            peers=peers,
        )
        calibration = tune_confidence(decoder, modules, held_views)
    report = FitReport(
        points=points,
        best_step=best_step,
        size=plan.size,
        views=plan.views,
        cache_bytes=plan.nbytes,
        fitted=tuple(peers.everyone(dict.fromkeys(view.picture for view in fit_views))),
        held_out=tuple(view.picture for view in held_views),
        calibration=calibration,
        seconds=time.perf_counter() - started,
    )
    return decoder, modules, report


def check_fit(
    perceiver: Perceiver,
    first: AnnotatedImage,
    taxonomy: Taxonomy,
    tasks: Mapping[str, Mapping[str, Any]],
    settings: FitSettings,
    *,
    decoder_settings: DecoderSettings,
) -> None:
    """Refuse what one picture shows to be wrong, for whoever looks at all of them before `fit` does.

    Raises:
        UserError: as `fit`: unknown task or option, a size that the perceiver does not take, or a wrong or missing
            label of this picture.
    """
    with _reproducible(settings):
        _, modules = build_decoder(perceiver.spec, taxonomy, tasks, decoder_settings)
    fit_size(settings, first, perceiver.size_multiple)
    learnable(first, modules)


def build_decoder(
    spec: FeatureSpec,
    taxonomy: Taxonomy,
    tasks: Mapping[str, Mapping[str, Any]],
    settings: DecoderSettings,
    *,
    trunk: TrunkBuilder = Trunk,
) -> tuple[PDecoder, dict[str, Task]]:
    """A decoder with fresh weights, and its tasks by name.

    Raises:
        UserError: unknown task or option.
    """
    fixed = [name for name in tasks if not find_task(name).any_classes]
    if settings.open_vocabulary and fixed:
        raise UserError(
            f"the task {fixed[0]} says the classes it was fitted on and no others; leave it out, or set "
            "`decoder.open_vocabulary` to false"
        )
    base = trunk(spec, settings)
    modules = {name: build_task(name, options, trunk=base, taxonomy=taxonomy) for name, options in tasks.items()}
    return PDecoder(base, modules), modules


def split(count: int, *, holdout: float, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of the pictures to learn from and of those held out, drawn by `seed`, each in rising order.

    Of a share of many only the first 256; a single picture is never held out, as there would be nothing to learn from.
    """
    held = min(count - 1, max(1, round(count * holdout)), _MOST_HELD_OUT) if holdout else 0
    order = np.random.default_rng(seed).permutation(count).tolist()
    return sorted(order[held:]), sorted(order[:held])


def fit_size(settings: FitSettings, first: AnnotatedImage, multiple: int) -> Size:
    """Height and width of all views.

    Raises:
        UserError: the size asked for is not one that the perceiver takes.
    """
    native = first.image.shape[:2]
    size = round_size(settings.size or (native[0], native[1]), multiple)
    if settings.size is not None and settings.size != size:
        raise UserError(
            f"fit setting size is {settings.size}, and this model takes multiples of {multiple}; the nearest is {size}"
        )
    return size


def _check_peers(peers: Peers, pictures: int, settings: FitSettings) -> None:
    if settings.batch_size % peers.count or pictures < peers.count:
        raise UserError(
            f"{peers.count} processes were started to fit on {pictures} pictures with a batch_size of "
            f"{settings.batch_size}; expected a picture for each, and a batch_size that divides evenly among them: "
            "start fewer processes or change batch_size"
        )


def _announce(plan: CachePlan, settings: FitSettings) -> str:
    text = (
        f"computing {plan.views} views of {len(plan.fitted)} pictures at {plan.size[0]} x {plan.size[1]} pixels and "
        f"1 of {len(plan.held_out)} held out: a cache of {plan.nbytes / 2**30:.3f} GiB in half precision"
    )
    if plan.views < settings.views:
        text += f"; {settings.views} views were wanted, cache_gb {settings.cache_gb:g} holds no more"
    if not plan.held_out:
        text += "; no picture is held out, so the last weights are kept"
    return text


def _held_out_alone(
    fitted: Sequence[CachedView], held_out: Sequence[CachedView], taxonomy: Taxonomy, peers: Peers
) -> list[str]:
    """Names of the classes that held-out views show, and no view that any process learns from."""
    mine = frozenset[int]().union(*(view.classes for view in fitted))
    learned = frozenset[int]().union(*peers.everyone([mine]))
    held = frozenset[int]().union(*(view.classes for view in held_out))
    return [taxonomy.names[semantic_id - 1] for semantic_id in sorted(held - learned)]


def _warn_of(lost: Sequence[str]) -> str:
    return (
        f"warning: every example of {', '.join(lost)} was held out of the fit, so that a reader cannot learn them; "
        "choose another fit.seed, a smaller fit.holdout or 0, or annotate more pictures of them"
    )


@contextmanager
def _reproducible(settings: FitSettings) -> Generator[None, None, None]:
    """Seed torch and fix its threads for the length of a fit, and leave both as they were."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(settings.seed)
        torch.set_num_threads(settings.threads or threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
