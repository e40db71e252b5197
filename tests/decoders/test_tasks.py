"""The contract of all tasks, and what is special to semantic and depth."""

import math
from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import pytest
import torch

from decoders.class_losses import class_loss
from decoders.decoder import Trunk, TrunkFeatures
from decoders.errors import UserError
from decoders.features import FeatureSpec
from decoders.labels import DenseMap, InstanceSet, Label, Taxonomy, metric_depth, semantic_map, surface_normals
from decoders.settings import DecoderSettings
from decoders.tasks import ENTRY_POINTS, Task, build_task, find_task, picture_of, task_names
from tests.decoders.toy_world import TAXONOMY, toy_pictures

SPEC = FeatureSpec(model_digest="x", strides=(8,), channels=(8,), attention_maps=(3,), settings={})


def _task(name: str, **options: Any) -> Task:
    torch.manual_seed(0)
    return build_task(name, options, trunk=_trunk(), taxonomy=TAXONOMY)


def _trunk() -> Trunk:
    return Trunk(SPEC, DecoderSettings(width=16, fine_width=8))


def _features(batch: int = 2, height: int = 48, width: int = 64) -> TrunkFeatures:
    return TrunkFeatures(
        deep=torch.randn(batch, 16, height // 8, width // 8), fine=torch.randn(batch, 8, height, width)
    )


def _source(name: str) -> str:
    return find_task(name).learns_from or name


def _planes(label: Label) -> np.ndarray:
    return label.masks if isinstance(label, InstanceSet) else label.values


def _sureness(label: Label) -> np.ndarray:
    return label.scores if isinstance(label, InstanceSet) else label.confidence


def _dense(label: Label) -> DenseMap:
    assert isinstance(label, DenseMap)
    return label


# ---- the contract, for every task found in the folder ----


@pytest.mark.parametrize("name", task_names())
def test_loss_is_finite_and_reaches_the_head(name: str):
    task = _task(name)
    targets = torch.stack([task.target(picture.labels[_source(name)]) for picture in toy_pictures(2)])
    task.calibrate(targets)
    loss = task.loss(task(_features()), targets)
    torch.autograd.backward(loss)
    assert torch.isfinite(loss)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in task.parameters())


@pytest.mark.parametrize("name", task_names())
def test_loss_of_nothing_valid_is_finite(name: str):
    task = _task(name)
    empty = task.target(toy_pictures(1)[0].labels[_source(name)])[None] * 0
    loss = task.loss(task(_features(1)), empty)
    torch.autograd.backward(loss)
    assert torch.isfinite(loss)
    assert all(parameter.grad is None or torch.isfinite(parameter.grad).all() for parameter in task.parameters())


@pytest.mark.parametrize("name", task_names())
@pytest.mark.parametrize("size", [(48, 64), (51, 37), (7, 9)])
@torch.no_grad()
def test_labels_are_read_at_the_asked_size(name: str, size: tuple[int, int]):
    labels = _task(name).read(_task(name)(_features()), size)
    assert len(labels) == 2
    for label in labels:
        if isinstance(label, InstanceSet):
            assert label.masks.shape[1:] == size
            assert label.masks.sum(axis=0).max(initial=0) <= 1  # no pixel belongs to two
            assert (label.scores >= 0).all()
            assert (label.scores <= 1).all()
        else:
            assert label.valid.shape == size
            assert 0 <= label.confidence.min() <= label.confidence.max() <= 1
            label.storage.pack(label.values)  # what is read can be stored


@pytest.mark.parametrize("name", task_names())
def test_truth_scored_against_itself_is_perfect(name: str):
    score = _task(name).score()
    assert score.result() == {}
    for picture in toy_pictures(3):
        score.add(picture.labels[_source(name)], picture.labels[_source(name)])
    assert score.merit == pytest.approx(1)


@pytest.mark.parametrize("name", task_names())
def test_a_label_of_another_kind_is_refused(name: str):
    labels = toy_pictures(1)[0].labels
    other = labels["semantic" if _source(name) == "instances" else "instances"]
    with pytest.raises(UserError, match=f"the {name} label is no (map|set)"):
        _task(name).target(other)


