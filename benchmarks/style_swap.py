"""Style swap on the pocket world: are label maps kept, does the style move, what does fusion add and cost?

    python -m benchmarks.style_swap [--pictures 200] [--fused 100] [--only guidance fusion cost rare]
    python -m benchmarks.style_swap --only renders pictures --updates 3000 --scenes 4000    # trained longer, on fewer

Source: streets in the game's look, clear, by day; asked for: photo looks, also in fog and snow, at dusk and at night.
The layouts are scenes of the test seeds, which neither a ControlNet nor the judge has learned from. `swap` is the
ControlNet that was trained beside the model with the game's LoRA, as `configs/control.yaml` says (the shipped one, or
with other `--updates` and `--scenes` one trained here); `no swap` is one trained as long on the same pictures beside
the model itself. All draw the same layouts with the same prompts from the same noise.

By the judge, a U-Net that learned from scenes of its own seeds and had no part in any of it: `adherence`, its mIoU
against the layouts, of all classes and of the small ones; and style, the kernel distance (KID x 1000; arXiv 1801.01401)
in the space of its encoder's channel means to renders of the looks asked for, of the game, and of the withheld look and
weather, which the model has never seen. `renders`, the same streets rendered in the looks asked for, after the codec,
show what could be reached.

`guidance`: what less of it than 3 does to both. `fusion`: what drawing in windows adds to small things, and where it
begins from the first drawing (`in part`). `cost`: denoiser calls and seconds of a picture with these, against
DGInStyle's n + n x 81 guided calls in n steps: the same code with windows that overlap by 7/8 of which none is left
out. `rare`: what crops around rare classes do to the share of pictures that show them.

Cost on two slow cores, one thread each: judge, 3,000 updates x 0.9 s, and `no swap`, 1,200 updates x 3 s, one hour
each, both resumed from the user's cache folder; pictures 6 x 200 x 2 s, fused ones 100 x (15 s + 9 s), the original's
32 x 120 s: 2 hours. Every cell resumes by its content hash, and one that was begun goes on with the batch it was at;
contact sheets lie in the cache folder.
"""

import argparse
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance

from benchmarks.cells import Cell, key_of, measure_all, this_hardware
from benchmarks.claims import ASKED, GAME, HARDER
from benchmarks.readers import MODEL, model_digest
from datagen.adaptation import hardware
from datagen.adaptation.adapt import adapt
from datagen.adaptation.control import control
from datagen.controls import Control, Fusion, control_digest
from datagen.datasets.pocket_scenes import PocketScenes
from datagen.files import encode_png
from datagen.generators import _controlled_unet
from datagen.generators.controlnet import Controlnet
from datagen.guides import guide_of
from datagen.model import Model
from datagen.pocket import judge, scene_cache, vae, world
from datagen.pocket.workshop import Workshop
from datagen.rare_classes import RareClasses
from datagen.records import Recipe
from datagen.sources.layouts import Layouts
from datagen.sources.templates import Phrase
from decoders.checkpoint import load_checkpoint
from decoders.features import to_pixels
from decoders.files import atomic_file, cache_folder, write_atomic
from decoders.labels import DenseMap, categorical, semantic_ids, semantic_map
from decoders.references import LoraReference, ModelReference, locate
from decoders.tasks.semantic import SemanticScore

SMALL = ("pole", "traffic sign", "bicycle", "person")
STEPS = 25
BATCH = 4
GUIDANCE = 3.0
GUIDANCES = (1.0, 1.5, GUIDANCE)
SHIPPED = "package://datagen.pocket/control"
SHIPPED_AFTER = (1200, 20_000)
"""Updates, and scenes of the game."""
STYLE = {
    "look": ("a photo", "a film photo"),
    "weather": ("clear weather", "fog", "snow"),
    "time": ("by day", "at dusk", "at night"),
}
"""The words for `ASKED`."""
REFERENCES: Mapping[str, Mapping[str, Any]] = {"asked": ASKED, "game": GAME, "withheld": HARDER["withheld"]}
REFERENCE_SCENES = 500
_FIRST_REFERENCE = 10_000
"""Of the test seeds, far from the layouts."""
FUSION = Fusion(supersampling=2, overlap=0.5, keep_above=0.08)
IN_PART = FUSION.model_copy(update={"strength": 0.6})
"""Begins from the first drawing: 25 looks and 15 at each window, below a tenth of the original's."""
ORIGINAL = Fusion(supersampling=2, overlap=0.875, keep_above=0.08)
"""Windows of 16 latent cells at steps of 2 over 32 x 32: 81, as those of 64 at steps of 8 over 128 x 128."""


