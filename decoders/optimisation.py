"""The inner loop of a fit: updates on cached views, and the choice of the best step on held-out ones."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from decoders.cache import CachedView, FitProgress, OnProgress
from decoders.decoder import PDecoder
from decoders.errors import UserError
from decoders.features import FeatureBundle
from decoders.fit_state import FitState
from decoders.labels import Label
from decoders.peers import ALONE, Peers, average_gradients
from decoders.settings import FitSettings
from decoders.tasks import Score, Task, decode

Scores = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FitPoint:
    """State of a fit at one evaluation."""

    step: int
    loss: float
    """Mean over the updates since the evaluation before."""
    merit: float | None
    """What the best step is chosen by: mean over tasks, higher is better; None without any held-out truth."""
    scores: Mapping[str, Mapping[str, float]]
    """Task -> named figures on the held-out pictures, at the fit size."""


def optimise(
    decoder: PDecoder,
    tasks: Mapping[str, Task],
    *,
    fitted: Sequence[CachedView],
    held_out: Sequence[CachedView],
    settings: FitSettings,
    on_progress: OnProgress,
    state_file: Path | None = None,
    peers: Peers = ALONE,
) -> tuple[tuple[FitPoint, ...], int]:
    """Fit in place; the decoder ends in evaluation mode.

    Args:
        state_file: written at each evaluation, and gone on from if it is there; it must come from an equal fit. On a
            CPU the result is the same as without a stop.

        peers: other processes, each with `fitted` of its own and its share of every batch, and the same `held_out`.

    Returns:
        All points, and the step whose weights were kept: the best on held-out pictures, or the last.

    Raises:
        UserError: the loss is not finite (names the pictures of that batch); the state is that of another number of
            processes.
    """
    device = fitted[0].device
    decoder.to(device).train()
    optimiser = _adamw(decoder, settings)
    # A schedule of fewer than three steps, or one that rises in less than two, is not defined.
    steps = max(3, settings.updates)
    schedule = OneCycleLR(
        optimiser, settings.learning_rate, total_steps=steps, pct_start=max(0.1, 2 / steps), cycle_momentum=False
    )
    mean = AveragedModel(decoder, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
    evaluated = {-(-settings.updates * (i + 1) // settings.evaluations) for i in range(settings.evaluations)}
    points: list[FitPoint] = []
    losses: list[float] = []
    best = -1.0
    best_step, best_weights, worse = 0, decoder.state_dict(), 0
    done = 0
    state = FitState(state_file, {"decoder": decoder, "mean": mean}, optimiser) if state_file else None
    if state is not None and (found := state.load()) is not None:
        notes, best_weights = found
        if notes["processes"] != peers.count:
            raise UserError(
                f"this fit was begun by {notes['processes']} processes, and there are {peers.count} now; go on with as "
                f"many, or remove {state_file} to begin anew"
            )
        done, best, best_step, worse = notes["step"], notes["best"], notes["best_step"], notes["worse"]
        points = [FitPoint(**point) for point in notes["points"]]
        schedule.load_state_dict(notes["schedule"])
        for group, rate in zip(optimiser.param_groups, schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        on_progress(FitProgress(stage="fit", done=done, total=settings.updates, message=f"going on at update {done}"))
    parameters = [parameter for parameter in decoder.parameters() if parameter.requires_grad]
    for step, batch in enumerate(_batches(fitted, settings, peers), start=1):
        if step <= done:
            continue
        if worse >= settings.patience:
            break
        loss = _loss(decoder, tasks, batch, device)
        losses.append(loss.item())
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        average_gradients(parameters, peers)
        norm = clip_grad_norm_(parameters, settings.gradient_clip)  # of all processes: they stop together
        _require_finite(losses[-1], norm.item(), batch, step)
        optimiser.step()
        schedule.step()
        mean.update_parameters(decoder)
        message = ""
        if step in evaluated:
            mean.module.eval()
            scores, merit = _evaluate(mean.module, tasks, held_out, device)
            merit = None if merit is None else peers.agree(merit)  # rounding must not part the processes
            points.append(FitPoint(step=step, loss=float(np.mean(losses)), merit=merit, scores=scores))
            message = f"update {step}: loss {points[-1].loss:.3f}" + (
                "" if merit is None else f", merit on held-out pictures {merit:.3f}"
            )
            losses = []
            worse += 1
            if merit is None or merit > best or best <= 0:  # where nothing is known, or nothing right yet, the last
                best, best_step, best_weights, worse = merit or 0.0, step, deepcopy(mean.module.state_dict()), 0
            if state is not None and peers.rank == 0:
                notes = {
                    "processes": peers.count,
                    "step": step,
                    "best": best,
                    "best_step": best_step,
                    "worse": worse,
                    "points": [asdict(point) for point in points],
                    "schedule": schedule.state_dict(),
                }
                state.save(notes, best_weights)
        on_progress(FitProgress(stage="fit", done=step, total=settings.updates, message=message))
    decoder.load_state_dict(best_weights)
    decoder.eval()
    return tuple(points), best_step


def _adamw(decoder: PDecoder, settings: FitSettings) -> torch.optim.AdamW:
    kernels = [parameter for parameter in decoder.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in decoder.parameters() if parameter.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": kernels, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=settings.learning_rate,
    )


def _batches(views: Sequence[CachedView], settings: FitSettings, peers: Peers) -> Iterator[list[CachedView]]:
    """`updates` batches: all views in a new order each round, the odd ones left over wait for the next round."""
    stream = np.random.default_rng([settings.seed, len(views), *([peers.rank] if peers.rank else [])])
    size = min(settings.batch_size // peers.count, len(views))
    factors = repeat_factors([view.classes for view in views], settings.repeat_below)
    order: list[int] = []
    for _ in range(settings.updates):
        if len(order) < size:
            # A factor of 1.3 is once, and in three of ten rounds twice.
            copies = np.floor(factors + stream.random(len(views))) if settings.repeat_below else factors
            order += stream.permutation(np.repeat(np.arange(len(views)), copies.astype(np.intp))).tolist()
        chosen, order = order[:size], order[size:]
        yield [views[index] for index in chosen]


def repeat_factors(shown: Sequence[frozenset[int]], below: float) -> Float64[np.ndarray, " views"]:
    """How often each view is learned from in a round, at least once: as its rarest class wants.

    Args:
        shown: the classes of each view.
        below: `FitSettings.repeat_below`.
    """
    counts = Counter(semantic_id for classes in shown for semantic_id in classes)
    wanted = {semantic_id: math.sqrt(below * len(shown) / count) for semantic_id, count in counts.items()}
    return np.array([max([1.0, *(wanted[semantic_id] for semantic_id in classes)]) for classes in shown])


def _loss(
    decoder: PDecoder, tasks: Mapping[str, Task], batch: Sequence[CachedView], device: torch.device
) -> Float[Tensor, ""]:
    features = FeatureBundle.concatenate([view.features for view in batch]).to(device).to(torch.float32)
    outputs = decoder(features)
    losses = [
        task.loss(outputs[name], torch.stack([view.targets[name] for view in batch]).to(device))
        for name, task in tasks.items()
    ]
    return torch.stack(losses).sum()


def _require_finite(loss: float, gradient: float, batch: Sequence[CachedView], step: int) -> None:
    """The loss is that of this process, the gradient that of all."""
    if np.isfinite([loss, gradient]).all():
        return
    remedy = "lower learning_rate"
    where = ""
    if not np.isfinite(loss):
        where = f" on the pictures {', '.join(sorted({view.picture for view in batch}))}"
        remedy += ", or leave these pictures out if it happens at the first update"
    raise UserError(
        f"the loss became {loss} and its gradient {gradient} at update {step}{where}; expected finite numbers: {remedy}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What the confidence of a task is worth on the held-out pictures."""

    ece_before: float
    """Expected calibration error (0..1) as the head came from the fit."""
    ece_after: float
    """The same after tuning, of each half of the pictures as tuned on the other half; as before where tuning was left
    out; of a single picture, which has no other half, as tuned on itself."""
    thresholds: tuple[float, ...]
    """The confidence that the surest 0 %, 5 %, ... 100 % of the answers reach."""


