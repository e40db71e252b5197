"""Several processes that fit one decoder together: each has its share of the pictures, all have the same weights."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import torch
import torch.distributed
from torch import Tensor, nn

Item = TypeVar("Item")
_EXCHANGED = 16_000_000
"""Numbers in one exchange of gradients, 64 MB."""


@runtime_checkable
class Peers(Protocol):
    """What one process knows of the others. Every process must call the same methods in the same order."""

    @property
    def rank(self) -> int:
        """0..count-1; rank 0 alone writes files."""
        ...

    @property
    def count(self) -> int: ...

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over the processes."""
        ...

    def everyone(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items of all processes, in turn; each may have another number of them."""
        ...

    def agree(self, value: Item) -> Item:
        """What rank 0 says."""
        ...


class Alone:
    """One process."""

    rank = 0
    count = 1

    def total(self, tensor: Tensor) -> Tensor:
        return tensor

    def everyone(self, items: Iterable[Item]) -> Iterator[Item]:
        return iter(items)

    def agree(self, value: Item) -> Item:
        return value


ALONE = Alone()


class Group:
    """The processes of torch's default group, which somebody else has formed."""

    def __init__(self, device: str) -> None:
        """`device` is where tensors can be exchanged: this process's own GPU with NCCL, else the CPU."""
        self.rank: int = torch.distributed.get_rank()
        self.count: int = torch.distributed.get_world_size()
        self._device = device

    def total(self, tensor: Tensor) -> Tensor:
        shared = tensor.to(self._device, copy=True)
        cast(Any, torch.distributed).all_reduce(shared)
        return shared.to(tensor.device)

    def everyone(self, items: Iterable[Item]) -> Iterator[Item]:
        mine = iter(items)
        while True:
            given: list[Item | None] = [None] * self.count
            cast(Any, torch.distributed).all_gather_object(given, next(mine, None))
            found = [item for item in given if item is not None]
            if not found:
                return
            yield from found

    def agree(self, value: Item) -> Item:
        said: list[Item] = [value]
        cast(Any, torch.distributed).broadcast_object_list(said, src=0)
        return said[0]


def average_gradients(parameters: Sequence[nn.Parameter], peers: Peers) -> None:
    """Replace each gradient by its mean over the processes, in a few exchanges."""
    if peers.count == 1:
        return
    for some in _buckets(parameters):
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in some]
        mean = peers.total(torch.cat([gradient.flatten() for gradient in gradients])) / peers.count
        parts = mean.split([gradient.numel() for gradient in gradients])
        for parameter, part in zip(some, parts, strict=True):
            parameter.grad = part.view_as(parameter).clone()


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Few enough at once that what is exchanged takes little memory, and enough that it takes little time."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        bucket.append(parameter)
        if sum(one.numel() for one in bucket) >= _EXCHANGED:
            yield bucket
            bucket = []
    if bucket:
        yield bucket
