"""Who makes which shard. Shards need nothing of each other, so that is all a launcher has to say."""

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    import decoders.peers

Item = TypeVar("Item")


@runtime_checkable
class Launcher(Protocol):
    """One process among `world` that share a run."""

    @property
    def rank(self) -> int:
        """0..world-1; rank 0 alone writes what there is once: plan, reader, exports."""
        ...

    @property
    def world(self) -> int: ...

    @property
    def device(self) -> str:
        """The torch device of this process, such as `cpu` or `cuda:1`."""
        ...

    def assigned(self, shards: Iterable[int]) -> Iterator[int]:
        """Those of the shards, given in the same order to every process, that this one makes."""
        ...

    def peers(self) -> "decoders.peers.Peers":
        """The processes as those who fit one decoder together."""
        ...

    def once(self, find: Callable[[], Item]) -> Item:
        """What rank 0 finds, which alone looks for it and tells the others; every process must ask."""
        ...

    def barrier(self) -> None:
        """Wait until every process is here."""
        ...

    def close(self) -> None:
        """Leave the group; nothing may be asked of it afterwards."""
        ...


def launched_in_group() -> bool:
    """Whether `accelerate launch` (or torchrun) started this process as one of several."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


@contextmanager
def launched() -> Generator[Launcher, None, None]:
    """The launcher that this process was started by, left when the block ends well.

    Not after an error: to leave a group means to wait for the others, who may be waiting for this process, and nobody
    would learn of the error. Whoever started the processes ends the others when this one is gone.
    """
    launcher = from_environment()
    yield launcher
    launcher.close()


def from_environment() -> Launcher:
    """The launcher that this process was started by.

    Raises:
        UserError: processes that were meant to work together do not know of each other.
    """
    if launched_in_group():
        from datagen.launchers.accelerate import Accelerate

        return Accelerate()
    from datagen.launchers.local import Local

    return Local()
