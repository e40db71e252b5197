"""Specks vanish, everything else stays."""

from typing import Any, cast

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from decoders.repair import repair_specks


def test_a_speck_takes_the_class_around_it_and_a_large_region_stays():
    ids = np.ones((20, 20), np.uint8)
    ids[:, 12:] = 2
    ids[3:5, 3:5] = 3  # 4 pixels
    ids[10:15, 2:7] = 4  # 25 pixels
    repaired, count = repair_specks(ids, smallest_px=20)
    assert count == 1
    assert (repaired[3:5, 3:5] == 1).all()
    assert (repaired[10:15, 2:7] == 4).all()
    assert (repaired != ids).sum() == 4


def test_a_map_of_nothing_but_specks_stays():
    ids = np.arange(16, dtype=np.uint8).reshape(4, 4)
    repaired, count = repair_specks(ids, smallest_px=20)
    assert np.array_equal(repaired, ids)
    assert count == 0


def test_a_thin_line_is_one_region():
    ids = np.ones((30, 30), np.uint8)
    ids[np.arange(30), np.arange(30)] = 2  # a diagonal: its pixels meet at corners only
    assert np.array_equal(repair_specks(ids, smallest_px=20)[0], ids)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), smallest=st.integers(0, 30), classes=st.integers(1, 4))
def test_what_is_no_speck_is_never_touched(seed: int, smallest: int, classes: int):
    ids = np.random.default_rng(seed).integers(0, classes, (24, 24)).astype(np.uint8)
    ids[:10] = 0
    repaired, count = repair_specks(ids, smallest_px=smallest)
    assert set(np.unique(repaired)) <= set(np.unique(ids))
    for value in np.unique(ids):
        regions, found = cast(Any, ndimage).label(ids == value, structure=np.ones((3, 3)))
        for number in range(1, found + 1):
            region = regions == number
            if region.sum() >= smallest:
                assert (repaired[region] == value).all()
            else:
                count -= 1
    assert count == 0
