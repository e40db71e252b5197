"""Exporters write a dataset in a format that others read: the file name is the format, its CamelCase is the class.

They know the two kinds of label, `DenseMap` and `InstanceSet`, and never a task.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from decoders.labels import LabelSet, Taxonomy


class Entry(NamedTuple):
    """One picture of a dataset, as an exporter takes it."""

    name: str
    """Unique; the name of the picture's file, without suffix where `image` is an array."""
    image: bytes | UInt8[np.ndarray, "height width 3"]
    """Pixels, or a picture file's content, which is then copied unchanged."""
    labels: LabelSet
    extra: Mapping[str, Any]
    """What else is known of the picture, as JSON values: caption, seed, recipe id."""


@runtime_checkable
class Exporter(Protocol):
    """Settings are keyword-only arguments of the constructor."""

    def export(self, samples: Iterable[Entry], taxonomy: Taxonomy, folder: Path, info: Mapping[str, Any]) -> None:
        """Write the dataset; interrupted, the same call goes on where it stopped and ends with the same bytes.

        `info` says where the dataset comes from, as JSON values (description, plan digest, model, reader).

        Raises:
            UserError: `folder` holds something else, or the disk is full.
        """
        ...
