"""A line on the terminal for work that counts pictures or updates: how many of how many, how fast, how long still."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TypeVar, overload

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

Item = TypeVar("Item")
_LOG_SECONDS = 60.0
Tick = Callable[[int, int], None]
"""Called with how much is done, and of how much."""


def console_of(rank: int, console: Console | None) -> Console:
    """Where a process tells its progress: the given console, else stderr; of several processes only the first does."""
    if rank:
        return Console(quiet=True)
    return console or Console(stderr=True, highlight=False, soft_wrap=True)


class Minutely:
    """For a log file, in which no bar can be seen to move: whether it is time for another line."""

    def __init__(self, console: Console) -> None:
        self._is_log = not console.is_terminal
        self._told = time.monotonic()

    def __call__(self) -> bool:
        now = time.monotonic()
        due = self._is_log and now - self._told >= _LOG_SECONDS
        if due:
            self._told = now
        return due


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="dim")


@contextmanager
def meter(what: str, *, console: Console | None = None) -> Generator[Tick]:
    """Show a bar on stderr (or `console`) for the length of the block; it appears with the first call of the tick.

    In a log file there is a line every minute instead, and one at the end.
    """
    console = console or Console(stderr=True)
    is_due = Minutely(console)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bars:
        task = bars.add_task(what, total=None, visible=False)

        def tick(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total, visible=True)
            if is_due():
                console.print(f"{what}: {done} of {total}", markup=False)

        yield tick


class Counted(Sequence[Item]):
    """A sequence that tells a tick how many of its items were asked for."""

    def __init__(self, items: Sequence[Item], tick: Tick) -> None:
        self._items = items
        self._tick = tick
        self._asked = 0

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        found = self._items[index]
        self._asked += 1 if isinstance(index, int) else len(range(*index.indices(len(self._items))))
        self._tick(self._asked, len(self._items))
        return found
