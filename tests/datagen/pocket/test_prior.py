"""The prior learns, and becomes a pipeline that loads like any other."""

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, StableDiffusionPipeline
from torch import nn
from transformers import CLIPTokenizer

from datagen.adaptation import loop
from datagen.pocket import card, gates, prior, text, vae
from tests.datagen.pocket.conftest import CAPTIONS, log_of


@pytest.mark.slow
def test_the_loss_falls_and_the_text_encoder_learns_too(
    tiny_prior: prior.Prior, tokenizer: CLIPTokenizer, tmp_path: Path
) -> None:
    latents = torch.randn(2, 1, 4, 1, 1, generator=loop.stream(0, 0)).expand(2, 2, 4, 8, 8).half()
    tokens = text.tokenize(tokenizer, list(CAPTIONS) * 2).view(2, 3, text.MAX_LENGTH)
    embedding = cast(nn.Embedding, tiny_prior.text_encoder.get_input_embeddings())
    words = embedding.weight.detach().clone()
    prior.train(
        tiny_prior,
        latents,
        tokens,
        text.tokenize(tokenizer, [""])[0],
        folder=tmp_path,
        schedule=loop.Schedule(updates=150, peak_rate=4e-3, warm_up=5),
        batch_size=8,
    )
    entries = log_of(tmp_path)
    assert entries[-1]["loss"] < 0.6 * entries[0]["loss"]
    moved = (embedding.weight.detach() - words).abs().mean(dim=1)
    sky, never = tokenizer("sky").input_ids[1], tokenizer("z").input_ids[1]
    assert moved[sky] > 3 * moved[never]  # decay alone moves every row a little


def test_the_last_step_is_pure_noise() -> None:
    scheduler = prior.build_scheduler()
    assert float(scheduler.alphas_cumprod[-1]) < 1e-6
    scheduler.set_timesteps(25)
    assert int(scheduler.timesteps[0]) == 999


def test_the_pipeline_survives_the_disk_in_half_precision(
    tiny_prior: prior.Prior, tiny_vae: vae.AutoencoderKL, tokenizer: CLIPTokenizer, tmp_path: Path
) -> None:
    tiny_vae.register_to_config(scaling_factor=0.7)
    pipeline = prior.assemble(tiny_prior.eval(), tiny_vae.eval(), tokenizer)
    before = gates.draw(pipeline, ["two red cars", "sky"], seed=4)
    assert before.shape == (2, 32, 32, 3)

    size = card.save_half(pipeline, tmp_path / "model")
    files = {str(path.relative_to(tmp_path / "model")) for path in (tmp_path / "model").rglob("*.safetensors")}
    assert files == {
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }
    assert size == sum(path.stat().st_size for path in (tmp_path / "model").rglob("*") if path.is_file())
    for path in (tmp_path / "model").rglob("*.json"):
        assert str(tmp_path) not in path.read_text(), path

    loaded = DiffusionPipeline.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert isinstance(loaded, StableDiffusionPipeline)
    assert isinstance(loaded.scheduler, DDPMScheduler)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.vae.config["scaling_factor"] == 0.7
    assert loaded.unet.dtype == loaded.text_encoder.dtype == torch.float32
    after = gates.draw(loaded, ["two red cars", "sky"], seed=4)
    assert np.abs(after.astype(int) - before).mean() < 2  # float16 rounds the weights
    assert np.array_equal(gates.draw(loaded, ["sky"], seed=5)[0], gates.draw(loaded, ["sky", "sky"], seed=5)[0])
