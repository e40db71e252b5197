"""Objects: learned apart from their neighbours, never overlapping, scored as pycocotools scores."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jaxtyping import Float32

from decoders.average_precision import AveragePrecision
from decoders.decoder import Trunk, TrunkFeatures
from decoders.errors import UserError
from decoders.features import FeatureSpec
from decoders.labels import InstanceSet, Taxonomy
from decoders.overlaps import owners
from decoders.settings import DecoderSettings
from decoders.tasks.instances import Instances, Objects

TAXONOMY = Taxonomy(
    names=("ground", "disc", "bar"),
    is_thing=(False, True, True),
    colors=((0, 0, 255), (0, 255, 0), (255, 0, 0)),
)
SPEC = FeatureSpec(model_digest="x", strides=(4,), channels=(8,), attention_maps=(0,), settings={})


def objects(*parts: tuple[int, np.ndarray], crowd: tuple[int, ...] = (), scores: float = 1.0) -> InstanceSet:
    return InstanceSet(
        masks=np.stack([mask for _, mask in parts]) if parts else np.zeros((0, 32, 32), bool),
        category_ids=np.array([kind for kind, _ in parts], np.int64),
        scores=np.full(len(parts), scores, np.float32),
        is_crowd=np.array([index in crowd for index in range(len(parts))], bool),
    )


def box(top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros((32, 32), bool)
    mask[top : top + height, left : left + width] = True
    return mask


def task(**options: float) -> Instances:
    torch.manual_seed(0)
    return Instances(Trunk(SPEC, DecoderSettings(width=16, fine_width=8)), TAXONOMY, **options)  # pyright: ignore[reportArgumentType]


def features(truths: list[InstanceSet]) -> TrunkFeatures:
    """What an ideal trunk might give: class, border and place of each pixel, and noise."""
    torch.manual_seed(1)
    fine = torch.randn(len(truths), 8, 32, 32) * 0.1
    grid = torch.linspace(-1, 1, 32)
    for picture, truth in enumerate(truths):
        for kind, mask in zip(truth.category_ids, truth.masks, strict=True):
            fine[picture, int(kind), torch.from_numpy(mask)] += 2
        fine[picture, 4] += grid[None]
        fine[picture, 5] += grid[:, None]
    deep = torch.nn.functional.avg_pool2d(torch.cat([fine, fine], dim=1), 4)
    return TrunkFeatures(deep=deep, fine=fine)


def test_touching_objects_of_one_class_are_told_apart():
    """Connected components cannot do this: it is what the task is for."""
    truths = [
        objects((2, box(4, 2, 12, 14)), (2, box(4, 16, 12, 14)), (3, box(22, 6, 6, 20))),
        objects((3, box(6, 8, 8, 18)), (2, box(18, 4, 10, 10))),
        objects(),
    ]
    learner = task(queries=6, layers=2)
    targets = torch.stack([learner.target(truth) for truth in truths])
    learner.calibrate(targets)
    seen = features(truths)
    optimiser = torch.optim.AdamW(learner.parameters(), lr=3e-3)
    for _ in range(200):
        loss = learner.loss(learner(seen), targets)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    score = AveragePrecision(TAXONOMY)
    with torch.no_grad():
        for found, truth in zip(learner.eval().read(learner(seen), (32, 32)), truths, strict=True):
            assert isinstance(found, InstanceSet)
            assert found.masks.sum(axis=0).max(initial=0) <= 1
            score.add(found, truth)
    assert score.result()["ap50"] > 0.9


def sighted(*, query: float, part: float) -> Objects:
    """A disc of 10 x 10 pixels, seen by the first of two queries and on the map of classes, as surely as said."""
    there = torch.from_numpy(box(4, 4, 10, 10)).float()
    classes = torch.tensor([[query, 1 - query], [0.01, 0.99]]).log()
    mapped = torch.stack([part * there, 0 * there, 1 - part * there]).clamp_min(1e-6).log()
    embeddings = torch.zeros(2, 24)
    embeddings[:, 16] = 9
    return Objects(
        classes=torch.cat([classes[:, :1], torch.full((2, 1), -9.0), classes[:, 1:]], dim=1)[None, None],
        embeddings=embeddings[None, None],
        deep=torch.zeros(1, 16, 8, 8),
        fine=torch.cat([2 * there[None] - 1, torch.zeros(7, 32, 32)])[None],
        seen=mapped[None],
    )


@pytest.mark.parametrize(("query", "part"), [(0.9, 0.0), (0.01, 0.7), (0.9, 0.7), (0.6, 0.8)])
def test_an_object_is_said_once_whoever_saw_it_and_with_the_surer_score(query: float, part: float):
    (found,) = task(queries=2).read(sighted(query=query, part=part), (32, 32))
    assert isinstance(found, InstanceSet)
    assert found.category_ids.tolist() == [2]
    assert np.array_equal(found.masks[0], box(4, 4, 10, 10))
    assert found.scores[0] == pytest.approx(max(query, part), abs=0.01)


@pytest.mark.parametrize(("query", "part"), [(0.9, 0.0), (0.01, 0.7), (0.9, 0.7)])
def test_looks_that_disagree_on_an_object_are_less_sure_of_it(query: float, part: float):
    """One calls it a disc and one a bar, or one sees nothing there."""
    learner = task(queries=2)
    disc, nothing = sighted(query=query, part=part), sighted(query=0.01, part=0.0)
    bar = disc._replace(classes=disc.classes[..., [1, 0, 2]], seen=disc.seen[:, [1, 0, 2]])
    (alone,), (agreed,) = learner.read(disc, (32, 32)), learner.read(learner.merge([disc, disc]), (32, 32))
    assert isinstance(alone, InstanceSet)
    assert isinstance(agreed, InstanceSet)
    assert np.array_equal(agreed.masks, alone.masks)
    assert agreed.category_ids.tolist() == alone.category_ids.tolist() == [2]
    np.testing.assert_allclose(agreed.scores, alone.scores, atol=1e-4)
    for other in (bar, nothing):
        (torn,) = learner.read(learner.merge([disc, other]), (32, 32))
        assert isinstance(torn, InstanceSet)
        assert torn.scores.max(initial=0) < alone.scores.max() / 2 + 0.02


def test_however_many_see_an_object_each_surest_elsewhere_it_stays_whole():
    """They must not divide it among themselves until none has enough of it."""
    there = torch.from_numpy(box(4, 4, 12, 12)).float()
    columns = torch.arange(32).expand(32, 32)
    embeddings, fine = torch.zeros(3, 24), torch.zeros(8, 32, 32)
    fine[0] = 2 * there - 1
    for query, start in enumerate((4, 8, 12)):  # each is surest of a third
        fine[1 + query] = ((columns >= start) & (columns < start + 4)).float() * there
        embeddings[query, [16, 17 + query]] = torch.tensor([2.0, 5.0])
    seen = Objects(
        classes=torch.tensor([[0.9, 1e-4, 0.1]] * 3).log()[None, None],
        embeddings=embeddings[None, None],
        deep=torch.zeros(1, 16, 8, 8),
        fine=fine[None],
        seen=fine[None, :0],
    )
    (found,) = task(queries=3, parts=False).read(seen, (32, 32))
    assert isinstance(found, InstanceSet)
    assert np.array_equal(found.masks, box(4, 4, 12, 12)[None])


@given(arrays(np.float32, (5, 4, 6), elements=st.sampled_from([0, 0.25, 0.5, 0.75, 1])))
def test_pixels_go_to_whole_objects_and_none_is_lost(surety: Float32[np.ndarray, "5 4 6"]):
    owner = owners(torch.from_numpy(surety.copy())).numpy()
    said = {int(one) for one in np.unique(owner) if one >= 0}
    for one in said:
        mine = owner == one
        assert (surety[one][mine] > 0).all()
        assert 2 * mine.sum() > (surety[one] > 0).sum()
    claimed = (surety[sorted(said)] > 0).any(axis=0)
    assert np.array_equal(owner >= 0, claimed)
    assert bool(said) == bool(surety.any())


def test_without_parts_only_queries_are_asked():
    silent = sighted(query=0.01, part=0.7)
    (found,) = task(queries=2, parts=False).read(silent._replace(seen=silent.fine[:, :0]), (32, 32))
    assert isinstance(found, InstanceSet)
    assert not len(found.masks)
    assert task(queries=2, parts=False).eval()(features([objects()])).seen.shape[1] == 0


def test_scores_of_queries_and_of_parts_are_tuned_apart():
    """Queries are right, parts lie where nothing is."""
    learner = task(queries=2)
    there, nothing = objects((2, box(4, 4, 10, 10))), objects()
    right, wrong = sighted(query=0.5, part=0.0), sighted(query=0.01, part=0.5)
    learner.tune_confidence([(right, there), (wrong, nothing)] * 20)
    learner.minimum_score = 0.01
    for output, expected in ((right, 1.0), (wrong, 0.0)):
        (found,) = learner.read(output, (32, 32))
        assert isinstance(found, InstanceSet)
        assert found.scores[0] == pytest.approx(expected, abs=0.15)


def test_a_target_puts_small_objects_on_top_and_crowds_aside():
    truth = objects((2, box(0, 0, 20, 20)), (3, box(5, 5, 4, 4)), (2, box(24, 24, 8, 8)), crowd=(2,))
    numbers, kinds = task().target(truth).numpy()
    assert numbers[6, 6] != numbers[0, 0]
    assert (kinds[6, 6], kinds[0, 0]) == (1, 0)
    assert (numbers[24:, 24:] == 255).all()
    assert numbers[22, 22] == 0


def test_pixels_of_a_crowd_teach_no_mask():
    learner = task(queries=4, layers=1).eval()
    truth = objects((2, box(0, 0, 12, 12)), (2, box(20, 20, 8, 8)), crowd=(1,))
    target = learner.target(truth)[None]
    output = learner(features([truth]))
    other = output.fine.detach().clone()
    other[..., 22:26, 22:26] += 5
    assert learner.loss(output._replace(fine=other), target) == learner.loss(output, target)


def test_more_objects_than_queries_teach_those_that_fit_best():
    learner = task(queries=2)
    three = objects(*((2, box(9 * index, 0, 9, 9)) for index in range(3)))
    loss = learner.loss(learner(features([three])), learner.target(three)[None])
    loss.backward()
    assert loss.isfinite()


def test_more_objects_than_there_are_numbers_become_a_crowd():
    """They stop neither a fit nor a measurement."""
    boxes = [box(row, column, 1, 4) for row in range(32) for column in range(0, 32, 4)]  # 256 of them
    large = np.zeros((64, 32), bool)
    large[40:, :] = True
    masks = [large, *(np.concatenate([mask, np.zeros((32, 32), bool)]) for mask in boxes)]
    numbers, _ = task().target(InstanceSet.collect(masks, [2] * 257, size=(64, 32)))
    assert len(numbers.unique()) == 256  # 254 objects, the crowd, nothing
    assert (numbers == 255).sum() == 3 * 4
    assert (numbers[40:] == 1).all()
    whole = np.ones((64, 32), bool)  # what lies on a larger object is a crowd there, too
    numbers, _ = task().target(InstanceSet.collect([whole, *masks[1:]], [2] * 257, size=(64, 32)))
    assert (numbers == 255).sum() == 3 * 4


def test_a_noisy_map_has_no_more_parts_than_count():
    learner = task(queries=1, minimum_score=0.0).eval()
    ids = np.kron(np.random.default_rng(0).integers(0, 3, (64, 64)), np.ones((4, 4), np.int64))
    seen = torch.nn.functional.one_hot(torch.from_numpy(ids), 3).permute(2, 0, 1)[None].float() * 6
    seen = seen + torch.rand(1, 3, 256, 256) * (torch.arange(256) / 256)  # the left is surer
    output = learner(features([objects()]))._replace(seen=seen)
    (found,) = learner.read(output, (256, 256))
    assert isinstance(found, InstanceSet)
    assert 90 < len(found.masks) <= 101
    rows, columns = np.nonzero(found.masks.any(axis=0))
    assert len(rows)
    assert columns.mean() < 80, "the surest are kept"


def test_objects_of_a_large_photograph_are_told_apart_at_a_smaller_size(monkeypatch: pytest.MonkeyPatch):
    asked = task()
    output = sighted(query=0.9, part=0.7)
    (whole,) = asked.read(output, (192, 320))
    monkeypatch.setattr("decoders.tasks.instances._LARGEST_PX", 64 * 107)
    (found,) = asked.read(output, (192, 320))
    assert isinstance(whole, InstanceSet)
    assert isinstance(found, InstanceSet)
    assert found.masks.shape == whole.masks.shape == (1, 192, 320)
    assert (found.masks & whole.masks).sum() > 0.95 * (found.masks | whole.masks).sum()
    assert found.category_ids.tolist() == whole.category_ids.tolist()
    np.testing.assert_allclose(found.scores, whole.scores, atol=0.02)


def test_what_is_left_of_a_cropped_object_teaches_nothing():
    assert not task().target(objects((2, box(0, 0, 1, 3)))).any()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"queries": 0}, "queries 0"),
        ({"heads": 3}, "divide the decoder's width 16"),
        ({"no_object": 0.0}, "no_object 0"),
        ({"minimum_score": 1.0}, "minimum_score 1"),
    ],
)
def test_impossible_options(options: dict[str, float], text: str):
    with pytest.raises(UserError, match=text):
        task(**options)


def test_labels_that_cannot_be_learned():
    with pytest.raises(UserError, match=r"objects of the classes \[1\].*countable are \[2, 3\]"):
        task().target(objects((1, box(0, 0, 9, 9))))
    with pytest.raises(UserError, match="no picture has an object"):
        task().calibrate([task().target(objects())])
    with pytest.raises(UserError, match="no class of the taxonomy is countable"):
        Instances(
            Trunk(SPEC, DecoderSettings(width=16, fine_width=8)), replace(TAXONOMY, is_thing=(False, False, False))
        )


def test_average_precision_is_aware_of_classes_and_misses():
    truth = objects((2, box(0, 0, 10, 10)), (3, box(16, 16, 10, 10)))
    score = AveragePrecision(TAXONOMY)
    score.add(objects((2, box(0, 0, 10, 10)), (2, box(16, 16, 10, 10)), scores=0.5), truth)
    found = score.result()
    assert found["ap/bar"] == 0
    assert found["ap50"] == pytest.approx(0.5, abs=0.01)
    silent = AveragePrecision(TAXONOMY)
    silent.add(objects(), truth)
    assert silent.result()["ap"] == 0


def test_more_than_a_hundred_objects_still_score_1():
    """pycocotools counts the first hundred of a picture unless it is told otherwise."""
    masks = [box(row, column, 1, 2) for row in range(0, 32, 2) for column in range(0, 32, 3)][:150]
    truth = objects(*((2, mask) for mask in masks))
    score = AveragePrecision(TAXONOMY)
    score.add(truth, truth)
    assert score.merit == pytest.approx(1)
