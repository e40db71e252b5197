"""Style swap on photographs: does a ControlNet learned from 60 labelled ones keep the layouts of others, in which look?

    python -m benchmarks.style_swap_camvid [--pictures 101] [--updates 1000] [--root ../shared/data/camvid]

The embedded model learns the look of CamVid's 367 train photographs, unlabelled (`configs/adapt.yaml`); beside it a
ControlNet learns from 60 labelled ones, beginning with the shipped one (`configs/camvid_control.yaml`). Drawn are the
label maps of CamVid's `val`, which neither has seen: on the untouched model (`swap`), with half of the photographs'
look and with all of it (`strength`), always as a photograph, clear and by day, from the same noise; and on the
untouched model in the weathers and times of `configs/camvid_restyle.yaml` (`weathers`). `photographs` are those of
`val` themselves after the model's codec: what could be reached.

Two judges that made none of it say the mIoU against the layouts (`adherence`), as neither knows both looks: a U-Net
that learned from the 367 photographs and their labels, and that of the pocket world, which never saw a photograph and
is asked for the classes that both name. Style is the kernel distance (KID x 1000) to the train photographs in the first
one's features.

Cost on one slow core: adapt 200 updates x 3 s, ControlNet 1,000 x 3 s, the judges 700 x 1 s and 3,000 x 0.9 s,
pictures 4 x 101 x 2.5 s: two and a half hours. All of it goes on where it was stopped, in the user's cache folder; the
contact sheets lie there, too, and nothing that comes of photographs is kept elsewhere.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import UInt8
from torch import nn

from benchmarks.cells import Cell, measure_all
from benchmarks.few_shot_reader import CAMVID
from benchmarks.readers import MODEL, model_digest
from benchmarks.style_swap import (
    BATCH,
    GUIDANCE,
    STEPS,
    JudgeFeatures,
    adherence,
    colored,
    distance,
    home,
    row_of,
    the_judge,
    trained_control,
)
from datagen.adaptation import hardware
from datagen.adaptation.adapt import adapt
from datagen.controls import Control
from datagen.datasets import AnnotatedImages, data_digest
from datagen.files import encode_png
from datagen.fit_plan import load_fit_plan
from datagen.generators.controlnet import Controlnet
from datagen.guides import guide_of, resize_guide
from datagen.model import Model
from datagen.plan import load_plan
from datagen.pocket import judge, scene_cache, vae, world
from datagen.pocket.scene_cache import ScenePool
from datagen.records import Guide, Recipe
from decoders.checkpoint import choose_device, load_checkpoint
from decoders.files import write_atomic
from decoders.labels import LabelSet, Taxonomy, semantic_ids, semantic_map
from decoders.references import LoraReference, ModelReference

Ids = UInt8[np.ndarray, "pictures height width"]
"""Semantic ids in the pocket world's taxonomy, 0 where void."""
HEIGHT, WIDTH = 128, 160
"""CamVid's 360 x 480, as near as judges take it."""
STRENGTHS: Mapping[str, float] = {"swap": 0.0, "strength 0.5": 0.5, "strength 1": 1.0, "weathers": 0.0}
"""Setting -> weight of the LoRA that knows the photographs' look."""
RESTYLE = Path("configs/camvid_restyle.yaml")
PLAIN: Mapping[str, Sequence[str]] = {"look": ["a photo"], "weather": ["clear weather"], "time": ["by day"]}
JUDGE_UPDATES = 700


def photographs(root: str, *, split: str) -> AnnotatedImages:
    """All of `train` or `val`."""
    chosen = [f"data.{name}={split}/{name}" for name in ("images", "labels")]
    return load_fit_plan(CAMVID, [f"data.root={root}", "data.names=null", *chosen]).data.build()


def layouts(root: str, count: int, *, style: Mapping[str, Any] | None = None) -> list[Recipe]:
    """The first label maps of `val` with their photographs; in one style, or in those of the config."""
    chosen = [f"source.data.root={root}", "source.data.names=null", "source.times=1"]
    chosen += ["source.data.images=val/images", "source.data.labels=val/labels"]
    chosen += [f"source.height={HEIGHT}", f"source.width={WIDTH}"]
    chosen += [] if style is None else [f"source.style={json.dumps(style)}"]
    source = load_plan(RESTYLE, chosen).source.build(seed=0)
    return [source.recipe(index) for index in range(count)]


def camvid_look(root: str) -> Path:
    """The file of the LoRA."""
    chosen = [f"images={root}/train/images", "prompts=[]", "tracker=none"]
    return adapt(Path("configs/adapt.yaml"), home() / "camvid_look", chosen).result


def camvid_control(root: str, updates: int) -> Path:
    chosen = [f"updates={updates}", f"source.data.root={root}", f"adherence.source.data.root={root}"]
    to = home() / f"camvid_control_{updates}"
    return trained_control(Path("configs/camvid_control.yaml"), to, loras=[camvid_look(root)], chosen=chosen)


@cache
def train_photographs(root: str) -> tuple[Ids, UInt8[np.ndarray, "pictures height width 3"]]:
    """Label maps and photographs at the size of what is drawn."""
    pictures = photographs(root, split="train")
    small = [resize_guide(Guide(labels=each.labels, image=each.image), (HEIGHT, WIDTH)) for each in pictures]
    ids = [in_the_world(each.labels, pictures.taxonomy) for each in small]
    return np.stack(ids), np.stack([cast(Any, each.image) for each in small])


