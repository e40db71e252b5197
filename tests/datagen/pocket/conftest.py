"""Networks of the pocket model small enough to train in a test, and a handful of scenes."""

import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from datagen.pocket import prior, scene_cache, text, vae

CAPTIONS = ("a photo of a street in fog by day, two red cars", "sky, road, traffic sign, building", "person at night")


@pytest.fixture(scope="session")
def scene_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with room for rendered scenes."""
    return tmp_path_factory.mktemp("pocket cache é")


@pytest.fixture(scope="session")
def scenes(scene_folder: Path) -> scene_cache.ScenePool:
    scene_cache.render("test", 6, folder=scene_folder, workers=1)
    return scene_cache.load("test", 6, folder=scene_folder)


@pytest.fixture
def tokenizer() -> CLIPTokenizer:
    return text.build_tokenizer(CAPTIONS)


@pytest.fixture
def tiny_prior(tokenizer: CLIPTokenizer) -> prior.Prior:
    torch.manual_seed(0)
    encoder = text.build_encoder(tokenizer, width=16, layers=1, heads=2)
    return prior.Prior(encoder, prior.build_unet((16, 32), latent_channels=4, context=16))


@pytest.fixture
def tiny_vae() -> vae.AutoencoderKL:
    torch.manual_seed(0)
    return vae.build((8, 16), latent_channels=4)


def log_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
