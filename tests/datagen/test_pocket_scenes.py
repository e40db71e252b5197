"""Rendered scenes as annotated pictures and as a dataset."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from datagen.cli import app
from datagen.datasets.coco import Coco
from datagen.datasets.pocket_scenes import PocketScenes
from datagen.pocket import world
from datagen.pocket.world import SEEDS, render_scene
from datagen.validation import validate
from decoders.errors import UserError
from decoders.labels import DenseMap, semantic_ids
from tests.datagen.made_up import tree


def test_scenes_are_the_worlds_own():
    scenes = PocketScenes(count=3, seed=7, split="test")
    assert len(scenes) == 3
    expected = render_scene(SEEDS["test"][8])
    np.testing.assert_array_equal(scenes[1].image, expected.image)
    assert scenes[1].labels.keys() == {"semantic", "depth", "instances", "normals"}


def test_size_and_withheld_domains_can_be_chosen():
    wide = PocketScenes(count=1, height=64, width=96)
    assert wide[0].image.shape == (64, 96, 3)
    small = partial(PocketScenes, count=6, height=16, width=16)
    all_of_them, seen = small(held_out=True), small()
    assert any(all_of_them.scene(name).domain.held_out for name in all_of_them.names)
    assert not any(seen.scene(name).domain.held_out for name in seen.names)


def test_looks_weathers_and_times_can_be_chosen_for_the_same_streets():
    chosen = PocketScenes(look=("game",), weather=("rain", "snow"), count=5, height=16, width=16)
    own = PocketScenes(count=5, height=16, width=16)
    domains = [chosen.scene(name).domain for name in chosen.names]
    assert {domain.look for domain in domains} == {"game"}
    assert {domain.weather for domain in domains} == {"rain", "snow"}
    assert [domain.time for domain in domains] == [own.scene(name).domain.time for name in own.names]
    for one, other in zip(chosen, own, strict=True):
        assert (semantic_ids(one.labels) == semantic_ids(other.labels)).all()


def test_scenes_of_a_renderer_that_changed_are_others(monkeypatch: pytest.MonkeyPatch):
    before = PocketScenes().digest
    monkeypatch.setattr(world, "CHANGES", ("rounder cars",))
    assert PocketScenes().digest != before


def test_the_digest_tells_other_scenes():
    digests = {
        PocketScenes().digest,
        PocketScenes(seed=1).digest,
        PocketScenes(count=21).digest,
        PocketScenes(split="test").digest,
        PocketScenes(held_out=True).digest,
        PocketScenes(width=160).digest,
        PocketScenes(look=("game",)).digest,
        PocketScenes(look=("photo",)).digest,
    }
    assert len(digests) == 8
    assert PocketScenes().digest in digests


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"look": ("gaem",)}, r"look: unknown 'gaem'; did you mean 'game'\? known: dashcam, film, game, photo"),
        ({"split": "training"}, r"unknown split 'training'; .*few_shot"),
        ({"seed": 99_999, "count": 2}, r"scenes 99999..100000 of split 'few_shot' do not exist"),
    ],
)
def test_scenes_that_do_not_exist(arguments: dict[str, object], told: str):
    with pytest.raises(UserError, match=told):
        PocketScenes(**arguments)  # pyright: ignore[reportArgumentType]


def test_the_verb_writes_the_truth_and_goes_on(tmp_path: Path):
    def scenes(count: int, to: Path) -> str:
        arguments = ["pocket", "scenes", "--count", str(count), "--seed", "3", "--to", str(to)]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        return done.output

    assert "2 scenes in" in scenes(2, tmp_path / "out é")
    first = tree(tmp_path / "out é")
    scenes(2, tmp_path / "out é")
    assert tree(tmp_path / "out é") == first
    report = validate(tmp_path / "out é")
    assert report.sound
    assert report.self_score == pytest.approx(1.0)
    written, truth = Coco(root=tmp_path / "out é")[0], PocketScenes(count=1, seed=3)[0]
    np.testing.assert_array_equal(written.image, truth.image)
    for task in ("semantic", "depth"):
        ours, theirs = written.labels[task], truth.labels[task]
        assert isinstance(ours, DenseMap)
        assert isinstance(theirs, DenseMap)
        np.testing.assert_array_equal(ours.valid, theirs.valid)
        np.testing.assert_allclose(ours.values, theirs.values, atol=1 / 512)
    done = CliRunner().invoke(app, ["pocket", "scenes", "--count", "3", "--to", str(tmp_path / "out é")])
    assert done.exit_code == 2
    assert "another folder" in done.stderr


def test_updates_of_training_stages_are_checked():
    done = CliRunner().invoke(app, ["pocket", "train", "--updates", "prior:300"])
    assert done.exit_code == 2
    assert "is not of the form stage=number" in done.stderr