@pytest.mark.parametrize("name", task_names())
@torch.no_grad()
def test_a_picture_is_read_alike_in_any_company(name: str):
    task = _task(name).eval()
    output = task(_features())
    for index, label in enumerate(task.read(output, (48, 64))):
        alone = task.read(picture_of(output, index), (48, 64))[0]
        assert np.array_equal(_planes(label), _planes(alone))


@pytest.mark.parametrize("name", task_names())
@torch.no_grad()
def test_looks_that_agree_say_what_each_says(name: str):
    task = _task(name).eval()
    output = task(_features())
    alone, merged = task.read(output, (48, 64)), task.read(task.merge([output] * 3), (48, 64))
    for one, other in zip(alone, merged, strict=True):
        np.testing.assert_allclose(_planes(one).astype(float), _planes(other).astype(float), atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(_sureness(one), _sureness(other), atol=0.02)


@pytest.mark.parametrize("name", sorted(set(task_names()) - {"instances", "keypoints"}))
@torch.no_grad()
def test_looks_that_disagree_are_less_sure(name: str):
    task = _task(name).eval()
    first, second = task(_features()), task(_features())
    merged = task.read(task.merge([first, second]), (48, 64))
    for index, label in enumerate(merged):
        each = [float(_sureness(task.read(output, (48, 64))[index]).mean()) for output in (first, second)]
        assert _sureness(label).mean() < np.mean(each) - 0.01


# ---- finding and building ----


def test_unknown_task_names_the_nearest():
    with pytest.raises(
        UserError,
        match=r"no task 'semantics' \(did you mean 'semantic'\?\); choose from depth, instances, .*, semantic",
    ):
        find_task("semantics")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"dise": 1.0}, r"no option 'dise' \(did you mean 'dice'\?\)"),
        ({"dice": "much"}, "option dice of task semantic: found 'much'.*number"),
        ({"label_smoothing": 1.5}, "found balance 0.5, dice 0.5, label_smoothing 1.5"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], text: str):
    with pytest.raises(UserError, match=text):
        _task("semantic", **options)


def test_whole_numbers_serve_as_options():
    assert build_task("semantic", {"dice": 1}, trunk=_trunk(), taxonomy=TAXONOMY).dice == 1.0


# ---- semantic ----


def test_specks_take_the_class_around_them():
    ids = np.ones((48, 64), np.int64)
    ids[10:14, 10:14] = 2  # 16 pixels
    ids[30:36, 30:36] = 3  # 36 pixels
    output = 6.0 * torch.nn.functional.one_hot(torch.from_numpy(ids) - 1, 3).permute(2, 0, 1)[None]
    plain, kept = (_dense(_task("semantic", **choice).read(output, (48, 64))[0]) for choice in ({}, {"smallest_px": 0}))
    assert (plain.repairs, kept.repairs) == (1, 0)
    assert sorted(np.unique(plain.values).tolist()) == [1, 3]
    np.testing.assert_array_equal(kept.values[..., 0], ids)


def test_the_dice_loss_counts_classes_and_not_pixels():
    """By hand: two pixels of one class, of which one is said with certainty and the other denied; one of another."""
    logits = torch.tensor([[[[40.0, -40.0, -40.0]], [[-40.0, 40.0, 40.0]]]])
    ids = torch.tensor([[[0, 0, 1]]])
    plain = class_loss(logits, ids, torch.ones(2), dice=0.0)
    whole = class_loss(logits, ids, torch.ones(2), dice=1.0)
    first, second = 1 - (2 * 1 + 1) / (1 + 2 + 1), 1 - (2 * 1 + 1) / (2 + 1 + 1)
    assert float(whole - plain) == pytest.approx((first + second) / 2)


def test_a_task_of_somebody_else_is_found(monkeypatch: pytest.MonkeyPatch):
    point = EntryPoint(name="skies", value="decoders.tasks.semantic:Semantic", group=ENTRY_POINTS)
    monkeypatch.setattr("decoders.tasks.entry_points", lambda group: [point] if group == ENTRY_POINTS else [])
    assert "skies" in task_names()
    assert find_task("skies") is find_task("semantic")
    assert isinstance(_task("skies", balance=0.0), Task)


