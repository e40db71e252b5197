"""What ControlNets are shown: of the guide's own size, in range, the same every time, and true to the labels."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from datagen.conditions import Condition, annotator
from datagen.conditions.annotator import Annotator, DetectorName
from datagen.conditions.depth import Depth
from datagen.conditions.edges import Edges
from datagen.conditions.one_hot import OneHot
from datagen.conditions.palette import Palette
from datagen.plugins import choose_part, kinds
from datagen.records import Guide
from decoders.errors import UserError
from decoders.labels import RELATIVE_DEPTH_STORAGE, InstanceSet, LabelSet, Taxonomy, metric_depth, semantic_map
from tests.datagen import made_up

SETTINGS: Mapping[str, list[dict[str, Any]]] = {
    "one_hot": [{}],
    "palette": [{}, {"colors": {"car": [1, 2, 3]}}],
    "edges": [{}, {"low": 20, "high": 60.0}, {"of": "labels"}],
    "depth": [{}],
    "annotator": [{"name": "canny"}, {"name": "lineart_standard"}, {"name": "shuffle"}],
}
THREE = Taxonomy(names=("sky", "road", "car"), is_thing=(False, False, True), colors=((10, 20, 30),) * 3)
MAPS = arrays(np.uint8, st.tuples(st.integers(1, 7), st.integers(1, 9)), elements=st.integers(0, 3))


def guide(height: int = 20, width: int = 70) -> Guide:
    labels = {**made_up.labels(0, height, width), "instances": made_up.objects(height, width)}
    return Guide(labels=labels, image=made_up.image(0, height, width))


def of_classes(ids: np.ndarray) -> Guide:
    return Guide(labels={"semantic": semantic_map(ids)})


class Mirror:
    """A detector that answers with the picture, and refuses sizes that the real ones would change."""

    @classmethod
    def from_pretrained(cls, folder: str) -> "Mirror":
        assert len(list(Path(folder).iterdir())) > 0
        return cls()

    def __call__(self, image: np.ndarray, *, image_resolution: int, **arguments: Any) -> np.ndarray:
        assert arguments.pop("detect_resolution") == image_resolution == min(image.shape[:2])
        assert arguments.pop("output_type") == "np"
        assert not image.shape[0] % 64
        assert not image.shape[1] % 64
        return 255 - image if arguments else image


class Standard:
    """As the real one, it takes no `image_resolution`."""

    def __call__(self, image: np.ndarray, *, detect_resolution: int, output_type: str) -> np.ndarray:
        resolutions = {"image_resolution": detect_resolution, "detect_resolution": detect_resolution}
        return Mirror()(image, **resolutions, output_type=output_type)


class Shuffle(Mirror):
    def __call__(self, image: np.ndarray, **arguments: Any) -> np.ndarray:
        return np.roll(super().__call__(image, **arguments), np.random.randint(1, 64), axis=1)  # noqa: NPY002


@pytest.fixture(autouse=True)
def controlnet_aux(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in that offers every detector that ours know."""
    module = ModuleType("controlnet_aux")
    module.__spec__ = ModuleSpec("controlnet_aux", None)
    for detector in annotator._DETECTORS.values():  # pyright: ignore[reportPrivateUsage]
        setattr(module, detector.class_name, Mirror)
    module.LineartStandardDetector = Standard  # pyright: ignore[reportAttributeAccessIssue]
    module.ContentShuffleDetector = Shuffle  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "controlnet_aux", module)
    return module


def test_every_condition_is_held_to_the_contract():
    assert set(kinds("conditions")) == SETTINGS.keys()


@pytest.mark.parametrize(
    ("kind", "settings"), [(kind, settings) for kind, choices in SETTINGS.items() for settings in choices]
)
def test_contract(kind: str, settings: dict[str, Any]):
    condition = choose_part("conditions", {"kind": kind, **settings}, at="here").build(taxonomy=made_up.TAXONOMY)
    assert isinstance(condition, Condition)
    assert condition.channels != 4
    mine, again = guide(), guide()
    drawn = condition.draw(mine)
    assert drawn.shape == (condition.channels, 20, 70)
    assert drawn.dtype == np.float32
    assert drawn.min() == 0
    assert 0 < drawn.max() <= 1
    assert condition.draw(again).tobytes() == condition.draw(mine).tobytes() == drawn.tobytes()
    assert mine.image is not None
    assert mine.image.tobytes() == made_up.image(0, 20, 70).tobytes()
    assert repr(mine.labels) == repr(guide().labels)
    drawn[:] = 2  # what is returned is nobody else's
    assert condition.draw(mine).max() <= 1


@given(MAPS)
def test_one_hot_tells_the_class_of_each_pixel(ids: np.ndarray):
    condition = OneHot(taxonomy=THREE)
    planes = condition.draw(of_classes(ids))
    assert condition.channels == len(planes) == 5  # three classes and void would be four
    assert np.isin(planes, (0, 1)).all()
    assert (planes.sum(axis=0) == 1).all()
    assert (planes[4] == 0).all()
    assert (np.array([1, 2, 3, 0])[planes.argmax(axis=0)] == ids).all()