def tune_confidence(
    decoder: PDecoder, tasks: Mapping[str, Task], held_out: Sequence[CachedView]
) -> dict[str, Calibration]:
    """Let each task tune its confidence on the held-out pictures, if what half of them teach holds for the others.

    Returns:
        By task name, for the tasks whose answers can be right or wrong; empty without held-out pictures.
    """
    if not held_out:
        return {}
    device = held_out[0].device
    before = _errors(_score(decoder, tasks, held_out, device))
    # Few pictures can teach a factor that is wrong for all others. One alone is believed: there is nothing to ask.
    asked = before if len(held_out) > 1 else {}
    crossed = {name: _cross_tuned_error(decoder, tasks, name, held_out) for name in asked}
    for name, task in tasks.items():
        if name not in crossed or crossed[name] < before[name]:
            task.tune_confidence(_pairs(decoder, tasks, name, held_out, device))
    found: dict[str, Calibration] = {}
    for name, score in _score(decoder, tasks, held_out, device).items():
        after = score.reliability
        if after is not None:
            found[name] = Calibration(
                ece_before=before[name],
                ece_after=min(crossed[name], before[name]) if name in crossed else after.expected_calibration_error,
                thresholds=tuple(after.threshold_at(step / 20) for step in range(21)),
            )
    return found


