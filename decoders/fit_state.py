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
        for index, state in self._optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{index}/{name}": tensor for name, tensor in state.items()}
        tensors[_RANDOM] = torch.get_rng_state()
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
            module.load_state_dict(_under(f"{part}/", tensors))
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under("optimiser/", tensors).items():
            index, entry = name.split("/")
            states.setdefault(int(index), {})[entry] = tensor
        groups = self._optimiser.state_dict()["param_groups"]
        self._optimiser.load_state_dict({"state": states, "param_groups": groups})
        torch.set_rng_state(tensors[_RANDOM])
        with safetensors.safe_open(self._path, framework="pt") as file:
            notes: dict[str, Any] = json.loads(file.metadata()["notes"])
        return notes, _under("extra/", tensors)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
