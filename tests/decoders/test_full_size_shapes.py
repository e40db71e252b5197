"""What full-size UNets would give, measured on the meta device: shapes only, no memory, no time."""

from typing import Any

import pytest
import torch

from tests.full_size import CLASSES, PARAMETERS, build, read

DATASETDM_LAYERS = (
    "conv_in",
    *(f"down_blocks.{block}.attentions.{layer}" for block in range(3) for layer in range(2)),
    *(f"down_blocks.{block}.downsamplers.0" for block in range(3)),
    *(f"down_blocks.3.resnets.{layer}" for layer in range(2)),
    "mid_block",
    *(f"up_blocks.0.resnets.{layer}" for layer in range(3)),
    *(f"up_blocks.{block}.attentions.{layer}" for block in range(1, 4) for layer in range(3)),
    *(f"up_blocks.{block}.upsamplers.0" for block in range(3)),
)
"""The 28 tensors that DatasetDM reads."""


def _shapes(tensors: Any) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape[1:]) for tensor in tensors]


@pytest.mark.parametrize(
    ("name", "grid", "levels", "with_attention"),
    [
        ("sd15", (64, 64), [(2560, 8, 8), (1280, 16, 16), (640, 32, 32), (320, 64, 64)], 4),
        ("sd21", (96, 64), [(2560, 12, 8), (1280, 24, 16), (640, 48, 32), (320, 96, 64)], 4),
        ("xl", (128, 128), [(2560, 32, 32), (640, 64, 64), (320, 128, 128)], 2),
    ],
)
def test_default_levels(name: str, grid: tuple[int, int], levels: list[tuple[int, ...]], with_attention: int):
    with torch.device("meta"):
        unet = build(name)
        found, attention = read(unet, *grid)
    assert sum(weight.numel() for weight in unet.parameters()) == PARAMETERS[name]
    assert _shapes(found) == levels
    counts = [CLASSES] * with_attention + [0] * (len(levels) - with_attention)
    assert _shapes(attention) == [(count, *level[1:]) for count, level in zip(counts, levels, strict=True)]


@pytest.mark.parametrize("name", ["sd15", "sd21"])
def test_layers_of_datasetdm(name: str):
    with torch.device("meta"):
        found, attention = read(build(name), 64, 64, layers=DATASETDM_LAYERS)
    assert len(DATASETDM_LAYERS) == 28
    assert _shapes(found) == [(8960, 8, 8), (8320, 16, 16), (4800, 32, 32), (2560, 64, 64)]
    assert [maps.shape[1] for maps in attention] == [CLASSES] * 4
