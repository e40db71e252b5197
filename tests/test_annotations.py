"""The gate itself: a wrong shape or type must be refused in a test run, or every annotation is mere prose."""

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from decoders.labels import SEMANTIC_STORAGE, DenseMap, InstanceSet, semantic_map


def test_function_refuses_a_wrong_number_of_axes():
    with pytest.raises(TypeCheckError):
        semantic_map(np.zeros((4, 5, 1), np.uint8))


def test_function_refuses_a_wrong_dtype():
    with pytest.raises(TypeCheckError):
        semantic_map(np.zeros((4, 5), np.int64))  # pyright: ignore[reportArgumentType]


def test_dataclass_ties_axes_of_its_fields_together():
    with pytest.raises(TypeCheckError):
        DenseMap(
            values=np.zeros((4, 5, 1), np.float32),
            valid=np.zeros((5, 4), np.bool_),
            confidence=np.zeros((4, 5), np.float32),
            storage=SEMANTIC_STORAGE,
        )


def test_dataclass_refuses_a_missing_object():
    with pytest.raises(TypeCheckError):
        InstanceSet(
            masks=np.zeros((2, 4, 5), np.bool_),
            category_ids=np.ones(1, np.int64),
            scores=np.ones(2, np.float32),
            is_crowd=np.zeros(2, np.bool_),
        )
