"""Where the windows of a large picture lie, and how what they say is joined."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32


class Tile(NamedTuple):
    """A window, in latent cells or pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    def times(self, factor: int) -> "Tile":
        """The same window in units that are smaller by a factor."""
        return Tile(*(value * factor for value in self))


def tiles(size: tuple[int, int], tile: tuple[int, int], overlap: float) -> tuple[Tile, ...]:
    """Windows of one size that cover everything: evenly spread, the last one flush with the edge.

    A grid of fixed steps, as in diffusers' panorama and DGInStyle, leaves cells uncovered whenever the steps do not
    come out even.

    Args:
        size: height and width of the whole.
        tile: of a window; not larger than the whole is used.
        overlap: least share of a window that the next one covers again, 0..1.
    """
    rows = _starts(size[0], min(tile[0], size[0]), overlap)
    columns = _starts(size[1], min(tile[1], size[1]), overlap)
    return tuple(Tile(top, left, min(tile[0], size[0]), min(tile[1], size[1])) for top in rows for left in columns)


def _starts(whole: int, part: int, overlap: float) -> list[int]:
    step = max(1, math.floor(part * (1 - overlap)))
    count = math.ceil((whole - part) / step) + 1
    return [round(index * (whole - part) / max(1, count - 1)) for index in range(count)]


def feather(height: int, width: int) -> Float32[np.ndarray, "height width"]:
    """How much a window's cells count where windows overlap: most in its middle, little but above 0 at its edge."""
    rows, columns = (np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)) / ((n + 1) // 2) for n in (height, width))
    return np.outer(rows, columns).astype(np.float32)
