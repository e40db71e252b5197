"""An interrupted fit as a file: all that decides how it goes on, so that it ends as if it had never stopped."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from decoders.files import write_atomic

_RANDOM = "random"


class FitState:
    """Named modules, an optimiser and torch's random state in one safetensors file, with notes as JSON."""

    def __init__(self, path: Path, modules: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer) -> None:
        self._path = path
        self._modules = modules
        self._optimiser = optimiser

    def save(self, notes: Mapping[str, Any], extra: Mapping[str, Tensor]) -> None:
        """Replace the file; `extra` are tensors that no module holds."""
        tensors = {f"extra/{name}": tensor for name, tensor in extra.items()}
        for part, module in self._modules.items():
            tensors |= {f"{part}/{name}": tensor for name, tensor in module.state_dict().items()}
        tensors |= {f"optimiser/{name}": tensor for name, tensor in optimiser_tensors(self._optimiser).items()}
        tensors[_RANDOM] = torch.get_rng_state()
        tensors |= {f"{_RANDOM}/{device}": state for device, state in enumerate(torch.cuda.get_rng_state_all())}
        whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        write_atomic(self._path, save(whole, metadata={"notes": json.dumps(notes)}))

    def load(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Bring everything back as it was saved; None where nothing was.

        Returns:
            The notes and the extra tensors.
        """
        if not self._path.exists():
            return None
        tensors = load_file(self._path)
        for part, module in self._modules.items():
            module.load_state_dict(under(f"{part}/", tensors))
        load_optimiser(self._optimiser, under("optimiser/", tensors))
        torch.set_rng_state(tensors[_RANDOM])
        on_gpus = under(f"{_RANDOM}/", tensors)
        for device in range(min(len(on_gpus), torch.cuda.device_count())):
            torch.cuda.set_rng_state(on_gpus[str(device)], device)
        with safetensors.safe_open(self._path, framework="pt") as file:
            notes: dict[str, Any] = json.loads(file.metadata()["notes"])
        return notes, under("extra/", tensors)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimiser remembers of each parameter, as `<number>/<name>`."""
    states = optimiser.state_dict()["state"].items()
    return {f"{index}/{name}": tensor for index, state in states for name, tensor in state.items()}


def load_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimiser_tensors`; rates and other settings stay as they are."""
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, entry = name.split("/")
        states.setdefault(int(index), {})[entry] = tensor
    optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
