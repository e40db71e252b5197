"""A folder of photographs becomes a dataset, picture by picture, and nothing is lost on the way."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from datagen import labelling
from datagen.datasets.coco import Coco
from datagen.files import read_image, read_label_png
from datagen.fitting import fit_from_plan
from datagen.labellers.decoded import Decoded
from datagen.labelling import LabelSummary
from datagen.readers import open_reader
from datagen.validation import validate
from decoders.errors import UserError
from decoders.labels import DenseMap, categorical
from tests.datagen.made_up import tree
from tests.datagen.test_fitting import photographs, write_plan
from tests.datagen.toys import in_two_processes

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, pipelines: Mapping[str, Path]) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    plan = write_plan(folder / "plan.yaml", pipelines["sd1"], photographs(folder / "few", 3))
    return fit_from_plan(plan, None, ["fit.updates=4", "fit.evaluations=1"], QUIET).reader


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures of three sizes, formats and depths of folder."""
    root = tmp_path / "mine é"
    (root / "sub folder").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (
        ("a.jpg", (48, 64)),
        ("b.JPEG", (48, 64)),
        ("sub folder/c.png", (37, 53)),
        ("d é.webp", (37, 53)),
    ):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(root / name)
    Image.fromarray(rng.integers(0, 256, (70, 41), np.uint8)).save(root / "e.tif")
    (root / "notes.txt").write_text("not a picture", encoding="utf-8")
    return root


def label(reader: Path, folder: Path, to: Path, **settings: Any) -> LabelSummary:
    return labelling.label(reader, folder, to=to, console=QUIET, **settings)


def test_a_labelled_folder_is_a_sound_dataset(reader: Path, folder: Path, tmp_path: Path):
    summary = label(reader, folder, tmp_path / "out")
    assert (summary.labelled, summary.were_there, summary.skipped, summary.left_out) == (5, 0, {}, [])
    report = validate(tmp_path / "out")
    assert report.sound
    assert report.pictures == 5
    for path in (
        folder / "a.jpg",
        folder / "b.JPEG",
        folder / "sub folder/c.png",
        folder / "d é.webp",
        folder / "e.tif",
    ):
        assert (tmp_path / "out/images" / path.name).read_bytes() == path.read_bytes()
    written = json.loads((tmp_path / "out/annotations/instances.json").read_text(encoding="utf-8"))
    sizes = {picture["file_name"]: (picture["height"], picture["width"]) for picture in written["images"]}
    assert sizes == {"a.jpg": (48, 64), "b.JPEG": (48, 64), "c.png": (37, 53), "d é.webp": (37, 53), "e.tif": (70, 41)}
    assert all(picture["semantic_file"].startswith("semantic/") for picture in written["images"])
    assert {category["id"]: category["name"] for category in written["categories"]} == {1: "road", 2: "car", 3: "sky"}


def test_an_open_vocabulary_is_asked_for_other_classes(
    reader: Path, pipelines: Mapping[str, Path], folder: Path, tmp_path: Path
):
    plan = write_plan(tmp_path / "plan.yaml", pipelines["sd1"], photographs(tmp_path / "few", 3))
    changes = ["fit.updates=4", "fit.evaluations=1", "decoder.open_vocabulary=true"]
    open_reader = fit_from_plan(plan, tmp_path / "open", changes, QUIET).reader
    classes = {"sky": None, "tram": "a yellow tram", "road": None}
    label(open_reader, folder, tmp_path / "asked", classes=classes)
    assert validate(tmp_path / "asked").sound
    taxonomy = Coco(root=tmp_path / "asked").taxonomy
    assert taxonomy.names == ("sky", "tram", "road")
    assert taxonomy.category_ids == (3, 4, 1)  # known ones keep theirs
    assert taxonomy.phrases == ("sky", "a yellow tram", "a road")  # a known one keeps the phrase it was fitted with
    with pytest.raises(UserError, match="another"):  # one folder, one question
        label(open_reader, folder, tmp_path / "asked", classes={"sky": None, "road": None})
    with pytest.raises(UserError, match=r"fitted on \(road, car, sky\) and no others"):
        label(reader, folder, tmp_path / "no", classes=classes)


