"""The judge: a segmenter that counts what is in pictures, and does nothing else.

It is a plain U-Net of segmentation-models-pytorch, trained from scratch on rendered scenes of all looks and weathers,
the withheld ones included. It is never used to make, filter or choose data, and no reader learns from it: a number
whose judge had a hand in the data would measure itself.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from datagen.adaptation import hardware, loop, training_state
from datagen.pocket.scene_cache import ScenePool
from datagen.pocket.world import TAXONOMY
from decoders.errors import UserError
from decoders.features import to_pixels


def build() -> nn.Module:
    try:
        import segmentation_models_pytorch as smp  # an extra: only the pocket model's own gates need it
    except ModuleNotFoundError as error:
        raise UserError(
            "the judge needs segmentation-models-pytorch, which was not found; run `pip install 'datagen[pocket]'`"
        ) from error
    network: Any = smp.Unet(
        "resnet18", encoder_weights=None, classes=len(TAXONOMY), decoder_channels=(128, 96, 64, 32, 16)
    )
    return cast(nn.Module, network)


def schedule_of(updates: int) -> loop.Schedule:
    """How judges learn in so many updates."""
    return loop.Schedule(updates=updates, peak_rate=1e-3, average_decay=0.998)


def train(
    network: nn.Module, scenes: ScenePool, *, folder: Path, schedule: loop.Schedule, batch_size: int = 16, seed: int = 2
) -> nn.Module:
    """Cross-entropy on batches of `draw_batch`; returns the averaged network."""
    device = next(network.parameters()).device

    def loss(step: int) -> Mapping[str, Tensor]:
        pictures, truth = draw_batch(scenes, batch_size, loop.stream(seed, step), device)
        with hardware.half_precision(device):
            logits = network(pictures)
        return {"loss": functional.cross_entropy(logits.float(), truth, ignore_index=-1)}

    return loop.advance(network, loss, folder=folder, schedule=schedule)


def draw_batch(
    scenes: ScenePool, size: int, random: torch.Generator, device: torch.device
) -> tuple[Float[Tensor, "batch 3 height width"], Int[Tensor, "batch height width"]]:
    """Pictures with random flips, brightness and contrast; classes from 0, where -1 is unlabelled."""
    chosen = torch.randint(len(scenes), (size,), generator=random).numpy()
    pictures = to_pixels(scenes.images[chosen], device)
    truth = torch.from_numpy(scenes.semantic[chosen]).to(device).long() - 1
    flips = torch.rand(size, generator=random) < 0.5
    pictures[flips], truth[flips] = pictures[flips].flip(-1), truth[flips].flip(-1)
    gain = (0.8 + 0.4 * torch.rand(size, 1, 1, 1, generator=random)).to(device)
    shift = (0.2 * torch.rand(size, 1, 1, 1, generator=random) - 0.1).to(device)
    return pictures * gain + shift, truth


def load(path: Path) -> nn.Module:
    """The averaged judge of a checkpoint."""
    if not path.exists():
        raise UserError(f"no judge at {path}; train it with `datagen pocket train --stages judge`")
    network = build()
    network.load_state_dict(training_state.averaged_weights(path))
    return network.eval().requires_grad_(False)


def segment(
    network: nn.Module, images: UInt8[np.ndarray, "batch height width 3"], *, batch_size: int = 32
) -> UInt8[np.ndarray, "batch height width"]:
    """Semantic ids, 1..K. Height and width must be multiples of 32."""
    device = next(network.parameters()).device
    parts: list[np.ndarray] = []
    with torch.no_grad():
        for start in range(0, len(images), batch_size):
            logits = network(to_pixels(images[start : start + batch_size], device))
            parts.append((logits.argmax(dim=1) + 1).byte().cpu().numpy())
    return np.concatenate(parts)


def score(network: nn.Module, scenes: ScenePool) -> dict[str, float]:
    """Intersection over union of each class on rendered truth, and their mean: the judge's own ceiling."""
    found = segment(network, scenes.images)
    table: dict[str, float] = {}
    for index, name in enumerate(TAXONOMY.names, start=1):
        mine, true = found == index, scenes.semantic == index
        if true.any():
            table[name] = float((mine & true).sum() / (mine | true).sum())
    return table | {"mean": float(np.mean(list(table.values())))}
