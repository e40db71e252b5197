"""Layouts around the classes that a dataset seldom shows: which class, in which picture, and where to cut.

The rule is DGInStyle's (arXiv 2312.03048): anchor classes by a softmax of their rarity, pictures that show enough of
the class with equal chance, crops centred on one of its pixels. Minimum sizes are shares, which hold at any size.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Gt, Le
from jaxtyping import Float64, Int64, UInt8
from pydantic import Field, field_validator

from datagen.datasets import AnnotatedImages
from datagen.files import json_bytes, write_json
from datagen.randomness import choose, seed_for
from datagen.settings import Settings
from decoders.errors import UserError
from decoders.files import cache_folder
from decoders.labels import semantic_ids
from decoders.resizing import Size

Share = Annotated[float, Ge(0), Le(1)]


class RareClasses(Settings):
    """How anchor classes are drawn; `rare_classes: {}` in a plan takes the values of DGInStyle."""

    temperature: Annotated[float, Gt(0)] = 0.01
    """How much frequency decides: a class with so much more of all pixels is drawn e times less often."""
    minimum_source_share: Annotated[float, Gt(0), Le(1)] = 0.0015
    """Share of a source picture that its anchor class covers at least: 3000 pixels of 1914 x 1052."""
    minimum_share: Share = 0.01
    """Share of the crop that the anchor class should cover ..."""
    tries: Annotated[int, Ge(1)] = 10
    """... and how many crops are tried for it; if all fail, the best one is taken."""
    quotas: dict[str, Share] = Field(default_factory=dict[str, float])
    """Fixed shares of the recipes by anchor class, 0 for a class that is never one; the others divide the rest."""

    @field_validator("quotas")
    @classmethod
    def _at_most_all(cls, quotas: dict[str, float]) -> dict[str, float]:
        if sum(quotas.values()) > 1 + 1e-9:
            raise ValueError(f"shares of at most 1 in all, not {sum(quotas.values()):g}; lower some")
        return quotas


def count_classes(data: AnnotatedImages) -> Int64[np.ndarray, "pictures ids"]:
    """Pixels of each semantic id in each picture, void in column 0; loads every picture once.

    Raises:
        UserError: a picture has no label that gives pixels a class.
    """
    columns = len(data.taxonomy) + 1
    return np.stack([np.bincount(semantic_ids(each.labels).ravel(), minlength=columns) for each in data])


def cached_counts(data: AnnotatedImages, digest: str) -> Int64[np.ndarray, "pictures ids"]:
    """As `count_classes`, but counted once per user: noted in the cache folder under the digest of the data."""
    # A digest of someone else's dataset may be any text, and need not tell which pictures were chosen.
    key = hashlib.sha256(json_bytes([digest, data.names, data.taxonomy.names])).hexdigest()
    file = cache_folder() / "class_counts" / f"{key}.json"
    known = _read_counts(file)
    if known is not None:
        return known
    found = count_classes(data)
    with suppress(OSError, UserError):  # a home that cannot be written costs time, no more
        write_json(file, {"counts": found.tolist(), "sha256": _checksum(found.tolist())})
    return found


def _read_counts(file: Path) -> Int64[np.ndarray, "pictures ids"] | None:
    """What an earlier count noted; None where there is nothing, or it is damaged."""
    try:
        note = json.loads(file.read_bytes())
        return np.array(note["counts"], np.int64) if note["sha256"] == _checksum(note["counts"]) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _checksum(counts: Any) -> str:
    return hashlib.sha256(json_bytes(counts)).hexdigest()


def softmax_of_rarity(
    frequencies: Float64[np.ndarray, " classes"], temperature: float
) -> Float64[np.ndarray, " classes"]:
    """softmax((1 - f) / T) for frequencies f in 0..1; any T > 0 is safe, as the largest exponent is 0."""
    weights = np.exp((frequencies.min() - frequencies) / temperature)
    return weights / weights.sum()


class Anchors:
    """The distribution of anchor classes over a dataset, and the pictures that show each."""

    def __init__(
        self, counts: Int64[np.ndarray, "pictures ids"], rules: RareClasses, class_names: Sequence[str]
    ) -> None:
        """
        Args:
            counts: pixels by picture and semantic id, void in column 0.
            class_names: of ids 1..K.

        Raises:
            UserError: no picture shows enough of a class with a quota, or of any class that may be an anchor.
        """
        shares = counts[:, 1:] / counts.sum(axis=1, keepdims=True)
        self._eligible = shares >= rules.minimum_source_share
        quotas = np.array([rules.quotas.get(name, np.nan) for name in class_names])
        for name, quota, seen, largest in zip(
            class_names, quotas, self._eligible.any(axis=0), shares.max(axis=0), strict=True
        ):
            if quota > 0 and not seen:
                raise UserError(
                    f"rare_classes.quotas: {name!r} covers at most {largest:.3g} of a picture, expected "
                    f"{rules.minimum_source_share:g} or more of at least one; remove its quota, lower "
                    "`minimum_source_share`, or add data that shows it"
                )
        self.probabilities = np.nan_to_num(quotas)
        """Of each class 1..K, 0..1; 0 for those that no picture shows well enough."""
        rest = 1 - self.probabilities.sum()
        free = self._eligible.any(axis=0) & np.isnan(quotas)
        if free.any():
            frequencies = counts[:, 1:].sum(axis=0) / counts[:, 1:].sum()
            self.probabilities[free] = max(rest, 0) * softmax_of_rarity(frequencies[free], rules.temperature)
        elif rest > 1e-9:
            raise UserError(
                f"rare_classes: no class without a quota covers {rules.minimum_source_share:g} of any picture, yet the "
                f"quotas give {1 - rest:g} in all; raise them to 1 or lower `minimum_source_share`"
            )

    def draw(self, run_seed: int, identity: str) -> tuple[int, int]:
        """Semantic id of the anchor class of a sample, and the number of its picture."""
        possible = np.flatnonzero(self.probabilities).tolist()
        anchor = choose(
            possible, [float(self.probabilities[each]) for each in possible], seed_for(run_seed, identity, "anchor")
        )
        pictures = np.flatnonzero(self._eligible[:, anchor]).tolist()
        return anchor + 1, Random(seed_for(run_seed, identity, "anchor picture")).choice(pictures)


def crop_around(
    ids: UInt8[np.ndarray, "height width"], semantic_id: int, size: Size, rules: RareClasses, seed: int
) -> tuple[int, int]:
    """Top and left of a crop of `size` around a pixel of the class that is drawn with equal chance.

    The crop is moved no farther than it must be to lie within the picture; so it always shows the drawn pixel.

    Raises:
        ValueError: the class has no pixel, or the crop is larger than the picture.
    """
    marked = ids == semantic_id
    places = np.flatnonzero(marked).tolist()
    if not places or size[0] > ids.shape[0] or size[1] > ids.shape[1]:
        raise ValueError(f"no crop of {size} around id {semantic_id} in a map of {ids.shape} with {len(places)} of it")
    stream = Random(seed)
    best, corner = -1.0, (0, 0)
    for _ in range(rules.tries):
        centre = divmod(stream.choice(places), ids.shape[1])
        top, left = (
            min(max(middle - side // 2, 0), whole - side)
            for middle, side, whole in zip(centre, size, ids.shape, strict=True)
        )
        share = float(marked[top : top + size[0], left : left + size[1]].mean())
        if share > best:
            best, corner = share, (top, left)
        if best >= rules.minimum_share:
            break
    return corner
