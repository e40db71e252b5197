from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datagen.datasets.coco import Coco as Dataset
from datagen.exporters import Entry
from datagen.exporters.coco import Coco
from datagen.inspection import overlay_sheet
from datagen.records import Verdict
from datagen.runs import Run, claim
from datagen.sheet import CELL_HEIGHT, contact_sheet, draw_sheet, spread
from decoders.errors import UserError
from decoders.labels import InstanceSet, Taxonomy, metric_depth, semantic_map, surface_normals
from tests.datagen.made_up import TAXONOMY, image, labels, objects, sample


def _entry(number: int, height: int = 24, width: int = 40) -> Entry:
    return Entry(f"{number}", image(number, height, width), labels(number, height, width), {"caption": f"№ {number}"})


@pytest.mark.parametrize(
    ("total", "count", "expected"), [(3, 16, [0, 1, 2]), (9, 3, [0, 4, 8]), (9, 1, [0]), (0, 4, [])]
)
def test_positions_are_spread(total: int, count: int, expected: list[int]):
    assert spread(total, count) == expected


def test_a_sheet_of_a_dataset_is_written_the_same_each_time(tmp_path: Path):
    Coco().export([_entry(number) for number in range(5)], TAXONOMY, tmp_path / "set", {})
    contact_sheet(tmp_path / "set", to=tmp_path / "ä 1.png", count=3)
    contact_sheet(tmp_path / "set", to=tmp_path / "2.png", count=3)
    assert (tmp_path / "ä 1.png").read_bytes() == (tmp_path / "2.png").read_bytes()
    with Image.open(tmp_path / "2.png") as sheet:
        assert sheet.height > 3 * CELL_HEIGHT


def test_letters_beyond_ascii_are_drawn():
    letters = "äöüßñł—№"
    drawn = {draw_sheet([Entry("a", image(), {}, {"caption": letter})], TAXONOMY).tobytes() for letter in letters}
    assert len(drawn) == len(letters), "a font without them draws the same box for all"


@pytest.mark.parametrize("name", ["sheet.jpg", "sheet"])
def test_a_name_that_is_no_png_is_refused(name: str, tmp_path: Path):
    Coco().export([_entry(0)], TAXONOMY, tmp_path / "set", {})
    with pytest.raises(UserError, match=rf"{name} will be a PNG picture, expected a name that ends in \.png"):
        contact_sheet(tmp_path / "set", to=tmp_path / name)
    with pytest.raises(UserError, match="will be a PNG picture"):
        overlay_sheet(Dataset(root=tmp_path / "set"), to=tmp_path / name)
    contact_sheet(tmp_path / "set", to=tmp_path / "sheet.PNG")


def test_a_sheet_of_a_run_shows_accepted_samples_up_to_the_target(tmp_path: Path):
    def run(name: str, numbers: list[int], verdicts: list[Verdict], target: int) -> Path:
        claimed = claim(
            Run(folder=tmp_path / name, plan={"target": target}, identity={"seed": 1}, taxonomy=TAXONOMY, versions={})
        )
        claimed.store.write(0, [sample(number) for number in numbers], verdicts)
        contact_sheet(claimed.folder, to=tmp_path / f"{name}.png")
        return tmp_path / f"{name}.png"

    kept, bad = Verdict(keep=True), Verdict(keep=False, reason="no car")
    mixed = run("mixed", [0, 1, 2, 3], [kept, bad, kept, kept], target=2)
    assert mixed.read_bytes() == run("plain", [0, 2], [kept, kept], target=2).read_bytes()
    tar = next((tmp_path / "plain").rglob("*.tar"))
    tar.write_bytes(tar.read_bytes().replace(b"IDAT", b"IDAX"))
    with pytest.raises(UserError, match="it was damaged after it was written"):
        contact_sheet(tmp_path / "plain", to=tmp_path / "damaged.png")
    with pytest.raises(UserError, match="no pictures"):
        run("none", [0], [bad], target=2)


def test_colors_mean_what_they_should():
    """A grey picture, half sky and half void; depth from near (left) to far, with an invalid edge."""
    grey = np.full((CELL_HEIGHT, 100, 3), 128, np.uint8)
    ids = np.zeros((CELL_HEIGHT, 100), np.uint8)
    ids[:, :50] = 1
    meters = np.tile(np.linspace(1, 50, 100, dtype=np.float32), (CELL_HEIGHT, 1))
    meters[:, 90:] = np.inf
    sheet = draw_sheet([Entry("a", grey, {"semantic": semantic_map(ids), "depth": metric_depth(meters)}, {})], TAXONOMY)
    row = sheet[sheet.shape[0] - CELL_HEIGHT].astype(int)
    picture, overlay, depth = row[8:108], row[116:216], row[224:324]
    assert (picture == 128).all()
    expected = 0.4 * 128 + 0.6 * np.array(TAXONOMY.colors[0])
    np.testing.assert_allclose(overlay[:50], np.tile(expected, (50, 1)), atol=1)
    assert (overlay[50:] == 128).all()
    brightness = depth.sum(axis=1)
    assert brightness[5] > brightness[45] > brightness[85]
    assert (depth[90:] == 0).all()


