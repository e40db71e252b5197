"""Curves and pictures of a training for whatever tool the user watches it with, through accelerate's trackers."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from rich.console import Console

from datagen.meter import Tick
from datagen.settings import listed, nearest
from decoders.errors import UserError

NONE = "none"
"""The name of no tracker."""


class Tracker:
    """One of accelerate's trackers, or none."""

    def __init__(self, tracker: Any | None) -> None:
        self._tracker = tracker

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        if self._tracker is not None:
            self._tracker.log(dict(values), step=step)

    def pictures(self, step: int, name: str, pictures: UInt8[np.ndarray, "batch height width 3"]) -> None:
        """Goes unheard where the tool takes no pictures."""
        if self._tracker is not None and hasattr(self._tracker, "log_images"):
            how = {"dataformats": "NHWC"} if self._tracker.name == "tensorboard" else {}
            self._tracker.log_images({name: pictures}, step=step, **how)


class Watched:
    """The reporter of a verb: a bar on the terminal, curves for the tracker."""

    def __init__(self, tick: Tick, tracker: Tracker, console: Console) -> None:
        self._tick = tick
        self._tracker = tracker
        self._console = console

    def update(self, done: int, total: int) -> None:
        self._tick(done, total)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self._tracker.numbers(step, values)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False)


def check_tracker(name: str) -> None:
    """Refuse a tracker that cannot be had, before anything is trained.

    Raises:
        UserError: accelerate knows no such tracker, or its package is not installed.
    """
    if name == NONE:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if name not in LOGGER_TYPE_TO_CLASS:
        known = [NONE, *LOGGER_TYPE_TO_CLASS]
        raise UserError(f"tracker: unknown name {name!r}{nearest(name, known) or ';'} known trackers: {listed(known)}")
    if name not in [str(one) for one in get_available_trackers()]:
        raise UserError(
            f"tracker: {name} needs a package that was not found; run `pip install {name.replace('_', '-')}`, or watch "
            f"log.jsonl instead with --set tracker={NONE}"
        )


@contextmanager
def open_tracker(name: str, folder: Path) -> Generator[Tracker]:
    """A tracker for the length of the block; one that keeps files has them in `folder/tracker`.

    Raises:
        UserError: as `check_tracker`.
    """
    check_tracker(name)
    if name == NONE:
        yield Tracker(None)
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    kind: Any = LOGGER_TYPE_TO_CLASS[name]
    tracker = kind("tracker", logging_dir=folder) if kind.requires_logging_directory else kind(folder.name)
    tracker.start()
    try:
        yield Tracker(tracker)
    finally:
        tracker.finish()
