"""Every pixel belongs to one segment at most, and segments are what objects and classes say."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from datagen.panoptic import from_colors, merge, segments_info, to_colors
from decoders.labels import InstanceSet, Taxonomy, semantic_map

TAXONOMY = Taxonomy(
    names=("ground", "ball", "sky"),
    is_thing=(False, True, False),
    colors=((0, 0, 255), (0, 255, 0), (255, 0, 0)),
    category_ids=(7, 8, 9),
)


def balls(*masks: np.ndarray, scores: tuple[float, ...] | None = None, crowd: tuple[int, ...] = ()) -> InstanceSet:
    return InstanceSet(
        masks=np.stack(masks) if masks else np.zeros((0, 12, 12), bool),
        category_ids=np.full(len(masks), 2, np.int64),
        scores=np.array(scores or (1.0,) * len(masks), np.float32),
        is_crowd=np.array([index in crowd for index in range(len(masks))], bool),
    )


def box(top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((12, 12), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def ground(*things: np.ndarray) -> np.ndarray:
    ids = np.ones((12, 12), np.uint8)
    for mask in things:
        ids[mask] = 2
    return ids


def test_the_surer_object_is_in_front():
    low, high = box(0, 0, 8), box(4, 4, 6)
    ids, segments = merge(semantic_map(ground(low, high)), balls(low, high, scores=(0.5, 0.9)), TAXONOMY)
    assert ids[5, 5] == 1
    assert (segments[0].score, segments[1].score) == (np.float32(0.9), 0.5)
    assert (ids == 2).sum() == 64 - 16


def test_of_equal_scores_the_smaller_is_in_front():
    large, small = box(0, 0, 12), box(3, 3, 4)
    ids, _ = merge(semantic_map(ground()), balls(large, small), TAXONOMY)
    assert ids[4, 4] == 1
    assert ids[0, 0] == 2


def test_a_mostly_hidden_object_is_left_out_and_an_unclaimed_thing_is_nobodys():
    ball, shadow = box(0, 0, 6), box(0, 0, 5)
    lonely = box(8, 8, 4)
    ids, segments = merge(semantic_map(ground(ball, lonely)), balls(ball, shadow, scores=(0.9, 0.4)), TAXONOMY)
    assert [segment.semantic_id for segment in segments] == [2, 1]
    assert (ids[lonely] == 0).all()


def test_crowds_lie_behind_and_are_marked():
    crowd, ball = box(0, 0, 12), box(0, 0, 3)
    ids, segments = merge(semantic_map(ground()), balls(crowd, ball, crowd=(0,)), TAXONOMY)
    assert [segment.crowd for segment in segments] == [False, True]
    assert ids[0, 0] == 1


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(0, 5))
def test_areas_add_up(seed: int, count: int):
    stream = np.random.default_rng(seed)
    masks = [stream.random((12, 12)) < stream.random() for _ in range(count)]
    label = semantic_map(stream.integers(0, 4, (12, 12)).astype(np.uint8))
    ids, segments = merge(label, balls(*masks, scores=tuple(stream.random(count))), TAXONOMY)
    entries = segments_info(ids, segments, TAXONOMY)
    assert sum(entry["area"] for entry in entries) == (ids > 0).sum()
    assert [entry["id"] for entry in entries] == sorted(set(np.unique(ids).tolist()) - {0})
    assert np.array_equal(from_colors(to_colors(ids)), ids)


def test_more_than_65536_segments_keep_their_ids():
    ids = np.array([[1, 255, 256], [65535, 65536, 70000]], np.int32)
    assert np.array_equal(from_colors(to_colors(ids)), ids)