def _errors(scores: Mapping[str, Score]) -> dict[str, float]:
    """Expected calibration errors, of the tasks whose answers can be right or wrong."""
    return {
        name: score.reliability.expected_calibration_error
        for name, score in scores.items()
        if score.reliability is not None
    }


def _cross_tuned_error(
    decoder: PDecoder, tasks: Mapping[str, Task], name: str, held_out: Sequence[CachedView]
) -> float:
    """Expected calibration error of each half of the pictures, as tuned on the other one; the task stays as it is."""
    halves = held_out[::2], held_out[1::2]
    task, device = tasks[name], held_out[0].device
    before = {key: buffer.clone() for key, buffer in task.named_buffers()}
    crossed = {name: task.score()}
    for learned, other in (halves, halves[::-1]):
        task.tune_confidence(_pairs(decoder, tasks, name, learned, device))
        _add(crossed, decoder, tasks, other, device)
        for key, buffer in task.named_buffers():
            buffer.copy_(before[key])
    return _errors(crossed)[name]


@torch.no_grad()
def _pairs(
    decoder: PDecoder, tasks: Mapping[str, Task], name: str, held_out: Sequence[CachedView], device: torch.device
) -> Iterator[tuple[Any, Label]]:
    for view in held_out:
        yield decode(decoder, {name: tasks[name]}, _looks(view, device))[name], view.labels[name]


def _looks(view: CachedView, device: torch.device) -> Iterator[FeatureBundle]:
    yield from (bundle.to(device) for bundle in (view.features, *view.more))


def _evaluate(
    decoder: torch.nn.Module, tasks: Mapping[str, Task], held_out: Sequence[CachedView], device: torch.device
) -> tuple[Scores, float | None]:
    if not held_out:
        return {}, None
    scores = _score(decoder, tasks, held_out, device)
    merits = [merit for score in scores.values() if (merit := score.merit) is not None]
    return {name: score.result() for name, score in scores.items()}, float(np.mean(merits)) if merits else None


def _score(
    decoder: torch.nn.Module, tasks: Mapping[str, Task], held_out: Sequence[CachedView], device: torch.device
) -> dict[str, Score]:
    scores = {name: task.score() for name, task in tasks.items()}
    _add(scores, decoder, tasks, held_out, device)
    return scores


@torch.no_grad()
def _add(
    scores: Mapping[str, Score],
    decoder: torch.nn.Module,
    tasks: Mapping[str, Task],
    views: Sequence[CachedView],
    device: torch.device,
) -> None:
    """What is read in these views, to the scores of some tasks."""
    asked = {name: tasks[name] for name in scores}
    for view in views:
        outputs = decode(decoder, asked, _looks(view, device))
        for name in scores:
            parts = [outputs[name]] if isinstance(outputs[name], Tensor) else outputs[name]
            if not all(bool(part.isfinite().all()) for part in parts):
                raise UserError(
                    f"what task {name} says of the held-out picture {view.picture} is not finite; the fit diverges: "
                    "lower learning_rate"
                )
        height, width = view.features.image.shape[-2:]
        for name, score in scores.items():
            score.add(tasks[name].read(outputs[name], (height, width))[0], view.labels[name])