@pytest.mark.parametrize(
    "options", [{}, {"dice": 0.0, "label_smoothing": 0.0}, {"balance": 0.0, "label_smoothing": 0.1}]
)
def test_void_pixels_teach_nothing(options: dict[str, float]):
    task = _task("semantic", **options)
    target = torch.randint(1, 4, (2, 1, 16, 16), dtype=torch.uint8)
    target[:, :, :5] = 0
    output = torch.randn(2, 3, 16, 16, requires_grad=True)
    loss = task.loss(output, target)
    torch.autograd.backward(loss)
    assert output.grad is not None
    assert not output.grad[:, :, :5].any()
    changed = output.detach().clone()
    changed[:, :, :5] = 50 * torch.randn(2, 3, 5, 16)
    torch.testing.assert_close(task.loss(changed, target), loss.detach())


def test_ids_under_void_do_not_reach_the_target():
    ids = np.full((8, 8), 3, np.uint8)
    label = semantic_map(ids)
    hidden = DenseMap(
        values=label.values, valid=np.zeros_like(label.valid), confidence=label.confidence, storage=label.storage
    )
    assert not _task("semantic").target(hidden).any()


def test_an_id_outside_the_taxonomy_is_named():
    with pytest.raises(UserError, match=r"label ids \[4, 77\] lie outside the taxonomy, which has 1\.\.3"):
        _task("semantic").target(semantic_map(np.array([[1, 4], [77, 0]], np.uint8)))


def test_rare_classes_weigh_more_and_the_mean_pixel_weighs_1():
    task = _task("semantic")
    target = torch.ones(1, 100, 100, dtype=torch.uint8)
    target[:, :10] = 2
    task.calibrate([target])
    weights = task.get_buffer("class_weights")
    assert weights[1] / weights[0] == pytest.approx(3.0)
    assert 0.9 * weights[0] + 0.1 * weights[1] == pytest.approx(1.0)
    assert weights[2] == 1.0  # never seen


def test_semantic_score_counts_as_by_hand():
    score = _task("semantic").score()
    truth = semantic_map(np.array([[1, 1, 2, 0]], np.uint8))
    score.add(semantic_map(np.array([[1, 3, 2, 3]], np.uint8)), truth)
    assert score.result() == {
        "miou": 0.75,
        "pixel_accuracy": pytest.approx(2 / 3),
        "ece": pytest.approx(1 / 3),  # sure of three pixels, right about two
        "iou/sky": 0.5,
        "iou/ground": 1.0,
    }


def test_confidence_is_the_probability_of_the_winner():
    logits = torch.tensor([0.0, math.log(2), 0.0])[None, :, None, None].expand(1, 3, 4, 4)
    label = _dense(_task("semantic").read(logits, (4, 4))[0])
    assert (label.values == 2).all()
    assert label.confidence == pytest.approx(0.5)


def test_the_largest_taxonomy_fits():
    count = 254
    taxonomy = Taxonomy(names=tuple(map(str, range(count))), is_thing=(False,) * count, colors=((0, 0, 0),) * count)
    task = build_task("semantic", {}, trunk=_trunk(), taxonomy=taxonomy)
    logits = torch.zeros(1, count, 2, 2)
    logits[:, -1] = 9
    assert (_dense(task.read(logits, (2, 2))[0]).values == 254).all()


# ---- depth ----


def test_depth_is_read_in_meters_and_the_sky_is_invalid():
    task = _task("depth")
    output = torch.zeros(1, 3, 2, 2)
    output[:, 0] = torch.tensor([[math.log(7.0), math.log(7.0)], [math.log(9e3), math.log(1e-9)]])
    output[:, 1] = -4
    output[:, 2] = torch.tensor([[9.0, -9.0], [9.0, 9.0]])
    label = _dense(task.read(output, (2, 2))[0])
    assert label.valid.tolist() == [[True, False], [True, True]]
    assert label.values[..., 0].ravel().tolist() == pytest.approx([7.0, 0.0, 250.0, 0.1], rel=1e-4)
    assert label.confidence.min() > 0.99