def test_pictures_of_any_shape_and_missing_labels_fit():
    tall = Entry("tall", image(0, 300, 16), {"instances": objects(300, 16)}, {})
    entries = [_entry(0), _entry(1, 24, 400), tall, Entry("bare", image(0), {}, {})]
    height, width, _ = draw_sheet(entries, TAXONOMY).shape
    assert height > 2 * CELL_HEIGHT
    assert width > 2 * CELL_HEIGHT


@pytest.mark.parametrize("count", [1, 2, 5, 16, 40])
def test_a_sheet_is_about_square_and_shows_every_picture(count: int):
    white = np.full((CELL_HEIGHT, CELL_HEIGHT, 3), 255, np.uint8)
    white[80:110, 80:110] = (250, 0, 3)  # a colour that no class and no ink has
    sheet = draw_sheet([Entry(f"{number}", white, {}, {}) for number in range(count)], TAXONOMY)
    assert (sheet == (250, 0, 3)).all(axis=2).sum() == 900 * count
    assert count == 1 or 0.4 < sheet.shape[0] / sheet.shape[1] < 1.4


def test_objects_are_drawn_where_there_is_no_map_of_classes():
    black = np.zeros((20, 33, 3), np.uint8)
    sheet = draw_sheet([Entry("a", black, {"instances": objects()}, {})], TAXONOMY)
    assert sheet.shape[1] > 33 + 2 * CELL_HEIGHT
    for color in (TAXONOMY.colors[1], TAXONOMY.colors[2]):
        assert (sheet[:CELL_HEIGHT, 33:] == color).all(axis=2).sum() > 100, color


def test_objects_that_touch_are_told_apart_on_the_map_of_classes():
    black, ids = np.zeros((CELL_HEIGHT, 100, 3), np.uint8), np.full((CELL_HEIGHT, 100), 1, np.uint8)
    left, right = np.zeros(ids.shape, bool), np.zeros(ids.shape, bool)
    left[20:80, 10:50], right[20:80, 50:90] = True, True
    touching = InstanceSet.collect([left, right], [2, 2], size=ids.shape)
    sheet = draw_sheet([Entry("a", black, {"semantic": semantic_map(ids), "instances": touching}, {})], TAXONOMY)
    row = sheet[sheet.shape[0] - CELL_HEIGHT + 50 - 8, 116:216]
    assert np.flatnonzero((row == 255).all(axis=1)).tolist() == [10, 49, 50, 89]


def test_keypoints_are_drawn_over_the_classes():
    things, maps = objects(), labels()
    bare = replace(things, keypoints_px=None)
    sheets = [draw_sheet([Entry("a", image(), {**maps, "instances": found}, {})], TAXONOMY) for found in (things, bare)]
    yellow = [int((sheet == (255, 255, 0)).all(axis=2).sum()) for sheet in sheets]
    assert yellow[0] > 100 > yellow[1]


def test_long_captions_and_many_classes_wrap():
    names = tuple(f"a class of number {number}" for number in range(60))
    many = Taxonomy(names=names, is_thing=(False,) * 60, colors=((1, 2, 3),) * 60)
    plain = draw_sheet([_entry(0)], many)
    long = draw_sheet([_entry(0)._replace(extra={"caption": "word " * 300 + "ü 漢字"})], many)
    assert long.shape[1] == plain.shape[1]
    assert plain.shape[0] < long.shape[0] < plain.shape[0] + 60


def test_nothing_to_show_is_told(tmp_path: Path):
    with pytest.raises(UserError, match="no pictures"):
        draw_sheet([], TAXONOMY)
    with pytest.raises(UserError, match="neither a run"):
        contact_sheet(tmp_path, to=tmp_path / "a.png")


def test_a_direction_has_the_colour_of_its_file_on_every_sheet():
    facing_up = surface_normals(np.tile(np.array([0, 1, 0], np.float32), (24, 40, 1)))
    sheet = draw_sheet([Entry("a", image(1, 24, 40), {"normals": facing_up}, {})], TAXONOMY)
    assert (np.abs(sheet.astype(int) - (128, 255, 128)) <= 1).all(axis=2).sum() > 24 * 40
