"""Several processes or machines, started by `accelerate launch`: shards are dealt out in turn."""

import os
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from itertools import islice
from typing import Any, cast

import torch
import torch.distributed
from accelerate import PartialState

from datagen.launchers import Item
from decoders.errors import UserError
from decoders.peers import Group

_PATIENCE = timedelta(days=7)
"""How long a barrier waits: as long as fitting a reader or making a shard may take, not the usual half hour."""

_ENVIRONMENT = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Accelerate:
    """The process group that the environment describes.

    Where there are more processes than GPUs they share these in turn, on one machine: small models leave a GPU idle.

    Raises:
        UserError: the environment speaks of several processes, but this one knows of no other; or one of several
            machines has fewer GPUs than processes.
    """

    def __init__(self) -> None:
        if missing := [name for name in _ENVIRONMENT if name not in os.environ]:
            raise _no_group(f"but not {' and '.join(missing)}")
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        self._shares_a_gpu = shared = _is_shared(gpus)
        # NCCL refuses two processes on one GPU: those that share one meet on the CPU. And without `cpu=True`, two on a
        # machine without CUDA each take themselves for rank 0 of 1.
        self._state = PartialState(cpu=shared or not gpus, timeout=_PATIENCE)
        self.world = self._state.num_processes
        self.rank = self._state.process_index
        self._meets_on = str(self._state.device)
        self.device = f"cuda:{int(os.environ['LOCAL_RANK']) % gpus}" if shared else self._meets_on
        if shared:
            torch.cuda.set_device(self.device)
        if str(self.world) != os.environ["WORLD_SIZE"]:
            raise _no_group(f"but this process found a group of {self.world}")

    def assigned(self, shards: Iterable[int]) -> Iterator[int]:
        return islice(iter(shards), self.rank, None, self.world)

    def peers(self) -> Group:
        return Group(self._meets_on)

    def once(self, find: Callable[[], Item]) -> Item:
        return cast(Item, self.peers().agree(find() if self.rank == 0 else None))

    def barrier(self) -> None:
        if self._shares_a_gpu:
            cast(Any, torch.distributed).barrier()  # accelerate would name the GPU of this process's number
        else:
            self._state.wait_for_everyone()

    def close(self) -> None:
        self._state.destroy_process_group()


def _is_shared(gpus: int) -> bool:
    """Whether GPUs of this machine are those of several processes each."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "0"))  # not everybody says it who starts processes
    if not 0 < gpus < here:
        return False
    if here < int(os.environ["WORLD_SIZE"]):  # the other machines cannot know of it, and would meet elsewhere
        raise UserError(
            f"{here} processes found on a machine with {gpus} GPU{'s' if gpus > 1 else ''}, expected a GPU for each "
            "where several machines have a part; start as many on each as it has GPUs"
        )
    return True


def _no_group(found: str) -> UserError:
    size = os.environ["WORLD_SIZE"]
    return UserError(
        f"the environment says WORLD_SIZE={size}, {found}: no group of processes can form, and each would make every "
        f"shard. Start them, on a CPU too, with `accelerate launch --multi_gpu --num_processes {size} -m datagen "
        "generate PLAN`, or unset WORLD_SIZE"
    )
