"""Confidence means what it says: measured rightly, mended where it is wrong, and nothing else is changed."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoders.average_precision import hits
from decoders.calibration import Reliability, best_factor, fit_sigmoid, truthful_factor
from decoders.decoder import Trunk
from decoders.features import FeatureSpec
from decoders.labels import (
    DenseMap,
    InstanceSet,
    Label,
    Skeleton,
    Taxonomy,
    metric_depth,
    semantic_map,
    surface_normals,
)
from decoders.settings import DecoderSettings
from decoders.tasks import Task, build_task, task_names

SPEC = FeatureSpec(model_digest="x", strides=(8,), channels=(8,), attention_maps=(0,), settings={})
TAXONOMY = Taxonomy(
    names=("a", "b", "c"),
    is_thing=(False, True, True),
    colors=((1, 2, 3),) * 3,
    skeleton=Skeleton(class_name="b", points=("front", "back")),
)


def task(name: str) -> Task:
    return build_task(name, {}, trunk=Trunk(SPEC, DecoderSettings(width=16, fine_width=8)), taxonomy=TAXONOMY)


# ---- measuring ----


def test_sure_and_wrong_is_the_largest_error():
    reliability = Reliability()
    reliability.add(np.ones(50), np.zeros(50, bool))
    assert reliability.expected_calibration_error == 1
    assert reliability.risk_at(1.0) == 1


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_what_is_right_as_often_as_it_says_is_calibrated(seed: int):
    stream = np.random.default_rng(seed)
    confidence = stream.random(40_000)
    reliability = Reliability()
    reliability.add(confidence, stream.random(40_000) < confidence)
    assert reliability.expected_calibration_error < 0.03
    risks = [reliability.risk_at(coverage) for coverage in (0.3, 0.7, 0.9, 1.0)]
    assert risks == sorted(risks)
    assert risks[-1] == pytest.approx(0.5, abs=0.02)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), coverage=st.floats(0.05, 0.99))
def test_a_threshold_keeps_as_many_as_it_says(seed: int, coverage: float):
    confidence = np.random.default_rng(seed).random(5000)
    reliability = Reliability()
    reliability.add(confidence, confidence > 0.5)
    assert (confidence >= reliability.threshold_at(coverage)).mean() == pytest.approx(coverage, abs=0.01)
    assert reliability.threshold_at(1.0) == 0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), coverage=st.floats(0.05, 1.0), count=st.integers(1, 40), most=st.floats(0.15, 1.0))
def test_risk_is_the_share_of_wrong_answers_among_the_surest(seed: int, coverage: float, count: int, most: float):
    """Few answers leave most slots empty, the uppermost among them: these must not end the count."""
    stream = np.random.default_rng(seed)
    confidence = stream.permutation(np.linspace(0, most, count))  # each in a slot of its own
    right = stream.random(count) < 0.5
    reliability = Reliability()
    reliability.add(confidence, right)
    surest = np.argsort(-confidence)
    wanted = coverage * count
    weights = np.clip(wanted - np.arange(count), 0, 1)
    expected = float((weights * ~right[surest]).sum() / wanted)
    assert reliability.risk_at(coverage) == pytest.approx(expected)


def test_no_answer_has_no_error():
    assert Reliability().expected_calibration_error == 0
    assert Reliability().risk_at(0.7) == 0


# ---- the two ways of mending ----


@settings(deadline=None)
@given(st.floats(0.2, 5.0))
def test_the_best_factor_is_found(best: float):
    assert best_factor(lambda factor: (np.log(factor) - np.log(best)) ** 2) == pytest.approx(best, rel=5e-3)


def test_a_truthful_factor_is_not_led_by_the_few_that_are_far_off():
    stream = np.random.default_rng(0)
    right = torch.from_numpy(stream.random(4000) < 0.6)
    found = truthful_factor(lambda factor: torch.full((4000,), min(0.1 * factor, 1.0)), right)
    assert found == pytest.approx(6, rel=0.05)


def test_a_few_pictures_without_a_mistake_prove_little():
    """All right with 0.6: surer from now on, but not certain."""
    right = torch.ones(80_000, dtype=torch.bool)
    found = truthful_factor(lambda factor: torch.full((80_000,), 1 - 0.4 ** (1 / factor)), right)
    assert 0.9 < 1 - 0.4 ** (1 / found) < 0.9999


def test_a_sigmoid_learns_how_often_scores_are_right():
    stream = np.random.default_rng(0)
    scores = stream.uniform(0.05, 0.95, 4000)
    chance = 1 / (1 + np.exp(-(0.5 * np.log(scores / (1 - scores)) - 1)))
    scale, shift = fit_sigmoid([(scores, stream.random(4000) < chance)])
    assert (scale, shift) == (pytest.approx(0.5, abs=0.1), pytest.approx(-1, abs=0.1))


def test_few_scores_change_little_and_never_the_order():
    assert fit_sigmoid([(np.array([0.6]), np.array([True]))]) == (pytest.approx(1, abs=0.2), pytest.approx(0, abs=0.4))
    scale, _ = fit_sigmoid([(np.linspace(0.1, 0.9, 500), np.linspace(0, 1, 500) < 0.5)])
    assert scale > 0


# ---- the tasks ----


def overconfident(name: str, pictures: int = 3) -> Iterator[tuple[torch.Tensor, Label]]:
    """A head that is right now and then and always very sure."""
    stream = np.random.default_rng(0)
    for _ in range(pictures):
        if name == "semantic":
            ids = stream.integers(1, 4, (40, 40)).astype(np.uint8)
            said = np.where(stream.random((40, 40)) < 0.7, ids, stream.integers(1, 4, (40, 40)))
            yield (
                20.0 * torch.nn.functional.one_hot(torch.from_numpy(said - 1).long()).permute(2, 0, 1)[None],
                (semantic_map(ids)),
            )
        elif name == "depth":
            meters = stream.uniform(2, 50, (40, 40)).astype(np.float32)
            said = np.log(meters) + stream.laplace(0, 0.5, (40, 40))
            planes = np.stack([said, np.full_like(said, -4), np.full_like(said, 9)]).astype(np.float32)
            yield torch.from_numpy(planes)[None], metric_depth(meters)
        else:
            truth = np.tile(np.array([0, 1, 0], np.float32), (40, 40, 1))
            said = truth + stream.normal(0, 0.5, truth.shape)
            said /= np.linalg.norm(said, axis=-1, keepdims=True)
            planes = [*np.moveaxis(said, -1, 0), np.full((40, 40), 5), np.full((40, 40), 9)]
            yield torch.from_numpy(np.stack(planes).astype(np.float32))[None], surface_normals(truth)


@pytest.mark.parametrize("name", ["semantic", "depth", "normals"])
def test_tuning_lowers_the_error_and_changes_no_answer(name: str):
    found = task(name)
    if name == "semantic":
        found = build_task(
            name,
            {"smallest_px": 0},
            trunk=Trunk(SPEC, DecoderSettings(width=16, fine_width=8)),
            taxonomy=TAXONOMY,
        )

    def measure() -> tuple[float, list[np.ndarray]]:
        score, values = found.score(), list[np.ndarray]()
        for output, truth in overconfident(name):
            label = found.read(output, (40, 40))[0]
            assert isinstance(label, DenseMap)
            values.append(label.values)
            score.add(label, truth)
        return score.result()["ece"], values

    before, answers = measure()
    found.tune_confidence(overconfident(name))
    after, same = measure()
    assert before > 0.15
    assert after < 0.1
    assert all(np.array_equal(one, other) for one, other in zip(answers, same, strict=True))


@pytest.mark.parametrize("name", task_names())
def test_what_was_tuned_is_saved_with_the_weights(name: str):
    learned_with = {"class_weights"}  # of the loss alone: a reader asked for other classes has none
    tuned: dict[str, Any] = {key: one for key, one in task(name).named_buffers() if key not in learned_with}
    assert set(tuned) <= set(task(name).state_dict())
    assert name == "relative_depth" or tuned


# ---- objects ----


def objects(*parts: tuple[int, int, float], crowd: tuple[int, ...] = ()) -> InstanceSet:
    """(class, first column, score): columns of width 4."""
    masks = np.zeros((len(parts), 8, 24), bool)
    for index, (_, left, _) in enumerate(parts):
        masks[index, :, left : left + 4] = True
    return InstanceSet(
        masks=masks,
        category_ids=np.array([kind for kind, _, _ in parts], np.int64),
        scores=np.array([score for _, _, score in parts], np.float32),
        is_crowd=np.array([index in crowd for index in range(len(parts))], bool),
    )


def test_hits_are_counted_as_by_hand():
    truth = objects((2, 0, 1), (3, 8, 1), (2, 16, 1), crowd=(2,))
    found = objects((2, 0, 0.5), (2, 1, 0.9), (2, 8, 0.9), (3, 20, 0.8), (2, 16, 0.7))
    right, counted = hits(found, truth)
    assert right.tolist() == [False, True, False, False, False]  # the surer of two sightings; the wrong class; nothing
    assert counted.tolist() == [True, True, True, True, False]  # a crowd is neither right nor wrong
    nothing, all_count = hits(found, objects())
    assert (nothing.any(), all_count.all()) == (False, True)
