"""The choices a user makes about a reader. Plain values: importing this file imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from decoders.augmentation import Augmentation
from decoders.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSettings:
    """Sizes of the decoder's trunk."""

    width: int = 96
    """Channels on the perceiver's grids, a multiple of 8."""
    fine_width: int = 16
    """Channels at full picture size, a multiple of 8; they double with each halving, up to `width`."""
    dropout: float = 0.1
    """Share of the projected feature channels left out at random while fitting."""
    open_vocabulary: bool = False
    """Whether the reader can be asked for classes that it was not fitted on: every class is then judged by the same
    numbers from the attention to its phrase."""

    def __post_init__(self) -> None:
        if self.width < 8 or self.fine_width < 8 or self.width % 8 or self.fine_width % 8:
            raise UserError(
                f"width and fine_width must be positive multiples of 8, found {self.width} and {self.fine_width}; "
                "96 and 16 are the defaults"
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must be at least 0 and below 1, found {self.dropout}; 0 switches it off")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSettings:
    """How a fitted reader looks at pictures."""

    short_side: int | None = None
    """Pixels of the shorter side of a picture while it is read; labels come back at native size. None = as in the fit,
    0 = each picture as it is."""
    batch_size: int = 4
    """Pictures per pass of the model, always filled up, so that a label does not depend on the others in its batch."""
    looks: int = 1
    """How often each picture is looked at, each time with another noise: what the looks disagree on is less sure. Each
    costs a pass of the model."""
    coverage: float = 1.0
    """Share of the answers to keep: the least sure become void, below the confidence that so many answers reached on
    the pictures held out of the fit."""

    def __post_init__(self) -> None:
        if not 0 < self.coverage <= 1:
            raise UserError(
                f"reading needs a coverage above 0 and up to 1, found {self.coverage}; 1 keeps every answer"
            )
        if self.looks < 1:
            raise UserError(f"reading needs at least one look at each picture, found looks {self.looks}")
        if self.batch_size < 1 or (self.short_side is not None and self.short_side < 0):
            raise UserError(
                f"reading needs a batch_size of at least 1 and a short_side of at least 0, found {self.batch_size} and "
                f"{self.short_side}; short_side 0 reads at native size, left out it is that of the fit"
            )

    def after_fit(self, size: Sequence[int]) -> "ReadSettings":
        """The same with the scale of a fit on views of this height and width, where no other was chosen."""
        return replace(self, short_side=min(size)) if self.short_side is None else self


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """All that decides a fit beside the pictures, the model and the tasks."""

    updates: int = 600
    """Of the decoder's weights."""
    batch_size: int = 8
    """Views of one update."""
    learning_rate: float = 4e-3
    """Peak of a one-cycle schedule: up over the first tenth of the updates, then down to nothing along a cosine."""
    weight_decay: float = 0.01
    """AdamW's, on convolution kernels only."""
    ema: float = 0.98
    """Decay of the running mean of the weights, which is what is kept; 0 = the last weights themselves."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient."""
    views: int = 16
    """Augmented views per picture, the plain one included."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """How far a view may differ from the plain picture."""
    size: tuple[int, int] | None = None
    """Height and width while fitting; None = the first picture's, rounded to what the perceiver takes."""
    holdout: float = 0.2
    """Share of the pictures kept apart to choose the best step, at least one and at most 256; 0 = none, the last
    weights are kept."""
    evaluations: int = 12
    """How often the held-out pictures are read."""
    patience: int = 6
    """Stop after so many evaluations without a better score."""
    repeat_below: float = 0.0
    """Views with a class that fewer than this share of the views show are learned from more often: sqrt(repeat_below /
    share) times as often (repeat factors of LVIS, arXiv 1908.03195); 0 = all alike."""
    cache_gb: float = 4.0
    """Largest feature cache, GiB; fewer views are made where `views` would not fit."""
    perceive_batch: int = 4
    """Views per pass of the model while the cache is filled."""
    seed: int = 0
    """Of first weights, views and batches, and of which pictures are held out."""
    threads: int | None = None
    """CPU threads; None = as torch is set. Another number may change the last digits."""

    def __post_init__(self) -> None:
        for name in ("updates", "batch_size", "views", "evaluations", "patience", "perceive_batch"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("learning_rate", "gradient_clip", "cache_gb"):
            self._require(name, getattr(self, name) > 0, "above 0")
        for name in ("ema", "holdout", "repeat_below"):
            self._require(name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        for name in ("weight_decay", "seed"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        self._require("threads", self.threads is None or self.threads >= 1, "at least 1, or none at all")
        self._require("size", self.size is None or min(self.size) >= 1, "two positive numbers: height and width")

    def _require(self, name: str, fine: bool, expected: str) -> None:
        if not fine:
            raise UserError(
                f"fit setting {name} is {getattr(self, name)}, expected {expected}; correct it or leave it out"
            )
