import errno
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datagen.datasets import AnnotatedImages, data_digest
from datagen.datasets.cityscapes import Cityscapes
from datagen.datasets.coco import Coco
from datagen.datasets.coco_panoptic import CocoPanoptic
from datagen.datasets.label_folder import LabelFolder
from datagen.datasets.voc import VOC_CLASSES, Voc
from datagen.exporters import Entry
from datagen.exporters.coco import Coco as CocoExporter
from datagen.files import encode_png, write_json
from datagen.instances import encode_mask
from datagen.palette import palette
from datagen.panoptic import to_colors
from datagen.plugins import choose_part
from decoders.errors import UserError
from decoders.files import write_atomic
from decoders.labels import DenseMap, InstanceSet, Skeleton
from tests.datagen.made_up import RING, TAXONOMY, coco_annotation, image, labels, objects, write_coco

CAMVID = Path(__file__).parents[3] / "shared" / "data" / "camvid"
CAMVID_CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"
)  # fmt: skip


def _semantic(dataset: AnnotatedImages, index: int = 0) -> np.ndarray:
    label = dataset[index].labels["semantic"]
    assert isinstance(label, DenseMap)
    np.testing.assert_array_equal(label.valid, label.values[..., 0] > 0)
    return label.values[..., 0].astype(int)


def _put(path: Path, pixels: np.ndarray) -> Path:
    write_atomic(path, encode_png(pixels))
    return path


