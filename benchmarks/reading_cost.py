"""What a look at a picture costs at the size of Stable Diffusion 1.5: time and memory of the tap, and of a reading.

    python -m benchmarks.reading_cost [--rounds 5] [--side 512]

Random weights, one picture (time depends on shapes alone), float32 on a CPU, float16 on a GPU. The tapped pass reads
what a reader reads by default (features of the middle and of all up blocks, attention to twelve class phrases); plain
and tapped passes alternate in one process and the median ratio counts. The plain pass has a prompt of 77 tokens, the
tapped one the 44 of a reading here. Extra memory is the difference of the peaks of two processes that make one such
pass. A reading is VAE encoding, the tapped pass and the decoder; it is set against a picture of 25 guided steps, 25
passes of two pictures and VAE decoding, and one of 4 unguided steps, each part timed in the same rounds. Cost on two
cores: 5 rounds x 40 s, 6 GiB of memory.
"""

import argparse
import statistics
import subprocess
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import clock
from benchmarks.fit_step import sd15
from datagen.datasets.pocket_scenes import PocketScenes
from datagen.pocket import world
from decoders.features import FeatureBundle
from decoders.perceivers.unet import Reading, UnetPerceiver
from decoders.phrases import reading_context
from decoders.settings import DecoderSettings
from decoders.training import build_decoder
from decoders.unet_pass import read_unet

GUIDED_STEPS, FEW_STEPS = 25, 4


class Looks:
    """The parts of reading and drawing a picture, each without arguments."""

    def __init__(self, side: int) -> None:
        self.checkpoint = sd15()
        self.perceiver = UnetPerceiver(self.checkpoint, phrases=world.TAXONOMY.phrases)
        tasks: dict[str, dict[str, Any]] = {"semantic": {}, "depth": {}}
        self.decoder, _ = build_decoder(self.perceiver.spec, world.TAXONOMY, tasks, DecoderSettings())
        self.decoder.to(self.checkpoint.device).eval()
        picture = PocketScenes(count=1, height=side, width=side)[0].image
        self.images = np.stack([picture])
        self.cells = side // self.checkpoint.vae_scale_factor
        self.latents = self._random(1, 4, self.cells, self.cells)
        self.context = reading_context(self.checkpoint, world.TAXONOMY.phrases)
        self.prompt = self._random(1, 77, 768)
        self.side = side

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape).to(self.checkpoint.device, self.checkpoint.dtype)

    def plain(self) -> None:
        self._denoise(1)

    def guided(self) -> None:
        self._denoise(2)

    def _denoise(self, batch: int) -> None:
        unet: Any = self.checkpoint.unet
        unet(self.latents.expand(batch, -1, -1, -1), 50, encoder_hidden_states=self.prompt.expand(batch, -1, -1))

    def tapped(self) -> None:
        reading = Reading(phrases=world.TAXONOMY.phrases)
        read_unet(
            self.checkpoint.unet,
            self.latents,
            self.context,
            timestep=reading.timesteps[0],
            layers=reading.layers,
            classes=reading.classes,
            image_size=(self.side, self.side),
        )

    def reading(self) -> None:
        bundle: FeatureBundle = self.perceiver.perceive(self.images)
        self.decoder(bundle.to(torch.float32))

    def drawing(self) -> None:
        """From latents to pixels."""
        vae: Any = self.checkpoint.pipeline.vae
        vae.decode(self.latents)


def peak_gib(part: str, side: int) -> float:
    command = [sys.executable, "-m", "benchmarks.reading_cost", "--only", part, "--side", str(side)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


@torch.inference_mode()
def measure(rounds: int, side: int) -> dict[str, Any]:
    looks = Looks(side)
    parts = {name: getattr(looks, name) for name in ("plain", "tapped", "guided", "reading", "drawing")}
    for part in parts.values():  # once each, not counted: loads what is loaded lazily
        part()
    times = [{name: clock.seconds(part) for name, part in parts.items()} for _ in range(rounds)]
    guided = [GUIDED_STEPS * one["guided"] + one["drawing"] for one in times]
    few = [FEW_STEPS * one["plain"] + one["drawing"] for one in times]
    readings = [one["reading"] for one in times]
    return {
        "tapped / plain pass": statistics.median(one["tapped"] / one["plain"] for one in times),
        "reading / picture of 25 guided steps": statistics.median(
            reading / picture for reading, picture in zip(readings, guided, strict=True)
        ),
        "reading / picture of 4 steps": statistics.median(
            reading / picture for reading, picture in zip(readings, few, strict=True)
        ),
        "seconds": {name: statistics.median(one[name] for one in times) for name in parts},
        "rounds": rounds,
        "side_px": side,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=512, help="pixels")
    parser.add_argument("--only", choices=["plain", "tapped"], help="one pass; prints its peak memory in GiB")
    chosen = parser.parse_args()
    torch.set_num_threads(2)
    if chosen.only:
        with torch.inference_mode():
            looks = Looks(chosen.side)
            clock.forget_peak()
            getattr(looks, chosen.only)()
        print(clock.peak_gib())
        return
    peaks = {part: peak_gib(part, chosen.side) for part in ("plain", "tapped")}
    found = measure(chosen.rounds, chosen.side) | {
        "peak_gib": peaks,
        "extra_gib": peaks["tapped"] - peaks["plain"],
    }
    clock.keep("reading_cost", found)
    print(f"tapped pass / plain pass: {found['tapped / plain pass']:.2f} (aim 1.15)")
    print(f"extra memory at the peak: {found['extra_gib']:.2f} GiB (aim 0.3)")
    print(f"a reading / a picture of {GUIDED_STEPS} guided steps: {found['reading / picture of 25 guided steps']:.1%}")
    print(f"a reading / a picture of {FEW_STEPS} steps: {found['reading / picture of 4 steps']:.1%}")


if __name__ == "__main__":
    main()
