"""`datagen pocket train`: makes the pocket model stage by stage."""

from collections.abc import Sequence
from pathlib import Path

import torch

from datagen.adaptation import hardware
from datagen.pocket import card
from datagen.pocket.workshop import WEIGHTS, Workshop
from decoders.errors import UserError
from decoders.files import cache_folder


def train(
    stages: Sequence[str] = ("scenes", "vae", "vae_decoder", "latents", "prior"),
    *,
    folder: Path | None = None,
    weights: Path = WEIGHTS,
    scenes: int = 12_000,
    judge_scenes: int = 5_000,
    workers: int = 2,
    threads: int = 2,
    updates: dict[str, int] | None = None,
) -> None:
    """Run stages one after another; each goes on where it was left, and does nothing when it is done.

    Args:
        stages: some of scenes, vae, vae_decoder, latents, prior, judge, export.
        folder: checkpoints, scenes, latents and logs; the user's cache folder unless given.
        weights: where `export` writes, and where a warm start comes from when the cache is empty.
        scenes: how many scenes of the prior seeds the codec and the prior learn from.
        updates: stage name -> number of updates in all; larger than before trains longer.
    """
    workshop = Workshop(
        folder=folder or cache_folder() / "pocket",
        weights=weights,
        scenes=scenes,
        judge_scenes=judge_scenes,
        workers=workers,
        updates=updates,
    )
    made = {
        "scenes": workshop.render_scenes,
        "vae": workshop.train_vae,
        "vae_decoder": workshop.train_vae_decoder,
        "latents": workshop.encode_scenes,
        "prior": workshop.train_prior,
        "judge": workshop.train_judge,
        "export": lambda: card.export(workshop),
    }
    for name in (*stages, *(updates or {})):
        if name not in made:
            raise UserError(f"unknown stage {name!r}; there are {', '.join(made)}")
    hardware.keep_memory()
    torch.set_num_threads(threads)
    for name in stages:
        print(f"stage {name}", flush=True)
        made[name]()
