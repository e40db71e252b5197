"""The pocket model's UNet and text encoder, trained together on cached latents."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from jaxtyping import Float16, Int64
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from datagen.adaptation import hardware, loop
from datagen.adaptation.denoising import stratified_times

FORM_SHARES = (0.40, 0.25, 0.25, 0.10)
"""How often a picture is trained with its sentence, its bare class list, a phrase, or nothing (for guidance)."""


class Prior(nn.Module):
    """The two networks that are trained as one."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = unet


def build_unet(
    channels: tuple[int, ...] = (64, 128, 192), *, latent_channels: int = 8, context: int = 192
) -> UNet2DConditionModel:
    """Cross-attention on every level, so that a reader finds a map of each class on each."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        layers_per_block=1,
        block_out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D",) * len(channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(channels),
        cross_attention_dim=context,
        attention_head_dim=2,  # of heads, in spite of its name; many narrow heads take half of the time
        norm_num_groups=16,
    )


def build_scheduler() -> DDPMScheduler:
    """Velocity prediction down to pure noise (https://arxiv.org/abs/2305.08891), or night never gets its mean.

    Ancestral sampling: fresh noise at each step lets a small model mend its own errors, which deterministic steps pile
    up. The same weights draw clean roads and trees with it, and smears without.
    """
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,
        clip_sample=False,
    )


def train(
    prior: Prior,
    latents: Float16[Tensor, "scenes 2 channels rows columns"],
    tokens: Int64[Tensor, "scenes 3 tokens"],
    empty: Int64[Tensor, " tokens"],
    *,
    folder: Path,
    schedule: loop.Schedule,
    batch_size: int = 32,
    seed: int = 1,
    probe: Callable[[Prior, int], Mapping[str, float]] | None = None,
) -> Prior:
    """Train on scaled latents (each with its mirror image) and three captions a scene; returns averaged networks."""
    scheduler = build_scheduler()
    device = next(prior.parameters()).device
    alphas = scheduler.alphas_cumprod.to(device)
    choices = torch.cat([tokens, empty.expand(len(tokens), 1, -1)], dim=1)
    shares = torch.tensor(FORM_SHARES)
    count = int(scheduler.config["num_train_timesteps"])

    def loss(step: int) -> Mapping[str, Tensor]:
        random = loop.stream(seed, step)
        scenes = torch.randint(len(latents), (batch_size,), generator=random)
        sides = torch.randint(2, (batch_size,), generator=random)
        forms = torch.multinomial(shares, batch_size, replacement=True, generator=random)
        clean = latents[scenes, sides].float().to(device)
        noise = torch.randn(clean.shape, generator=random).to(device)
        times = stratified_times(batch_size, count, random).to(device)
        signal, spread = (level.sqrt()[:, None, None, None] for level in (alphas[times], 1 - alphas[times]))
        with hardware.half_precision(device):
            context = prior.text_encoder(choices[scenes, forms].to(device)).last_hidden_state
            found = prior.unet(signal * clean + spread * noise, times, context).sample
        return {"loss": functional.mse_loss(found.float(), signal * noise - spread * clean)}

    look = cast("Callable[[nn.Module, int], Mapping[str, float]] | None", probe)
    return cast(Prior, loop.advance(prior, loss, folder=folder, schedule=schedule, probe=look))


def assemble(prior: Prior, vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    """The parts as the pipeline that everything else loads from a folder."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=prior.text_encoder,
        tokenizer=tokenizer,
        unet=prior.unet,
        scheduler=cast(Any, build_scheduler()),
        safety_checker=cast(Any, None),  # declared as required
        feature_extractor=cast(Any, None),
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
