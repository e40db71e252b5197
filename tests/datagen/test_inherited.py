"""Labels that a picture inherits, how sure they are, and what is kept of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datagen.filters.agreement import Agreement
from datagen.labellers import Labeller, inherited
from datagen.labellers.inherited import Inherited, near_boundaries
from datagen.records import Guide, Recipe, Sample, Verdict
from decoders.errors import UserError
from decoders.labels import DenseMap, InstanceSet, LabelSet, Taxonomy, semantic_ids, semantic_map
from tests.datagen.made_up import TAXONOMY, image, labels, objects

SIZE = (20, 33)
IDS = semantic_ids(labels(3))
SEMANTIC, DEPTH, OBJECTS = semantic_map(IDS), labels(3)["depth"], objects()
GUIDE = Guide(labels={"semantic": SEMANTIC, "depth": DEPTH, "instances": OBJECTS})
RECIPE = Recipe(id="00000007", prompt="", seed=0, guide=GUIDE)

SHUFFLED = Taxonomy(
    names=tuple(reversed(TAXONOMY.names)),
    is_thing=tuple(reversed(TAXONOMY.is_thing)),
    colors=tuple(reversed(TAXONOMY.colors)),
)


class Oracle:
    """A reader that gives probabilities as it is told to, in another order of the classes."""

    taxonomy = SHUFFLED
    digest = "oracle"
    answer: np.ndarray

    def __init__(self, **_: Any) -> None: ...

    def agreement(self, images: Any, claims: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Its class n is ours K + 1 - n."""
        return [
            np.take_along_axis(self.answer, np.where(claim > 0, len(TAXONOMY) + 1 - claim.astype(int), 0)[None], 0)[0]
            for _, claim in zip(images, claims, strict=True)
        ]


def answer(ids: np.ndarray, confidence: float) -> np.ndarray:
    """Probability of void (nobody's, 0.5) and each of our classes: so much for `ids`, the rest for the others alike."""
    rest = (1 - confidence) / (len(TAXONOMY) - 1)
    of_classes = np.where(np.arange(1, len(TAXONOMY) + 1)[:, None, None] == ids, confidence, rest)
    return np.concatenate([np.full((1, *ids.shape), 0.5), of_classes]).astype(np.float32)


def label(monkeypatch: pytest.MonkeyPatch, said: np.ndarray, **settings: Any) -> dict[str, Any]:
    monkeypatch.setattr(inherited, "Decoded", Oracle)
    Oracle.answer = said
    labeller = Inherited(reader=Path("somewhere"), taxonomy=TAXONOMY, **settings)
    assert isinstance(labeller, Labeller)
    return dict(labeller.label([RECIPE], image()[None])[0])


def test_without_a_reader_the_labels_are_the_guides():
    labeller = Inherited(taxonomy=TAXONOMY)
    assert labeller.taxonomy is TAXONOMY
    found = labeller.label([RECIPE], image()[None])[0]
    assert found.keys() == GUIDE.labels.keys()
    for task in ("semantic", "depth"):
        inherited_map, own = found[task], GUIDE.labels[task]
        assert isinstance(inherited_map, DenseMap)
        assert isinstance(own, DenseMap)
        np.testing.assert_array_equal(inherited_map.valid, own.valid)
        np.testing.assert_array_equal(inherited_map.values, own.values)
    objects_found = found["instances"]
    assert isinstance(objects_found, InstanceSet)
    np.testing.assert_array_equal(objects_found.masks, OBJECTS.masks)


def test_confidence_is_agreement_class_by_class(monkeypatch: pytest.MonkeyPatch):
    said = IDS.copy()
    said[2:12, 3:9] = 1  # half of the car is taken for sky
    found = label(monkeypatch, answer(said, 0.8))
    rest = 0.2 / (len(TAXONOMY) - 1)
    expected = np.where(IDS == 0, 0.5, np.where(said == IDS, 0.8, rest))  # in void the guide says nothing
    np.testing.assert_allclose(found["semantic"].confidence, expected, rtol=1e-5)
    np.testing.assert_array_equal(semantic_ids(found), IDS)
    for mask, score in zip(OBJECTS.masks, found["instances"].scores, strict=True):
        np.testing.assert_allclose(score, expected[mask].mean() if mask.any() else 0, rtol=1e-5)


def test_who_can_read_nothing_agrees_with_nothing(monkeypatch: pytest.MonkeyPatch):
    """An unsure reader that names another class does not leave all the rest to the inherited one."""
    chance = 1 / len(TAXONOMY)
    found = label(monkeypatch, answer(IDS, chance))
    np.testing.assert_allclose(found["semantic"].confidence[IDS > 0], chance, rtol=1e-5)
    assert judge(found, minimum=0.5).reason == "disagrees with its labels"


def test_what_is_doubted_becomes_void_and_the_guide_is_untouched(monkeypatch: pytest.MonkeyPatch):
    said = IDS.copy()
    said[14:19, 20:30] = 2  # the traffic sign is taken for a car
    found = label(monkeypatch, answer(said, 0.9), void_below=0.5)
    doubted = (said != IDS) & (IDS > 0)
    assert doubted.any()
    np.testing.assert_array_equal(semantic_ids(found), np.where(doubted, 0, IDS))
    assert not found["depth"].valid[doubted].any()
    assert found["instances"].is_crowd.tolist() == [
        crowd or bool(score < 0.5) for crowd, score in zip(OBJECTS.is_crowd, found["instances"].scores, strict=True)
    ]
    np.testing.assert_array_equal(semantic_ids(GUIDE.labels), IDS)


