"""Points of objects: learned to a fraction of a pixel, given to the object they belong to, scored as COCO scores."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoders.augmentation import Augmentation, make_view
from decoders.average_precision import ObjectKeypointSimilarity
from decoders.decoder import Trunk, TrunkFeatures
from decoders.errors import UserError
from decoders.features import FeatureSpec
from decoders.labels import InstanceSet, Skeleton, Taxonomy
from decoders.reader import fit_reader, load_reader
from decoders.resizing import resize_label
from decoders.settings import DecoderSettings, FitSettings
from decoders.tasks.keypoints import Keypoints
from tests.decoders.toy_perceiver import ToyPerceiver
from tests.decoders.toy_world import TAXONOMY, toy_picture, toy_pictures, truth_of

SPEC = FeatureSpec(model_digest="x", strides=(4,), channels=(8,), attention_maps=(0,), settings={})
MIRRORED = TAXONOMY.skeleton.mirrored if TAXONOMY.skeleton else ()


def _task(taxonomy: Taxonomy = TAXONOMY, **options: float) -> Keypoints:
    torch.manual_seed(0)
    return Keypoints(Trunk(SPEC, DecoderSettings(width=16, fine_width=8)), taxonomy, **options)


def _square(top: int, left: int, side: int, *, height: int = 48, width: int = 64) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def _objects(*squares: tuple[int, int, int], points: np.ndarray) -> InstanceSet:
    return replace(truth_of(*(_square(*square) for square in squares)), keypoints_px=points.astype(np.float32))


def _said(points: torch.Tensor, masks: np.ndarray) -> torch.Tensor:
    """What a perfect head gives for such planes of points."""
    heat, visibility = points.chunk(2)
    there = torch.from_numpy(masks.any(axis=0))
    seen = (visibility == 2) | (visibility == 4)
    return torch.cat([heat / 255, seen.float(), there[None].float()]).clamp(1e-4, 1 - 1e-4).logit()[None]


TWO = np.array([[(10.3, 12.0, 2), (6.0, 14.6, 2), (15.75, 14.0, 1)], [(40.0, 20.5, 2), (0, 0, 0), (46.25, 22.0, 2)]])


def test_points_come_back_to_a_tenth_of_a_pixel_and_to_their_object():
    truth, task = _objects((8, 5, 12), (15, 34, 12), points=TWO), _task()
    output = _said(task.target(truth)[:-1], truth.masks)
    found = task.read(output, (48, 64))[0]
    assert isinstance(found, InstanceSet)
    assert found.keypoints_px is not None
    order = found.masks.argmax(axis=0).max(axis=0).nonzero()[0]
    assert len(order) >= 1
    given_points = TWO[..., 2] > 0
    assert np.array_equal(found.keypoints_px[..., 2] > 0, given_points)
    assert np.abs(found.keypoints_px[..., :2] - TWO[..., :2])[given_points].max() < 0.1
    assert (found.scores > 0.9).all()


def test_looks_that_disagree_on_points_are_less_sure_of_them():
    truth, task = _objects((8, 5, 12), (15, 34, 12), points=TWO), _task(minimum_confidence=0.1)
    moved = replace(truth, keypoints_px=(TWO + np.where(TWO[..., 2:] > 0, [4, -4, 0], 0)).astype(np.float32))
    output, other = (_said(task.target(one)[:-1], one.masks) for one in (truth, moved))
    alone, agreed, torn = (
        task.read(merged, (48, 64))[0] for merged in (output, task.merge([output] * 2), task.merge([output, other]))
    )
    assert isinstance(alone, InstanceSet)
    assert isinstance(agreed, InstanceSet)
    assert isinstance(torn, InstanceSet)
    assert alone.keypoints_px is not None
    assert agreed.keypoints_px is not None
    assert np.array_equal(agreed.masks, alone.masks)
    np.testing.assert_allclose(agreed.keypoints_px, alone.keypoints_px, atol=1e-3)
    np.testing.assert_allclose(agreed.scores, alone.scores, atol=1e-4)
    assert np.array_equal(torn.masks, alone.masks)
    assert (torn.scores < alone.scores - 0.3).all()


def test_touching_objects_share_no_point_when_the_instances_are_known():
    points = np.array(
        [[(10.0, 12.0, 2), (7.0, 16.0, 2), (13.0, 16.0, 2)], [(22.0, 12.0, 2), (19.0, 16.0, 2), (26.0, 16.0, 2)]]
    )
    truth, task = _objects((8, 5, 12), (8, 17, 12), points=points), _task()
    output = _said(task.target(truth)[:-1], truth.masks)
    alone = task.read(output, (48, 64))[0]
    assert isinstance(alone, InstanceSet)
    assert len(alone.masks) == 1  # connected parts cannot tell them apart
    found = task.complete(output, replace(truth, keypoints_px=None))
    assert isinstance(found, InstanceSet)
    assert found.keypoints_px is not None
    assert np.abs(found.keypoints_px - points).max() < 0.1


def test_a_point_is_seen_on_the_mask_and_hidden_beside_it():
    points = np.array([[(10.0, 12.0, 2), (7.0, 16.0, 2), (18.0, 14.0, 1)]])
    truth, task = _objects((8, 5, 12), points=points), _task()
    found = task.read(_said(task.target(truth)[:-1], truth.masks), (48, 64))[0]
    assert isinstance(found, InstanceSet)
    assert found.keypoints_px is not None
    assert found.keypoints_px[0, :, 2].tolist() == [2, 2, 1]


@pytest.mark.parametrize(("hidden", "believed"), [((18.0, 14.0), True), ((13.0, 16.0), False)])
def test_visibility_is_learned_where_the_annotations_do_not_follow_the_masks(
    hidden: tuple[float, float], believed: bool
):
    points = np.array([[(10.0, 12.0, 2), (7.0, 16.0, 2), (*hidden, 1)]])
    truth, task = _objects((8, 5, 12), points=points), _task()
    target = task.target(truth)
    task.calibrate([target])
    assert bool(task.mask_says) == believed
    found = task.read(_said(target[:-1], truth.masks), (48, 64))[0]
    assert isinstance(found, InstanceSet)
    assert found.keypoints_px is not None
    assert found.keypoints_px[0, :, 2].tolist() == [2, 2, 1]
    wrong = _said(target[:-1], truth.masks)
    wrong[:, 3:6] *= -1
    assert task.loss(wrong, target[None]) > task.loss(_said(target[:-1], truth.masks), target[None]) + 5


def test_scores_of_objects_found_alone_are_tuned_to_say_how_often_their_points_are_right():
    truth, task = _objects((8, 5, 12), points=TWO[:1]), _task()
    output = _said(task.target(truth)[:-1], truth.masks)
    elsewhere = replace(truth, keypoints_px=(TWO[:1] + np.array([9, 9, 0])).astype(np.float32))
    pairs = [(output, truth), (output, elsewhere)] * 20
    before, after = ObjectKeypointSimilarity(TAXONOMY), ObjectKeypointSimilarity(TAXONOMY)
    for _, label in pairs:
        before.add(task.read(output, (48, 64))[0], label)
    task.tune_confidence(pairs)
    for _, label in pairs:
        after.add(task.read(output, (48, 64))[0], label)
    assert before.result()["ece"] > 0.4
    assert after.result()["ece"] < 0.1
    task.tune_confidence([])
    assert task.score_sigmoid.tolist() == [1, 0]


def test_other_classes_get_no_points():
    truth, task = _objects((8, 5, 12), points=TWO[:1]), _task()
    output = _said(task.target(truth)[:-1], truth.masks)
    found = task.complete(output, replace(truth, category_ids=np.array([2], np.int64)))
    assert isinstance(found, InstanceSet)
    assert found.keypoints_px is not None
    assert not found.keypoints_px.any()


def test_points_nobody_gave_and_crowds_teach_nothing():
    points = np.concatenate([TWO, np.zeros((1, 3, 3))])
    truth, task = _objects((8, 5, 12), (15, 34, 12), (35, 20, 8), points=points), _task()
    truth = replace(truth, is_crowd=np.array([False, True, False]))
    target = task.target(truth)[None]
    output = torch.zeros(1, 7, 48, 64)
    other = output.clone()
    other[:, :3, 15:27, 34:46] = 5  # the crowd: neither its points nor whether somebody is there
    other[:, 3:, 15:27, 34:46] = -5
    other[:, :3, 35:43, 20:28] = 5  # an object without points: only these
    assert task.loss(other, target) == task.loss(output, target)
    other[:, 6, 35:43, 20:28] = -5
    assert task.loss(other, target) > task.loss(output, target)


def test_heat_of_a_large_picture_is_kept_at_a_fraction():
    big = resize_label(_objects((8, 5, 12), points=TWO[:1]), (600, 800))
    task = _task()
    target = task.target(big)
    assert target.shape == (7, 150, 200)
    features = TrunkFeatures(deep=torch.randn(1, 16, 75, 100), fine=torch.randn(1, 8, 600, 800))
    assert task(features).shape == (1, 7, 150, 200)
    assert isinstance(big, InstanceSet)
    assert big.keypoints_px is not None
    found = task.complete(_said(target[:-1], target[-1:].numpy() == 1), replace(big, keypoints_px=None))
    assert isinstance(found, InstanceSet)
    assert found.keypoints_px is not None
    assert np.abs(found.keypoints_px[..., :2] - big.keypoints_px[..., :2]).max() < 0.5


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), view=st.integers(0, 3), size=st.sampled_from([(48, 64), (32, 32), (40, 72)]))
def test_points_move_with_the_picture(seed: int, view: int, size: tuple[int, int]):
    """A pixel marked in a map lies where the point says, in every view; left and right change places in a mirror."""
    picture = toy_picture(seed)
    augmentation = Augmentation(jitter=0.0)
    moved = make_view(
        picture, view=view, size=size, augmentation=augmentation, seed=(seed, 0), mirrored_points=MIRRORED
    )
    before, after = picture.labels["instances"], moved.labels["instances"]
    assert isinstance(before, InstanceSet)
    assert isinstance(after, InstanceSet)
    assert before.keypoints_px is not None
    assert after.keypoints_px is not None
    centre, left, right = after.keypoints_px[0]
    if left[2] and right[2]:
        assert left[0] < right[0]
        assert centre[:2] == pytest.approx((left[:2] + right[:2]) / 2, abs=0.01)
    if centre[2]:
        assert after.masks[0, round(float(centre[1])), round(float(centre[0]))]
    assert (after.keypoints_px[after.keypoints_px[..., 2] == 0] == 0).all()


def test_a_skeleton_knows_its_mirror():
    skeleton = Skeleton(class_name="x", points=("nose", "left_eye", "right_eye", "left_only"))
    assert skeleton.mirrored == (0, 2, 1, 3)
    assert skeleton.sigmas == (0.026, 0.025, 0.025, 0.07)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"points": ()}, "points of different names"),
        ({"points": ("a", "a")}, "points of different names"),
        ({"sigmas": (0.1,)}, "give one above 0 for each"),
        ({"bones": ((0, 2),)}, "not there; expected 0..1"),
    ],
)
def test_malformed_skeletons_are_refused(changes: dict[str, tuple[object, ...]], text: str):
    with pytest.raises(UserError, match=text):
        Skeleton(**({"class_name": "x", "points": ("a", "b")} | changes))  # pyright: ignore[reportArgumentType]


def test_what_cannot_be_learned_is_said():
    plain = replace(TAXONOMY, skeleton=None)
    with pytest.raises(UserError, match="no class of the taxonomy has points"):
        _task(plain)
    with pytest.raises(UserError, match="minimum_confidence 1"):
        _task(minimum_confidence=1.0)
    task, truth = _task(), _objects((8, 5, 12), points=TWO[:1])
    with pytest.raises(UserError, match="have no keypoints"):
        task.target(replace(truth, keypoints_px=None))
    assert not task.target(InstanceSet.collect([], [], size=(40, 60))).any(), "of no object, none are missing"
    with pytest.raises(UserError, match="have 2 keypoints each, the skeleton of ball 3"):
        task.target(_objects((8, 5, 12), points=TWO[:1, :2]))
    with pytest.raises(UserError, match="no picture has a keypoint"):
        task.calibrate([task.target(_objects((8, 5, 12), points=np.zeros((1, 3, 3))))])


def test_scores_count_what_is_near_and_leave_out_what_is_not_given():
    truth = _objects((8, 5, 12), (15, 34, 12), points=np.concatenate([TWO[:1], np.zeros((1, 3, 3))]))
    near, far = (_objects((8, 5, 12), points=TWO[:1] + np.array([shift, 0, 0])) for shift in (0.5, 8))
    for found, expected in ((near, 1.0), (far, 0.0)):
        score = ObjectKeypointSimilarity(TAXONOMY)
        score.add(found, truth)
        assert score.result()["oks_ap50"] == pytest.approx(expected)
        all_seen = np.array([TWO[0] * (1, 1, 0) + (0, 0, 2)])  # the third is hidden in truth
        score.add(_objects((8, 5, 12), points=all_seen), truth)
        assert score.result()["visibility_accuracy"] == pytest.approx(5 / 6 if expected else 2 / 3)
    untold = ObjectKeypointSimilarity(TAXONOMY)
    untold.add(_objects((15, 34, 12), points=TWO[1:]), truth)
    assert untold.reliability.count == 0
    nothing = ObjectKeypointSimilarity(TAXONOMY)
    nothing.add(near, _objects((8, 5, 12), points=np.zeros((1, 3, 3))))
    assert nothing.result() == {}


def test_keypoints_alone_and_with_instances_are_fitted_saved_and_read(tmp_path: Path):
    for tasks, expected in (({"keypoints": {}}, ["keypoints"]), ({"keypoints": {}, "instances": {}}, ["instances"])):
        reader = fit_reader(
            ToyPerceiver(classes=3),
            toy_pictures(10),
            TAXONOMY,
            tasks=tasks,
            settings=FitSettings(updates=120, batch_size=4, views=2, evaluations=2, learning_rate=4e-3),
            decoder=DecoderSettings(width=32, fine_width=8),
        )
        folder = tmp_path / expected[0]
        reader.save(folder, model={})
        again = load_reader(folder, lambda manifest: ToyPerceiver(classes=3, seed=manifest.perceiver["seed"]))
        unseen = toy_pictures(4, first=100)
        assert again.taxonomy == TAXONOMY
        assert list(again.read([unseen[0].image])[0]) == expected
        figures = again.evaluate(unseen)
        assert figures.keys() == tasks.keys()
        assert figures["keypoints"]["oks_ap50"] > 0.5