def home() -> Path:
    return cache_folder() / "benchmarks" / "style_swap"


def game_look(scenes: int) -> Path:
    """The file of the LoRA."""
    chosen = ["prompts=[]", f"data.count={scenes}"]
    return adapt(Path("configs/game_look.yaml"), home() / f"look_{scenes}", chosen).result


def trained_control(plan: Path, to: Path, *, loras: Sequence[Path], chosen: Sequence[str]) -> Path:
    """A ControlNet learned beside the model with these LoRA files; judges measure it afterwards, no reader meanwhile.

    Args:
        chosen: more overrides of the plan.
    """
    beside = json.dumps([{"source": str(lora)} for lora in loras])
    unjudged = ["adherence.reader=null", "adherence.fit=null", "tracker=none"]
    return control(plan, to, [*chosen, f"model.loras={beside}", *unjudged]).control


def control_of(setting: str, updates: int, scenes: int) -> str:
    """Where the ControlNet of a setting lies; trained first where it is not the shipped one."""
    swaps = setting != "no swap"
    if swaps and (updates, scenes) == SHIPPED_AFTER:
        return SHIPPED
    to = home() / f"{'swap' if swaps else 'direct'}_{updates}_{scenes}"
    loras = [game_look(scenes)] if swaps else []
    chosen = [f"updates={updates}", f"source.data.count={scenes}"]
    return str(trained_control(Path("configs/control.yaml"), to, loras=loras, chosen=chosen))


@cache
def the_judge(scenes: int, updates: int) -> nn.Module:
    workshop = Workshop(folder=cache_folder() / "pocket", judge_scenes=scenes, updates={"judge": updates})
    own = home() / f"judge_{scenes}_{updates}_{scene_cache.world_digest()}"
    return workshop.train_judge(own).eval().requires_grad_(False)


class JudgeFeatures(nn.Module):
    """The mean of each channel of each stage of the judge's encoder: early ones know colours, late ones things."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.encoder = cast(Any, network).encoder

    def forward(self, pictures: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels"]:
        return torch.cat([stage.mean(dim=(2, 3)) for stage in self.encoder(pictures)[1:]], dim=1)


def layouts(count: int, *, rare_classes: RareClasses | None = None) -> Sequence[Recipe]:
    style: Any = {name: tuple(Phrase(text=text) for text in texts) for name, texts in STYLE.items()}
    source = Layouts(
        data=PocketScenes(split="test", count=count, **GAME),
        rare_classes=rare_classes,
        prompt="{look} of a street in {weather} {time}, {classes}",
        style=style,
        seed=0,
    )
    return [source.recipe(index) for index in range(count)]


@cache
def reference(name: str) -> UInt8[np.ndarray, "pictures height width 3"]:
    scenes = PocketScenes(split="test", seed=_FIRST_REFERENCE, count=REFERENCE_SCENES, **REFERENCES[name])
    return np.stack([scene.image for scene in scenes])


def distance(features: nn.Module, pictures: np.ndarray, others: np.ndarray) -> float:
    """KID x 1000: the mean over 50 subsets of 100 pictures, or of all where there are fewer."""
    torch.manual_seed(0)
    device = next(features.parameters()).device
    metric = KernelInceptionDistance(feature=features, subsets=50, subset_size=min(100, len(pictures))).to(device)
    for images, real in ((pictures, False), (others, True)):
        for start in range(0, len(images), 32):
            metric.update(to_pixels(images[start : start + 32], device), real=real)
    return 1000 * float(metric.compute()[0])


def adherence(
    network: nn.Module, pictures: UInt8[np.ndarray, "pictures height width 3"], asked: Sequence[DenseMap]
) -> dict[str, float]:
    """What a judge finds in pictures, against the layouts in the pocket world's classes."""
    score = SemanticScore(world.TAXONOMY)
    for wanted, found in zip(asked, judge.segment(network, pictures), strict=True):
        score.add(semantic_map(found), wanted)
    return score.result()


