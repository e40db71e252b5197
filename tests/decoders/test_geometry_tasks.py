"""Relative depth and normals: what their losses forgive, what their scores count, what their confidence means."""

import math

import numpy as np
import pytest
import torch

from decoders.decoder import Trunk
from decoders.errors import UserError
from decoders.features import FeatureSpec
from decoders.labels import DenseMap, Taxonomy, metric_depth, relative_depth, semantic_map, surface_normals
from decoders.settings import DecoderSettings
from decoders.tasks.normals import Normals, NormalsScore
from decoders.tasks.relative_depth import RelativeDepth, RelativeDepthScore

SPEC = FeatureSpec(model_digest="x", strides=(8,), channels=(8,), attention_maps=(0,), settings={})
TAXONOMY = Taxonomy(names=("all",), is_thing=(False,), colors=((1, 2, 3),))
METERS = np.random.default_rng(0).uniform(2, 60, (12, 16)).astype(np.float32)


def trunk() -> Trunk:
    return Trunk(SPEC, DecoderSettings(width=16, fine_width=8))


# ---- relative depth ----


def output_of(inverse: np.ndarray) -> torch.Tensor:
    """What a head that knows the inverse depth gives."""
    planes = np.stack([inverse, np.full_like(inverse, -3), np.full_like(inverse, 9)])
    return torch.from_numpy(planes.astype(np.float32))[None]


def test_scale_and_shift_are_free():
    task = RelativeDepth(trunk(), TAXONOMY)
    target = task.target(metric_depth(METERS))[None]
    right, scaled, wrong = (
        task.loss(output_of(inverse), target).item() for inverse in (1 / METERS, 40 / METERS - 7, METERS)
    )
    assert scaled == pytest.approx(right, abs=1e-4)
    assert wrong > right + 1


def test_what_is_read_is_right_up_to_scale_and_shift():
    meters = METERS.copy()
    meters[:3] = np.inf
    task = RelativeDepth(trunk(), TAXONOMY)
    output = output_of(5 / METERS + 3)
    output[:, 2, :3] = -9
    label = task.read(output, (12, 16))[0]
    assert isinstance(label, DenseMap)
    assert not label.valid[:3].any()
    assert (label.values[label.valid].min(), label.values[label.valid].max()) == (0, 1)
    score = RelativeDepthScore()
    score.add(label, metric_depth(meters))
    assert score.result()["absrel"] == pytest.approx(0, abs=1e-3)
    assert score.result()["delta1"] == 1
    assert score.merit == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("sky", "validity"), [(0, 0.25), (3, 0.25), (0, 0.0)])
def test_what_looks_disagree_on_is_measured_in_the_unit_of_the_spread(sky: int, validity: float):
    """Which is free of the scale and the shift that the head happened to learn."""
    task = RelativeDepth(trunk(), TAXONOMY, validity=validity)
    looks = [output_of(5 / METERS), output_of(4 / METERS[::-1].copy())]
    scaled = [look.clone() for look in looks]
    for one in (*looks, *scaled):
        one[:, 2] = 9 if validity else -9  # where it was never learned, it counts for nothing
        one[:, 2, :sky] = -9
    for one in scaled:
        one[:, 0] = 10 * one[:, 0] + 7
        one[:, 0, :sky] = 1000
    alone, found, other = (task.read(each, (12, 16))[0] for each in (looks[0], task.merge(looks), task.merge(scaled)))
    assert isinstance(alone, DenseMap)
    assert isinstance(found, DenseMap)
    assert isinstance(other, DenseMap)
    np.testing.assert_allclose(other.confidence, found.confidence, atol=1e-4)
    np.testing.assert_allclose(other.values, found.values, atol=1e-4)
    assert found.confidence[sky:].mean() < alone.confidence[sky:].mean() - 0.1


def test_looks_that_find_no_depth_anywhere_are_merged_all_the_same():
    nowhere = output_of(5 / METERS)
    nowhere[:, 2] = -9
    assert RelativeDepth(trunk(), TAXONOMY).merge([nowhere, nowhere]).isfinite().all()


def test_silence_and_inversion_are_not_rewarded():
    def merit(*found: DenseMap) -> float:
        score = RelativeDepthScore()
        for label in found:
            score.add(label, metric_depth(METERS))
        assert score.merit is not None
        return score.merit

    right, nothing = metric_depth(METERS), metric_depth(np.full_like(METERS, np.inf))
    inverted = relative_depth(METERS)
    assert merit(right) == pytest.approx(1, abs=1e-3)
    assert merit(nothing) < 0.5
    assert merit(inverted) == pytest.approx(merit(nothing), abs=1e-6)
    assert merit(right, nothing) < 0.85


