"""Where recipes come from: each source is a pure function from a position to a recipe."""

from typing import Protocol, runtime_checkable

from datagen.records import Recipe


@runtime_checkable
class Source(Protocol):
    """What the factory asks for its next recipe."""

    @property
    def length(self) -> int | None:
        """How many recipes there are; None when there is no end."""
        ...

    def recipe(self, index: int) -> Recipe:
        """The recipe at a position >= 0: the same one whenever, wherever and however often it is asked for."""
        ...


def sample_id(index: int) -> str:
    """Name of a sample in every file: its position in the source."""
    return f"{index:08d}"
