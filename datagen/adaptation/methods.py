"""What of a UNet is trained when it is adapted, and the file or folder in which another plan finds it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, get_peft_model_state_dict
from torch import nn

from decoders.checkpoint import Checkpoint, no_progress_bars

LORA_FILE = "lora.safetensors"
PIPELINE_FILE = "model_index.json"
_ADAPTER = "adapted"
_PROJECTIONS = ["to_q", "to_k", "to_v", "to_out.0"]
"""Of every attention of the UNet: what LoRA files for Stable Diffusion usually change."""


@runtime_checkable
class Method(Protocol):
    """One way to adapt."""

    result: str
    """Name of the file whose presence says that the result was written."""

    def prepare(self, checkpoint: Checkpoint, *, seed: int) -> nn.Module:
        """The UNet with the part to train asking for gradients, in float32; the plan's own LoRA files become part of
        the weights."""
        ...

    def save(self, checkpoint: Checkpoint, folder: Path) -> None:
        """Write what was trained."""
        ...


class Lora:
    """A low-rank change of the attention's projections (https://arxiv.org/abs/2106.09685): a few megabytes."""

    result = LORA_FILE

    def __init__(self, *, rank: int) -> None:
        self._rank = rank

    def prepare(self, checkpoint: Checkpoint, *, seed: int) -> nn.Module:
        _fuse(checkpoint)
        config = LoraConfig(r=self._rank, lora_alpha=self._rank, target_modules=_PROJECTIONS)
        unet: Any = checkpoint.unet
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # equal in all processes
            unet.add_adapter(config, adapter_name=_ADAPTER)
        cast_training_params(unet, dtype=torch.float32)
        return unet

    def save(self, checkpoint: Checkpoint, folder: Path) -> None:
        weights = get_peft_model_state_dict(cast(Any, checkpoint.unet), adapter_name=_ADAPTER)
        checkpoint.pipeline.save_lora_weights(folder, unet_lora_layers=weights, weight_name=self.result)


class Full:
    """All weights of the UNet: the whole pipeline is written anew."""

    result = PIPELINE_FILE

    def prepare(self, checkpoint: Checkpoint, *, seed: int) -> nn.Module:
        del seed  # nothing begins by chance
        _fuse(checkpoint)
        return cast(nn.Module, checkpoint.unet).float().requires_grad_(True)

    def save(self, checkpoint: Checkpoint, folder: Path) -> None:
        cast(nn.Module, checkpoint.unet).to(checkpoint.dtype)
        with no_progress_bars():
            checkpoint.pipeline.save_pretrained(folder)


def _fuse(checkpoint: Checkpoint) -> None:
    adapters: Mapping[str, Any] = checkpoint.pipeline.get_list_adapters()
    if adapters:
        checkpoint.pipeline.fuse_lora(components=list(adapters))
        checkpoint.pipeline.unload_lora_weights()