def test_what_is_small_and_was_not_drawn_becomes_void_as_a_whole(monkeypatch: pytest.MonkeyPatch):
    signs, sky = IDS == 3, IDS == 1
    said = np.where(signs | sky, 2, IDS).astype(np.uint8)  # both are taken for a car,
    said[np.nonzero(signs)[0][:3], np.nonzero(signs)[1][:3]] = 3  # but for a corner of the traffic sign
    assert signs.sum() <= 0.1 * IDS.size < sky.sum()
    found = label(monkeypatch, answer(said, 0.9), undrawn_below=0.3, undrawn_up_to=0.1)
    np.testing.assert_array_equal(semantic_ids(found), np.where(signs, 0, IDS))
    assert not found["depth"].valid[signs].any()
    small = OBJECTS.masks.sum(axis=(1, 2)) <= 0.1 * IDS.size
    assert found["instances"].is_crowd.tolist() == [
        bool(crowd or (few and score < 0.3))
        for crowd, few, score in zip(OBJECTS.is_crowd, small, found["instances"].scores, strict=True)
    ]
    believed = label(monkeypatch, answer(said, 0.9), undrawn_below=0.05, undrawn_up_to=0.1)
    np.testing.assert_array_equal(semantic_ids(believed), IDS)


@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_the_band_at_boundaries_is_as_wide_as_asked(seed: int, pixels: int):
    ids = np.random.default_rng(seed).integers(1, 4, (6, 7), np.uint8).repeat(3, axis=0).repeat(4, axis=1)
    band = near_boundaries(ids, pixels)
    for row, column in np.ndindex(ids.shape):
        square = ids[max(0, row - pixels) : row + pixels + 1, max(0, column - pixels) : column + pixels + 1]
        assert band[row, column] == (square != ids[row, column]).any()


def test_a_boundary_band_is_void():
    found = Inherited(boundary=1, taxonomy=TAXONOMY).label([RECIPE], image()[None])[0]
    band = near_boundaries(IDS, 1)
    np.testing.assert_array_equal(semantic_ids(found) > 0, (IDS > 0) & ~band)


def test_wrong_use_is_told(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="source that brings no labels"):
        Inherited(taxonomy=None)
    with pytest.raises(UserError, match="void_below needs a `reader`"):
        Inherited(taxonomy=TAXONOMY, void_below=0.3)
    with pytest.raises(UserError, match="undrawn_below needs a `reader`"):
        Inherited(taxonomy=TAXONOMY, undrawn_below=0.3)
    monkeypatch.setattr(inherited, "Decoded", Oracle)
    fewer = replace(TAXONOMY, names=("sky", "car", "sign", "background"), skeleton=None)
    with pytest.raises(UserError, match=r"differ in the classes \['sign', 'traffic sign'\]"):
        Inherited(reader=Path("somewhere"), taxonomy=fewer)
    labeller = Inherited(taxonomy=TAXONOMY)
    with pytest.raises(UserError, match="recipe 00000001 has no guide"):
        labeller.label([Recipe(id="00000001", prompt="", seed=0)], image()[None])
    with pytest.raises(UserError, match=r"labels of \(20, 33\).*but its picture is \(20, 32\)"):
        labeller.label([RECIPE], image(0, 20, 32)[None])


def judge(found: LabelSet, **settings: Any) -> Verdict:
    return Agreement(taxonomy=TAXONOMY, **settings).judge(Sample(recipe=RECIPE, image=image(), labels=found))


def test_pictures_that_disagree_are_rejected_with_the_reason(monkeypatch: pytest.MonkeyPatch):
    said = np.where(IDS == 3, 2, IDS).astype(np.uint8)
    found = label(monkeypatch, answer(said, 1.0))
    signs, labelled = int((IDS == 3).sum()), int((IDS > 0).sum())
    verdict = judge(found, minimum=0.5, minimum_of_class=0.4, class_pixels=signs)
    assert (verdict.keep, verdict.reason) == (False, "traffic sign disagrees")
    assert verdict.scores["agreement"] == pytest.approx(1 - signs / labelled, abs=1e-6)
    assert judge(found, minimum=0.5, minimum_of_class=0.4, class_pixels=signs + 1).keep
    assert judge(found, minimum=0.999).reason == "disagrees with its labels"
    voided = judge(label(monkeypatch, answer(said, 1.0), void_below=0.5))
    assert voided.scores["agreement"] == pytest.approx(1 - signs / labelled, abs=1e-6)
    assert judge(label(monkeypatch, answer(IDS, 1.0)), minimum=1.0, minimum_of_class=1.0).keep


def test_another_class_is_no_agreement_however_sure():
    """As of a labeller that reads the picture itself."""
    wrong = np.where(IDS > 0, IDS % 3 + 1, 0).astype(np.uint8)
    assert judge({"semantic": semantic_map(wrong)}).scores["agreement"] == 0
    assert judge({"semantic": semantic_map(IDS)}).scores["agreement"] == 1


def test_agreement_needs_a_guide():
    loose = Sample(recipe=replace(RECIPE, guide=None), image=image(), labels={})
    with pytest.raises(UserError, match="sample 00000007 has no guide"):
        Agreement(taxonomy=TAXONOMY).judge(loose)