def judged(network: nn.Module, recipes: Sequence[Recipe], pictures: np.ndarray) -> dict[str, float]:
    result = adherence(network, pictures, [categorical(guide_of(recipe).labels) for recipe in recipes])
    small = [result[f"iou/{name}"] for name in SMALL if f"iou/{name}" in result]
    features = JudgeFeatures(network)
    styles = {f"KID to {name}": distance(features, pictures, reference(name)) for name in REFERENCES}
    ious = {name: value for name, value in result.items() if name.startswith("iou/")}
    return {"adherence": result["miou"], "small adherence": float(np.mean(small)), **styles, **ious}


class Calls:
    """Counts the guided looks at one latent picture or window that a UNet is asked for."""

    def __init__(self, unet: nn.Module) -> None:
        self.rows = 0
        self._hook = unet.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _unet: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        del named
        self.rows += len(arguments[0])

    def close(self) -> float:
        self._hook.remove()
        return self.rows / 2


def every_window() -> AbstractContextManager[object]:
    """Look also at windows whose result is overwritten, as the original does."""
    return mock.patch.object(_controlled_unet, "_is_settled", return_value=False)


def draw(cell: Cell, recipes: Sequence[Recipe]) -> tuple[np.ndarray, dict[str, float]]:
    """Pictures of a setting, and calls and seconds of one.

    Each batch is kept until the cell is measured: one of the original's takes minutes on a CPU.
    """
    setting = cell["setting"]
    scenes = cell.get("scenes", SHIPPED_AFTER[1])
    loras = (LoraReference(source=str(game_look(scenes))),) if setting == "source model" else ()
    model = Model(ModelReference(source=MODEL.source, loras=loras))
    source = control_of(setting, cell["updates"], scenes)
    generator = Controlnet(
        controls=(Control(source=source),),
        fusion={"fusion": FUSION, "fusion in part": IN_PART, "original": ORIGINAL}.get(setting),
        steps=cell["steps"],
        guidance=cell["guidance"],
        scheduler="ddim",
        model=model,
        taxonomy=world.TAXONOMY,
    )
    batches: list[Mapping[str, np.ndarray]] = []
    for at in range(0, len(recipes), BATCH):
        kept = drawn_folder(cell) / f"{at}.npz"
        if not kept.exists():
            with every_window() if setting == "original" else nullcontext():
                draw_batch(kept, generator, model, recipes[at : at + BATCH])
        with np.load(kept) as stored:
            batches.append(dict(stored))
    costs = {name: float(sum(batch[name] for batch in batches)) / len(recipes) for name in ("calls", "seconds")}
    return np.concatenate([batch["pictures"] for batch in batches]), costs


def draw_batch(kept: Path, generator: Controlnet, model: Model, recipes: Sequence[Recipe]) -> None:
    """Write `pictures` as NPZ, with the `calls` and `seconds` that they took together."""
    calls = Calls(cast(nn.Module, model.checkpoint.unet))
    begun = time.perf_counter()
    pictures = generator.render(recipes)
    seconds = time.perf_counter() - begun
    with atomic_file(kept) as file:
        np.savez(file, pictures=pictures, calls=calls.close(), seconds=seconds)


def drawn_folder(cell: Cell) -> Path:
    """Where the batches of a cell lie while it is measured; which judge reads them makes no difference."""
    drawing = {name: value for name, value in cell.items() if not name.startswith("judge")}
    return home() / f"drawn_{key_of(drawing | {'hardware': this_hardware()})}"


def measure(cell: Cell) -> Mapping[str, Any]:
    hardware.keep_memory()
    if cell["part"] == "rare":
        return measure_rare(cell)
    recipes = layouts(cell["pictures"])
    network = the_judge(cell["judge scenes"], cell["judge updates"])
    if cell["part"] == "renders":
        return judged(network, recipes, rendered(cell, recipes))
    pictures, costs = draw(cell, recipes)
    maps = [colored(semantic_ids(guide_of(recipe).labels)) for recipe in recipes[:8]]
    sheet = np.concatenate([row_of(maps), row_of(pictures[:8])])
    write_atomic(home() / f"{cell['setting']}_{cell['guidance']:g}.png", encode_png(sheet))
    result = judged(network, recipes, pictures) | costs
    shutil.rmtree(drawn_folder(cell))  # code may change before these are wanted again
    return result


def rendered(cell: Cell, recipes: Sequence[Recipe]) -> UInt8[np.ndarray, "pictures height width 3"]:
    """The streets of the layouts in the looks asked for or in their own, after the model's codec."""
    scenes = PocketScenes(split="test", count=cell["pictures"], **REFERENCES[cell["setting"]])
    images = [scenes.load(recipe.attributes["source"]).image for recipe in recipes]
    return vae.reconstruct(load_checkpoint(MODEL).vae, np.stack(images))


