"""A perceiver without a diffusion model: fixed random convolutions, two levels, one attention map per class."""

import hashlib

import numpy as np
import torch
from jaxtyping import UInt8
from torch import nn
from torch.nn import functional

from decoders.features import FeatureBundle, FeatureSpec


class ToyPerceiver:
    """Deterministic; every look but the first adds noise.

    `poison` makes the features of pictures whose first pixel is (1, 2, 3) infinite.
    """

    def __init__(
        self,
        *,
        classes: int,
        seed: int = 0,
        strides: tuple[int, int] = (8, 4),
        channels: tuple[int, int] = (32, 16),
        poison: bool = False,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.calls: list[tuple[int, ...]] = []
        self._poison = poison
        self._strides = strides
        self._kernels = [
            torch.randn(count + classes, 3, stride, stride, generator=generator) / stride
            for count, stride in zip(channels, strides, strict=True)
        ]
        self._channels = channels
        self.spec = FeatureSpec(
            model_digest=hashlib.sha256(f"toy {seed}".encode()).hexdigest(),
            strides=strides,
            channels=channels,
            attention_maps=(classes, classes),
            settings={"kind": "toy", "seed": seed, "layers": ("coarse", "fine")},
        )

    @property
    def size_multiple(self) -> int:
        return max(self._strides)

    @torch.inference_mode()
    def perceive(self, images: UInt8[np.ndarray, "batch height width 3"], *, look: int = 0) -> FeatureBundle:
        self.calls.append(images.shape)
        image = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
        levels: list[torch.Tensor] = []
        attention: list[torch.Tensor] = []
        for kernel, stride, count in zip(self._kernels, self._strides, self._channels, strict=True):
            features = functional.conv2d(image, kernel, stride=stride)
            noise = torch.randn(features[:1, :count].shape, generator=torch.Generator().manual_seed(look))
            levels.append(torch.tanh(features[:, :count] + 0.1 * noise * (look > 0)))
            attention.append(nn.functional.softmax(features[:, count:], dim=1))
        if self._poison:
            marked = torch.from_numpy((images[:, 0, 0] == (1, 2, 3)).all(1))
            levels[0] = torch.where(marked[:, None, None, None], torch.inf, levels[0])
        return FeatureBundle(image=image, levels=tuple(levels), attention=tuple(attention))
