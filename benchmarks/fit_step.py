"""What caching features saves: an update on cached features against one that runs the model first.

    python -m benchmarks.fit_step [--shapes pocket sd15] [--rounds 5]

`pocket` is the embedded model at 128 x 128, batch 8; `sd15` the architecture of Stable Diffusion 1.5 at 512 x 512,
batch 2, with random weights (time depends on shapes alone); 6 GiB of memory. Cost on two cores: seconds for pocket,
about a minute a round for sd15.
"""

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.cells import RESULTS
from datagen.datasets.pocket_scenes import PocketScenes
from datagen.files import read_json
from decoders.cache import make_targets
from decoders.checkpoint import Checkpoint, ModelReference, load_checkpoint
from decoders.features import FeatureBundle
from decoders.files import write_atomic
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
    tokenizer = pocket().tokenizers[0]
    unet_class: Any = UNet2DConditionModel  # the stubs of all three know one size only
    vae_class: Any = AutoencoderKL
    pipeline_class: Any = StableDiffusionPipeline
    vae = vae_class(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    )
    pipeline = pipeline_class(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet_class(cross_attention_dim=768, attention_head_dim=8),
        scheduler=DDIMScheduler(clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    device = torch.device("cpu")
    return Checkpoint(pipeline, digest="random", base_digest="random", device=device, dtype=torch.float32)


def measure(shape: str, rounds: int) -> dict[str, Any]:
    side, batch = SHAPES[shape]
    pictures = PocketScenes(count=batch, height=side, width=side)
    perceiver = UnetPerceiver({"pocket": pocket, "sd15": sd15}[shape](), phrases=pictures.taxonomy.phrases)
    tasks: dict[str, dict[str, Any]] = {"semantic": {}, "depth": {}}
    decoder, heads = build_decoder(perceiver.spec, pictures.taxonomy, tasks, DecoderSettings())
    targets = [make_targets(picture, heads) for picture in pictures]
    stacked = {name: torch.stack([target[name] for target in targets]) for name in heads}
    images = np.stack([picture.image for picture in pictures])
    cached = perceiver.perceive(images)
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=1e-3)

    def update(bundle: FeatureBundle) -> None:
        outputs = decoder(bundle)
        losses = [heads[name].loss(outputs[name], stacked[name]) for name in heads]
        torch.autograd.backward(torch.stack(losses).sum())
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    def seconds(live: bool) -> float:
        start = time.perf_counter()
        update(perceiver.perceive(images) if live else cached)
        return time.perf_counter() - start

    seconds(live=False)
    times = [(seconds(live=True), seconds(live=False)) for _ in range(rounds)]
    return {
        "ratio": statistics.median(live / kept for live, kept in times),
        "live_s": statistics.median(live for live, _ in times),
        "cached_s": statistics.median(kept for _, kept in times),
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
    file = RESULTS / "fit_step.json"
    found: dict[str, Any] = read_json(file) if file.exists() else {}
    for shape in chosen.shapes:
        found[shape] = measure(shape, chosen.rounds)
        write_atomic(file, (json.dumps(found, indent=1, sort_keys=True) + "\n").encode())
        print(
            f"{shape}: an update that runs the model takes {found[shape]['ratio']:.1f} x one on cached features "
            f"({found[shape]['live_s']:.2f} s, {found[shape]['cached_s']:.2f} s)"
        )


if __name__ == "__main__":
    main()
