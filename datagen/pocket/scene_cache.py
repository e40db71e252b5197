"""Rendered scenes, made once by worker processes and kept in the user's cache folder in chunks."""

import hashlib
import json
import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float16, UInt8

from datagen.pocket import world
from decoders.errors import UserError
from decoders.files import atomic_file

CHUNK = 250
"""Scenes per file: about 25 MB, and ten seconds of work at most lost when a worker is killed."""

CAPTION_FORMS = ("sentence", "classes", "phrase")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenePool:
    """Many scenes side by side, in seed order."""

    images: UInt8[np.ndarray, "scenes height width 3"]
    semantic: UInt8[np.ndarray, "scenes height width"]
    """Ids 1..K of the world's taxonomy."""
    depth: Float16[np.ndarray, "scenes height width"]
    """Metres along the optical axis, infinite in the sky."""
    notes: tuple[Mapping[str, Any], ...]
    """Per scene: seed, look, weather, time, visible (class names) and one text for each of `CAPTION_FORMS`."""

    def __len__(self) -> int:
        return len(self.notes)


def _held_out(role: str) -> bool:
    """Only the judge learns the looks and weathers that the prior never sees; `withheld` scenes test them."""
    return role in ("judge", "withheld")


@cache
def world_digest() -> str:
    """What the renderer draws now, as 16 hexadecimal digits.

    Taken from pictures, not from source text: a comment must not cost an hour of rendering, and another numpy that
    draws other pixels must.
    """
    digest = hashlib.sha256()
    for role, seeds in sorted(world.SEEDS.items()):
        for seed in seeds[:8]:
            scene = world.render_scene(seed, held_out=_held_out(role))
            for array in (scene.image, scene.semantic, scene.depth):
                digest.update(np.ascontiguousarray(array).tobytes())
            digest.update(json.dumps(_note(scene), sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _note(scene: world.Scene) -> dict[str, Any]:
    note = {"seed": scene.seed, "look": scene.domain.look, "weather": scene.domain.weather, "time": scene.domain.time}
    return note | {"visible": list(scene.visible)} | {form: getattr(scene.captions, form) for form in CAPTION_FORMS}


def _render_chunk(path: Path, seeds: range, held_out: bool) -> int:
    scenes = [world.render_scene(seed, held_out=held_out) for seed in seeds]
    with atomic_file(path) as file:
        np.savez(
            file,
            images=np.stack([scene.image for scene in scenes]),
            semantic=np.stack([scene.semantic for scene in scenes]),
            depth=np.stack([scene.depth for scene in scenes]).astype(np.float16),
            notes=np.frombuffer(json.dumps([_note(scene) for scene in scenes]).encode(), np.uint8),
        )
    return len(scenes)


def _chunks(role: str, count: int, folder: Path) -> list[tuple[Path, range]]:
    seeds = world.SEEDS["test" if role == "withheld" else role]
    if count > len(seeds):
        raise UserError(f"{count} scenes were asked of the {role} seeds, which are {len(seeds)}; ask for fewer")
    home = folder / "scenes" / world_digest() / role
    parts = [seeds[start : min(start + CHUNK, count)] for start in range(0, count, CHUNK)]
    return [(home / f"{part.start:09d}_{len(part):04d}.npz", part) for part in parts]


def render(role: str, count: int, *, folder: Path, workers: int) -> None:
    """Render the first `count` scenes of a seed range, skipping chunks that are there; prints its progress."""
    missing = [(path, seeds) for path, seeds in _chunks(role, count, folder) if not path.exists()]
    if not missing:
        return
    done, total = 0, sum(len(seeds) for _, seeds in missing)
    # spawn: a forked child of a process that has used torch's threads can hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        jobs = [pool.submit(_render_chunk, path, seeds, _held_out(role)) for path, seeds in missing]
        for job in as_completed(jobs):
            done += job.result()
            print(f"scenes {role}: {done}/{total}", flush=True)


def load(role: str, count: int, *, folder: Path) -> ScenePool:
    """The first `count` scenes of a seed range, all of which must have been rendered."""
    columns: dict[str, list[np.ndarray]] = {"images": [], "semantic": [], "depth": []}
    notes: list[Mapping[str, Any]] = []
    for path, _ in _chunks(role, count, folder):
        if not path.exists():
            raise UserError(
                f"scenes of the {role} seeds are missing ({path} not found); run `datagen pocket train --stages scenes`"
            )
        with np.load(path) as chunk:
            for name, parts in columns.items():
                parts.append(chunk[name])
            notes += json.loads(chunk["notes"].tobytes())
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    return ScenePool(images=joined["images"], semantic=joined["semantic"], depth=joined["depth"], notes=tuple(notes))
