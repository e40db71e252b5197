"""The codec learns, keeps its latents when only its decoder is polished, and is measured honestly."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from datagen.adaptation import loop
from datagen.pocket import vae
from datagen.pocket.scene_cache import ScenePool
from decoders.features import to_pixels
from tests.datagen.pocket.conftest import log_of


def _train(
    fit: Callable[..., vae.AutoencoderKL], codec: vae.AutoencoderKL, scenes: ScenePool, folder: Path, *, updates: int
) -> vae.AutoencoderKL:
    schedule = loop.Schedule(updates=updates, peak_rate=4e-3, warm_up=5, average_decay=0.9)
    return fit(codec, scenes, scenes, folder=folder, schedule=schedule, batch_size=4)


def _sharpness(images: np.ndarray) -> float:
    """Mean absolute difference of neighbouring pixels."""
    return float(np.abs(np.diff(images.astype(float), axis=2)).mean())


@pytest.mark.slow
def test_training_raises_the_psnr_and_polishing_the_sharpness(
    tiny_vae: vae.AutoencoderKL, scenes: ScenePool, tmp_path: Path
) -> None:
    start = vae.psnr_by_look(tiny_vae, scenes)["psnr"]
    trained = _train(vae.train, tiny_vae, scenes, tmp_path / "vae", updates=60)
    reached = log_of(tmp_path / "vae")[-1]["psnr"]
    assert reached > start + 4
    assert reached == pytest.approx(vae.psnr_by_look(trained, scenes)["psnr"])

    codec = vae.build((8, 16), latent_channels=4)
    codec.load_state_dict(trained.state_dict())
    before = _sharpness(vae.reconstruct(trained, scenes.images))
    polished = _train(vae.polish, codec, scenes, tmp_path / "vae_decoder", updates=120)
    assert vae.encoder_digest(polished) == vae.encoder_digest(trained)
    after, wanted = _sharpness(vae.reconstruct(polished, scenes.images)), _sharpness(scenes.images)
    assert abs(after - wanted) < abs(before - wanted)


def test_psnr_of_a_known_error() -> None:
    truth = np.full((2, 4, 4, 3), 100, np.uint8)
    found = np.stack([truth[0] + np.uint8(10), truth[1]])
    assert vae.psnr(truth, found) == pytest.approx([10 * np.log10(255**2 / 100), 10 * np.log10(255**2 / 1e-10)])


def test_pictures_survive_the_way_to_tensors_and_back() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    assert np.array_equal(vae.to_images(to_pixels(images, torch.device("cpu"))), images)


def test_a_codec_in_half_precision_takes_pictures_too(tiny_vae: vae.AutoencoderKL, scenes: ScenePool) -> None:
    """As a GPU has it."""
    whole = vae.reconstruct(tiny_vae, scenes.images[:2])
    half = vae.reconstruct(copy.deepcopy(tiny_vae).half(), scenes.images[:2])
    assert half.dtype == np.uint8
    assert np.abs(half.astype(int) - whole).mean() < 2


def test_latents_hold_each_picture_and_its_mirror_image(
    tiny_vae: vae.AutoencoderKL, scenes: ScenePool, tmp_path: Path
) -> None:
    path = tmp_path / "latents.safetensors"
    latents = vae.encode_all(tiny_vae, scenes.images, path=path, batch_size=4)
    assert latents.shape == (len(scenes), 2, 4, 64, 64)
    mirrored = vae.encode_all(tiny_vae, scenes.images[:, :, ::-1].copy(), path=tmp_path / "mirrored.safetensors")
    assert torch.allclose(latents[:, 0], mirrored[:, 1], atol=2e-3)
    assert torch.allclose(latents[:, 1], mirrored[:, 0], atol=2e-3)
    again = vae.encode_all(tiny_vae, np.zeros_like(scenes.images), path=path)
    assert torch.equal(again, latents)  # kept, not made again