def test_depths_alone_need_no_classes(pipelines: Mapping[str, Path], folder: Path, tmp_path: Path):
    root = photographs(tmp_path / "few", 3)
    for path in (root / "labels").iterdir():
        np.save(path.with_suffix(".npy"), np.full((48, 64), 5.0))
        path.unlink()
    data = {"format": "label_folder", "root": str(root), "labels": None, "depth": "labels", "depth_scale": 1.0}
    changes = {"perceiver": {}, "tasks": ["depth"], "data": data}
    plan = write_plan(tmp_path / "plan.yaml", pipelines["sd1"], root, **changes)
    reader = fit_from_plan(plan, None, ["fit.updates=2", "fit.evaluations=1"], QUIET).reader
    label(reader, folder, tmp_path / "out")
    assert validate(tmp_path / "out").sound
    assert "depth" in Coco(root=tmp_path / "out")[0].labels
    assert not json.loads((tmp_path / "out/annotations/instances.json").read_text(encoding="utf-8"))["annotations"]


def test_the_company_a_picture_is_in_does_not_matter(reader: Path, folder: Path, tmp_path: Path):
    label(reader, folder, tmp_path / "all")
    (tmp_path / "alone").mkdir()
    (folder / "d é.webp").rename(tmp_path / "alone" / "d é.webp")
    label(reader, tmp_path / "alone", tmp_path / "one")
    together, alone = (Coco(root=tmp_path / name).load("d é").labels["semantic"] for name in ("all", "one"))
    assert isinstance(together, DenseMap)
    assert isinstance(alone, DenseMap)
    np.testing.assert_array_equal(together.values, alone.values)


