"""The training loop of every network here: resumable (on a CPU to the bit), averaged, logged, alone or in a group."""

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from datagen.adaptation.hardware import without_cudnn_attention
from datagen.adaptation.training_folder import LOG_FILE
from datagen.adaptation.training_state import STATE_FILE, TrainingState
from datagen.interruption import stop_signals
from decoders.errors import UserError
from decoders.peers import ALONE, Peers, average_gradients

_WORK_PER_SAVE = 20.0
"""Time between two checkpoints for each second that one takes: those of XL have 40 GB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Warm-up, a constant rate, then a linear decay (https://arxiv.org/abs/2405.18392).

    Unlike a cosine it can be made longer afterwards without having wasted what was trained.
    """

    updates: int
    peak_rate: float
    warm_up: int = 200
    """Updates over which the rate rises; 0 for none."""
    decay_share: float = 0.25
    """Part of the updates, at the end, over which the rate falls to zero."""
    average_decay: float = 0.999
    """Of the moving average of the weights, which is what gets measured and shipped; 0 for the weights themselves."""

    def rate(self, step: int) -> float:
        """Learning rate of the update that follows `step` finished ones."""
        decay = max(1, round(self.updates * self.decay_share))
        warm_up = max(1, self.warm_up)
        return self.peak_rate * min(1.0, (step + 1) / warm_up, max(0.0, self.updates - step) / decay)

    def keep(self, step: int) -> float:
        """Share of the old average that survives an update: small at first, when the weights are still noise."""
        return min(self.average_decay, (1 + step) / (10 + step))


@runtime_checkable
class Reporter(Protocol):
    """Whom the loop tells what happens."""

    def update(self, done: int, total: int) -> None:
        """So many updates are finished."""
        ...

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """What `log.jsonl` has just been told: means since the last time, or what a probe found."""
        ...

    def say(self, text: str) -> None:
        """A line for the user."""
        ...


class Printed:
    """Tells numbers as lines on stdout."""

    def __init__(self, name: str) -> None:
        self._name = name

    def update(self, done: int, total: int) -> None: ...

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        told = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        print(f"{self._name} {step}: {told}", flush=True)

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def stream(seed: int, number: int) -> torch.Generator:
    """The randomness of one call of a loss: a function of its number alone, so resuming needs no stored state."""
    mixed = np.random.SeedSequence([seed, number]).generate_state(1)  # torch's own generator reads 32 bits of a seed
    return torch.Generator().manual_seed(int(mixed[0]))