def test_what_is_invalid_is_void_whatever_its_value():
    label = semantic_map(np.full((2, 3), 2, np.uint8))
    hidden = replace(label, valid=np.zeros((2, 3), bool))
    here = Guide(labels={"semantic": hidden})
    assert (OneHot(taxonomy=made_up.TAXONOMY).draw(here)[-1] == 1).all()
    assert (Palette(taxonomy=THREE).draw(here) == 0).all()


def test_the_palette_is_the_taxonomys_but_for_the_colours_given():
    drawn = Palette(colors={"road": (255, 0, 51)}, taxonomy=THREE).draw(of_classes(np.array([[0, 1, 2]], np.uint8)))
    assert np.rint(drawn[:, 0].T * 255).tolist() == [[0, 0, 0], [10, 20, 30], [255, 0, 51]]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"kind": "palette", "colors": {"raod": [0, 0, 0]}}, "'raod' is no class; did you mean 'road'"),
        ({"kind": "palette", "colors": {"road": [0, 0, 300]}}, r"colors\.road\.2: found 300"),
        ({"kind": "edges", "low": 300}, "found low 300 above high 200"),
        ({"kind": "edges", "of": "labels", "high": 300}, "`of: labels` has no thresholds; remove"),
        ({"kind": "annotator", "name": "hed"}, r"found no ControlNetHED\.pth in `weights: None`; give a folder"),
        ({"kind": "annotator", "name": "openpose", "weights": "."}, r"no body_pose_model\.pth, hand_pose_model\.pth,"),
        ({"kind": "annotator", "name": "canny", "weights": "."}, r"found weights \., but it needs none; remove"),
        ({"kind": "annotator", "name": "cany"}, "found 'cany', expected"),
    ],
)
def test_mistakes_are_told_before_anything_is_drawn(settings: dict[str, Any], told: str):
    with pytest.raises(UserError, match=told):
        choose_part("conditions", settings, at="conditions.0").build(taxonomy=THREE)


@pytest.mark.parametrize(
    ("condition", "lacking", "told"),
    [
        (OneHot(taxonomy=THREE), {}, r"found the labels \[\], expected one that gives each pixel a class"),
        (Depth(), {"semantic": semantic_map(np.ones((4, 5), np.uint8))}, r"units .*found the labels \['semantic'\]"),
        (Edges(), {"semantic": semantic_map(np.ones((4, 5), np.uint8))}, "needs the picture .*set `of: labels`"),
        (Edges(of="labels"), {"depth": metric_depth(np.ones((4, 5), np.float32))}, r"found the labels \['depth'\]"),
    ],
)
def test_a_guide_that_lacks_something_is_refused(condition: Condition, lacking: dict[str, Any], told: str):
    with pytest.raises(UserError, match=told):
        condition.draw(Guide(labels=lacking))


@given(MAPS)
def test_borders_lie_between_classes_and_nowhere_else(ids: np.ndarray):
    drawn = Edges(of="labels").draw(of_classes(ids))[0]
    height, width = ids.shape
    for y in range(height):
        for x in range(width):
            ahead = [ids[place] for place in ((y + 1, x), (y, x + 1)) if place[0] < height and place[1] < width]
            assert drawn[y, x] == any(other != ids[y, x] for other in ahead)


def test_touching_objects_of_one_class_are_told_apart_and_crowds_are_not():
    masks = np.zeros((3, 4, 9), bool)
    masks[0, :, :3] = masks[1, :, 3:6] = masks[2, :, 7] = True
    crowd = np.array([False, False, True])
    objects = InstanceSet.collect(list(masks), [3, 3, 3], size=(4, 9), is_crowd=crowd.tolist())
    same = {"semantic": semantic_map(np.full((4, 9), 3, np.uint8)), "instances": objects}
    drawn = Edges(of="labels").draw(Guide(labels=same))
    assert (drawn == np.array([0, 0, 1, 0, 0, 1, 0, 0, 0])).all()


def test_edges_of_a_picture_are_where_its_brightness_jumps():
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:30, 20:45] = 90
    drawn = Edges().draw(Guide(labels={}, image=image))
    assert (drawn[0] == drawn[2]).all()
    ring = np.zeros((40, 60), bool)
    ring[8:32, 18:47] = True
    ring[12:28, 22:43] = False
    assert drawn[0][20].sum() == 2  # one pixel for each side of the square
    assert not drawn[0][~ring].any()
    assert not Edges(low=400.0, high=1000.0).draw(Guide(labels={}, image=image)).any()


@given(arrays(np.float32, (3, 4), elements=st.floats(0.125, 200, width=32) | st.just(float("inf"))))
def test_near_is_bright_and_far_is_dark(meters: np.ndarray):
    near, _, _ = Depth().draw(Guide(labels={"depth": metric_depth(meters)}))
    sky = np.isinf(meters)
    assert (near[sky] == 0).all()
    assert ((near >= 0) & (near <= 1)).all()
    if not sky.all():
        order = np.argsort(meters[~sky], kind="stable")
        assert (np.diff(near[~sky][order]) <= 0).all()
        assert near[~sky].max() == 1
        if meters[~sky].max() > 1.001 * meters[~sky].min():
            assert near[~sky].min() == 0


