"""The gates count what they say they count."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datagen.adaptation import loop
from datagen.pocket import card, gates, judge
from datagen.pocket.scene_cache import ScenePool
from datagen.pocket.world import TAXONOMY, VISIBLE_PIXELS
from decoders.errors import UserError


class Reds(nn.Module):
    """Takes the red channel, 0..255, for the index of a class."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, pictures: Tensor) -> Tensor:
        classes = ((pictures[:, 0] + 1) * 127.5).round().long()
        return nn.functional.one_hot(classes, len(TAXONOMY)).movedim(-1, 1) * self.scale


def _painted(*names: str, pixels: int = VISIBLE_PIXELS) -> np.ndarray:
    """Sky, with so many pixels of each named class."""
    image = np.zeros((32, 32, 3), np.uint8)
    for row, name in enumerate(names):
        image[row, :pixels, 0] = TAXONOMY.names.index(name)
    return image


def test_prompts_ask_for_classes_in_any_number() -> None:
    assert gates.asked_for("a photo of two red cars, three People and buses") == ("car", "bus", "person")
    assert gates.asked_for("a sidewalk, traffic signs, vegetation") == ("sidewalk", "vegetation", "traffic sign")
    assert gates.asked_for("a carpet in the roadside polecat") == ()


def test_obedience_counts_pairs_classes_and_whole_pictures() -> None:
    images = np.stack([_painted("car", "person"), _painted("car", pixels=VISIBLE_PIXELS - 1), _painted("bus")])
    prompts = ["a car and a person", "one car, sky", "something else"]
    found = gates.obedience(Reds(), images, prompts)
    assert found == {"sky": 1.0, "car": 0.5, "person": 1.0, "overall": 0.75, "complete": 0.5}


def test_the_judge_is_scored_by_class(scenes: ScenePool) -> None:
    perfect = ScenePool(
        images=np.repeat(scenes.semantic[..., None] - 1, 3, axis=-1),
        semantic=scenes.semantic,
        depth=scenes.depth,
        notes=scenes.notes,
    )
    table = judge.score(Reds(), perfect)
    assert set(table.values()) == {1.0}
    assert "road" in table
    half = ScenePool(
        images=np.zeros_like(perfect.images), semantic=scenes.semantic, depth=scenes.depth, notes=scenes.notes
    )
    assert judge.score(Reds(), half)["road"] == 0.0
    assert judge.score(Reds(), half)["sky"] == pytest.approx(float((scenes.semantic == 1).mean()))


def test_the_judge_learns(scenes: ScenePool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    schedule = loop.Schedule(updates=18, peak_rate=3e-3, warm_up=2, average_decay=0.7)
    network = judge.train(judge.build(), scenes, folder=tmp_path, schedule=schedule, batch_size=4)
    loaded = judge.load(tmp_path / "checkpoint.safetensors")
    assert np.array_equal(judge.segment(loaded, scenes.images), judge.segment(network, scenes.images))
    assert (judge.segment(loaded, scenes.images) == scenes.semantic).mean() > 0.4


def test_a_missing_judge_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no judge at .*; train it with `datagen pocket train --stages judge`"):
        judge.load(tmp_path / "checkpoint.safetensors")


def test_the_sheet_has_room_for_every_picture() -> None:
    sheet = gates.contact_sheet(np.zeros((5, 128, 128, 3), np.uint8), ["word " * 20] * 5)
    assert sheet.width == 4 * 132
    assert sheet.height > 2 * 128
    assert np.asarray(sheet)[0, 0].tolist() == [0, 0, 0]
    assert np.asarray(sheet)[140:160, :130].min() < 128  # text below


def _report() -> dict[str, Any]:
    shares = {"car": 0.9, "overall": 0.85, "complete": 0.5}
    return {
        "psnr_db": {"psnr film": 28.34, "psnr photo": 26.0, "psnr": 27.17},
        "psnr_withheld_db": 25.55,
        "judge_iou": {"car": 0.8, "mean": 0.81},
        "scenes": 240,
        "prompts": 200,
        "steps": 25,
        "guidance": 3.0,
        "obedience_sentence": {"drawn": shares, "codec": {**shares, "car": 0.93}, "ceiling": {**shares, "car": 0.97}},
        "obedience_phrase": {"drawn": shares | {"sky": 1.0}, "codec": shares, "ceiling": shares},
        "updates": {"vae": 6000, "prior": 16000},
        "parameters": 11_234_567,
        "bytes": 25_000_000,
        "gates": {"psnr": True, "obedience": False},
    }


def test_the_card_says_what_was_measured() -> None:
    text = card.write_card(_report(), look="dashcam", weather="rain")
    assert "| film | 28.3 |" in text
    assert "| withheld: dashcam | 25.6 |" in text or "| withheld: dashcam | 25.5 |" in text
    assert "| car | 90% | 93% | 97% | 90% | 90% | 90% |" in text
    assert "| sky | - | - | - | 100% | - | - |" in text
    assert "- prior: 16,000 updates." in text
    assert "11.2 million parameters, 25.0 MB" in text
    assert "at least\n27; passed)" in text
    assert "for both forms; not passed)" in text
    assert "{" not in text
