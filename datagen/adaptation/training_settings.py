"""Keys that the plans of all trainings share."""

from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt, Le, Lt

from datagen.settings import Settings

if TYPE_CHECKING:
    from datagen.adaptation.loop import Schedule

_TOLD_ONLY = frozenset({"tracker", "samples_every", "gradient_checkpointing"})
"""Keys that do not change what is learned."""


class TrainingSettings(Settings):
    """How long, how fast and on how much at once a network is trained."""

    updates: Annotated[int, Ge(1)]
    """Of the weights."""
    batch_size: Annotated[int, Ge(1)] = 4
    """Pictures in one pass, of all processes together."""
    accumulate: Annotated[int, Ge(1)] = 1
    """Passes for one update: an update sees batch_size times as many pictures, in the memory of one pass."""
    learning_rate: Annotated[float, Gt(0)] = 1e-4
    """Of AdamW, at its highest."""
    warm_up: Annotated[int, Ge(0)] = 0
    """Updates over which the rate rises."""
    decay: Annotated[float, Ge(0), Le(1)] = 0.25
    """Share of the updates, at the end, over which the rate falls to zero; 0 keeps it."""
    ema: Annotated[float, Ge(0), Lt(1)] = 0.999
    """Decay of the moving average of the weights, which is the result; 0 takes the last weights themselves."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: a third slower, in much less memory."""
    seed: Annotated[int, Ge(0)] = 0
    """Of first weights, batches and noise."""
    threads: Annotated[int, Ge(1)] = 2
    """CPU threads of each process; another number may change the last digits."""
    tracker: str = "tensorboard"
    """Where curves go, any that accelerate knows; `none` for the file log.jsonl alone."""
    samples_every: Annotated[int, Ge(1)] = 500
    """Updates between two looks at what the model draws."""

    def schedule(self) -> "Schedule":
        from datagen.adaptation.loop import Schedule  # imports torch

        return Schedule(
            updates=self.updates,
            peak_rate=self.learning_rate,
            warm_up=self.warm_up,
            decay_share=self.decay,
            average_decay=self.ema,
        )

    def decisive(self, *, without: frozenset[str] = frozenset()) -> dict[str, Any]:
        """The settings that decide what is learned, as JSON values, less those that the caller tells otherwise."""
        return self.model_dump(mode="json", exclude={*_TOLD_ONLY, *without})
