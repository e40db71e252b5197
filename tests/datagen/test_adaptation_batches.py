"""Pictures, crops and batches of a training."""

import hashlib
from collections import Counter
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datagen.adaptation.batches import Ahead, Crops, PictureBatches
from datagen.adaptation.pictures import Pictures, pictures_of_dataset, pictures_of_folder
from datagen.datasets.label_folder import LabelFolder
from decoders.errors import UserError
from decoders.peers import Alone


class Half(Alone):
    """One of two processes."""

    count = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank


def flat(count: int, *, captions: bool = False) -> Pictures:
    """Pictures of one grey each, whose value is their number."""
    return Pictures(
        load=lambda index: np.full((20, 30, 3), index, np.uint8),
        captions=tuple(f"number {index}" if captions else "" for index in range(count)),
        digest="",
    )


@settings(max_examples=60)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    draws=st.lists(st.floats(0, 1, exclude_max=True), min_size=4, max_size=4),
    scale=st.floats(0.05, 1),
)
def test_a_crop_has_its_size_whatever_the_picture(height: int, width: int, draws: list[float], scale: float):
    picture = np.full((height, width, 3), 77, np.uint8)
    crop = Crops(size=(16, 24), scales=(scale,), flip=True).cut(picture, draws)
    assert crop.shape == (16, 24, 3)
    assert (crop == 77).all()  # nothing from outside of the picture


def test_at_full_scale_pixels_are_the_pictures_own_and_every_place_is_reached():
    picture = np.arange(6 * 7 * 3, dtype=np.uint8).reshape(6, 7, 3)
    crops = Crops(size=(4, 4))
    found: set[tuple[int, int]] = set()
    for top in np.linspace(0, 0.999, 12):
        for left in np.linspace(0, 0.999, 12):
            crop = crops.cut(picture, [0.0, float(top), float(left), 0.0])
            y, x = divmod(int(crop[0, 0, 0]) // 3, 7)
            np.testing.assert_array_equal(crop, picture[y : y + 4, x : x + 4])
            found.add((y, x))
    assert found == {(y, x) for y in range(3) for x in range(4)}
    mirrored = Crops(size=(4, 4), flip=True).cut(picture, [0.0, 0.0, 0.0, 0.2])
    np.testing.assert_array_equal(mirrored, picture[:4, 3::-1])


def test_scales_shrink_and_a_small_picture_grows_just_enough():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    assert Crops(size=(16, 16), scales=(0.25,)).cut(stripes, [0.0, 0.0, 0.0, 0.0]).std() < 30  # stripes melt
    assert Crops(size=(16, 16), scales=(1.0,)).cut(stripes, [0.0, 0.0, 0.0, 0.0]).std() == 100
    gradient = np.repeat(np.arange(0, 80, 10, dtype=np.uint8)[None, :, None], 8, 0).repeat(3, 2)
    whole = Crops(size=(16, 16), scales=(0.5,)).cut(gradient, [0.0, 0.9, 0.9, 0.0])
    assert whole[:, 0].max() <= 5
    assert whole[:, -1].min() >= 65  # 8 pixels became 16: all of it is seen


def test_each_picture_comes_once_before_any_comes_again():
    batches = PictureBatches(flat(5), Crops(size=(8, 8)), batch_size=4, seed=3)
    seen = [int(picture.mean()) for number in range(5) for picture in batches(number).pictures]
    assert [Counter(seen[start : start + 5]) for start in range(0, 20, 5)] == [Counter(range(5))] * 4
    assert seen[:5] != seen[5:10]


def test_two_processes_share_the_batch_of_one():
    pictures, crops = flat(9, captions=True), Crops(size=(8, 8))
    choices: dict[str, Any] = {"batch_size": 4, "caption_dropout": 0.3, "seed": 1}
    whole = PictureBatches(pictures, crops, **choices)
    halves = [PictureBatches(pictures, crops, peers=Half(rank), **choices) for rank in (0, 1)]
    dropped = 0
    for number in range(12):
        expected, parts = whole(number), [half(number) for half in halves]
        for rank, part in enumerate(parts):
            np.testing.assert_array_equal(part.pictures, expected.pictures[rank::2])
            assert part.captions == expected.captions[rank::2]
            assert part.random.get_state().equal(expected.random.get_state())
        dropped += expected.captions.count("")
        for picture, caption in zip(expected.pictures, expected.captions, strict=True):
            assert caption in ("", f"number {picture[0, 0, 0]}")
    assert 5 < dropped < 25  # of 48
    with pytest.raises(UserError, match=r"2 processes found for a batch_size of 3.*set batch_size to 4"):
        PictureBatches(flat(9), Crops(size=(8, 8)), batch_size=3, peers=Half(0))


def test_the_next_value_is_made_meanwhile_and_an_error_comes_when_it_is_its_turn():
    made: list[int] = []
    second = Event()

    def make(number: int) -> int:
        made.append(number)
        if number == 1:
            second.set()
        if number == 2:
            raise UserError("no picture 2")
        return number * 10

    with Ahead(make) as ahead:
        assert ahead(0) == 0
        assert second.wait(timeout=60), "nobody has asked for it yet"
        assert ahead(1) == 10
        with pytest.raises(UserError, match="no picture 2"):
            ahead(2)
    assert made[:3] == [0, 1, 2]


def test_a_folder_is_known_by_its_contents(tmp_path: Path):
    for name, value in (("b/1.png", 10), ("a/1.PNG", 20), (".trash/3.png", 30)):
        file = tmp_path / "one" / name
        file.parent.mkdir(parents=True)
        Image.new("RGB", (9, 8), (value, 0, 0)).save(file, format="PNG")
    (tmp_path / "one/a/1.txt").write_text("  a red\nwall ")
    found = pictures_of_folder(tmp_path / "one", caption="a wall")
    assert [int(found.load(index)[0, 0, 0]) for index in range(len(found))] == [20, 10]
    assert found.captions == ("a wall", "a wall")
    assert pictures_of_folder(tmp_path / "one").digest != found.digest
    with pytest.raises(UserError, match=r"1 of 2 text files are missing, first .*b/1\.txt"):
        pictures_of_folder(tmp_path / "one", own_captions=True)
    (tmp_path / "one/b/1.txt").write_text("")
    assert pictures_of_folder(tmp_path / "one", own_captions=True).captions == ("a red wall", "")
    (tmp_path / "one").rename(tmp_path / "two")
    assert pictures_of_folder(tmp_path / "two", caption="a wall").digest == found.digest
    assert len(bytes.fromhex(found.digest)) == hashlib.sha256().digest_size


def test_a_folder_without_pictures_or_with_something_else_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"images: folder .*nowhere not found"):
        pictures_of_folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no picture \(\.bmp, .*check the path"):
        pictures_of_folder(tmp_path)
    (tmp_path / "notes.jpg").write_text("no picture")
    with pytest.raises(UserError, match=r"notes\.jpg cannot be read"):
        pictures_of_folder(tmp_path)


def test_a_dataset_gives_its_pictures_but_may_have_no_captions(tmp_path: Path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (6, 5), (9, 8, 7)).save(tmp_path / "images/x.png")
    Image.new("L", (6, 5), 0).save(tmp_path / "labels/x.png")
    data = LabelFolder(root=tmp_path, classes=["road"])
    found = pictures_of_dataset(data, caption="a road")
    assert (found.load(0) == (9, 8, 7)).all()
    assert found.captions == ("a road",)
    with pytest.raises(UserError, match=r"captions: own found, but a LabelFolder dataset has no captions"):
        pictures_of_dataset(data, own_captions=True)