IDS = np.array([[0, 1, 2, 2], [9, 9, 0, 1], [0, 0, 0, 255]], np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures with labels; 0, 1, 2, 9 are classes or void."""
    root = tmp_path / "meine Bilder"
    for number, name in enumerate(("ä 1", "b.v2", "c", "d")):
        _put(root / "images" / f"{name}.png", image(number, 3, 4))
        _put(root / "labels" / f"{name}.png", IDS)
    (root / "images" / "notes.txt").write_text("not a picture")
    (root / "images" / ".hidden.png").write_bytes(b"")
    return root


def _folder(root: Path, **settings: Any) -> LabelFolder:
    given: dict[str, Any] = {"classes": ["sky", "car", "tree"], "void": [9, 255], **settings}
    return LabelFolder(root=root, **given)


class TestLabelFolder:
    def test_pictures_and_labels_come_together(self, folder: Path):
        dataset = _folder(folder, things=["car"])
        assert dataset.names == ("b.v2", "c", "d", "ä 1")
        assert len(dataset) == 4
        np.testing.assert_array_equal(dataset[0].image, image(1, 3, 4))
        np.testing.assert_array_equal(_semantic(dataset), [[1, 2, 3, 3], [0, 0, 1, 2], [1, 1, 1, 0]])
        assert dataset.taxonomy.is_thing == (False, True, False)
        assert [found.name for found in dataset] == list(dataset.names)
        assert [found.name for found in dataset[1:3]] == ["c", "d"]
        with pytest.raises(IndexError):
            dataset[4]

    @pytest.mark.parametrize(
        ("classes", "void", "category_ids"),
        [
            (["sky", "car", "tree"], [9, 255], (1, 2, 3)),
            ({1: "car", 2: "tree"}, [0, 9, 255], (1, 2)),
            ({9: "wall", 2: "tree", 1: "car", 255: "frame"}, [0], (9, 2, 1, 255)),
            ({2: "tree", 0: "sky", 1: "car", 9: "wall"}, [255], (3, 1, 2, 10)),
        ],
    )
    def test_the_users_own_ids_come_back(
        self, folder: Path, classes: Any, void: list[int], category_ids: tuple[int, ...]
    ):
        dataset = _folder(folder, classes=classes, void=void)
        assert dataset.taxonomy.category_ids == category_ids
        shift = 1 if 0 in dict(classes if isinstance(classes, dict) else enumerate(classes)) else 0
        ids = np.array([0, *category_ids])[_semantic(dataset)]
        np.testing.assert_array_equal(ids, np.where(np.isin(IDS, void), 0, IDS.astype(int) + shift))

    def test_palette_and_wide_label_files(self, folder: Path):
        picture = Image.fromarray(IDS).convert("P")
        picture.putpalette([200, 0, 0] * 256)
        picture.save(folder / "labels" / "c.png")
        (folder / "labels" / "d.png").unlink()
        wide = np.where(IDS == 255, 40000, IDS.astype(np.uint16)).astype(np.uint16)
        Image.fromarray(wide).save(folder / "labels" / "d.tif")
        dataset = _folder(folder, void=[9, 255, 40000])
        for index in (1, 2):
            np.testing.assert_array_equal(_semantic(dataset, index), _semantic(dataset, 0))

    def test_depth_has_a_scale_and_unknown_pixels(self, folder: Path):
        for name in ("ä 1", "b.v2", "c", "d"):
            _put(folder / "far" / f"{name}.png", np.array([[0, 1000, 2000, 65535]] * 3, np.uint16))
        label = _folder(folder, depth="far", depth_scale=0.001)[0].labels["depth"]
        assert isinstance(label, DenseMap)
        np.testing.assert_allclose(label.values[0, :, 0], [0, 1, 2, 65.535])
        np.testing.assert_array_equal(label.valid[0], [False, True, True, True])
        assert label.storage.unit == "m"

    def test_disparities_have_no_unit_and_near_is_large(self, folder: Path):
        for name in ("ä 1", "b.v2", "c", "d"):
            _put(folder / "far" / f"{name}.png", np.array([[0, 1000, 2000, 3000]] * 3, np.uint16))
        label = _folder(folder, depth="far", depth_kind="inverse")[0].labels["depth"]
        assert isinstance(label, DenseMap)
        assert label.storage.unit == "relative inverse depth"
        np.testing.assert_allclose(label.values[0, :, 0], [0, 0, 0.5, 1])
        np.testing.assert_array_equal(label.valid[0], [False, True, True, True])

    def test_arrays_serve_as_labels_and_depths(self, folder: Path):
        for name in ("ä 1", "b.v2", "c", "d"):
            (folder / "labels" / f"{name}.png").unlink()
            np.save(folder / "labels" / f"{name}.npy", IDS.astype(np.int64))
        (folder / "far").mkdir()
        for name in ("ä 1", "b.v2", "c", "d"):
            np.save(folder / "far" / f"{name}.npy", np.array([[0, 1.5, np.nan, -1]] * 3))
        dataset = _folder(folder, depth="far", depth_scale=1.0)
        np.testing.assert_array_equal(_semantic(dataset), [[1, 2, 3, 3], [0, 0, 1, 2], [1, 1, 1, 0]])
        label = dataset[0].labels["depth"]
        assert isinstance(label, DenseMap)
        np.testing.assert_array_equal(label.valid[0], [False, True, False, False])
        assert label.values[0, 1, 0] == 1.5
        assert _folder(folder, labels=None, depth="far")[0].labels.keys() == {"depth"}
        unnamed = choose_part(
            "datasets", {"format": "label_folder", "root": str(folder), "labels": None, "depth": "far"}, at="data"
        ).build()
        assert unnamed[0].labels.keys() == {"depth"}
        assert unnamed.taxonomy.names == ("scene",)
        with pytest.raises(UserError, match="neither `labels` nor `depth`"):
            _folder(folder, labels=None)

    @pytest.mark.parametrize(
        ("array", "text"),
        [
            (np.zeros((3, 4)), r"type float64, expected \(height, width\) of whole numbers"),
            (np.zeros((3, 4, 3), np.uint8), r"shape \(3, 4, 3\)"),
            (np.full((3, 4), -1), r"ids -1\.\.-1, expected 0\.\.65535"),
            (np.array([None]), "a pickle"),
        ],
    )
    def test_arrays_of_something_else_are_refused(self, folder: Path, array: np.ndarray, text: str):
        (folder / "labels" / "b.v2.png").unlink()
        np.save(folder / "labels" / "b.v2.npy", array, allow_pickle=True)
        with pytest.raises(UserError, match=rf"b\.v2\.npy .*{text}"):
            _folder(folder)[0]

    def test_endings_and_subfolders(self, tmp_path: Path):
        _put(tmp_path / "left" / "aachen" / "aachen_1_left.png", image(0, 3, 4))
        _put(tmp_path / "fine" / "aachen" / "aachen_1_ids.png", IDS)
        _put(tmp_path / "fine" / "aachen" / "aachen_1_color.png", image(0, 3, 4))
        endings = {"image_ending": "_left", "label_ending": "_ids"}
        dataset = _folder(tmp_path, images="left", labels="fine", **endings)
        assert dataset.names == ("aachen_1",)
        assert _semantic(dataset).shape == (3, 4)

    def test_accents_are_matched_in_either_spelling(self, tmp_path: Path):
        _put(tmp_path / "images" / "Bru\u0308cke.png", image(0, 3, 4))
        _put(tmp_path / "labels" / "Br\u00fccke.png", IDS)
        assert _folder(tmp_path, names=["Bru\u0308cke"])[0].name == "Br\u00fccke"

    def test_pictures_of_one_name_are_told_apart_by_their_folders(self, tmp_path: Path):
        for number, name in enumerate(("a/0", "b/é", "b/0", "0", "c/1")):
            _put(tmp_path / "images" / f"{name}_l.png", image(number, 3, 4))
            _put(tmp_path / "labels" / f"{name}_ids.png", np.full((3, 4), number, np.uint8))
        endings = {"image_ending": "_l", "label_ending": "_ids", "classes": list("vwxyz"), "void": []}
        dataset = _folder(tmp_path, **endings)
        assert dataset.names == ("0", "1", "a__0", "b__0", "é")
        assert [int(_semantic(dataset, index)[0, 0]) - 1 for index in range(5)] == [3, 4, 0, 2, 1]
        assert _folder(tmp_path, **endings, names=["b__0"]).names == ("b__0",)
        with pytest.raises(UserError, match="did you mean 'b__0'"):
            _folder(tmp_path, **endings, names=["b_0"])
        (tmp_path / "labels/b/0_ids.png").rename(tmp_path / "labels/0.png")
        (tmp_path / "labels/0_ids.png").unlink()
        assert _folder(tmp_path, **endings, names=["a__0"]).names == ("a__0",), "the only label of that name is its own"
        for name, expected in (("b__0", "b/0_ids.png"), ("0", "0_ids.png")):
            with pytest.raises(UserError, match=rf"first 0_l\.png, expected {expected}"):
                _folder(tmp_path, **endings, names=[name])

    def test_labels_of_one_name_belong_to_equal_folders_or_flat_names(self, tmp_path: Path):
        for number, name in enumerate(("a/0", "b/0")):
            _put(tmp_path / "images" / f"{name}.png", image(number, 3, 4))
            _put(tmp_path / "labels" / f"{name}.png", np.full((3, 4), number, np.uint8))
        (tmp_path / "images/a/0.png").unlink()
        assert int(_semantic(_folder(tmp_path))[0, 0]) - 1 == 1, "one picture, and two labels that could be its own"
        _put(tmp_path / "images/a/0.png", image(0, 3, 4))
        for name in "ab":
            (tmp_path / f"labels/{name}/0.png").rename(tmp_path / f"labels/{name}__0.png")
        assert [int(_semantic(_folder(tmp_path), index)[0, 0]) - 1 for index in range(2)] == [0, 1]

    def test_a_folder_that_may_not_be_read_is_not_called_empty(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        def refuse(_: Path) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", "images")

        monkeypatch.setattr("datagen.datasets.os.scandir", refuse)
        with pytest.raises(PermissionError):
            _folder(folder)

    def test_pictures_can_be_chosen(self, folder: Path):
        assert _folder(folder, names=["d", "c"]).names == ("d", "c")
        assert _folder(folder, every=2).names == ("b.v2", "d")
        assert _folder(folder, first=3).names == ("b.v2", "c", "d")
        (folder / "labels" / "c.png").unlink()
        assert len(_folder(folder, names=["d"])) == 1

    def test_names_can_stand_in_a_file(self, folder: Path, tmp_path: Path):
        file = tmp_path / "wähle.txt"
        file.write_text("# mine\n\n d \nä 1\n", encoding="utf-8")
        assert _folder(folder, names=file).names == ("d", "ä 1")
        chosen = choose_part(
            "datasets",
            {"format": "label_folder", "root": str(folder), "classes": ["a", "b"], "names": str(file)},
            at="data",
        )
        assert chosen.build().names == ("d", "ä 1")
        assert "names" in chosen.path_settings, "what it names decides a run, not where it lies"
        file.write_text("# nothing\n")
        with pytest.raises(UserError, match=r"wähle\.txt names nothing, expected a name in each line"):
            _folder(folder, names=file)
        with pytest.raises(UserError, match=r"none\.txt cannot be read .*, expected a text file"):
            _folder(folder, names=tmp_path / "none.txt")

    @pytest.mark.parametrize(
        ("settings", "text"),
        [
            ({"names": ["dd"]}, r"1 of 1 names are not among the 4 pictures .* 'dd', did you mean 'd'\?"),
            ({"names": ["d", "d"]}, "listed twice"),
            ({"names": ["d"], "first": 1}, "not both"),
            ({"every": 0}, "expected 1 or more"),
            ({"images": "none"}, r"folder of pictures not found: .*none; check the path"),
            ({"labels": "none"}, r"folder of labels not found"),
            (
                {"depth": "images", "depth_ending": "_d"},
                r"4 of 4 pictures have no file among the depths .*b\.v2_d\.png",
            ),
            ({"void": [1]}, r"label ids \[1\] are named in `classes` and in `void`"),
            ({"things": ["bus"]}, r"`things` or `colors` name \['bus'\].*known classes: \['sky', 'car', 'tree'\]"),
            ({"colors": {"bus": (1, 2, 3)}}, r"name \['bus'\]"),
            ({"classes": ["a", "a"]}, "class names must differ"),
            ({"classes": []}, "found no `classes`, expected the name of each label id; .*`labels: null` where"),
        ],
    )
    def test_settings_that_cannot_be(self, folder: Path, settings: dict[str, Any], text: str):
        with pytest.raises(UserError, match=text):
            _folder(folder, **settings)

    def test_an_id_outside_the_taxonomy_is_named_with_its_file(self, folder: Path):
        with pytest.raises(
            UserError,
            match=r"b\.v2\.png holds id 255, expected one of the classes \[0, 1, 2\] or void \[9\]; add 255 to",
        ):
            _folder(folder, void=[9])[0]

    def test_missing_doubled_and_broken_files_are_named(self, folder: Path):
        (folder / "labels" / "c.png").unlink()
        with pytest.raises(UserError, match=r"1 of 4 pictures have no file among the labels .*first c\.png"):
            _folder(folder)
        _put(folder / "labels" / "c.png", IDS.T)
        with pytest.raises(UserError, match=r"c\.png is 4 x 3 .*c\.png is 3 x 4; .*make the sizes equal"):
            _folder(folder, names=["c"])[0]
        (folder / "labels" / "c.png").write_bytes(b"\x89PNG half")
        with pytest.raises(UserError, match=r"label file .*c\.png cannot be read"):
            _folder(folder, names=["c"])[0]
        (folder / "images" / "d.png").write_bytes(b"")
        with pytest.raises(UserError, match=r"picture .*d\.png cannot be read"):
            _folder(folder, names=["d"])[0]
        Image.fromarray(image(0, 3, 4)).save(folder / "images" / "d.jpg")
        with pytest.raises(UserError, match=r"d\.jpg and .*d\.png share the name 'd'"):
            _folder(folder)

    def test_an_empty_folder_is_told(self, tmp_path: Path):
        (tmp_path / "images").mkdir()
        with pytest.raises(UserError, match="holds no picture with a label"):
            _folder(tmp_path)


@pytest.mark.skipif(not CAMVID.is_dir(), reason="CamVid is not beside the repository")
@pytest.mark.parametrize(("split", "count"), [("train", 367), ("val", 101)])
def test_camvid(split: str, count: int):
    dataset = LabelFolder(root=CAMVID / split, classes=CAMVID_CLASSES, void=[11])
    assert len(dataset) == count
    assert dataset.taxonomy.category_ids == tuple(range(1, 12))
    with Image.open(CAMVID / split / "labels" / f"{dataset.names[-1]}.png") as file:
        ids = np.array(file).astype(int)
    np.testing.assert_array_equal(_semantic(dataset, -1), np.where(ids == 11, 0, ids + 1))
    assert dataset[-1].image.shape == (360, 480, 3)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    ids = np.array([[0, 7, 7], [15, 255, 0]], np.uint8)
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "SegmentationClass").mkdir()
    for name in ("2007_000032", "2007_000033"):
        Image.fromarray(image(0, 2, 3)).save(tmp_path / "JPEGImages" / f"{name}.jpg")
        picture = Image.fromarray(ids).convert("P")
        picture.putpalette([channel for color in [(0, 0, 0), *palette(254), (224, 224, 192)] for channel in color])
        picture.save(tmp_path / "SegmentationClass" / f"{name}.png")
    Image.fromarray(image(0, 2, 3)).save(tmp_path / "JPEGImages" / "unlabelled.jpg")
    write_atomic(tmp_path / "ImageSets" / "Segmentation" / "val.txt", b"2007_000033\n\n")
    return tmp_path


class TestVoc:
    def test_background_is_the_last_class_or_void(self, voc: Path):
        dataset = Voc(root=voc)
        assert dataset.names == ("2007_000032", "2007_000033")
        assert dataset.taxonomy.names == (*VOC_CLASSES, "background")
        assert dataset.taxonomy.category_ids == tuple(range(1, 22))
        assert dataset.taxonomy.is_thing == (*[True] * 20, False)
        np.testing.assert_array_equal(_semantic(dataset), [[21, 7, 7], [15, 0, 21]])
        without = Voc(root=voc, unmarked="void")
        assert without.taxonomy.names == VOC_CLASSES
        np.testing.assert_array_equal(_semantic(without), [[0, 7, 7], [15, 0, 0]])

    def test_a_list_chooses(self, voc: Path):
        assert Voc(root=voc, split="val").names == ("2007_000033",)
        write_atomic(voc / "ImageSets" / "Segmentation" / "bad.txt", b"unlabelled 1")
        with pytest.raises(UserError, match=r"'unlabelled' has no file in .*SegmentationClass"):
            Voc(root=voc, split="bad")
        with pytest.raises(UserError, match=r"none\.txt cannot be read .*a name in each line"):
            Voc(root=voc, split="none")

    def test_fewer_classes_than_ids_are_told(self, voc: Path):
        with pytest.raises(UserError, match="holds id 7, expected one of the classes"):
            Voc(root=voc, classes=["a", "b"])[0]


class TestCityscapes:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        ids = np.full((4, 6), 7, np.uint8)  # road, two cars, a group of persons, and the own bonnet
        ids[1, :4], ids[2, :3], ids[3] = 26, 24, 1
        instances = ids.astype(np.uint16)
        instances[1, :2], instances[1, 2:4] = 26000, 26001
        for name, pixels in (("labelIds", ids), ("instanceIds", instances), ("color", image(0, 4, 6))):
            _put(tmp_path / "gtFine/val/ulm" / f"ulm_1_gtFine_{name}.png", pixels)
        _put(tmp_path / "leftImg8bit/val/ulm/ulm_1_leftImg8bit.png", image(0, 4, 6))
        return tmp_path

    def test_classes_and_objects(self, root: Path):
        dataset = Cityscapes(root=root, split="val")
        assert dataset.names == ("ulm_1",)
        assert dataset.taxonomy.category_ids[dataset.taxonomy.names.index("car")] == 26
        car, person = (dataset.taxonomy.names.index(name) + 1 for name in ("car", "person"))
        np.testing.assert_array_equal(_semantic(dataset)[:, 0], [1, car, person, 0])
        found = dataset[0].labels["instances"]
        assert isinstance(found, InstanceSet)
        np.testing.assert_array_equal(found.category_ids, [person, car, car])
        np.testing.assert_array_equal(found.is_crowd, [True, False, False])
        np.testing.assert_array_equal(found.masks.sum(axis=(1, 2)), [3, 2, 2])

    def test_missing_instances_are_told(self, root: Path):
        (root / "gtFine/val/ulm/ulm_1_gtFine_instanceIds.png").unlink()
        with pytest.raises(UserError, match=r"first ulm_1_gtFine_instanceIds\.png; unpack the whole"):
            Cityscapes(root=root, split="val")
        with pytest.raises(UserError, match="folder of pictures not found"):
            Cityscapes(root=root)


class TestCocoPanoptic:
    def _write(self, root: Path, **changes: Any) -> Path:
        ids = np.zeros((4, 6), np.int32)
        ids[:2], ids[2, :3], ids[3, :2] = 9_000_000, 700, 3
        _put(root / "images" / "a.png", image(0, 4, 6))
        _put(root / "panoptic" / "a.png", to_colors(ids))
        about = {"area": 1, "bbox": [0, 0, 1, 1]}
        segments = [
            {"id": 9_000_000, "category_id": 92, **about},
            {"id": 700, "category_id": 3, "iscrowd": 0, **about},
            {"id": 3, "category_id": 3, "iscrowd": 1, **about},
        ]
        data = {
            "images": [{"id": 8, "file_name": "a.png", "width": 6, "height": 4}],
            "annotations": [{"image_id": 8, "file_name": "a.png", "segments_info": segments}],
            "categories": [{"id": 92, "name": "banner", "isthing": 0}, {"id": 3, "name": "car", "isthing": 1}],
        }
        write_json(root / "annotations" / "panoptic.json", data | changes)
        return root

    def test_stuff_objects_crowds_and_void(self, tmp_path: Path):
        dataset = CocoPanoptic(root=self._write(tmp_path))
        assert dataset.taxonomy.names == ("car", "banner")
        assert dataset.taxonomy.category_ids == (3, 92)
        np.testing.assert_array_equal(_semantic(dataset)[:, 0], [2, 2, 1, 0])
        found = dataset[0].labels["instances"]
        assert isinstance(found, InstanceSet)
        np.testing.assert_array_equal(found.masks.sum(axis=(1, 2)), [3, 2])
        np.testing.assert_array_equal(found.is_crowd, [False, True])

    def test_our_own_panoptic_export_comes_back(self, tmp_path: Path):
        truth = labels() | {"instances": objects()}
        CocoExporter().export([Entry("a", image(), truth, {})], TAXONOMY, tmp_path, {})
        dataset = CocoPanoptic(root=tmp_path)
        ours = Coco(root=tmp_path)
        assert dataset.taxonomy.names == tuple(sorted(ours.taxonomy.names, key=lambda name: _category_id(ours, name)))
        found, given = (each[0].labels["instances"] for each in (dataset, ours))
        assert isinstance(found, InstanceSet)
        assert isinstance(given, InstanceSet)
        names = [dataset.taxonomy.names[number - 1] for number in found.category_ids[~found.is_crowd]]
        assert Counter(names) <= Counter(ours.taxonomy.names[number - 1] for number in given.category_ids)
        assert found.is_crowd.sum() == given.is_crowd.sum()
        ids, truth = _semantic(dataset), _semantic(ours)
        known = (ids > 0) & ~given.masks.any(axis=0)  # objects are not those of the map there
        assert known.mean() > 0.6
        mine, theirs = (
            np.array(("", *each.taxonomy.names))[one[known]] for each, one in ((dataset, ids), (ours, truth))
        )
        np.testing.assert_array_equal(mine, theirs)

    def test_segments_without_a_pixel_are_no_objects(self, tmp_path: Path):
        about = {"area": 1, "bbox": [0, 0, 1, 1]}
        segments = [{"id": number, "category_id": 3, **about} for number in (700, 3, 4)]
        segments.append({"id": 9_000_000, "category_id": 92, **about})
        one = {"image_id": 8, "file_name": "a.png", "segments_info": segments}
        picture = CocoPanoptic(root=self._write(tmp_path, annotations=[one]))[0]
        found = picture.labels["instances"]
        assert isinstance(found, InstanceSet)
        assert found.masks.sum(axis=(1, 2)).tolist() == [3, 2]
        assert picture.object_names == ("segment 700", "segment 3")
        assert picture.empty_objects == ("segment 4",)

    def test_contradictions_are_told(self, tmp_path: Path):
        images = [{"id": 8, "file_name": f"{name}.png", "width": 6, "height": 4} for name in "ab"]
        one = {"image_id": 8, "file_name": "a.png", "segments_info": []}
        for changes, text in (
            ({"annotations": [one]}, r"a\.png holds segment 3, which"),
            ({"annotations": [one | {"image_id": 1}]}, "segments of image id 1, which is not in `images`"),
            ({"categories": [{"id": 3, "name": "car"}]}, "category id 92, expected one of"),
            ({"annotations": [one, one]}, r"the segments of a\.png are given twice"),
            ({"annotations": []}, "holds no picture"),
            ({"images": images}, r"pictures a\.png and b\.png share the id 8"),
        ):
            with pytest.raises(UserError, match=text):
                CocoPanoptic(root=self._write(tmp_path, **changes))[0]


def _category_id(dataset: AnnotatedImages, name: str) -> int:
    return dataset.taxonomy.category_ids[dataset.taxonomy.names.index(name)]


DOG = {"id": 3, "name": "dog", "keypoints": ["nose", "left_ear", "right_ear"], "skeleton": [[1, 2], [1, 3]]}


class TestCoco:
    def test_smaller_objects_lie_on_top_and_crowds_are_void(self, tmp_path: Path):
        small, crowd = np.zeros((6, 10), bool), np.zeros((6, 10), bool)
        small[2:4, 2:4] = True
        crowd[:, 5:9] = True
        runs = [0, *np.diff(np.flatnonzero(np.diff(crowd.T.ravel().astype(int), prepend=0, append=0)), prepend=0)]
        counts = [int(run) for run in runs[1:]] + [6]
        root = write_coco(
            tmp_path,
            [
                coco_annotation(1, 3, encode_mask(small), score=0.5),
                coco_annotation(2, 40, RING, iscrowd=0),
                coco_annotation(3, 3, {"size": [6, 10], "counts": counts}, iscrowd=1),
            ],
        )
        dataset = Coco(root=root)
        assert dataset.taxonomy.names == ("dog", "cat", "background")
        assert dataset.taxonomy.category_ids == (3, 40, 41)
        assert dataset.taxonomy.is_thing == (True, True, False)
        assert dataset.names == ("ü 1", "2")
        ring = np.zeros((6, 10), bool)
        ring[1:5, 1:7] = True
        expected = np.full((6, 10), 3)
        expected[crowd] = 0
        expected[ring] = 2
        expected[small] = 1
        np.testing.assert_array_equal(_semantic(dataset), expected)
        np.testing.assert_array_equal(_semantic(dataset, 1), np.full((6, 10), 3))
        found = dataset[0].labels["instances"]
        assert isinstance(found, InstanceSet)
        np.testing.assert_array_equal(found.masks, [small, ring, crowd])
        np.testing.assert_array_equal(found.category_ids, [1, 2, 1])
        np.testing.assert_array_equal(found.is_crowd, [False, False, True])
        np.testing.assert_allclose(found.scores, [0.5, 1, 1])
        void = Coco(root=root, unmarked="void")
        assert void.taxonomy.names == ("dog", "cat")
        np.testing.assert_array_equal(_semantic(void), np.where(expected == 3, 0, expected))

    def test_category_zero_moves_all_ids_up(self, tmp_path: Path):
        categories = [{"id": 0, "name": "cat"}, {"id": 3, "name": "background"}]
        root = write_coco(tmp_path, [coco_annotation(1, 0, RING)], categories=categories)
        dataset = Coco(root=root)
        assert dataset.taxonomy.names == ("cat", "background")
        assert dataset.taxonomy.category_ids == (1, 4)
        assert dataset.taxonomy.is_thing == (True, False)
        assert set(np.unique(_semantic(dataset))) == {1, 2}

    def test_what_others_write_where_they_know_nothing_is_read(self, tmp_path: Path):
        plain = [coco_annotation(1, 3, RING), coco_annotation(2, 40, [[0.0, 0.0, 2.0, 0.0, 2.0, 2.0]])]
        odd = [row | {"iscrowd": None, "score": None, "bbox": [], "area": None, "keypoints": None} for row in plain]
        for row in odd:
            del row["id"]
        file = write_coco(tmp_path / "odd", odd, info=None) / "annotations" / "instances.json"
        data = json.loads(file.read_text())
        data["images"][0]["caption"] = None
        data["categories"][0]["color"] = "#ff00aa"
        data["categories"][1] |= {"color": [1, 2], "keypoints": None, "skeleton": None}
        file.write_bytes(b"\xef\xbb\xbf" + json.dumps(data).encode())
        found = Coco(root=tmp_path / "odd")
        given = Coco(root=write_coco(tmp_path / "plain", plain))
        assert found.taxonomy == given.taxonomy
        assert data_digest(found) == data_digest(given)
        assert found.caption("ü 1") == ""
        file.write_bytes(json.dumps(data | {"annotations": [odd[0], odd[1] | {"segmentation": [[1]]}]}).encode())
        with pytest.raises(UserError, match="annotation 2 has an outline of 1 numbers"):
            Coco(root=tmp_path / "odd")[0]

    def test_boxes_alone_are_told_together_or_made_void(self, tmp_path: Path):
        boxes = [coco_annotation(n, 3, [] if n % 2 else None, bbox=[5.5, 1, 2, 3]) for n in range(2, 9)]
        boxes[0] |= {"keypoints": [1, 1, 2] * 3}
        root = write_coco(tmp_path, [coco_annotation(1, 40, RING), *boxes], categories=[DOG, {"id": 40, "name": "cat"}])
        text = (
            "7 of 8 objects have no outline or mask, which a box does not give: annotation 2 of sub/ü 1.png; .* and 2 "
            "more; outline them, or set `boxes: void`"
        )
        with pytest.raises(UserError, match=text):
            Coco(root=root)
        assert Coco(root=root, names=["2"]).names == ("2",), "pictures that are not read need no outlines"
        dataset = Coco(root=root, boxes="void")
        box = np.zeros((6, 10), bool)
        box[1:4, 5:8] = True
        ring = np.zeros((6, 10), bool)
        ring[1:5, 1:7] = True
        expected = np.full((6, 10), 3)
        expected[box] = 0
        expected[ring] = 2
        np.testing.assert_array_equal(_semantic(dataset), expected)
        found = dataset[0].labels["instances"]
        assert isinstance(found, InstanceSet)
        np.testing.assert_array_equal(found.masks, [ring, *[box] * 7])
        assert found.is_crowd.tolist() == [False, *[True] * 7]
        assert found.keypoints_px is not None
        assert not found.keypoints_px.any()
        for lacking in ({}, {"bbox": []}):
            root = write_coco(tmp_path, [coco_annotation(1, 3, None, **lacking)])
            with pytest.raises(UserError, match="1 of 1 objects have neither outline, mask nor box: annotation 1 of"):
                Coco(root=root, boxes="void")

    def test_classes_choose_among_the_categories(self, tmp_path: Path):
        categories = [{"id": 0, "name": "all"}, {"id": 9, "name": "bird"}, DOG, {"id": 40, "name": "cat"}]
        annotations = [coco_annotation(1, 40, RING), coco_annotation(2, 9, None), coco_annotation(3, 3, RING)]
        root = write_coco(tmp_path, annotations, categories=categories)
        dataset = Coco(root=root, classes=["cat"])
        assert dataset.taxonomy.names == ("cat", "background")
        assert dataset.taxonomy.category_ids == (40, 41)
        assert dataset.taxonomy.skeleton is None
        found = dataset[0].labels["instances"]
        assert isinstance(found, InstanceSet)
        assert found.category_ids.tolist() == [1]
        dataset = Coco(root=root, classes=["cat", "dog"])
        assert dataset.taxonomy.category_ids == (3, 40, 41)
        dog = Coco(root=root, classes=["dog"])
        assert dog.taxonomy.category_ids == (3, 41), "40 is the cat's"
        ring = np.zeros((6, 10), bool)
        ring[1:5, 1:7] = True
        np.testing.assert_array_equal(_semantic(dog), np.where(ring, 1, 2))
        np.testing.assert_array_equal(_semantic(Coco(root=root, classes=["dog"], unmarked="void"), 1), 0)

    def test_classes_that_are_no_categories_are_told(self, tmp_path: Path):
        root = write_coco(tmp_path / "a", [])
        for classes, text in (
            (
                ["cat", "dok"],
                r"`classes` names 'dok', which is no category of .*did you mean 'dog'\? categories: cat, dog",
            ),
            ([], "an empty list of `classes`"),
        ):
            with pytest.raises(UserError, match=text):
                Coco(root=root, classes=classes)
        CocoExporter().export([Entry("a", image(), labels(), {})], TAXONOMY, tmp_path / "b", {})
        with pytest.raises(UserError, match="names PNG maps, whose classes belong together"):
            Coco(root=tmp_path / "b", classes=["car"])

    def test_names_as_seen_from_root_are_told(self, tmp_path: Path):
        pictures = [{"id": 1, "file_name": "images/2.png", "width": 10, "height": 6}]
        root = write_coco(tmp_path, [], images=pictures)
        with pytest.raises(
            UserError, match=r"1 of 1 pictures are missing, first .*; their names are as seen from root: set `ima"
        ):
            Coco(root=root)
        assert Coco(root=root, images=".").names == ("2",)
        panoptic = {
            "images": pictures,
            "annotations": [{"image_id": 1, "file_name": "2.png", "segments_info": []}],
            "categories": [{"id": 3, "name": "car"}],
        }
        write_json(root / "annotations" / "panoptic.json", panoptic)
        with pytest.raises(UserError, match=r"set `images: \.`"):
            CocoPanoptic(root=root)

    def test_objects_without_a_pixel_are_left_out(self, tmp_path: Path):
        outside = [[20.0, 20.0, 30.0, 20.0, 30.0, 30.0]]
        root = write_coco(
            tmp_path,
            [
                coco_annotation(1, 3, outside, keypoints=[0] * 9),
                coco_annotation(2, 40, RING),
                coco_annotation(3, 3, encode_mask(np.zeros((6, 10), bool)), iscrowd=1),
            ],
            categories=[DOG, {"id": 40, "name": "cat"}],
        )
        picture = Coco(root=root)[0]
        found = picture.labels["instances"]
        assert isinstance(found, InstanceSet)
        assert found.category_ids.tolist() == [2]
        assert found.keypoints_px is not None
        assert found.keypoints_px.shape == (1, 3, 3)
        assert picture.object_names == ("annotation 2",)
        assert picture.empty_objects == ("annotation 1", "annotation 3")

    @pytest.mark.parametrize(
        ("segmentation", "text"),
        [
            ([[1, 1, 3, 3]], "an outline of 4 numbers; expected x, y of three points"),
            ([[1, 1, 3, 3, 5]], "an outline of 5 numbers"),
            ({"size": [10, 6], "counts": [60]}, r"a mask of size \(10, 6\); expected the picture's \(6, 10\)"),
            ({"size": [6, 10], "counts": [50]}, r"run lengths of 50 pixels in all; expected 6 x 10"),
            ({"size": [6, 10], "counts": "~~"}, "annotation 1 has"),
        ],
    )
    def test_malformed_masks_are_named(self, tmp_path: Path, segmentation: Any, text: str):
        root = write_coco(tmp_path, [coco_annotation(1, 3, segmentation)])
        with pytest.raises(UserError, match=text):
            Coco(root=root)[0]

    def test_keypoints_are_those_of_the_category(self, tmp_path: Path):
        points = [1.5, 2, 2, 0, 0, 0, 9, 5, 1]
        root = write_coco(
            tmp_path,
            [
                coco_annotation(1, 3, RING, keypoints=points, num_keypoints=2),
                coco_annotation(2, 40, RING),
                coco_annotation(3, 3, RING),
            ],
            categories=[DOG, {"id": 40, "name": "cat"}],
        )
        dataset = Coco(root=root)
        assert dataset.taxonomy.skeleton == Skeleton(
            class_name="dog", points=("nose", "left_ear", "right_ear"), bones=((0, 1), (0, 2))
        )
        found = dataset[0].labels["instances"]
        assert isinstance(found, InstanceSet)
        assert found.keypoints_px is not None
        assert found.keypoints_px.reshape(3, 9).tolist() == [points, [0] * 9, [0] * 9]
        moved = [coco_annotation(1, 3, RING, keypoints=[2.5, *points[1:]], num_keypoints=2)]
        before, after = (
            data_digest(Coco(root=write_coco(tmp_path / name, annotations, categories=[DOG])))
            for name, annotations in (("a", [moved[0] | {"keypoints": points}]), ("b", moved))
        )
        assert before != after, "a corrected joint is other data"

    @pytest.mark.parametrize(
        ("points", "text"),
        [
            ([1, 2, 2], "annotation 1 has 3 numbers in `keypoints`, expected 3 for each of the 3 points"),
            ([1, 2, 2, 10, 3, 1, 0, 0, 0], "annotation 1 has keypoint 2 at x 10, y 3, outside its picture of 10 x 6"),
            ([1, 2, 3, 0, 0, 0, 0, 0, 0], "annotation 1 has a keypoint of visibility 3, expected 0"),
        ],
    )
    def test_malformed_keypoints_are_named(self, tmp_path: Path, points: list[float], text: str):
        root = write_coco(tmp_path, [coco_annotation(1, 3, RING, keypoints=points)], categories=[DOG])
        with pytest.raises(UserError, match=f"instances.json: {text}"):
            Coco(root=root)[0]

    def test_skeletons_of_two_classes_are_refused(self, tmp_path: Path):
        with pytest.raises(UserError, match=r"categories \['dog', 'cat'\] all have keypoints"):
            Coco(root=write_coco(tmp_path, [], categories=[DOG, DOG | {"id": 40, "name": "cat"}]))
        with pytest.raises(UserError, match=r"instances.json: bones \[\(0, 3\)\] of a skeleton"):
            Coco(root=write_coco(tmp_path / "b", [], categories=[DOG | {"skeleton": [[1, 4]]}]))

    def test_contradictions_in_the_json_are_told(self, tmp_path: Path):
        for annotations, more, text in (
            ([coco_annotation(1, 9, RING)], {}, r"annotation 1 has category id 9, expected one of \[3, 40\]"),
            ([], {"categories": [{"id": 1, "name": "a"}] * 2}, "two categories share an id"),
            (
                [],
                {"images": [{"id": 1, "file_name": "no.png", "width": 1, "height": 1}]},
                r"missing, first .*no\.png; check `images`",
            ),
            ([], {"images": [{"id": 1, "file_name": "2.png"}]}, r"not of the COCO form .*images\.0\.width: Field"),
            ([], {"images": []}, "holds no picture"),
            (
                [],
                {"images": [{"id": n, "file_name": f"1/a.{n}", "width": 1, "height": 1} for n in ("2", "3")]},
                "1/a.2 and 1/a.3 share the name '1__a'",
            ),
            (
                [],
                {"images": [{"id": 7, "file_name": f"{name}.png", "width": 1, "height": 1} for name in "ab"]},
                "pictures a.png and b.png share the id 7, expected ids that differ",
            ),
        ):
            with pytest.raises(UserError, match=text):
                Coco(root=write_coco(tmp_path, annotations, **more))
        picture = {"id": 1, "file_name": "2.png", "width": 6, "height": 10}
        with pytest.raises(UserError, match=r"2\.png is 10 x 6 .*instances\.json is 6 x 10"):
            Coco(root=write_coco(tmp_path, [], images=[picture]))[0]
        with pytest.raises(UserError, match="COCO file not found"):
            Coco(root=tmp_path / "none")
        (tmp_path / "run/exports/coco").mkdir(parents=True)
        with pytest.raises(UserError, match=r"not found: .*; name the export of that run, .*run/exports/coco"):
            Coco(root=tmp_path / "run")
        for content in (b"{", b"\xff", b"[]"):
            (tmp_path / "annotations" / "instances.json").write_bytes(content)
            with pytest.raises(UserError, match="not of the COCO form"):
                Coco(root=tmp_path)

    def test_pictures_of_one_name_are_told_apart_by_their_folders(self, tmp_path: Path):
        files = ("1/a.png", "2/a.png", "2/b.png")
        for number, name in enumerate(files):
            _put(tmp_path / "images" / name, image(number, 10, 6))
        listed = [{"id": n, "file_name": name, "width": 6, "height": 10} for n, name in enumerate(files, start=1)]
        dataset = Coco(root=write_coco(tmp_path, [], images=listed))
        assert dataset.names == ("1__a", "2__a", "b")
        np.testing.assert_array_equal(dataset[1].image, image(1, 10, 6))

    def test_our_own_export_comes_back_and_is_exported_to_the_same_bytes(self, tmp_path: Path):
        entries = [
            Entry(f"{n:08d}", image(n), labels(n) | {"instances": objects()}, {"caption": f"№ {n}"}) for n in range(3)
        ]
        CocoExporter().export(entries, TAXONOMY, tmp_path / "a", {})
        dataset = Coco(root=tmp_path / "a")
        assert dataset.taxonomy == TAXONOMY
        assert dataset.caption("00000001") == "№ 1"
        for entry, found in zip(entries, dataset, strict=True):
            np.testing.assert_array_equal(found.image, entry.image)
            assert found.labels.keys() == entry.labels.keys()
            for task in ("semantic", "depth"):
                given, back = entry.labels[task], found.labels[task]
                assert isinstance(given, DenseMap)
                assert isinstance(back, DenseMap)
                assert back.storage == given.storage
                np.testing.assert_array_equal(back.valid, given.valid)
                np.testing.assert_allclose(back.values, given.values, atol=given.storage.quantum / 2)
            given, back = entry.labels["instances"], found.labels["instances"]
            assert isinstance(given, InstanceSet)
            assert isinstance(back, InstanceSet)
            kept = given.masks.any(axis=(1, 2))
            np.testing.assert_array_equal(back.masks, given.masks[kept])
            np.testing.assert_array_equal(back.is_crowd, given.is_crowd[kept])
        again = [
            Entry(found.name, found.image, found.labels, {"caption": dataset.caption(found.name)}) for found in dataset
        ]
        CocoExporter().export(again, dataset.taxonomy, tmp_path / "b", {})
        for name in ("instances", "stuff"):
            first, second = (
                json.loads((tmp_path / side / "annotations" / f"{name}.json").read_text()) for side in "ab"
            )
            for data in (first, second):
                for annotation in data["annotations"]:
                    del annotation["score"]  # confidence is not among the files of a COCO dataset
            assert first == second

    def test_an_export_without_classes_has_neither_objects_nor_background(self, tmp_path: Path):
        CocoExporter().export([Entry("a", image(), {"depth": labels()["depth"]}, {})], TAXONOMY, tmp_path, {})
        dataset = Coco(root=tmp_path)
        assert dataset[0].labels.keys() == {"depth"}
        assert dataset.taxonomy == TAXONOMY

    def test_colors_given_win(self, tmp_path: Path):
        CocoExporter().export([Entry("a", image(), labels(), {})], TAXONOMY, tmp_path, {})
        dataset = Coco(root=tmp_path, colors={"sky": (1, 2, 3)})
        assert dataset.taxonomy.colors == ((1, 2, 3), *TAXONOMY.colors[1:])

    def test_damage_in_our_own_export_is_told(self, tmp_path: Path):
        CocoExporter().export([Entry("a", image(), labels(), {})], TAXONOMY, tmp_path, {})
        _put(tmp_path / "semantic" / "a.png", np.full((20, 33), 9, np.uint8))
        with pytest.raises(UserError, match=r"a\.png holds semantic id 9, expected 0\.\.4"):
            Coco(root=tmp_path)[0]
        file = tmp_path / "annotations" / "instances.json"
        data = json.loads(file.read_text())
        data["categories"][0]["semantic_id"] = None
        file.write_text(json.dumps(data))
        with pytest.raises(UserError, match=r"semantic ids \[None, 2, 3, 4\], expected 1\.\.4"):
            Coco(root=tmp_path)


def test_colors_differ_and_are_not_black():
    colors = palette(254)
    assert len(set(colors)) == 254
    assert (0, 0, 0) not in colors
    assert palette(3) == colors[:3]


def test_a_plan_can_name_each(folder: Path, voc: Path):
    """Through the same settings that a plan goes through: text becomes paths, keys become label ids."""
    values = {
        "format": "label_folder",
        "root": str(folder),
        "classes": {"0": "sky", "1": "car", "2": "tree"},
        "void": [9],
    }
    dataset = choose_part("datasets", values, at="data").build()
    assert dataset.taxonomy.category_ids == (1, 2, 3)
    assert len(choose_part("datasets", {"format": "voc", "root": str(voc), "split": "val"}, at="data").build()) == 1
    with pytest.raises(UserError, match=r"data\.unmarked"):
        choose_part("datasets", {"format": "coco", "root": "x", "unmarked": "sky"}, at="data")