def measure_rare(cell: Cell) -> dict[str, float]:
    """Share of the layouts that show each small class, taken in turn and around rare classes."""
    found: dict[str, float] = {}
    rules = {"in turn": None, "rare": RareClasses()}
    for name, rule in rules.items():
        recipes = layouts(cell["pictures"], rare_classes=rule)
        pixels = [np.bincount(semantic_ids(guide_of(recipe).labels).ravel(), minlength=13) for recipe in recipes]
        shown = (np.stack(pixels) >= world.VISIBLE_PIXELS).mean(axis=0)
        found |= {f"{name} {each}": float(shown[world.TAXONOMY.names.index(each) + 1]) for each in (*SMALL, "bus")}
    return found


def colored(ids: UInt8[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width 3"]:
    """A label map of the pocket world in its colours."""
    return np.array([(0, 0, 0), *world.TAXONOMY.colors], np.uint8)[ids]


def row_of(pictures: Sequence[np.ndarray] | np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
    return np.concatenate(list(pictures), axis=1)


def all_cells(chosen: argparse.Namespace) -> list[Cell]:
    judged_by = {
        "judge scenes": chosen.judge_scenes,
        "judge updates": chosen.judge_updates,
        "world": scene_cache.world_digest(),
        "model": model_digest(),
    }
    drawn = judged_by | {"updates": chosen.updates, "steps": STEPS, "guidance": GUIDANCE}
    if (chosen.updates, chosen.scenes) == SHIPPED_AFTER:
        drawn["control"] = control_digest(locate(SHIPPED, None, what="ControlNet", files=()))[:16]
    else:
        drawn["scenes"] = chosen.scenes
    cells: list[Cell] = [
        judged_by | {"part": "renders", "setting": name, "pictures": chosen.pictures} for name in ("game", "asked")
    ]
    whole = drawn | {"part": "pictures", "pictures": chosen.pictures}
    cells += [whole | {"setting": name} for name in ("swap", "source model", "no swap")]
    guided = whole | {"part": "guidance", "setting": "swap"}
    cells += [guided | {"guidance": guidance} for guidance in GUIDANCES]
    # What is compared with few pictures has a plain side of as many.
    for part, counts, settings in (
        ("fusion", chosen.fused, ("swap", "fusion", "fusion in part")),
        ("cost", chosen.original, ("swap", "fusion", "fusion in part", "original")),
    ):
        cells += [drawn | {"part": part, "setting": name, "pictures": counts} for name in settings]
    cells.append({"part": "rare", "pictures": 2 * chosen.pictures, "world": judged_by["world"]})
    return [cell for cell in cells if cell["part"] in chosen.only]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["renders", "pictures", "guidance", "fusion", "cost", "rare"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--fused", type=int, default=100, help="pictures drawn with fusion, and again without")
    parser.add_argument("--original", type=int, default=32, help="pictures drawn as DGInStyle does")
    of_controls = "of the ControlNets; with others than those of the shipped one, one like it is trained"
    parser.add_argument("--updates", type=int, default=SHIPPED_AFTER[0], help=of_controls)
    parser.add_argument("--scenes", type=int, default=SHIPPED_AFTER[1], help="of the game, that ControlNets learn from")
    parser.add_argument("--judge-scenes", type=int, default=5000)
    parser.add_argument("--judge-updates", type=int, default=3000)
    parser.add_argument("--train-only", choices=["judge", "swap", "no swap"], help="make this, and measure nothing")
    chosen = parser.parse_args()
    if chosen.train_only == "judge":
        the_judge(chosen.judge_scenes, chosen.judge_updates)
    elif chosen.train_only:
        control_of(chosen.train_only, chosen.updates, chosen.scenes)
    else:
        report(measure_all("style_swap", all_cells(chosen), measure))


def report(rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        kept = ("adherence", "small adherence", "calls", "seconds")
        shown = {name: value for name, value in row.items() if name in kept or name.startswith("KID")}
        if row["part"] == "rare":
            shown = {name: row[name] for name in row if name.startswith(("in turn", "rare "))}
        told = ", ".join(f"{name} {value:.3f}" for name, value in shown.items())
        setting = row.get("setting", "") + (f", guidance {row['guidance']}" if "guidance" in row else "")
        print(f"{row['part']}, {setting}, {row['pictures']} pictures: {told}")


if __name__ == "__main__":
    main()