@cache
def photographs_judge(root: str) -> nn.Module:
    """As the pocket world's, but of the train photographs."""
    ids, images = train_photographs(root)
    no_depth = np.zeros(ids.shape, np.float16)  # which no judge asks for
    scenes = ScenePool(images=images, semantic=ids, depth=no_depth, notes=({},) * len(ids))
    network = judge.build().to(choose_device(None))
    folder = home() / f"camvid_judge_{JUDGE_UPDATES}"
    schedule = judge.schedule_of(JUDGE_UPDATES)
    return judge.train(network, scenes, folder=folder, schedule=schedule).eval().requires_grad_(False)


def in_the_world(labels: LabelSet, taxonomy: Taxonomy) -> UInt8[np.ndarray, "height width"]:
    """The classes in the pocket world's words: those that the restyle config gives, else their own names.

    A class that the world does not have becomes void.
    """
    return _ids_in_the_world(taxonomy.names)[semantic_ids(labels)]


@cache
def _ids_in_the_world(names: tuple[str, ...]) -> UInt8[np.ndarray, " ids"]:
    words = load_plan(RESTYLE).source.values()["words"]
    known = list(world.TAXONOMY.names)
    ids = [known.index(word) + 1 if (word := words.get(name, name)) in known else 0 for name in names]
    return np.array([0, *ids], np.uint8)


def measure(cell: Cell, *, root: str) -> Mapping[str, Any]:
    hardware.keep_memory()
    setting = cell["setting"]
    asked = layouts(root, cell["pictures"], style=None if setting == "weathers" else PLAIN)
    taxonomy = photographs(root, split="val").taxonomy
    theirs = np.stack([cast(Any, guide_of(recipe).image) for recipe in asked])
    if setting == "photographs":
        pictures = vae.reconstruct(load_checkpoint(MODEL).vae, theirs)
    else:
        pictures = draw(cell, asked, root, taxonomy)
    ids = np.stack([in_the_world(guide_of(recipe).labels, taxonomy) for recipe in asked])
    shown = slice(0, len(asked), max(1, len(asked) // 8))
    rows = (theirs[shown], [colored(each) for each in ids[shown]], pictures[shown])
    write_atomic(sheet_file(setting), encode_png(np.concatenate([row_of(row) for row in rows])))
    judges = {"photographs": photographs_judge(root), "world": the_judge(*cell["the world's judge"])}
    found: dict[str, float] = {}
    for name, network in judges.items():
        result = adherence(network, pictures, [semantic_map(each) for each in ids])
        found |= {f"adherence, {name}": result["miou"]}
        found |= {f"{key}, {name}": value for key, value in result.items() if key.startswith("iou/")}
    features = JudgeFeatures(judges["photographs"])
    return found | {"KID to photographs": distance(features, pictures, train_photographs(root)[1])}


def sheet_file(setting: str) -> Path:
    """Photographs, label maps, pictures: not for keeping in a repository."""
    return home() / f"camvid_{setting.replace(' ', '_')}.png"


def draw(
    cell: Cell, asked: Sequence[Recipe], root: str, taxonomy: Taxonomy
) -> UInt8[np.ndarray, "pictures height width 3"]:
    weight = STRENGTHS[cell["setting"]]
    loras = (LoraReference(source=str(camvid_look(root)), weight=weight),) if weight else ()
    generator = Controlnet(
        controls=(Control(source=str(camvid_control(root, cell["updates"]))),),
        steps=STEPS,
        guidance=GUIDANCE,
        scheduler="ddim",
        model=Model(ModelReference(source=MODEL.source, loras=loras)),
        taxonomy=taxonomy,
    )
    return np.concatenate([generator.render(asked[at : at + BATCH]) for at in range(0, len(asked), BATCH)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=101, help="of the 101 of val")
    parser.add_argument("--updates", type=int, default=1000, help="of the ControlNet")
    of_the_world = "of the pocket world's judge, as of `benchmarks.style_swap`"
    parser.add_argument("--judge-scenes", type=int, default=5000, help=of_the_world)
    parser.add_argument("--judge-updates", type=int, default=3000, help=of_the_world)
    parser.add_argument("--root", default="../shared/data/camvid")
    parser.add_argument("--train-only", action="store_true", help="look, ControlNet and judges; measure nothing")
    chosen = parser.parse_args()
    if not Path(chosen.root).is_dir():
        parser.error(f"CamVid is not at {chosen.root}; give its folder, with train/ and val/ in it, as --root")
    if chosen.train_only:
        camvid_control(chosen.root, chosen.updates)
        photographs_judge(chosen.root)
        the_judge(chosen.judge_scenes, chosen.judge_updates)
        return
    judged_by = {
        "judge updates": JUDGE_UPDATES,
        "the world's judge": [chosen.judge_scenes, chosen.judge_updates],
        "world": scene_cache.world_digest(),
        "model": model_digest(),
        "pictures": chosen.pictures,
        "data": [data_digest(photographs(chosen.root, split=split))[:16] for split in ("train", "val")],
    }
    drawn = judged_by | {"updates": chosen.updates, "steps": STEPS, "guidance": GUIDANCE}
    cells: list[Cell] = [judged_by | {"setting": "photographs"}]
    cells += [drawn | {"setting": setting} for setting in STRENGTHS]
    report(measure_all("style_swap_camvid", cells, partial(measure, root=chosen.root)))


def report(rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        shown = ("adherence, photographs", "adherence, world", "KID to photographs")
        told = ", ".join(f"{name} {row[name]:.3f}" for name in shown)
        print(f"{row['setting']}, {row['pictures']} pictures: {told}")


if __name__ == "__main__":
    main()
