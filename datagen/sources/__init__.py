"""Where recipes come from: each source is a pure function from a position to a recipe."""

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from datagen.records import Recipe
from datagen.settings import listed, nearest
from decoders.errors import UserError
from decoders.labels import Taxonomy


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


def check_classes(names: Iterable[str], taxonomy: Taxonomy) -> None:
    """Refuse class names that the labeller will never find."""
    for name in names:
        if name not in taxonomy.names:
            raise UserError(
                f"class {name!r} is unknown to the labeller{nearest(name, taxonomy.names) or ';'} "
                f"its classes: {listed(taxonomy.names)}"
            )
