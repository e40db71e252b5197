"""What a run tells while it works."""

import time
from types import TracebackType
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from datagen.meter import Minutely


@runtime_checkable
class Progress(Protocol):
    """Told after each batch."""

    def update(self, *, accepted: int, target: int, made: int = 0) -> None:
        """`accepted` of `target` samples are there; this process made `made` more since the last call."""
        ...

    def say(self, text: str) -> None:
        """A line for the user, such as which stage begins."""
        ...


class Silent:
    """For scripts and tests."""

    def update(self, *, accepted: int, target: int, made: int = 0) -> None: ...

    def say(self, text: str) -> None: ...


class Bar:
    """A line on the terminal for the length of a `with` block: accepted of target, pictures per second, time left."""

    def __init__(self, console: Console) -> None:
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} accepted"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[rate]}"),
            console=console,
        )
        self._task = self._bars.add_task("", total=1, rate="", visible=False)
        self._is_due = Minutely(console)
        self._start = time.monotonic()
        self._made = 0
        self._accepted_before: int | None = None

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def update(self, *, accepted: int, target: int, made: int = 0) -> None:
        if self._accepted_before is None:  # not before: what is done until then may show a bar of its own
            self._bars.start()
            self._start, self._accepted_before = time.monotonic(), accepted
        self._made += made
        rate = self._rate(accepted - self._accepted_before, target - accepted, time.monotonic() - self._start)
        self._bars.update(self._task, completed=min(accepted, target), total=target, rate=rate, visible=True)
        if self._is_due():
            self.say(f"{min(accepted, target)} of {target} accepted" + (f", {rate}" if rate else ""))

    def say(self, text: str) -> None:
        self._bars.console.print(text, markup=False)

    def _rate(self, gained: int, missing: int, seconds: float) -> str:
        if not self._made or seconds <= 0:
            return ""
        text = f"{self._made / seconds:.2f} pictures/s"
        if missing > 0 and gained > 0:
            text += f", {_duration(missing * seconds / gained)} left"
        return text


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
