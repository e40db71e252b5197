"""What a reader can say. A task is one file: head, target, loss, reading and score; nothing else names it.

The file name is the task's name, its CamelCase the class (`tasks/depth.py`: `Depth`); other packages add tasks by an
entry point in the group `decoders.tasks`.
"""

import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, ClassVar, Generic, Protocol, cast, get_type_hints, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from typing_extensions import TypeVar

from decoders.calibration import Reliability
from decoders.decoder import Trunk, TrunkFeatures
from decoders.errors import UserError
from decoders.features import FeatureBundle
from decoders.labels import Label, Taxonomy
from decoders.resizing import Size

ENTRY_POINTS = "decoders.tasks"
_PIXELS = 20_000
"""Of a picture, that are looked at: enough for one number, little enough to keep."""


@runtime_checkable
class Score(Protocol):
    """Measures a reader against truth, picture by picture."""

    def add(self, found: Label, truth: Label) -> None: ...

    def result(self) -> dict[str, float]:
        """Named figures over all pictures so far; a figure without any truth behind it is left out."""
        ...

    @property
    def reliability(self) -> Reliability | None:
        """How sure the answers were and how often right; None where the task has no confidence."""
        ...

    @property
    def merit(self) -> float | None:
        """One number 0..1, higher is better, by which a fit keeps its best step; None without any truth."""
        ...


OutputT = TypeVar("OutputT", bound=Tensor | tuple[Tensor, ...], default=Any)
"""What a head gives: a tensor, or a named tuple of tensors; the batch is the first axis of each."""


class Task(nn.Module, ABC, Generic[OutputT]):
    """Called as a module it is the task's head; options are the keyword-only arguments of its constructor.

    Subclasses take `(trunk, taxonomy, *, option=default, ...)` and raise `UserError` for options out of range.
    """

    learns_from: ClassVar[str] = ""
    """Name of the label that it is learned from and scored against; the task's own name when empty."""
    adds_to: ClassVar[str] = ""
    """Name of a task whose objects this one completes where both are read; its own label is then left out."""

    any_classes: ClassVar[bool] = False
    """Whether its numbers are the same for every taxonomy, given a trunk with an open vocabulary."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        super().__init__()
        self.taxonomy = taxonomy

    @abstractmethod
    def calibrate(self, targets: Iterable[Shaped[Tensor, "channels height width"]]) -> None:
        """Measure on the fit set, before the first update, what loss or head depend on (class shares, mean depth)."""

    @abstractmethod
    def forward(self, features: TrunkFeatures) -> OutputT: ...

    @abstractmethod
    def target(self, label: Label) -> Shaped[Tensor, "channels height width"]:
        """What the loss compares with, as small as it can be: it is kept for every view.

        Raises:
            UserError: the label is of another kind or unit, or holds values it must not.
        """

    @abstractmethod
    def loss(self, output: OutputT, target: Shaped[Tensor, "batch channels height width"]) -> Float[Tensor, ""]:
        """Finite and differentiable also where nothing is valid."""

    @abstractmethod
    def merge(self, looks: Sequence[OutputT]) -> OutputT:
        """What the head gave for several looks at the same pictures, as one answer, less sure where they disagree."""

    def tune_confidence(self, pairs: Iterable[tuple[OutputT, Label]]) -> None:
        """Make confidences mean what they say, on pictures that nothing was learned from; what is read stays as it is.

        Args:
            pairs: what the head gave for one picture, and the truth, at the size of the output.
        """
        del pairs  # a task without any confidence of its own has nothing to tune

    @abstractmethod
    def read(self, output: OutputT, size: Size) -> list[Label]:
        """One label per picture of the batch, at `size`."""

    def complete(self, output: OutputT, objects: Label) -> Label:
        """The label of the task that `adds_to` names, for one picture and at its size, with what this task knows."""
        del output
        return objects

    @abstractmethod
    def score(self) -> Score:
        """A fresh, empty score."""


def picture_of(output: OutputT, index: int) -> OutputT:
    """What a head gave for one picture, as a batch of one."""
    rows = slice(index, index + 1)
    if isinstance(output, Tensor):
        return cast(OutputT, output[rows])
    return cast(OutputT, type(output)(*(part[rows] for part in output)))


def decode(decoder: nn.Module, tasks: Mapping[str, Task], looks: Iterable[FeatureBundle]) -> dict[str, Any]:
    """What the heads of these of its tasks say of pictures after one or more looks at them."""
    found = [decoder.to(bundle.image.device)(bundle.to(torch.float32), tasks) for bundle in looks]
    if len(found) == 1:
        return found[0]
    return {name: task.merge([one[name] for one in found]) for name, task in tasks.items()}


def sample_pixels(known: Bool[Tensor, " pixels"]) -> Int64[Tensor, " chosen"]:
    """Numbers of up to 20,000 of the known pixels, evenly spread."""
    numbers = torch.nonzero(known)[:, 0]
    return numbers[:: max(1, len(numbers) // _PIXELS)]


def task_names() -> list[str]:
    """All tasks that can be asked for, built in and installed."""
    built_in = [module.name for module in pkgutil.iter_modules(__path__)]
    return sorted({*built_in, *(point.name for point in entry_points(group=ENTRY_POINTS))})


def find_task(name: str) -> type[Task]:
    """The class of a task.

    Raises:
        UserError: no task has this name.
    """
    if name not in task_names():
        raise UserError(
            f"there is no task {name!r}{_nearest(name, task_names())}; choose from {', '.join(task_names())}"
        )
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == name:
            return point.load()
    return getattr(import_module(f"{__name__}.{name}"), "".join(word.capitalize() for word in name.split("_")))


def build_task(name: str, options: Mapping[str, Any], *, trunk: Trunk, taxonomy: Taxonomy) -> Task:
    """A task with its options, refused when a name or a type is wrong.

    Raises:
        UserError: unknown task or option, or an option of the wrong type or range.
    """
    return cast(Callable[..., Task], find_task(name))(trunk, taxonomy, **checked_options(name, options))


def checked_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A task's options; their range is known to the task alone.

    Raises:
        UserError: unknown task or option, or an option of the wrong type.
    """
    kind = find_task(name)
    parameters = inspect.signature(kind).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    hints = get_type_hints(kind.__init__)
    values: dict[str, Any] = {}
    for option, value in options.items():
        if option not in known:
            raise UserError(
                f"task {name} has no option {option!r}{_nearest(option, known)}; it has {', '.join(known) or 'none'}"
            )
        try:
            values[option] = TypeAdapter(hints[option]).validate_python(value, strict=True)
        except ValidationError as error:
            raise UserError(
                f"option {option} of task {name}: found {value!r}, {error.errors()[0]['msg'].lower()}; correct the "
                "value"
            ) from error
    return values


def _nearest(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
