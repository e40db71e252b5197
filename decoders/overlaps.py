"""Candidates that see the same pixels: whose are they?"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def owners(surety: Float[Tensor, "candidates height width"]) -> Int64[Tensor, "height width"]:
    """Which candidate keeps each pixel; -1 = none does.

    A pixel is the candidate's that is surest of it. Whoever is left with half of its pixels or less was another
    sighting of others, and hands the rest back: first the least sure one, as it may be what the others lacked.

    Args:
        surety: how sure each candidate, the surest first, is of each pixel; 0 outside its mask. Is overwritten.
    """
    count, *size = surety.shape
    flat = surety.flatten(1)
    if not count:
        return torch.full(size, -1, device=surety.device)
    held, owner = flat.max(0)
    owner[held == 0] = -1
    areas = (flat > 0).sum(1)
    kept = torch.bincount(owner + 1, minlength=count + 1)[1:]
    while len(lost := torch.nonzero((kept <= 0.5 * areas) & (areas > 0))):
        last = int(lost[-1])
        freed = torch.nonzero(owner == last)[:, 0]
        flat[last] = 0
        areas[last] = kept[last] = 0
        held, heir = flat[:, freed].max(0)
        owner[freed] = torch.where(held > 0, heir, -1)
        kept += torch.bincount(owner[freed] + 1, minlength=count + 1)[1:]
    return owner.view(size)
