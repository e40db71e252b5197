"""One process makes everything."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from datagen.launchers import Item

if TYPE_CHECKING:
    import decoders.peers


class Local:
    """The launcher of a plain `datagen generate` or `datagen fit`."""

    rank = 0
    world = 1

    @property
    def device(self) -> str:
        import torch  # only when something is to be computed: a finished run must not wait for it

        return "cuda" if torch.cuda.is_available() else "cpu"

    def assigned(self, shards: Iterable[int]) -> Iterator[int]:
        return iter(shards)

    def peers(self) -> "decoders.peers.Peers":
        from decoders.peers import ALONE  # imports torch

        return ALONE

    def once(self, find: Callable[[], Item]) -> Item:
        return find()

    def barrier(self) -> None:
        """Nobody to wait for."""

    def close(self) -> None:
        """No group to leave."""
