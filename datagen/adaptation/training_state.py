"""All that an interrupted training goes on from: weights, their average and AdamW's moments, as one file."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from decoders.errors import UserError
from decoders.files import atomic_file
from decoders.fit_state import load_optimiser, optimiser_tensors, under

STATE_FILE = "checkpoint.safetensors"
"""In the folder of a training."""


class TrainingState:
    """A module in training. Frozen parameters belong to whoever built it: they are neither averaged nor stored."""

    def __init__(self, module: nn.Module, *, path: Path) -> None:
        """Go on from the file, where there is one.

        Raises:
            UserError: the file holds the weights of another module.
        """
        self.module = module
        self.path = path
        self.step = 0
        """Finished updates."""
        self.trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
        self._current = {name: value for name, value in module.state_dict().items() if name not in frozen}
        self._average = {name: value.clone() for name, value in self._current.items()}
        self._optimiser = torch.optim.AdamW(self.trained, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        if path.exists():
            self._load()

    def update(self, *, rate: float, keep: float) -> None:
        """One step of AdamW along the gradients at hand, which are used up; `keep` of the old average survives it."""
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, mean in self._average.items():
                if mean.is_floating_point():
                    mean.lerp_(self._current[name], 1 - keep)
                else:
                    mean.copy_(self._current[name])
        self.step += 1

    @contextmanager
    def averaged(self) -> Generator[nn.Module]:
        """The module in evaluation mode with the averaged weights in place; afterwards it trains on as before."""
        self._exchange()
        try:
            yield self.module.eval()
        finally:
            self._exchange()

    def teach(self, teacher: nn.Module) -> None:
        """Give another module of the same kind the averaged weights."""
        _fill(teacher.state_dict(), self._average)

    def finish(self) -> nn.Module:
        """The module with the averaged weights for good, frozen and in evaluation mode."""
        _fill(self._current, self._average)
        return self.module.eval().requires_grad_(False)

    def save(self) -> None:
        """Replace the file."""
        tensors = {f"weights/{name}": tensor for name, tensor in self._current.items()}
        tensors |= {f"average/{name}": tensor for name, tensor in self._average.items()}
        tensors |= {f"optimiser/{name}": tensor for name, tensor in optimiser_tensors(self._optimiser).items()}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with atomic_file(self.path) as file:  # by its name: as bytes in memory they would be there once more
            save_file(tensors, file.name, metadata={"step": str(self.step)})

    def _load(self) -> None:
        tensors = load_file(self.path)
        stored = under("weights/", tensors)
        if stored.keys() != self._current.keys():
            differing = sorted(stored.keys() ^ self._current.keys())
            raise UserError(
                f"{self.path} holds the training of another network: {differing[0]} is only in one of the two; train "
                "into another folder, or remove that file to begin anew"
            )
        _fill(self._current, stored)
        _fill(self._average, under("average/", tensors))
        load_optimiser(self._optimiser, under("optimiser/", tensors))
        self.step = finished_updates(self.path)

    @torch.no_grad()
    def _exchange(self) -> None:
        """Swap weights and averages, one tensor at a time: a large model is not held a third time."""
        for name, mean in self._average.items():
            held = mean.clone()
            mean.copy_(self._current[name])
            self._current[name].copy_(held)


def finished_updates(path: Path) -> int:
    """How many updates a stored training has seen; 0 when there is none."""
    if not path.exists():
        return 0
    with safetensors.safe_open(path, framework="pt") as file:
        return int(file.metadata()["step"])


def averaged_weights(path: Path) -> dict[str, Tensor]:
    """The moving average of what was trained, and the buffers, by their names in the module."""
    return under("average/", load_file(path))


@torch.no_grad()
def _fill(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        tensor.copy_(values[name])