def test_depth_is_inverse_before_it_is_stretched():
    meters = np.array([[1, 2, 4, np.inf]], np.float32)
    assert Depth().draw(Guide(labels={"depth": metric_depth(meters)}))[0] == pytest.approx(
        np.array([[1, 1 / 3, 0, 0]]), abs=1e-6
    )
    label = metric_depth(np.array([[0.25, 0.5, 0.75, np.inf]], np.float32))
    relative = replace(label, storage=RELATIVE_DEPTH_STORAGE)  # inverse already
    assert Depth().draw(Guide(labels={"depth": relative}))[0].tolist() == [[0, 0.5, 1, 0]]
    flat = metric_depth(np.array([[7, 7, np.inf]], np.float32))
    assert Depth().draw(Guide(labels={"depth": flat}))[0].tolist() == [[1, 1, 0]]


def test_a_reader_says_the_depth_of_a_picture_that_came_without(monkeypatch: pytest.MonkeyPatch):
    meters = np.array([[1, 2, 4, np.inf]], np.float32)
    asked: list[Any] = []

    class Knowing:
        def __init__(self, **_: Any) -> None: ...

        def label(self, _recipes: Any, images: Any) -> list[LabelSet]:
            asked.append(images)
            return [{"depth": metric_depth(meters)}]

    monkeypatch.setattr("datagen.conditions.depth.Decoded", Knowing)
    picture = np.arange(12, dtype=np.uint8).reshape(1, 4, 3)
    expected = Depth().draw(Guide(labels={"depth": metric_depth(meters)}))
    reading = Depth(reader=Path("somewhere"))
    np.testing.assert_array_equal(reading.draw(Guide(labels={}, image=picture)), expected)
    np.testing.assert_array_equal(asked, [picture[None]])
    reading.draw(Guide(labels={"depth": metric_depth(meters)}, image=picture))
    assert len(asked) == 1
    with pytest.raises(UserError, match="or a `reader` that says depth and a source with pictures"):
        reading.draw(Guide(labels={"semantic": semantic_map(np.ones((1, 4), np.uint8))}))


@pytest.mark.parametrize("size", [(20, 70), (64, 128), (1, 130)])
def test_an_annotation_lies_on_the_pixels_of_its_picture(size: tuple[int, int]):
    image = made_up.image(3, *size)
    drawn = Annotator(name="canny").draw(Guide(labels={}, image=image))
    assert (np.rint(drawn.transpose(1, 2, 0) * 255) == image).all()


def test_shuffle_leaves_the_chance_of_others_alone():
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.random(3)  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    shuffle = Annotator(name="shuffle")
    drawn = {shuffle.draw(Guide(labels={}, image=made_up.image(seed))).tobytes() for seed in range(4)}
    assert len(drawn) == 4
    assert (np.random.random(3) == expected).all()  # noqa: NPY002


@pytest.mark.parametrize("name", get_args(DetectorName))
def test_every_name_has_a_detector_that_reads_its_own_weights(name: DetectorName, tmp_path: Path):
    files = annotator._DETECTORS[name].files  # pyright: ignore[reportPrivateUsage]
    for file in files:
        (tmp_path / file).write_bytes(name.encode())
    found = Annotator(name=name, weights=tmp_path if files else None)
    image = made_up.image()
    drawn = np.rint(found.draw(Guide(labels={}, image=image)) * 255).astype(np.uint8).transpose(1, 2, 0)
    if name != "shuffle":
        changed = "_" in name and name not in ("lineart_standard", "lineart_anime")  # those with arguments
        assert (drawn == (255 - image if changed else image)).all()
    before = found.digest
    assert (before is None) == (not files)
    if files:
        (tmp_path / files[-1]).write_bytes(b"others")
        assert Annotator(name=name, weights=tmp_path).digest != before


def test_a_detector_that_changes_sizes_is_no_annotation(controlnet_aux: ModuleType):
    controlnet_aux.CannyDetector = lambda: lambda image, **_: image[:-1]  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(RuntimeError, match=r"shape \(63, 64, 3\) to \(64, 64, 3\)"):
        Annotator(name="canny").draw(guide(20, 33))


def test_without_the_package_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(annotator, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"not installed; pip install 'datagen\[annotators\]'"):
        Annotator(name="canny")


@pytest.mark.parametrize("trap", ["import einops_of_old", "import types; types.ModuleType('mediapipe').solutions"])
def test_a_package_that_does_not_import_is_told_with_its_remedy(
    trap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "controlnet_aux.py").write_text(trap)
    monkeypatch.delitem(sys.modules, "controlnet_aux")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"does not import \(.*(einops|solutions).*pip uninstall mediapipe"):
        Annotator(name="canny").draw(guide())


def test_an_annotator_needs_a_picture():
    with pytest.raises(UserError, match="annotator canny needs the picture"):
        Annotator(name="canny").draw(Guide(labels=made_up.labels()))
