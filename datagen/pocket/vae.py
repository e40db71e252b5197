"""The pocket model's picture codec: an AutoencoderKL trained on crops, and the latents of all scenes."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from jaxtyping import Float, Float16, UInt8
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from datagen.adaptation import hardware, loop
from datagen.pocket import critic
from datagen.pocket.scene_cache import ScenePool
from decoders.features import to_pixels
from decoders.files import write_atomic

CROP = 64
"""Side of a training crop in pixels: without attention the codec is fully convolutional, so crops teach it the same."""
REALISM, MATCHING = 0.015, 0.2
"""Weights of the critic's verdict and of its features' agreement, beside a fidelity of about 0.12."""


def build(
    channels: tuple[int, ...] = (16, 32, 64, 96), *, latent_channels: int = 8, scaling_factor: float = 1.0
) -> AutoencoderKL:
    """A codec of 2 ** (levels - 1) pixels per latent cell."""
    levels: Any = {  # declared as tuples of one
        "block_out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * len(channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(channels),
    }
    return AutoencoderKL(
        **levels,
        latent_channels=latent_channels,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        scaling_factor=scaling_factor,
        sample_size=128,
    )


def encode(vae: AutoencoderKL, pictures: Float[Tensor, "batch 3 h w"]) -> DiagonalGaussianDistribution:
    """The posterior over latents, not scaled."""
    return cast(Any, vae.encode(pictures)).latent_dist


def decode(vae: AutoencoderKL, latents: Float[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch 3 h w"]:
    return cast(Any, vae.decode(cast(Any, latents))).sample


def to_images(pictures: Float[Tensor, "batch 3 height width"]) -> UInt8[np.ndarray, "batch height width 3"]:
    return ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def reconstruct(
    vae: AutoencoderKL, images: UInt8[np.ndarray, "batch height width 3"], *, batch_size: int = 16
) -> UInt8[np.ndarray, "batch height width 3"]:
    """Through the codec and back, in its own number format, by the posterior's mode."""
    parts: list[np.ndarray] = []
    with torch.no_grad():
        for start in range(0, len(images), batch_size):
            pictures = to_pixels(images[start : start + batch_size], vae.device).to(vae.dtype)
            parts.append(to_images(decode(vae, encode(vae, pictures).mode())))
    return np.concatenate(parts)


def psnr(
    truth: UInt8[np.ndarray, "batch height width 3"], found: UInt8[np.ndarray, "batch height width 3"]
) -> Float[np.ndarray, " batch"]:
    """Peak signal-to-noise ratio of each picture in dB, peak 255."""
    error = ((truth.astype(np.float64) - found) ** 2).mean(axis=(1, 2, 3))
    return 10 * np.log10(255.0**2 / np.maximum(error, 1e-10))


def psnr_by_look(vae: AutoencoderKL, scenes: ScenePool) -> dict[str, float]:
    """Mean PSNR in dB of each look, and over the looks."""
    values = psnr(scenes.images, reconstruct(vae, scenes.images))
    looks = np.array([note["look"] for note in scenes.notes])
    table = {f"psnr {look}": float(values[looks == look].mean()) for look in sorted(set(looks))}
    return table | {"psnr": float(np.mean(list(table.values())))}


def _edges(pictures: Tensor) -> tuple[Tensor, Tensor]:
    return pictures[..., 1:, :] - pictures[..., :-1, :], pictures[..., 1:] - pictures[..., :-1]


class _Crops:
    """Random square crops of the scenes' pictures, half of them mirrored; a function of the random stream alone."""

    def __init__(self, scenes: ScenePool, device: torch.device, *, batch_size: int) -> None:
        self.images, self.device, self.batch_size = scenes.images, device, batch_size

    def __call__(self, random: torch.Generator) -> Float[Tensor, "batch 3 crop crop"]:
        """Values -1..1."""
        count, height, width = self.images.shape[:3]
        ranges = (count, height - CROP + 1, width - CROP + 1)
        drawn = [torch.randint(end, (self.batch_size,), generator=random).tolist() for end in ranges]
        crops = [
            self.images[index, top : top + CROP, left : left + CROP] for index, top, left in zip(*drawn, strict=True)
        ]
        flips = torch.rand(self.batch_size, generator=random) < 0.5
        pictures = to_pixels(np.stack(crops), self.device)
        pictures[flips] = pictures[flips].flip(-1)
        return pictures