def test_depth_confidence_is_the_chance_of_being_within_a_quarter():
    output = torch.zeros(1, 3, 1, 1)
    output[:, 1], output[:, 2] = math.log(0.3), 20.0
    draws = np.random.default_rng(0).laplace(0, 0.3, 100_000)
    label = _dense(_task("depth").read(output, (1, 1))[0])
    assert label.confidence[0, 0] == pytest.approx((np.abs(draws) < math.log(1.25)).mean(), abs=0.01)


def test_sparse_truth_gives_depth_everywhere():
    output = torch.zeros(1, 3, 2, 2)
    output[:, 2] = -9
    assert _dense(_task("depth", validity=0.0).read(output, (2, 2))[0]).valid.all()


def test_validity_outside_the_picture_is_not_learned():
    task = _task("depth")
    label = metric_depth(np.full((8, 8), 5.0, np.float32))
    label.valid[:, :4] = False
    label.values[:, :4] = 0
    label.confidence[:, :2] = 0  # outside; columns 2 and 3 are sky
    output = torch.randn(1, 3, 8, 8, requires_grad=True)
    torch.autograd.backward(task.loss(output, task.target(label)[None]))
    assert output.grad is not None
    assert not output.grad[..., :2].any()
    assert output.grad[:, 2, :, 2:].all()
    assert not output.grad[:, :2, :, :4].any()


def test_the_untrained_head_answers_the_commonest_distance():
    task = _task("depth")
    target = task.target(metric_depth(np.full((8, 8), 40.0, np.float32)))
    task.calibrate([target])
    for parameter in task.parameters():
        torch.nn.init.zeros_(parameter)
    label = _dense(task.read(task(_features(1)), (8, 8))[0])
    assert label.values[..., 0] == pytest.approx(40.0, rel=1e-4)


def test_no_depth_at_all_is_refused():
    with pytest.raises(UserError, match="no picture has a valid depth"):
        _task("depth").calibrate([torch.zeros(2, 4, 4)])


def test_infinite_depth_marked_valid_is_refused():
    label = metric_depth(np.full((4, 4), 5.0, np.float32))
    label.values[0, 0] = np.inf
    with pytest.raises(UserError, match="must be finite"):
        _task("depth").target(label)


@pytest.mark.parametrize("name", ["depth", "relative_depth", "normals"])
def test_where_gaps_were_not_measured_nothing_is_said_of_them(name: str):
    meters = np.tile(np.linspace(5, 20, 16, dtype=np.float32), (16, 1))
    gaps = meters.copy()
    gaps[::2] = np.inf
    if name == "normals":
        everywhere = np.ones((16, 16, 3), np.float32)
        found, truth = (surface_normals(everywhere * np.isfinite(each)[..., None]) for each in (meters, gaps))
    else:
        found, truth = metric_depth(meters), metric_depth(gaps)
    scores = {validity: _task(name, validity=validity).score() for validity in (0.0, 0.25)}
    for score in scores.values():
        score.add(found, truth)
    assert "validity_accuracy" not in scores[0.0].result()
    if name != "normals":
        assert scores[0.25].result()["validity_accuracy"] == 0.5
    if name != "relative_depth":
        assert scores[0.0].result()["ece"] == pytest.approx(0, abs=1e-6)
        assert scores[0.25].result()["ece"] == pytest.approx(0.5)


def test_depth_score_counts_as_by_hand():
    truth = metric_depth(np.array([[10.0, 10.0, 10.0, np.inf]], np.float32))
    found = metric_depth(np.array([[10.0, 12.0, np.inf, np.inf]], np.float32))
    score = _task("depth").score()
    score.add(found, truth)
    assert score.result() == {
        "absrel": pytest.approx((0 + 0.2 + 1) / 3),
        "rmse_m": pytest.approx(math.sqrt((0 + 4 + 100) / 3)),
        "delta1": pytest.approx(2 / 3),
        "validity_accuracy": 0.75,
        "ece": pytest.approx(0.25),  # sure of all four, right about three
    }
