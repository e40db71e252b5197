"""The training loop of every pocket network: resumable to the bit, averaged, logged."""

import copy
import ctypes
import json
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from decoders.files import write_atomic
from decoders.fit_state import load_optimiser, optimiser_tensors, under


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Warm-up, a constant rate, then a linear decay (https://arxiv.org/abs/2405.18392).

    Unlike a cosine it can be made longer afterwards without having wasted what was trained.
    """

    updates: int
    peak_rate: float
    warm_up: int = 200
    decay_share: float = 0.25
    """Part of the updates, at the end, over which the rate falls to zero."""
    average_decay: float = 0.999
    """Of the moving average of the weights, which is what gets measured and shipped."""

    def rate(self, step: int) -> float:
        """Learning rate of the update that follows `step` finished ones."""
        decay = max(1, round(self.updates * self.decay_share))
        return self.peak_rate * min(1.0, (step + 1) / self.warm_up, max(0.0, self.updates - step) / decay)

    def keep(self, step: int) -> float:
        """Share of the old average that survives an update: small at first, when the weights are still noise."""
        return min(self.average_decay, (1 + step) / (10 + step))


def stream(seed: int, step: int) -> torch.Generator:
    """The randomness of one update. A function of the step alone, so a resumed run needs no stored generator state."""
    mixed = np.random.SeedSequence([seed, step]).generate_state(1)  # torch's own generator reads 32 bits of a seed
    return torch.Generator().manual_seed(int(mixed[0]))


def keep_memory() -> None:
    """Tell glibc to keep freed memory: handing pages back and faulting them in again makes training half as fast."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        # the trim threshold, the top pad and the number of mapped blocks, as numbered in malloc.h
        for option, value in ((-1, 2**31 - 1), (-2, 256 << 20), (-4, 0)):
            libc.mallopt(option, value)


@contextmanager
def half_precision(device: torch.device) -> Generator[None]:
    """bfloat16 activations where the hardware has them; the weights stay float32."""
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported()
    else:
        found = torch.cpu.get_capabilities()
        able = bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    with torch.autocast(device.type, torch.bfloat16, enabled=able):
        yield


class Checkpoint:
    """Weights, their average and AdamW's moments in one safetensors file, with the number of finished updates."""

    def __init__(self, module: nn.Module, *, path: Path) -> None:
        self.module = module
        self.average = copy.deepcopy(module).eval().requires_grad_(False)
        self.path = path
        self.step = 0
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        if path.exists():
            self._load()

    def save(self) -> None:
        tensors = {f"weights/{name}": tensor for name, tensor in self.module.state_dict().items()}
        tensors |= {f"average/{name}": tensor for name, tensor in self.average.state_dict().items()}
        tensors |= {f"optimizer/{name}": tensor for name, tensor in optimiser_tensors(self.optimizer).items()}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_atomic(self.path, save(tensors, metadata={"step": str(self.step)}))

    def _load(self) -> None:
        tensors = load_file(self.path)
        self.module.load_state_dict(under("weights/", tensors))
        self.average.load_state_dict(under("average/", tensors))
        load_optimiser(self.optimizer, under("optimizer/", tensors))
        self.step = finished_updates(self.path)


def finished_updates(path: Path) -> int:
    """How many updates a checkpoint has seen; 0 when there is none."""
    if not path.exists():
        return 0
    with safetensors.safe_open(path, framework="pt") as file:
        return int(file.metadata()["step"])


def averaged_weights(path: Path) -> dict[str, Tensor]:
    """The moving average that a checkpoint holds."""
    return under("average/", load_file(path))


def advance(
    module: nn.Module,
    loss: Callable[[int], Mapping[str, Tensor]],
    *,
    folder: Path,
    schedule: Schedule,
    probe: Callable[[nn.Module, int], Mapping[str, float]] | None = None,
    probe_every: int = 1000,
    log_every: int = 50,
    save_seconds: float = 180.0,
) -> nn.Module:
    """Train `module` up to `schedule.updates` updates from where its checkpoint left off; returns the averaged weights.

    Args:
        module: what is trained; parameters that ask for no gradient stay as they are.
        loss: number of finished updates -> named terms, of which "loss" is minimised; draws its batch from `stream`.
        folder: holds `checkpoint.safetensors` and `log.jsonl`; the same folder resumes, a finished one returns at once.
        probe: (averaged module, finished updates) -> numbers for the log, called every
            `probe_every` updates and at the end.
    """
    checkpoint = Checkpoint(module, path=folder / "checkpoint.safetensors")
    if checkpoint.step >= schedule.updates:
        return checkpoint.average
    parameters, average = list(module.state_dict().values()), list(checkpoint.average.state_dict().values())
    sums: dict[str, float] = {}
    summed = 0
    saved = logged = time.monotonic()
    while checkpoint.step < schedule.updates:
        module.train()
        terms = loss(checkpoint.step)
        terms["loss"].backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for group in checkpoint.optimizer.param_groups:
            group["lr"] = schedule.rate(checkpoint.step)
        checkpoint.optimizer.step()
        checkpoint.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for mean, value in zip(average, parameters, strict=True):
                if mean.is_floating_point():
                    mean.lerp_(value, 1 - schedule.keep(checkpoint.step))
                else:
                    mean.copy_(value)
        checkpoint.step += 1
        for name, term in (*terms.items(), ("gradient", norm)):
            sums[name] = sums.get(name, 0.0) + float(term.detach())
        summed += 1
        last = checkpoint.step == schedule.updates
        if checkpoint.step % log_every == 0 or last:
            now = time.monotonic()
            entry = {name: total / summed for name, total in sums.items()}
            _log(folder, checkpoint.step, entry | {"seconds": (now - logged) / summed})
            sums, summed, logged = {}, 0, now
        if probe is not None and (checkpoint.step % probe_every == 0 or last):
            _log(folder, checkpoint.step, dict(probe(checkpoint.average, checkpoint.step)))
            logged = time.monotonic()
        if last or time.monotonic() - saved > save_seconds:
            checkpoint.save()
            saved = time.monotonic()
    return checkpoint.average


def _log(folder: Path, step: int, entry: Mapping[str, float]) -> None:
    print(f"{folder.name} {step}: " + "  ".join(f"{name} {value:.4g}" for name, value in entry.items()), flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, **entry}) + "\n")