def _fidelity(found: Tensor, pictures: Tensor) -> dict[str, Tensor]:
    """Absolute + squared error (the second is what PSNR counts), and that of neighbours' differences: thin poles."""
    pairs = zip(_edges(found), _edges(pictures), strict=True)
    terms = {
        "absolute": functional.l1_loss(found, pictures),
        "squared": functional.mse_loss(found, pictures),
        "edge": torch.stack([functional.l1_loss(*pair) for pair in pairs]).mean(),
    }
    return {"loss": terms["absolute"] + 4 * terms["squared"] + 0.5 * terms["edge"], **terms}


def train(
    vae: AutoencoderKL,
    scenes: ScenePool,
    unseen: ScenePool,
    *,
    folder: Path,
    schedule: loop.Schedule,
    batch_size: int = 16,
    seed: int = 0,
) -> AutoencoderKL:
    """Train the codec; returns the averaged one.

    The loss is fidelity and a slight pull of the posterior to a unit normal.
    """
    draw = _Crops(scenes, vae.device, batch_size=batch_size)

    def loss(step: int) -> Mapping[str, Tensor]:
        random = loop.stream(seed, step)
        pictures = draw(random)
        with hardware.half_precision(vae.device):
            posterior = encode(vae, pictures)
            noise = torch.randn(posterior.mean.shape, generator=random).to(vae.device)
            found = decode(vae, posterior.mean + posterior.std * noise)
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        terms = _fidelity(found.float(), pictures)
        divergence = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        return terms | {"loss": terms["loss"] + 1e-4 * divergence, "divergence": divergence}

    def probe(average: nn.Module, _step: int) -> Mapping[str, float]:
        return psnr_by_look(cast(AutoencoderKL, average), unseen)

    return cast(AutoencoderKL, loop.advance(vae, loss, folder=folder, schedule=schedule, probe=probe))


class Polish(nn.Module):
    """A codec whose decoder is trained on, and the critic of its pictures."""

    def __init__(self, codec: AutoencoderKL) -> None:
        super().__init__()
        self.codec: AutoencoderKL = codec.requires_grad_(True)
        for part in _encoder(codec):
            part.requires_grad_(False)
        self.critic: critic.Critic = critic.Critic().to(codec.device)


def polish(
    vae: AutoencoderKL,
    scenes: ScenePool,
    unseen: ScenePool,
    *,
    folder: Path,
    schedule: loop.Schedule,
    batch_size: int = 16,
    seed: int = 0,
) -> AutoencoderKL:
    """Train the decoder alone against a critic, so that detail is sharp and latents stay valid; returns the averaged.

    Fidelity alone is least where the decoder is unsure when it draws the mean of what could be there, which is a blur.
    """
    pair = Polish(vae)
    draw = _Crops(scenes, vae.device, batch_size=batch_size)

    def loss(step: int) -> Mapping[str, Tensor]:
        pictures = draw(loop.stream(seed, step))
        with hardware.half_precision(vae.device):
            found = decode(vae, encode(vae, pictures).mode())
            judged = critic.compare(pair.critic, found, pictures)
        terms = _fidelity(found.float(), pictures)
        total = terms["loss"] + REALISM * judged["realism"] + MATCHING * judged["matching"] + judged["critic"]
        return terms | judged | {"loss": total}

    def probe(average: nn.Module, _step: int) -> Mapping[str, float]:
        return psnr_by_look(cast(Polish, average).codec, unseen)

    return cast(Polish, loop.advance(pair, loss, folder=folder, schedule=schedule, probe=probe)).codec


def _encoder(vae: AutoencoderKL) -> tuple[nn.Module, nn.Module]:
    return vae.encoder, cast(nn.Module, vae.quant_conv)


def encoder_digest(vae: AutoencoderKL) -> str:
    """Identity of the latents: 16 hexadecimal digits over the weights that make them."""
    digest = hashlib.sha256()
    for part in _encoder(vae):
        for name, tensor in sorted(part.state_dict().items()):
            digest.update(name.encode() + tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def encode_all(
    vae: AutoencoderKL, images: UInt8[np.ndarray, "scenes height width 3"], *, path: Path, batch_size: int = 32
) -> Float16[Tensor, "scenes 2 channels rows columns"]:
    """Posterior means of every picture and of its mirror image, not scaled; kept at `path`."""
    if not path.exists():
        parts: list[Tensor] = []
        with torch.no_grad():
            for start in range(0, len(images), batch_size):
                pictures = to_pixels(images[start : start + batch_size], vae.device)
                both = [encode(vae, view).mode().half().cpu() for view in (pictures, pictures.flip(-1))]
                parts.append(torch.stack(both, dim=1))
                if start % (batch_size * 50) == 0:
                    print(f"latents: {start}/{len(images)}", flush=True)
        write_atomic(path, save({"latents": torch.cat(parts).contiguous()}))
    return load_file(path)["latents"]
