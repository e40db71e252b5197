"""Views: reproducible, labels move with pixels and are never blended, depth follows the zoom."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decoders.augmentation import Augmentation, make_view
from decoders.errors import UserError
from decoders.labels import AnnotatedImage, DenseMap, InstanceSet, metric_depth, semantic_map, surface_normals
from decoders.resizing import inside, resize_image, resize_nearest, round_size, working_size
from tests.decoders.toy_world import toy_picture, truth_of

PLAIN = Augmentation()
NO_LIGHT = Augmentation(jitter=0.0)


def _dense(picture: AnnotatedImage, name: str) -> DenseMap:
    label = picture.labels[name]
    assert isinstance(label, DenseMap)
    return label


def test_view_0_is_the_plain_picture_at_another_size():
    picture = toy_picture(0, 60, 80)
    view = make_view(picture, view=0, size=(48, 64), augmentation=PLAIN, seed=(0, 0))
    assert np.array_equal(view.image, resize_image(picture.image, (48, 64)))
    ids = _dense(picture, "semantic").values
    assert np.array_equal(_dense(view, "semantic").values, resize_nearest(ids, (48, 64)))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    view=st.integers(0, 20),
    size=st.tuples(st.integers(9, 70), st.integers(9, 70)),
    native=st.tuples(st.integers(7, 90), st.integers(7, 90)),
    zoom=st.sampled_from([(1.0, 1.0), (0.5, 0.9), (0.8, 1.6), (2.0, 3.0)]),
)
def test_labels_are_never_blended(
    seed: int, view: int, size: tuple[int, int], native: tuple[int, int], zoom: tuple[float, float]
):
    ids = np.random.default_rng(seed).choice([0, 3, 9, 200], native).astype(np.uint8)
    meters = np.where(ids > 0, ids, np.nan).astype(np.float32)
    picture = AnnotatedImage(
        name="p",
        image=np.repeat(ids[..., None], 3, axis=2),
        labels={"semantic": semantic_map(ids), "depth": metric_depth(meters)},
    )
    moved = make_view(picture, view=view, size=size, augmentation=Augmentation(zoom=zoom), seed=(seed, 0))
    semantic, depth = _dense(moved, "semantic"), _dense(moved, "depth")
    assert moved.image.shape == (*size, 3)
    assert set(np.unique(semantic.values)) <= {0, 3, 9, 200}
    assert np.array_equal(semantic.valid, semantic.values[..., 0] > 0)
    # Depth moved with the ids: their quotient is one number, the magnification.
    assert np.array_equal(depth.valid, semantic.valid)
    quotient = semantic.values[depth.valid] / depth.values[depth.valid]
    assert quotient.size == 0 or np.ptp(quotient) < 1e-3 * quotient.max()


def test_the_picture_moves_with_its_labels():
    ids = np.zeros((40, 60), np.uint8)
    ids[10:30, 5:20] = 1
    picture = AnnotatedImage(
        name="p",
        image=np.where(ids[..., None] > 0, 255, 0).repeat(3, 2).astype(np.uint8),
        labels={"semantic": semantic_map(ids)},
    )
    for view in range(12):
        moved = make_view(picture, view=view, size=(40, 60), augmentation=NO_LIGHT, seed=(0, 0))
        agree = (moved.image[..., 0] > 127) == (_dense(moved, "semantic").values[..., 0] == 1)
        known = _dense(moved, "semantic").confidence > 0
        assert agree[known].mean() > 0.97


def test_a_view_is_a_function_of_seed_picture_and_number():
    picture = toy_picture(1)
    views = {
        key: make_view(picture, view=key[2], size=(48, 64), augmentation=PLAIN, seed=key[:2]).image.tobytes()
        for key in [(0, 0, 1), (0, 0, 2), (0, 1, 1), (5, 0, 1)]
    }
    assert len(set(views.values())) == len(views)
    again = make_view(picture, view=1, size=(48, 64), augmentation=PLAIN, seed=(0, 0))
    assert again.image.tobytes() == views[0, 0, 1]


@pytest.mark.parametrize("zoom", [0.5, 2.0])
def test_what_looks_twice_as_large_is_half_as_far(zoom: float):
    picture = AnnotatedImage(
        name="p",
        image=np.zeros((40, 60, 3), np.uint8),
        labels={"depth": metric_depth(np.full((40, 60), 10.0, np.float32))},
    )
    depth = _dense(
        make_view(picture, view=1, size=(40, 60), augmentation=Augmentation(zoom=(zoom, zoom)), seed=(0, 0)), "depth"
    )
    assert np.unique(depth.values[depth.valid]).tolist() == [10.0 / zoom]
    assert depth.valid.mean() == pytest.approx(min(1.0, zoom**2), abs=0.02)
    assert np.array_equal(depth.valid, depth.confidence == 1)


def test_the_plain_view_of_other_proportions_is_larger_and_so_nearer_too():
    picture = AnnotatedImage(
        name="p",
        image=np.zeros((200, 100, 3), np.uint8),
        labels={"depth": metric_depth(np.full((200, 100), 10.0, np.float32))},
    )
    still = Augmentation(zoom=(1.0, 1.0))
    for view in (0, 1):
        depth = _dense(make_view(picture, view=view, size=(64, 128), augmentation=still, seed=(0, 0)), "depth")
        assert np.unique(depth.values[depth.valid]).tolist() == [5.0]


def test_proportions_are_kept():
    ids = np.ones((40, 80), np.uint8)
    ids[10:30, 30:50] = 2  # a square
    picture = AnnotatedImage(name="p", image=np.zeros((40, 80, 3), np.uint8), labels={"semantic": semantic_map(ids)})
    square = _dense(make_view(picture, view=0, size=(60, 60), augmentation=PLAIN, seed=(0, 0)), "semantic").values == 2
    assert square.any((1, 2)).sum() == square.any((0, 2)).sum() == 30


def test_a_label_of_another_size_is_refused():
    picture = AnnotatedImage(
        name="lamp", image=np.zeros((8, 8, 3), np.uint8), labels={"semantic": semantic_map(np.ones((8, 9), np.uint8))}
    )
    with pytest.raises(UserError, match=r"picture lamp has \(8, 8\) pixels .* semantic label \(8, 9\)"):
        make_view(picture, view=0, size=(8, 8), augmentation=PLAIN, seed=(0, 0))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), view=st.integers(0, 20), size=st.tuples(st.integers(9, 70), st.integers(9, 70)))
def test_objects_move_with_the_map(seed: int, view: int, size: tuple[int, int]):
    """Overlapping objects, one of them perhaps cropped away, keep their number and order."""
    masks = np.random.default_rng(seed).random((3, 40, 50)) < 0.2
    picture = AnnotatedImage(
        name="p",
        image=np.zeros((40, 50, 3), np.uint8),
        labels={f"mask {index}": semantic_map(mask.astype(np.uint8)) for index, mask in enumerate(masks)}
        | {"instances": truth_of(*masks)},
    )
    moved = make_view(picture, view=view, size=size, augmentation=NO_LIGHT, seed=(seed, 0))
    objects = moved.labels["instances"]
    assert isinstance(objects, InstanceSet)
    for index, mask in enumerate(objects.masks):
        assert np.array_equal(mask, _dense(moved, f"mask {index}").valid)


def test_no_object_moves_as_well():
    nothing = InstanceSet(
        masks=np.zeros((0, 8, 8), np.bool_),
        category_ids=np.zeros(0, np.int64),
        scores=np.zeros(0, np.float32),
        is_crowd=np.zeros(0, np.bool_),
    )
    picture = AnnotatedImage(name="lamp", image=np.zeros((8, 8, 3), np.uint8), labels={"things": nothing})
    moved = make_view(picture, view=1, size=(16, 24), augmentation=PLAIN, seed=(0, 0)).labels["things"]
    assert isinstance(moved, InstanceSet)
    assert moved.masks.shape == (0, 16, 24)


def test_impossible_settings_are_refused():
    with pytest.raises(UserError, match="two rising numbers"):
        Augmentation(zoom=(2.0, 1.0))
    with pytest.raises(UserError, match="jitter"):
        Augmentation(jitter=1.0)


def test_working_sizes():
    assert working_size((480, 641), short_side=None, multiple=32) == (480, 640)
    assert working_size((480, 641), short_side=0, multiple=32) == (480, 640)
    assert working_size((960, 720), short_side=360, multiple=8) == (480, 360)
    assert working_size((3, 200), short_side=None, multiple=16) == (16, 208)
    assert round_size((24.0, 40.0), 16) == (32, 48)


def test_directions_are_mirrored_too():
    """What faced right faces left."""
    right = np.zeros((32, 32, 3), np.float32)
    right[..., 0], right[..., 2] = 0.6, 0.8
    picture = AnnotatedImage(
        name="wall", image=np.zeros((32, 32, 3), np.uint8), labels={"normals": surface_normals(right)}
    )
    for view in range(1, 20):
        augmentation = Augmentation(zoom=(1.0, 1.0), jitter=0.0)
        moved = _dense(make_view(picture, view=view, size=(32, 32), augmentation=augmentation, seed=(0, 0)), "normals")
        assert np.abs(moved.values[..., 0]).min() == pytest.approx(0.6)
        assert (moved.values[..., 2] == np.float32(0.8)).all()
    seen = {
        float(
            _dense(make_view(picture, view=view, size=(32, 32), augmentation=PLAIN, seed=(0, 0)), "normals")
            .values[16, 16, 0]
            .round(3)
        )
        for view in range(1, 20)
    }
    assert seen == {np.float32(0.6).round(3).item(), np.float32(-0.6).round(3).item()}


@given(
    count=st.integers(0, 4),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
)
def test_objects_collected_one_by_one(count: int, height: int, width: int):
    masks = [np.full((height, width), index % 2 == 0) for index in range(count)]
    found = InstanceSet.collect(masks, [index + 1 for index in range(count)], size=(height, width))
    assert found.masks.shape == (count, height, width)
    assert found.category_ids.tolist() == [index + 1 for index in range(count)]
    assert found.scores.tolist() == [1.0] * count
    assert not found.is_crowd.any()
    areas = found.masks.sum(axis=(1, 2))[found.back_to_front]
    assert np.all(areas[:-1] >= areas[1:])


def test_pixels_reach_half_a_pixel_beyond_their_centres():
    points = np.array([[-0.5, 0.0], [-0.6, 0.0], [9.4, 5.4], [9.5, 5.4], [9.4, 5.5], [np.nan, 0.0]])
    assert inside(points, (6, 10)).tolist() == [True, False, True, False, False, False]
