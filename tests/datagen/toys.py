"""A factory without weights: pictures of noise, labels by brightness. Plans reach it as someone else's plug-ins."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from annotated_types import Ge
from jaxtyping import UInt8

from datagen.records import Recipe, Sample
from decoders.labels import LabelSet, Taxonomy, metric_depth, semantic_map

TAXONOMY = Taxonomy(
    names=("sky", "road", "car"), is_thing=(False, False, True), colors=((70, 130, 180), (128, 64, 128), (0, 0, 142))
)


class Noise:
    """Generator: a coarse grid of random colours, wider than high."""

    def __init__(self, *, side: Annotated[int, Ge(8)] = 16, pause: Annotated[float, Ge(0)] = 0.0) -> None:
        self._side = side
        self._pause = pause
        self.batches: list[int] = []

    def render(self, recipes: Sequence[Recipe]) -> UInt8[np.ndarray, "batch height width 3"]:
        self.batches.append(len(recipes))
        time.sleep(self._pause)
        return np.stack([self._draw(recipe.seed) for recipe in recipes])

    def _draw(self, seed: int) -> UInt8[np.ndarray, "height width 3"]:
        cells = np.random.default_rng(seed).integers(0, 256, (2, 3, 3), dtype=np.uint8)
        return cells.repeat(self._side // 2, axis=0).repeat(self._side // 2, axis=1)


class Brightness:
    """Labeller: dark is road, bright is sky, what lies between is a car; certain where far from a threshold."""

    taxonomy = TAXONOMY

    def __init__(self, *, depth: bool = True) -> None:
        self._depth = depth

    def label(self, recipes: Sequence[Recipe], images: UInt8[np.ndarray, "batch height width 3"]) -> Sequence[LabelSet]:
        if "TOYS_LOG" in os.environ:  # which process made what
            with Path(os.environ["TOYS_LOG"], os.environ.get("RANK", "alone")).open("a") as log:
                log.writelines(f"{recipe.id}\n" for recipe in recipes)
        return [self._label(image) for image, _ in zip(images, recipes, strict=True)]

    def _label(self, image: UInt8[np.ndarray, "height width 3"]) -> LabelSet:
        grey = image.mean(axis=2)
        ids = np.where(grey < 100, 2, np.where(grey < 150, 3, 1)).astype(np.uint8)
        confidence = (np.minimum(abs(grey - 100), abs(grey - 150)) / 105).clip(0, 1).astype(np.float32)
        labels = {"semantic": semantic_map(ids, confidence)}
        return labels | ({"depth": metric_depth((grey + 1).astype(np.float32) / 4)} if self._depth else {})


def command(site: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    """`python -m datagen ...` in a process of its own, with these plug-ins installed in `site`."""
    return subprocess.Popen(
        [sys.executable, "-m", "datagen", *map(str, arguments)],
        env=environment(site),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def in_two_processes(site: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`accelerate launch ... -m datagen ...`: two processes that share the work."""
    launch = ["accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2"]
    return subprocess.run(
        [sys.executable, "-m", *launch, "--main_process_port", "0", "-m", "datagen", *map(str, arguments)],
        env=environment(site),
        capture_output=True,
        text=True,
        check=False,
    )


def environment(site: Path) -> dict[str, str]:
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    folders = [str(site), str(Path(__file__).parents[2]), *filter(None, known)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}


def sample(prompt: str = "", *, seed: int = 0, wanted: tuple[str, ...] = ()) -> Sample:
    """One finished sample."""
    recipe = Recipe(id="00000000", prompt=prompt, seed=seed, wanted=wanted)
    image = Noise().render([recipe])[0]
    return Sample(recipe=recipe, image=image, labels=Brightness().label([recipe], image[None])[0])


def install(folder: Path) -> Path:
    """Make a folder look like site-packages with a package that offers these plug-ins; returns it, for PYTHONPATH."""
    information = folder / "someone_elses_toys-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: someone-elses-toys\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(
        "[datagen.generators]\nnoise = tests.datagen.toys:Noise\n"
        "[datagen.labellers]\nbrightness = tests.datagen.toys:Brightness\n"
    )
    return folder


def plan_values(run: Path, **changes: Any) -> dict[str, Any]:
    """A plan of these plug-ins, small enough for a test."""
    values: dict[str, Any] = {
        "run": str(run),
        "target": 6,
        "shard_size": 4,
        "batch_size": 2,
        "source": {
            "kind": "templates",
            "templates": ["a {look} of {things}"],
            "slots": {"look": ["photo", "film"], "things": [{"text": "two cars", "wants": ["car"]}, "a road"]},
        },
        "generator": {"kind": "noise"},
        "labeller": {"kind": "brightness"},
        "filters": [{"kind": "class_coverage"}],
    }
    return {**values, **changes}


def write_plan(file: Path, values: Mapping[str, Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True), encoding="utf-8")
    return file
