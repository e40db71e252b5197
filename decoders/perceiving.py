"""Asking a perceiver, always in full batches, and refusing features that are no numbers."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8

from decoders.errors import UserError
from decoders.features import FeatureBundle, Perceiver


def perceive(
    perceiver: Perceiver,
    images: Sequence[UInt8[np.ndarray, "height width 3"]],
    *,
    names: Sequence[str],
    batch_size: int,
    look: int = 0,
) -> FeatureBundle:
    """Features of up to `batch_size` pictures of one size, always computed in a full batch.

    A model's last digits depend on the size of its batch; filled up with copies, a picture gets the same features in
    any company.

    Args:
        names: what to call each picture in an error.
        look: as for the perceiver.

    Raises:
        UserError: a feature is not finite, or the perceiver refuses; names the picture, or all of the batch.
    """
    missing = batch_size - len(images)
    try:
        bundle = perceiver.perceive(np.stack([*images, *[images[-1]] * missing]), look=look)
    except UserError as error:
        raise UserError(f"picture {' or '.join(names)}: {error}") from error
    for index, name in enumerate(names):
        require_finite(select(bundle, index), name)
    return bundle


def select(bundle: FeatureBundle, index: int) -> FeatureBundle:
    """One picture of a batch, as a batch of one."""
    row = slice(index, index + 1)
    return FeatureBundle(
        image=bundle.image[row],
        levels=tuple(level[row] for level in bundle.levels),
        attention=tuple(maps[row] for maps in bundle.attention),
        phrases=bundle.phrases,
    )


def require_finite(bundle: FeatureBundle, name: str) -> None:
    """Raise a `UserError` naming the picture if any feature is NaN or infinite."""
    for index, (level, maps) in enumerate(zip(bundle.levels, bundle.attention, strict=True)):
        if not (torch.isfinite(level).all() and torch.isfinite(maps).all()):
            raise UserError(
                f"picture {name}: the model gave features that are not finite (level {index}, {level.dtype}); "
                "expected finite numbers that half precision can hold. Load the model in float32, or leave this "
                "picture out if it alone fails"
            )