def test_stopped_at_any_picture_it_goes_on_to_the_same_bytes(
    reader: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    label(reader, folder, tmp_path / "whole")
    add = labelling.CocoWriter.add
    for count in (2, 0, 1):  # pictures until the next stop
        left = [count]

        def dies(*arguments: Any, left: list[int] = left) -> None:
            if not left[0]:
                raise InterruptedError
            left[0] -= 1
            add(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(labelling.CocoWriter, "add", dies)
            with pytest.raises(InterruptedError):
                label(reader, folder, tmp_path / "parts")
    summary = label(reader, folder, tmp_path / "parts")
    assert summary.were_there == 3
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")
    again = label(reader, folder, tmp_path / "parts")
    assert again.were_there == 5
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")


def test_new_pictures_join_a_finished_dataset(reader: Path, folder: Path, tmp_path: Path):
    late = folder / "a.jpg"
    kept = late.read_bytes()
    late.unlink()
    label(reader, folder, tmp_path / "grown")
    late.write_bytes(kept)
    assert label(reader, folder, tmp_path / "grown").were_there == 4
    label(reader, folder, tmp_path / "at once")
    assert tree(tmp_path / "grown") == tree(tmp_path / "at once")


def test_two_processes_label_one_folder(reader: Path, folder: Path, tmp_path: Path):
    """Pictures come to a finished dataset, which ends as if one process had labelled all."""
    late = folder / "a.jpg"
    kept = late.read_bytes()
    late.unlink()
    label(reader, folder, tmp_path / "together")
    late.write_bytes(kept)
    (folder / "later.png").write_bytes((folder / "sub folder/c.png").read_bytes())
    done = in_two_processes(tmp_path, "label", "--reader", reader, folder, "--to", tmp_path / "together")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("6 labelled pictures (4") == 1
    alone = label(reader, folder, tmp_path / "alone")
    assert (alone.labelled, alone.were_there) == (6, 0)
    report = validate(tmp_path / "together")
    assert report.sound, report
    assert tree(tmp_path / "together").keys() == tree(tmp_path / "alone").keys()
    for one, other in zip(Coco(root=tmp_path / "together"), Coco(root=tmp_path / "alone"), strict=True):
        found, expected = one.labels["semantic"], other.labels["semantic"]
        assert isinstance(found, DenseMap)
        assert isinstance(expected, DenseMap)
        assert (found.values == expected.values).mean() > 0.99


def test_another_picture_of_a_labelled_one_s_name_is_refused(reader: Path, folder: Path, tmp_path: Path):
    label(reader, folder, tmp_path / "out")
    before = tree(tmp_path / "out")
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (64, 48)).save(other / "a.jpg")
    with pytest.raises(UserError, match=r"another picture named a\.jpg than .*other.*; label into a new folder"):
        label(reader, other, tmp_path / "out")
    assert tree(tmp_path / "out") == before


def cameras(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(root / name)
    return root


def test_pictures_of_one_name_are_called_by_their_folders_too(reader: Path, tmp_path: Path):
    photos = cameras(tmp_path / "photos", "left/0.jpg", "right/0.png", "right/1.jpg", "0.jfif")
    assert label(reader, photos, tmp_path / "out").labelled == 4
    assert validate(tmp_path / "out").sound
    copied = {path.name: path.read_bytes() for path in (tmp_path / "out/images").iterdir()}
    assert copied == {
        "left__0.jpg": (photos / "left/0.jpg").read_bytes(),
        "right__0.png": (photos / "right/0.png").read_bytes(),
        "1.jpg": (photos / "right/1.jpg").read_bytes(),
        "0.jfif": (photos / "0.jfif").read_bytes(),
    }
    assert label(reader, photos, tmp_path / "out").were_there == 4


def test_a_labelled_picture_whose_name_would_change_is_refused(reader: Path, tmp_path: Path):
    photos = cameras(tmp_path / "photos", "left/0.jpg", "left/1.jpg")
    label(reader, photos, tmp_path / "out")
    before = tree(tmp_path / "out")
    cameras(photos, "left/0.jpg", "right/0.jpg")
    with pytest.raises(UserError, match=r"holds .*left/0\.jpg as 0\.jpg, and would hold it again as left__0\.jpg"):
        label(reader, photos, tmp_path / "out")
    assert tree(tmp_path / "out") == before
    label(reader, photos, tmp_path / "both")
    (photos / "right/0.jpg").unlink()
    with pytest.raises(UserError, match=r"as left__0\.jpg, and would hold it again as 0\.jpg: .* into a new folder"):
        label(reader, photos, tmp_path / "both")


def test_what_is_left_out_is_told(reader: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("x.HEIC", "sub folder/y.heic", "z.gif", ".hidden.gif"):
        (folder / name).write_bytes(b"another format")
    (tmp_path / "elsewhere").mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "locked").mkdir()
    scan = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    summary = label(reader, folder, tmp_path / "out")
    assert summary.labelled == 5
    assert str(summary).splitlines()[1] == (
        f"left out: 1 .gif, 2 .heic (convert them to .jpg or .png); folder {folder}/linked (a link; label where it "
        f"leads); folder {folder}/locked (Permission denied)"
    )
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix not in (".HEIC", ".heic", ".gif"):
            path.unlink()
    with pytest.raises(UserError, match=r"holds no picture .*; left out: 1 \.gif, 2 \.heic \(convert"):
        label(reader, folder, tmp_path / "other")


def test_unreadable_pictures_are_all_named_before_anything_is_labelled(reader: Path, folder: Path, tmp_path: Path):
    whole = (folder / "a.jpg").read_bytes()
    (folder / "a.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "z.png").write_bytes(b"")
    with pytest.raises(UserError) as told:
        label(reader, folder, tmp_path / "out")
    for part in ("2 of 6 pictures", "a.jpg", "z.png", "--skip-unreadable", "replace or remove"):
        assert part in str(told.value)
    summary = label(reader, folder, tmp_path / "out", skip_unreadable=True)
    assert summary.labelled == 4
    assert [Path(path).name for path in summary.skipped] == ["a.jpg", "z.png"]
    assert "2 pictures could not be read" in str(summary)
    assert validate(tmp_path / "out").pictures == 4
    (folder / "a.jpg").write_bytes(whole)
    (folder / "z.png").unlink()
    assert label(reader, folder, tmp_path / "out").labelled == 5


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "holds no picture"),
        ({"x.txt": b""}, "holds no picture"),
        ({"one.jpg": b"", "one.png": b""}, "share the name 'one'"),
    ],
)
def test_folders_that_cannot_be_labelled(files: dict[str, bytes], told: str, reader: Path, tmp_path: Path):
    (tmp_path / "in").mkdir()
    for name, content in files.items():
        (tmp_path / "in" / name).write_bytes(content)
    with pytest.raises(UserError, match=told):
        label(reader, tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_nothing_but_damaged_pictures(reader: Path, tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="none of the 1 pictures"):
        label(reader, tmp_path / "in", tmp_path / "out", skip_unreadable=True)


def test_missing_folders_and_readers(reader: Path, folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match="folder of pictures not found"):
        label(reader, tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(UserError, match="is not a reader: no such folder"):
        label(tmp_path / "nowhere", folder, tmp_path / "out")
    with pytest.raises(UserError, match="lies within the folder of pictures"):
        label(reader, folder, folder / "labelled")
    assert not (tmp_path / "out").exists()


def test_another_model_is_refused_before_any_weight_loads(
    reader: Path, folder: Path, tmp_path: Path, pipelines: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
):
    def load(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("decoders.checkpoint.load_checkpoint", load)
    with pytest.raises(UserError, match="was fitted on a model with digest"):
        label(reader, folder, tmp_path / "out", model=str(pipelines["xl"]))
    assert not (tmp_path / "out").exists()


def test_a_dataset_of_another_batch_size_or_of_something_else_is_left_alone(reader: Path, folder: Path, tmp_path: Path):
    label(reader, folder, tmp_path / "out", batch_size=2)
    before = tree(tmp_path / "out")
    for changed, told in (({"batch_size": 3}, "batch_size (2 there, 3 now)"), ({"coverage": 0.5}, "coverage (")):
        with pytest.raises(UserError, match="holds a dataset of other settings") as caught:
            label(reader, folder, tmp_path / "out", **{"batch_size": 2, **changed})
        assert f"settings: {told}" in str(caught.value)
    assert tree(tmp_path / "out") == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full/diary.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="not empty"):
        label(reader, folder, tmp_path / "full")


def test_coverage_and_batch_size_are_the_callers(reader: Path, folder: Path, tmp_path: Path):
    pictures = [read_image(path) for path in sorted(folder.glob("*.jpg"))]
    assert open_reader(reader, batch_size=3).manifest.reading.batch_size == 3
    shares: list[float] = []
    for coverage in (None, 0.5):
        label(reader, folder, tmp_path / f"{coverage}", coverage=coverage)
        maps = [read_label_png(path) for path in sorted((tmp_path / f"{coverage}/semantic").glob("*.png"))]
        shares.append(float(np.mean([(ids > 0).mean() for ids in maps])))
        found = Decoded(reader=reader, coverage=coverage).label([], np.stack(pictures))
        shares.append(float(np.mean([categorical(each).valid.mean() for each in found])))
    assert shares[:2] == [1, 1]
    assert max(shares[2:]) < 0.9


def test_a_picture_turned_by_its_camera_is_labelled_upright(reader: Path, tmp_path: Path):
    (tmp_path / "in").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    content = io.BytesIO()
    Image.fromarray(np.zeros((40, 64, 3), np.uint8)).save(content, format="JPEG", exif=exif)
    (tmp_path / "in/turned.jpg").write_bytes(content.getvalue())
    label(reader, tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out/images/turned.jpg").read_bytes() == content.getvalue()
    with Image.open(tmp_path / "out/semantic/turned.png") as semantic:
        assert semantic.size == (40, 64)


def test_ctrl_c_finishes_the_batch_and_says_how_to_go_on(reader: Path, tmp_path: Path):
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    for number in range(90):
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(tmp_path / f"in/{number:03d}.png")
    out = tmp_path / "out put"
    command = [
        sys.executable,
        "-m",
        "datagen",
        "label",
        "--reader",
        str(reader),
        str(tmp_path / "in"),
        "--to",
        str(out),
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command += ["--batch-size", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    while process.poll() is None and len(list(out.glob("parts/*.png.json"))) < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert "stopping after this batch" in told
    assert "go on with" in told
    assert f"--to '{out}'" in told
    written = len(list(out.glob("parts/*.png.json")))
    assert 2 <= written < 90
    assert not (out / "annotations").exists()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert f"90 labelled pictures ({written} from before)" in done.stdout
    assert validate(out).sound
