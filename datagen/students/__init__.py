"""Students learn from a dataset, to say what it is worth: file name = kind, CamelCase = class.

Their networks are those of well-kept libraries, not ours: what helps these may help a user's own model too. A
constructor checks its settings; weights are made or loaded by `build`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from jaxtyping import Float

from decoders.labels import LabelSet

if TYPE_CHECKING:
    from torch import Tensor, nn

    from decoders.tasks import Score


@runtime_checkable
class Student(Protocol):
    """How a network learns from annotated pictures, and what it answers."""

    headline: str
    """The figure that decides, as `<label> <figure>` of the scores, such as `semantic miou`; higher is better."""
    size_multiple: int
    """Height and width of what it is shown must be multiples of this."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels that it learns from and answers with."""
        ...

    def build(self) -> "nn.Module":
        """A new network, its random weights drawn from torch's own generator.

        Raises:
            UserError: weights that were asked for are not there.
        """
        ...

    def loss(
        self, network: "nn.Module", pictures: "Float[Tensor, 'batch 3 height width']", labels: Sequence[LabelSet]
    ) -> "Float[Tensor, '']":
        """To be minimised; finite also where nothing is labelled. Pictures are 0..1."""
        ...

    def read(self, network: "nn.Module", pictures: "Float[Tensor, 'batch 3 height width']") -> list[LabelSet]:
        """What a network in evaluation mode says of each picture, with confidences."""
        ...

    def scores(self) -> "Mapping[str, Score]":
        """An empty score for each label."""
        ...
