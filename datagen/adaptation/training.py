"""What every verb that trains does around its loss: the folder, the curves, the looks, going on and finishing."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from rich.console import Console
from torch import Tensor, nn

from datagen.adaptation.batches import Ahead
from datagen.adaptation.loop import advance
from datagen.adaptation.tracking import NONE, Watched, open_tracker
from datagen.adaptation.training_folder import TrainingFolder
from datagen.adaptation.training_settings import TrainingSettings
from datagen.adaptation.training_state import STATE_FILE, finished_updates
from datagen.launchers import Launcher
from datagen.meter import meter

Made = TypeVar("Made")


class Look(NamedTuple):
    """What a network in training draws, and what that is worth."""

    pictures: UInt8[np.ndarray, "batch height width 3"]
    values: Mapping[str, float]
    """For the log."""


def train(
    module: nn.Module,
    *,
    verb: str,
    settings: TrainingSettings,
    folder: TrainingFolder,
    batches: Callable[[int], Made],
    loss: Callable[[Made], Tensor],
    look: Callable[[nn.Module, int], Look] | None,
    save: Callable[[nn.Module], None],
    launcher: Launcher,
    console: Console,
) -> None:
    """Train from where the folder's checkpoint left off, and write the result.

    Args:
        module: what is trained, as for `advance`.
        batches: number -> batch; made in another thread, one ahead.
        look: (module with averaged weights, finished updates) -> what is to be seen then; before the first update,
            every `samples_every` and at the end, by the first process only.
        save: writes the trained module into the folder.

    Raises:
        UserError, KeyboardInterrupt: as `advance`.
    """
    torch.set_num_threads(settings.threads)
    first = launcher.rank == 0
    if first:
        folder.begin()
    launcher.barrier()
    with (
        open_tracker(settings.tracker if first else NONE, folder.path) as tracker,
        meter(verb, console=console) as tick,
        Ahead(batches) as batch_of,
    ):

        def probe(average: nn.Module, step: int) -> Mapping[str, float]:
            if look is None:
                return {}
            seen = look(average, step)
            tracker.pictures(step, "samples", seen.pictures)
            return seen.values

        if first and not finished_updates(folder.path / STATE_FILE):
            probe(module, 0)
        trained = advance(
            module,
            lambda number: {"loss": loss(batch_of(number))},
            folder=folder.path,
            schedule=settings.schedule(),
            peers=launcher.peers(),
            accumulate=settings.accumulate,
            reporter=Watched(tick, tracker, console),
            probe=probe,
            probe_every=settings.samples_every,
            log_every=min(50, max(1, settings.updates // 10)),
        )
    if first:
        save(trained)
        folder.finish()
    launcher.barrier()
