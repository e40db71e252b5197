"""What caching features saves: an update on cached features against one that runs the model first.

    python -m benchmarks.fit_step [--shapes pocket sd15] [--rounds 5]

`pocket` is the embedded model at 128 x 128, batch 8; `sd15` the architecture of Stable Diffusion 1.5 at 512 x 512,
batch 2, with random weights (time depends on shapes alone); 6 GiB of memory. Cost on two cores: seconds for pocket,
about a minute a round for sd15.
"""

import argparse
import statistics
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.clock import keep, seconds
from datagen.datasets.pocket_scenes import PocketScenes
from decoders.cache import make_targets
from decoders.checkpoint import Checkpoint, ModelReference, choose_device, choose_dtype, load_checkpoint
from decoders.features import FeatureBundle
from decoders.perceivers.unet import UnetPerceiver
from decoders.settings import DecoderSettings
from decoders.training import build_decoder

SHAPES = {"pocket": (128, 8), "sd15": (512, 2)}
"""Side of the picture in pixels, pictures per update."""


def pocket() -> Checkpoint:
    return load_checkpoint(ModelReference(source="package://datagen.pocket/weights"))


def sd15() -> Checkpoint:
    """Published sizes, random weights; the tokenizer is the pocket model's, since words do not change the time."""
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    unet_class: Any = UNet2DConditionModel  # the stubs of all three know one size only
    vae_class: Any = AutoencoderKL
    pipeline_class: Any = StableDiffusionPipeline
    device = choose_device(None)
    with device:  # a GPU draws weights in no time
        networks = {
            "vae": vae_class(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                latent_channels=4,
            ),
            "text_encoder": CLIPTextModel(text),
            "unet": unet_class(cross_attention_dim=768, attention_head_dim=8),
        }
    pipeline = pipeline_class(
        **networks,
        tokenizer=pocket().tokenizers[0],
        scheduler=DDIMScheduler(clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    dtype = choose_dtype("auto", device)
    pipeline.to(device, dtype)
    return Checkpoint(pipeline, digest="random", base_digest="random", device=device, dtype=dtype)


def measure(shape: str, rounds: int) -> dict[str, Any]:
    side, batch = SHAPES[shape]
    pictures = PocketScenes(count=batch, height=side, width=side)
    checkpoint = {"pocket": pocket, "sd15": sd15}[shape]()
    perceiver = UnetPerceiver(checkpoint, phrases=pictures.taxonomy.phrases)
    tasks: dict[str, dict[str, Any]] = {"semantic": {}, "depth": {}}
    decoder, heads = build_decoder(perceiver.spec, pictures.taxonomy, tasks, DecoderSettings())
    decoder.to(checkpoint.device)
    targets = [make_targets(picture, heads) for picture in pictures]
    stacked = {name: torch.stack([target[name] for target in targets]).to(checkpoint.device) for name in heads}
    images = np.stack([picture.image for picture in pictures])
    cached = perceiver.perceive(images)
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=1e-3)

    def update(bundle: FeatureBundle) -> None:
        outputs = decoder(bundle.to(torch.float32))
        losses = [heads[name].loss(outputs[name], stacked[name]) for name in heads]
        torch.autograd.backward(torch.stack(losses).sum())
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    def live() -> None:
        update(perceiver.perceive(images))

    def kept() -> None:
        update(cached)

    for part in (live, kept):  # once each, not counted: loads what is loaded lazily
        part()
    times = [(seconds(live), seconds(kept)) for _ in range(rounds)]
    return {
        "ratio": statistics.median(run / cached for run, cached in times),
        "live_s": statistics.median(run for run, _ in times),
        "cached_s": statistics.median(cached for _, cached in times),
        "side_px": side,
        "batch_size": batch,
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    torch.set_num_threads(2)
    for shape in chosen.shapes:
        found = measure(shape, chosen.rounds)
        keep(f"fit_step_{shape}", found)
        print(
            f"{shape}: an update that runs the model takes {found['ratio']:.1f} x one on cached features "
            f"({found['live_s']:.3f} s, {found['cached_s']:.3f} s)"
        )


if __name__ == "__main__":
    main()
