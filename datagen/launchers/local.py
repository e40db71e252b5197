"""One process makes everything."""

from collections.abc import Iterable, Iterator


class Local:
    """The launcher of a plain `datagen generate`."""

    rank = 0

    @property
    def device(self) -> str:
        import torch  # only when something is to be computed: a finished run must not wait for it

        return "cuda" if torch.cuda.is_available() else "cpu"

    def assigned(self, shards: Iterable[int]) -> Iterator[int]:
        return iter(shards)

    def barrier(self) -> None:
        """Nobody to wait for."""

    def close(self) -> None:
        """No group to leave."""
