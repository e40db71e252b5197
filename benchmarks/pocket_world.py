"""Guard of the pocket world: it can be learned from many scenes, though not from colour alone.

    python -m benchmarks.pocket_world [--scenes 2000] [--updates 3000]

A U-Net (the judge's architecture, other scenes) learns from 2,000 scenes of the few-shot seeds; its mIoU on 200 scenes
of the test seeds must exceed 0.80. That colour alone stays below 0.30 is asserted in the tests.
Cost on two cores: 3,000 updates x 0.4 s = 20 minutes; checkpoints in the user's cache folder, so it resumes.
"""

import argparse

import torch

from benchmarks.cells import Cell, measure_all
from datagen.pocket import judge, loop, scene_cache
from decoders.files import cache_folder


def measure(cell: Cell) -> dict[str, float]:
    folder = cache_folder() / "pocket"
    network = judge.train(
        judge.build(),
        _scenes("few_shot", cell["scenes"]),
        folder=folder / "guard",
        schedule=loop.Schedule(updates=cell["updates"], peak_rate=1e-3, average_decay=0.998),
    )
    return judge.score(network, _scenes("test", 200))


def _scenes(role: str, count: int) -> scene_cache.ScenePool:
    folder = cache_folder() / "pocket"
    scene_cache.render(role, count, folder=folder, workers=2)
    return scene_cache.load(role, count, folder=folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=2000)
    parser.add_argument("--updates", type=int, default=3000)
    chosen = parser.parse_args()
    torch.set_num_threads(2)
    loop.keep_memory()
    cell = {"scenes": chosen.scenes, "updates": chosen.updates, "world": scene_cache.world_digest()}
    for row in measure_all("pocket_world", [cell], measure):
        for name, value in row.items():
            print(f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}")


if __name__ == "__main__":
    main()