def test_depths_that_cannot_be_are_refused():
    wrong = metric_depth(METERS)
    wrong.values[0, 0] = -1
    with pytest.raises(UserError, match="finite and above 0"):
        RelativeDepth(trunk(), TAXONOMY).target(wrong)
    tiny = relative_depth(np.linspace(1e-7, 1e-6, 192, dtype=np.float32).reshape(12, 16))
    assert (tiny.values.min(), tiny.values.max()) == (0, 1)


def test_a_picture_without_depth_is_no_score():
    score = RelativeDepthScore()
    score.add(metric_depth(METERS), metric_depth(np.full_like(METERS, np.inf)))
    assert score.result() == {"validity_accuracy": 0}
    assert score.merit is None
    two = np.full_like(METERS, np.inf)
    two[0, :2] = 5, 9
    score.add(metric_depth(METERS), metric_depth(two))
    assert score.merit is None, "a scale and a shift fit two pixels whatever was found"
    with pytest.raises(UserError, match="no picture has a valid depth"):
        RelativeDepth(trunk(), TAXONOMY).calibrate([torch.zeros(3, 4, 4)])


# ---- normals ----


def turned(degrees: float) -> DenseMap:
    """Up, turned towards the camera."""
    angle = math.radians(degrees)
    vectors = np.tile(np.array([0, math.cos(angle), math.sin(angle)], np.float32), (8, 8, 1))
    return surface_normals(vectors)


@pytest.mark.parametrize(("degrees", "within"), [(0, (1, 1, 1)), (20, (0, 1, 1)), (25, (0, 0, 1)), (90, (0, 0, 0))])
def test_angles_are_counted_as_by_hand(degrees: float, within: tuple[int, int, int]):
    score = NormalsScore()
    score.add(turned(degrees), turned(0))
    result = score.result()
    assert result["mean_angle_deg"] == pytest.approx(degrees, abs=0.1)
    assert (result["within_11"], result["within_22"], result["within_30"]) == within


def test_no_direction_found_counts_as_a_right_angle():
    score = NormalsScore()
    score.add(surface_normals(np.zeros((8, 8, 3), np.float32)), turned(0))
    assert score.result()["mean_angle_deg"] == pytest.approx(90)


def test_the_surer_head_has_the_higher_confidence():
    task = Normals(trunk(), TAXONOMY)
    output = torch.zeros(1, 5, 4, 4)
    output[:, 1], output[:, 4] = 1, 9
    sure, unsure = output.clone(), output.clone()
    sure[:, 3], unsure[:, 3] = 3, 0
    labels = [task.read(one, (4, 4))[0] for one in (sure, unsure)]
    assert all(isinstance(label, DenseMap) for label in labels)
    high, low = (label.confidence.mean() for label in labels if isinstance(label, DenseMap))
    assert high > 0.9 > low


def test_a_sure_direction_learns_as_much_as_an_unsure_one():
    """Else what is sure, a road that faces up, drowns the rest, and the other tasks on the same trunk."""
    task = Normals(trunk(), TAXONOMY)
    target = task.target(turned(0))[None]
    gradients: list[torch.Tensor] = []
    for concentration in (0.0, 5.0):
        output = torch.zeros(1, 5, 8, 8)
        output[:, 1:3], output[:, 3] = math.sqrt(0.5), concentration
        output.requires_grad_()
        (gradient,) = torch.autograd.grad(task.loss(output, target), output)
        gradients.append(gradient)
    unsure, sure = gradients
    torch.testing.assert_close(sure[:, :3], unsure[:, :3])
    assert unsure[:, :3].abs().sum() > 0
    assert sure[:, 3].mean() > 0 > unsure[:, 3].mean(), "at 45 degrees one is too sure, the other not enough"


def test_vectors_of_other_lengths_and_other_maps_are_refused():
    task = Normals(trunk(), TAXONOMY)
    label = turned(0)
    double = DenseMap(values=2 * label.values, valid=label.valid, confidence=label.confidence, storage=label.storage)
    with pytest.raises(UserError, match=r"lengths 2.00..2.00 found"):
        task.target(double)
    with pytest.raises(UserError, match="no map of unit vectors"):
        task.target(semantic_map(np.ones((4, 4), np.uint8)))
    with pytest.raises(UserError, match="no picture has a valid normal"):
        task.calibrate([torch.zeros(4, 4, 4, dtype=torch.float16)])
