"""Seldom seen classes come often, by a rule that can be computed, and crops show them."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datagen import rare_classes
from datagen.datasets import AnnotatedImages
from datagen.rare_classes import (
    Anchors,
    RareClasses,
    cached_counts,
    count_classes,
    crop_around,
    softmax_of_rarity,
)
from datagen.settings import check
from decoders.errors import UserError
from decoders.labels import AnnotatedImage, Taxonomy, semantic_map

NAMES = ("sky", "car", "train")
COUNTS = np.array([[10, 900, 90, 0], [0, 950, 49, 1], [500, 400, 0, 100]], np.int64)
"""Void, sky, car and train in three pictures of 1000 pixels."""


class Noise(AnnotatedImages):
    """Pictures whose pixels have classes at random."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.taxonomy = Taxonomy(names=NAMES, is_thing=(False,) * 3, colors=((0, 0, 0),) * 3)

    def load(self, name: str) -> AnnotatedImage:
        ids = np.random.default_rng(len(name)).integers(0, 4, (8, 9), np.uint8)
        return AnnotatedImage(name=name, image=np.zeros((8, 9, 3), np.uint8), labels={"semantic": semantic_map(ids)})


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.floats(1e-6, 1e3))
def test_softmax_is_the_rule_and_never_overflows(frequencies: list[float], temperature: float):
    found = softmax_of_rarity(np.array(frequencies), temperature)
    assert found.sum() == pytest.approx(1)
    assert (np.diff(found[np.argsort(frequencies)]) <= 0).all()  # the rarer, the likelier
    if temperature > 0.01:  # where the rule can be computed as it is written
        plain = np.exp((1 - np.array(frequencies)) / temperature)
        assert found == pytest.approx(plain / plain.sum(), rel=1e-6, abs=1e-12)


def test_probabilities_are_those_of_all_pixels():
    rules = RareClasses(temperature=0.5)
    weights = np.exp((1 - np.array([2250, 139, 101]) / 2490) / 0.5)  # void is no class
    assert Anchors(COUNTS, rules, NAMES).probabilities == pytest.approx(weights / weights.sum())


def test_quotas_are_kept_and_the_rest_is_divided():
    anchors = Anchors(COUNTS, RareClasses(temperature=0.5, quotas={"car": 0.7, "train": 0.0}), NAMES)
    assert anchors.probabilities == pytest.approx([0.3, 0.7, 0.0])
    drawn = Counter(anchors.draw(0, str(index))[0] for index in range(2000))
    assert drawn.keys() == {1, 2}
    assert 1330 < drawn[2] < 1470


def test_pictures_show_enough_of_their_anchor_class():
    anchors = Anchors(COUNTS, RareClasses(minimum_source_share=0.0015), NAMES)
    drawn = Counter(anchors.draw(5, str(index)) for index in range(600))
    assert {picture for anchor, picture in drawn if anchor == 3} == {2}  # one pixel of 1000 in picture 1 is too few
    assert 0.7 < drawn[2, 0] / drawn[2, 1] < 1.4
    assert [anchors.draw(5, str(index)) for index in range(9)] != [anchors.draw(6, str(index)) for index in range(9)]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"quotas": {"train": 0.1}, "minimum_source_share": 0.2},
            "rare_classes.quotas: 'train' covers at most 0.1 of a picture, expected 0.2 or more",
        ),
        ({"minimum_source_share": 0.99}, "no class without a quota covers 0.99 of any picture, yet the quotas give 0"),
        ({"quotas": {"sky": 0.5, "car": 0.2, "train": 0.2}}, "the quotas give 0.9 in all; raise them to 1"),
    ],
)
def test_what_the_data_cannot_give(settings: dict[str, object], told: str):
    with pytest.raises(UserError) as caught:
        Anchors(COUNTS, check(RareClasses, settings), NAMES)
    assert told in str(caught.value)


