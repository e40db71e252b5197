"""Batches for training a model on pictures: which ones, at which scale, from where; the next one is made meanwhile."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Generic, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from datagen.adaptation.loop import stream
from datagen.adaptation.pictures import Pictures
from decoders.errors import UserError
from decoders.peers import ALONE, Peers

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True, kw_only=True)
class Crops:
    """How a part of a picture is chosen and brought to the size that is trained on."""

    size: tuple[int, int]
    """Height and width in pixels."""
    scales: tuple[float, ...] = (1.0,)
    """By which the picture is resized, each as likely; 1 at most, as an enlarged picture would teach blur. A picture
    that the crop does not fit into is enlarged just enough."""
    flip: bool = False
    """Whether half of them are mirrored."""

    def cut(
        self, picture: UInt8[np.ndarray, "height width 3"], draws: Sequence[float]
    ) -> UInt8[np.ndarray, "rows columns 3"]:
        """Args:
        draws: four numbers in 0..1 that stand for scale, top, left and side.
        """
        height, width = picture.shape[:2]
        scale = self.scales[min(int(draws[0] * len(self.scales)), len(self.scales) - 1)]
        scale = max(scale, self.size[0] / height, self.size[1] / width)
        rows, columns = (min(side / scale, of) for side, of in zip(self.size, (height, width), strict=True))
        top, left = (
            int(draw * (math.floor(free) + 1))
            for draw, free in zip(draws[1:3], (height - rows, width - columns), strict=True)
        )
        box = (left, top, min(left + columns, width), min(top + rows, height))
        crop = np.array(
            Image.fromarray(picture).resize((self.size[1], self.size[0]), Image.Resampling.BICUBIC, box=box)
        )
        return crop[:, ::-1].copy() if self.flip and draws[3] < 0.5 else crop


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one call of the loss looks at: of several processes, the share of this one."""

    pictures: UInt8[np.ndarray, "batch height width 3"]
    captions: tuple[str, ...]
    random: torch.Generator
    """The rest of the stream that this batch was drawn from, at the same state in all processes."""


class Rounds:
    """Every picture once, in an order of chance, and then again in another."""

    def __init__(self, count: int, *, seed: int) -> None:
        self._count = count
        self._seed = seed
        self._order = lru_cache(2)(self._draw_order)

    def at(self, position: int) -> tuple[int, int]:
        """(round, number of the picture) of a position 0, 1, 2, ..."""
        turn, place = divmod(position, self._count)
        return turn, self._order(turn)[place]

    def _draw_order(self, turn: int) -> list[int]:
        # Another stream than those of the batches: no batch has a negative number, and numpy wants none either.
        return torch.randperm(self._count, generator=stream(self._seed, 2**32 + turn)).tolist()


class PictureBatches:
    """Batch `number` is a function of its number."""

    def __init__(
        self,
        pictures: Pictures,
        crops: Crops,
        *,
        batch_size: int,
        caption_dropout: float = 0.0,
        seed: int = 0,
        peers: Peers = ALONE,
    ) -> None:
        """Args:
        batch_size: of all processes together.
        caption_dropout: share of the pictures that are shown without caption, which guidance needs.

        Raises:
            UserError: the batch cannot be divided among the processes.
        """
        check_share(batch_size, peers)
        self._pictures = pictures
        self._crops = crops
        self._batch_size = batch_size
        self._dropout = caption_dropout
        self._seed = seed
        self._peers = peers
        self._rounds = Rounds(len(pictures), seed=seed)

    def __call__(self, number: int) -> Batch:
        """Batch number 0, 1, ..., the same whenever it is asked for.

        Raises:
            UserError: a picture cannot be read.
        """
        random = stream(self._seed, number)
        draws: list[list[float]] = torch.rand(self._batch_size, 5, generator=random, dtype=torch.float64).tolist()
        mine = range(self._peers.rank, self._batch_size, self._peers.count)
        chosen = [self._rounds.at(number * self._batch_size + place)[1] for place in mine]
        cuts = [
            self._crops.cut(self._pictures.load(index), draws[place]) for index, place in zip(chosen, mine, strict=True)
        ]
        captions = [
            "" if draws[place][4] < self._dropout else self._pictures.captions[index]
            for index, place in zip(chosen, mine, strict=True)
        ]
        return Batch(pictures=np.stack(cuts), captions=tuple(captions), random=random)


def check_share(batch_size: int, peers: Peers) -> None:
    """Refuse a batch that cannot be divided among the processes.

    Raises:
        UserError: the batch cannot be divided among the processes.
    """
    if batch_size % peers.count:
        raise UserError(
            f"{peers.count} processes found for a batch_size of {batch_size}, expected a multiple of their number; set "
            f"batch_size to {math.ceil(batch_size / peers.count) * peers.count}"
        )


class Ahead(Generic[Made]):
    """A function of 0, 1, 2, ... whose next value is made in another thread while the last one is used."""

    def __init__(self, make: Callable[[int], Made]) -> None:
        self._make = make
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._coming: dict[int, Future[Made]] = {}

    def __enter__(self) -> "Ahead[Made]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    def __call__(self, number: int) -> Made:
        asked = self._coming.pop(number, None) or self._thread.submit(self._make, number)
        self._coming = {number + 1: self._thread.submit(self._make, number + 1)}
        return asked.result()
