"""What a checkpoint's UNet was trained to do, as a loss: find the noise in a noised picture, knowing its caption."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from diffusers import DDPMScheduler
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from datagen.adaptation.hardware import half_precision, has_bfloat16
from decoders.checkpoint import Checkpoint
from decoders.errors import UserError
from decoders.features import to_pixels
from decoders.peers import ALONE, Peers
from decoders.phrases import encode_prompts

_CAPTIONS_KEPT = 256
"""Encoded captions in memory; XL's take 630 KB each."""


@runtime_checkable
class Predict(Protocol):
    """A UNet, or a ControlNet with a UNet behind it."""

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor,
        *,
        encoder_hidden_states: Tensor,
        added_cond_kwargs: dict[str, Tensor] | None,
        return_dict: bool,
    ) -> Any:
        """Called as `UNet2DConditionModel.forward`, with `return_dict=False`.

        Args:
            sample: [batch, channels, rows, columns], noised latents in the number format of the UNet.
            timestep: [batch], whole numbers.
            encoder_hidden_states: [batch, tokens, width].
            added_cond_kwargs: None, or XL's `text_embeds` [batch, pooled] and `time_ids` [batch, 6].

        Returns:
            A tuple, of which the first is the prediction in the shape of `sample`.
        """
        ...


class Denoising:
    """The loss of a checkpoint's own noise schedule and kind of prediction."""

    def __init__(self, checkpoint: Checkpoint, peers: Peers = ALONE) -> None:
        """Of several processes each gives its share of a batch: pictures `rank`, `rank + count`, ... of it.

        Raises:
            UserError: the checkpoint predicts something else than noise, velocity or the clean picture; or it is in
                half precision on a GPU without bfloat16, where gradients would be less than float16 can hold.
        """
        if checkpoint.dtype == torch.float16 and not has_bfloat16(checkpoint.device):
            raise UserError(
                "model.dtype: float16 on a GPU without bfloat16, on which training loses its gradients; set "
                "`model.dtype: float32`"
            )
        scheduler: Any = DDPMScheduler.from_config(checkpoint.pipeline.scheduler.config)
        self._kind: str = scheduler.config["prediction_type"]
        if self._kind not in ("epsilon", "v_prediction", "sample"):
            raise UserError(
                f"the model's scheduler has the prediction_type {self._kind!r}, expected epsilon, v_prediction or "
                "sample; take a Stable Diffusion checkpoint"
            )
        self._steps = int(scheduler.config["num_train_timesteps"])
        self._alphas: Tensor = scheduler.alphas_cumprod.to(checkpoint.device)
        self._checkpoint = checkpoint
        self._peers = peers
        self._encoded = lru_cache(_CAPTIONS_KEPT)(self._encode)

    @torch.no_grad()
    def latents(
        self, pictures: UInt8[np.ndarray, "batch height width 3"]
    ) -> Float32[Tensor, "batch channels rows columns"]:
        """Scaled latents; height and width must be multiples of the VAE's cell."""
        return self._checkpoint.encode(to_pixels(pictures, self._checkpoint.device))

    def loss(
        self,
        predict: Predict,
        latents: Float32[Tensor, "batch channels rows columns"],
        captions: Sequence[str],
        random: torch.Generator,
    ) -> Float32[Tensor, ""]:
        """Mean squared error of the prediction, at times spread evenly over the schedule.

        `latents` and `captions` are this process's share. Times and noise are drawn for the whole batch, so that what a
        picture gets does not depend on the number of processes.

        Args:
            random: on the CPU, at the same state in all processes.
        """
        device = latents.device
        shape = (len(latents) * self._peers.count, *latents.shape[1:])
        noise = self._share(torch.randn(shape, generator=random)).to(device)
        times = self._share(stratified_times(shape[0], self._steps, random)).to(device)
        signal, spread = (level.sqrt()[:, None, None, None] for level in (self._alphas[times], 1 - self._alphas[times]))
        target = {"epsilon": noise, "sample": latents, "v_prediction": signal * noise - spread * latents}[self._kind]
        dtype = cast(Any, self._checkpoint.unet).conv_in.weight.dtype
        tokens, added = self._conditions(captions, latents, dtype)
        with half_precision(device):
            found: Tensor = predict(
                (signal * latents + spread * noise).to(dtype),
                times,
                encoder_hidden_states=tokens,
                added_cond_kwargs=added,
                return_dict=False,
            )[0]
        return functional.mse_loss(found.float(), target)

    def _conditions(
        self, captions: Sequence[str], latents: Float[Tensor, "batch _ _ _"], dtype: torch.dtype
    ) -> tuple[Float[Tensor, "batch tokens width"], dict[str, Tensor] | None]:
        """Captions as the UNet takes them; to XL the crop is the whole picture, as it is in a reading."""
        parts = [self._encoded(caption) for caption in captions]
        tokens = torch.cat([hidden for hidden, _ in parts]).to(dtype)
        pooled = [vector.to(dtype) for _, vector in parts if vector is not None]
        if not pooled:
            return tokens, None
        size = [side * self._checkpoint.vae_scale_factor for side in latents.shape[2:]]
        time_ids = latents.new_tensor([[*size, 0, 0, *size]]).to(dtype).expand(len(parts), -1)
        return tokens, {"text_embeds": torch.cat(pooled), "time_ids": time_ids}

    @torch.no_grad()
    def _encode(self, caption: str) -> tuple[Tensor, Tensor | None]:
        """As `encode_prompts`, of one."""
        return encode_prompts(self._checkpoint, [caption])

    def _share(self, whole: Tensor) -> Tensor:
        return whole[self._peers.rank :: self._peers.count]


def stratified_times(count: int, steps: int, random: torch.Generator) -> Int64[Tensor, " count"]:
    """Timesteps in 0..steps-1, one from each of `count` equal parts of the range: less noise in the loss."""
    strata = (torch.arange(count) + torch.rand(count, generator=random)) / count
    return (strata * steps).long().clamp(max=steps - 1)
