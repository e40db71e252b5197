"""Scenes are rendered once, in seed order, and never mixed with another renderer's."""

from pathlib import Path

import numpy as np
import pytest

from datagen.pocket import scene_cache, world
from decoders.errors import UserError


def test_the_pool_holds_what_the_renderer_draws(scenes: scene_cache.ScenePool) -> None:
    assert len(scenes) == 6
    for index, seed in enumerate(world.SEEDS["test"][:6]):
        scene = world.render_scene(seed)
        assert np.array_equal(scenes.images[index], scene.image)
        assert np.array_equal(scenes.semantic[index], scene.semantic)
        assert np.array_equal(np.isinf(scenes.depth[index]), np.isinf(scene.depth))
        note = scenes.notes[index]
        assert note["seed"] == seed
        assert note["sentence"] == scene.captions.sentence
        assert note["look"] == scene.domain.look
        assert tuple(note["visible"]) == scene.visible


def test_chunks_that_are_there_are_not_rendered_again(scene_folder: Path, scenes: scene_cache.ScenePool) -> None:
    (chunk,) = sorted((scene_folder / "scenes" / scene_cache.world_digest() / "test").glob("*.npz"))
    before = chunk.stat().st_mtime_ns
    scene_cache.render("test", len(scenes), folder=scene_folder, workers=1)
    assert chunk.stat().st_mtime_ns == before


def test_withheld_scenes_are_test_seeds_of_all_looks(
    scene_folder: Path, scenes: scene_cache.ScenePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene_cache.render("withheld", 6, folder=scene_folder, workers=1)
    withheld = scene_cache.load("withheld", 6, folder=scene_folder)
    assert [note["seed"] for note in withheld.notes] == [note["seed"] for note in scenes.notes]
    assert any(world.Domain(look=n["look"], weather=n["weather"], time=n["time"]).held_out for n in withheld.notes)
    monkeypatch.setattr(scene_cache, "world_digest", lambda: "another renderer")
    with pytest.raises(UserError, match=r"scenes of the withheld seeds are missing .*--stages scenes"):
        scene_cache.load("withheld", 6, folder=scene_folder)


def test_more_scenes_than_seeds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="200000 scenes were asked of the judge seeds, which are 100000; ask for fewer"):
        scene_cache.render("judge", 200_000, folder=tmp_path, workers=1)
