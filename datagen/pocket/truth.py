"""`datagen pocket scenes`: the renderer's truth as a dataset, so that anything can be measured against it."""

from pathlib import Path

from datagen.datasets.pocket_scenes import PocketScenes
from datagen.exporters.coco import CocoWriter
from datagen.meter import meter


def write_scenes(
    folder: Path, *, count: int, seed: int, split: str, held_out: bool = False, close_up: bool = False
) -> None:
    """Render scenes into a COCO dataset; run again, it goes on where it stopped.

    Args:
        seed: number of the first scene within the split.
        held_out: whether the look and the weather that the pocket model never saw occur too.
        close_up: the same streets through a longer lens, with somebody large in each picture.

    Raises:
        UserError: no such split or scenes, or the folder holds something else.
    """
    scenes = PocketScenes(count=count, seed=seed, split=split, held_out=held_out, close_up=close_up)
    info = {"description": "Scenes of the pocket world, as rendered", "scenes_digest": scenes.digest}
    writer = CocoWriter(folder, scenes.taxonomy, info=info)
    with meter("scenes") as tick:
        for index, name in enumerate(scenes.names, start=1):
            if not writer.has(name):
                scene = scenes.scene(name)
                extra = {
                    "caption": scene.captions.sentence,
                    "seed": scene.seed,
                    "look": scene.domain.look,
                    "weather": scene.domain.weather,
                    "time": scene.domain.time,
                }
                writer.add(name, scene.image, scene.labels, extra)
            tick(index, len(scenes.names))
    writer.finish()