def test_quotas_above_one_are_refused():
    with pytest.raises(UserError, match=r"^a\.quotas: found \{.*\}, expected shares of at most 1 in all, not 1.2"):
        check(RareClasses, {"quotas": {"car": 0.6, "bus": 0.6}}, at="a")
    assert RareClasses(quotas={str(index): 0.1 for index in range(10)})  # whose sum as floats is not exactly 1


@given(st.data())
def test_a_crop_lies_within_the_picture_and_shows_the_class(data: st.DataObject):
    height, width = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    marked = data.draw(st.sets(st.integers(0, height * width - 1), min_size=1, max_size=6))
    ids = np.zeros((height, width), np.uint8)
    ids.flat[sorted(marked)] = 7
    size = (data.draw(st.integers(1, height)), data.draw(st.integers(1, width)))
    tries = data.draw(st.integers(1, 4))
    top, left = crop_around(ids, 7, size, RareClasses(tries=tries, minimum_share=1.0), data.draw(st.integers(0, 99)))
    assert 0 <= top <= height - size[0]
    assert 0 <= left <= width - size[1]
    assert (ids[top : top + size[0], left : left + size[1]] == 7).any()


def test_every_pixel_can_be_the_centre_even_the_last():
    ids = np.zeros((9, 9), np.uint8)
    ids[[2, 4, 6], [2, 4, 6]] = 1
    corners = {crop_around(ids, 1, (3, 3), RareClasses(minimum_share=0), seed) for seed in range(40)}
    assert corners == {(1, 1), (3, 3), (5, 5)}


def test_more_tries_find_more_of_the_class_and_end_when_it_is_enough():
    ids = np.zeros((20, 20), np.uint8)
    ids[:6, :6] = ids[19, 19] = ids[0, 19] = ids[19, 0] = 1

    def share(**rules: float) -> float:
        shares: list[float] = []
        for seed in range(60):
            top, left = crop_around(ids, 1, (6, 6), check(RareClasses, rules), seed)
            shares.append(float((ids[top : top + 6, left : left + 6] == 1).mean()))
        return sum(shares) / 60

    one, enough, many = share(tries=1), share(tries=50, minimum_share=0.01), share(tries=50, minimum_share=1)
    assert one == enough  # the first is good enough already
    assert many == 1


def test_a_crop_that_cannot_be_is_a_bug():
    for size, wanted in (((5, 4), 0), ((2, 2), 9)):
        with pytest.raises(ValueError, match="no crop"):
            crop_around(np.zeros((4, 4), np.uint8), wanted, size, RareClasses(), 0)


def test_counts_are_kept_and_damage_is_counted_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pictures = Noise("a", "bb")
    counts = cached_counts(pictures, "someone's/digest")
    assert (counts == count_classes(pictures)).all()
    assert counts.sum(axis=1).tolist() == [72, 72]
    (note,) = (tmp_path / "datagen/class_counts").iterdir()
    whole = note.read_bytes()

    counted: list[object] = []
    monkeypatch.setattr(rare_classes, "count_classes", lambda data: (counted.append(data), count_classes(data))[1])
    assert (cached_counts(pictures, "someone's/digest") == counts).all()
    assert not counted
    believable = json.loads(whole)
    believable["counts"][0][1] += 1
    for damage in (b"", whole[:-9], b"[]", b'{"counts": 3}', b"\xff", json.dumps(believable).encode()):
        note.write_bytes(damage)
        assert (cached_counts(pictures, "someone's/digest") == counts).all()
        assert counted.pop() is pictures
        assert note.read_bytes() == whole
    for other in (Noise("a"), Noise("bb", "a")):
        assert cached_counts(other, "someone's/digest").shape == (len(other), counts.shape[1])
    assert len(list(note.parent.iterdir())) == 3


def test_counts_do_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    pictures = Noise("a")
    assert (cached_counts(pictures, "x") == count_classes(pictures)).all()