def advance(
    module: nn.Module,
    loss: Callable[[int], Mapping[str, Tensor]],
    *,
    folder: Path,
    schedule: Schedule,
    peers: Peers = ALONE,
    accumulate: int = 1,
    teacher: nn.Module | None = None,
    reporter: Reporter | None = None,
    probe: Callable[[nn.Module, int], Mapping[str, float]] | None = None,
    probe_every: int = 1000,
    log_every: int = 50,
    save_seconds: float = 180.0,
) -> nn.Module:
    """Train `module` up to `schedule.updates` updates from where its checkpoint left off.

    Args:
        module: what is trained; parameters that ask for no gradient stay as they are and are not stored.
        loss: number of the call (0, 1, 2, ... over the whole training) -> named terms, of which "loss" is minimised;
            draws its batch from `stream`, of several processes the share of its rank.
        folder: holds `checkpoint.safetensors` and `log.jsonl`; the same folder resumes, a finished one returns at once.
        peers: other processes that train the same module, begun with the same weights. Gradients are averaged, so all
            have the same weights after each update; rank 0 alone writes, tells and probes. Buffers are each one's own.
        accumulate: calls of `loss` for one update, whose mean is minimised.
        teacher: a module of the same kind that is given the averaged weights before each update, for losses that ask
            it (Mean Teacher, arXiv 1703.01780).
        save_seconds: time between two checkpoints, longer where they take long; 0 = after every update.
        reporter: told of progress; prints numbers when None.
        probe: (module with averaged weights, finished updates) -> numbers for the log, called every
            `probe_every` updates and at the end.

    Returns:
        The module itself with the averaged weights, frozen and in evaluation mode.

    Raises:
        UserError: gradients are not finite, or the folder holds the training of another module.
        KeyboardInterrupt: stopped by a signal; the checkpoint is that of the last update.
    """
    state = TrainingState(module, path=folder / STATE_FILE)
    reporter = reporter or Printed(folder.name)
    log = _Log(folder, reporter, writes=peers.rank == 0)
    saved, patience = time.monotonic(), save_seconds
    stopping = stop_signals(lambda: log.say("stopping after this update; once more to stop at once"))
    with without_cudnn_attention(), stopping as stopped:
        while state.step < schedule.updates:
            if teacher is not None:
                state.teach(teacher)
            log.add(_update(state, loss, schedule, peers, accumulate))
            last = state.step == schedule.updates
            reporter.update(state.step, schedule.updates)
            if state.step % log_every == 0 or last:
                log.write_means(state.step)
            if probe is not None and peers.rank == 0 and (state.step % probe_every == 0 or last):
                with state.averaged() as average:
                    log.write(state.step, probe(average, state.step))
            stop = _any(stopped(), peers)
            if peers.rank == 0 and (last or stop or time.monotonic() - saved > patience):
                began = time.monotonic()
                state.save()
                saved = time.monotonic()
                patience = max(save_seconds, _WORK_PER_SAVE * (saved - began)) if save_seconds else 0.0
            if stop and not last:
                peers.agree(True)  # nobody leaves before the checkpoint is written: a launcher ends the others then
                raise KeyboardInterrupt
    return state.finish()


def _update(
    state: TrainingState,
    loss: Callable[[int], Mapping[str, Tensor]],
    schedule: Schedule,
    peers: Peers,
    accumulate: int,
) -> dict[str, float]:
    """One update; returns its terms and the norm of its gradient."""
    state.module.train()
    sums: dict[str, float] = {}
    for part in range(accumulate):
        terms = loss(state.step * accumulate + part)
        (terms["loss"] / accumulate).backward()
        for name, term in terms.items():
            sums[name] = sums.get(name, 0.0) + float(term.detach()) / accumulate
    average_gradients(state.trained, peers)
    norm = float(nn.utils.clip_grad_norm_(state.trained, 1.0))
    if not math.isfinite(norm):  # on all processes at once, since all have the same gradients
        raise UserError(
            f"the gradient of update {state.step + 1} is {norm} (loss {sums['loss']:.4g}), expected a finite number; "
            "take a smaller learning rate, or a model in `dtype: float32`, and look for damaged pictures"
        )
    state.update(rate=schedule.rate(state.step), keep=schedule.keep(state.step))
    return {**sums, "gradient": norm}


def _any(mine: bool, peers: Peers) -> bool:
    """Whether any process says so."""
    return mine if peers.count == 1 else bool(peers.total(torch.tensor(float(mine))) > 0)


class _Log:
    """Means over the updates since the last line, in a file and told to the reporter."""

    def __init__(self, folder: Path, reporter: Reporter, *, writes: bool) -> None:
        self._folder = folder
        self._reporter = reporter
        self._writes = writes
        self._sums: dict[str, float] = {}
        self._count = 0
        self._since = time.monotonic()

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1

    def write_means(self, step: int) -> None:
        means = {name: total / self._count for name, total in self._sums.items()}
        self.write(step, means | {"seconds": (time.monotonic() - self._since) / self._count})
        self._sums, self._count = {}, 0

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if self._writes and values:
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / LOG_FILE).open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
            self._reporter.numbers(step, values)
        self._since = time.monotonic()

    def say(self, text: str) -> None:
        if self._writes:
            self._reporter.say(text)
