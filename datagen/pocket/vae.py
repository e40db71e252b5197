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

from datagen.pocket import loop
from datagen.pocket.scene_cache import ScenePool
from decoders.features import to_pixels
from decoders.files import write_atomic

CROP = 64
"""Side of a training crop in pixels: without attention the codec is fully convolutional, so crops teach it the same."""


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
    """Through the codec and back, in float32, by the posterior's mode."""
    parts: list[np.ndarray] = []
    with torch.no_grad():
        for start in range(0, len(images), batch_size):
            pictures = to_pixels(images[start : start + batch_size], vae.device)
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


def train(
    vae: AutoencoderKL,
    scenes: ScenePool,
    unseen: ScenePool,
    *,
    folder: Path,
    schedule: loop.Schedule,
    batch_size: int = 16,
    decoder_only: bool = False,
    seed: int = 0,
) -> AutoencoderKL:
    """Train the codec, or its decoder alone so that latents stay valid; returns the averaged one.

    The loss is absolute + squared error (the second is what PSNR counts), absolute error of the differences between
    neighbours (keeps thin poles), and a slight pull of the posterior to a unit normal.
    """
    vae.requires_grad_(True)
    if decoder_only:
        for part in _encoder(vae):
            part.requires_grad_(False)

    def loss(step: int) -> Mapping[str, Tensor]:
        random = loop.stream(seed, step)
        height, width = scenes.images.shape[1:3]
        chosen = torch.randint(len(scenes), (batch_size,), generator=random).tolist()
        tops = torch.randint(height - CROP + 1, (batch_size,), generator=random).tolist()
        lefts = torch.randint(width - CROP + 1, (batch_size,), generator=random).tolist()
        crops = np.stack(
            [
                scenes.images[index, top : top + CROP, left : left + CROP]
                for index, top, left in zip(chosen, tops, lefts, strict=True)
            ]
        )
        flips = torch.rand(batch_size, generator=random) < 0.5
        pictures = to_pixels(crops, vae.device)
        pictures[flips] = pictures[flips].flip(-1)
        with loop.half_precision(vae.device):
            posterior = encode(vae, pictures)
            noise = torch.randn(posterior.mean.shape, generator=random).to(vae.device)
            found = decode(vae, posterior.mean + posterior.std * noise)
        found, mean, logvar = found.float(), posterior.mean.float(), posterior.logvar.float()
        absolute, squared = functional.l1_loss(found, pictures), functional.mse_loss(found, pictures)
        edge = torch.stack(
            [functional.l1_loss(*pair) for pair in zip(_edges(found), _edges(pictures), strict=True)]
        ).mean()
        divergence = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        total = absolute + 4 * squared + 0.5 * edge + 1e-4 * divergence
        return {"loss": total, "absolute": absolute, "squared": squared, "edge": edge, "divergence": divergence}

    def probe(average: nn.Module, _step: int) -> Mapping[str, float]:
        return psnr_by_look(cast(AutoencoderKL, average), unseen)

    return cast(AutoencoderKL, loop.advance(vae, loss, folder=folder, schedule=schedule, probe=probe))


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
