"""The loop, one shard at a time: recipes become pictures, pictures get labels, samples get verdicts."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Protocol, runtime_checkable

from datagen.filters import Filter, judge
from datagen.generators import Generator
from datagen.labellers import Labeller
from datagen.launchers import Launcher
from datagen.launchers.local import Local
from datagen.progress import Progress, Silent
from datagen.randomness import seed_for
from datagen.records import Recipe, Sample, Verdict
from datagen.settings import listed
from datagen.shards import ShardSummary
from datagen.sources import Source
from decoders.errors import UserError


@runtime_checkable
class Store(Protocol):
    """Where finished shards go; `datagen.shards.ShardStore` in every run."""

    def summary(self, index: int) -> ShardSummary | None: ...

    def write(self, index: int, samples: Sequence[Sample], verdicts: Sequence[Verdict]) -> ShardSummary: ...


@dataclass(kw_only=True)
class Factory:
    """Makes shards until `target` samples are accepted; what an earlier run finished counts."""

    source: Source
    generator: Generator
    labeller: Labeller
    filters: Sequence[Filter] = ()
    store: Store
    target: int
    """Accepted samples wanted."""
    shard_size: int = 64
    batch_size: int = 8
    minimum_yield: float = 0.0
    """The run gives up when a smaller share than this of at least `yield_after` samples is accepted."""
    yield_after: int = 200
    candidates: int = 1
    """Pictures drawn for each recipe, of which the best becomes the sample."""
    best_by: str = "agreement"
    """Name of a filter's score; the candidate with the highest is the best, after those that every filter keeps."""
    launcher: Launcher = field(default_factory=Local)
    finished: frozenset[int] = frozenset()
    """Shards that are not dealt out, as they were there before. Without them those that one process left behind would
    all be its own again. The same in every process."""
    progress: Progress = field(default_factory=Silent)
    stopped: Callable[[], bool] = lambda: False
    """Asked after each batch; True ends the run there. An unfinished shard is made anew next time."""

    def run(self) -> Iterator[ShardSummary]:
        """Yield each shard that this process makes, once it is committed.

        Shard k is made unless finished shards below k hold enough: so the first `target` accepted samples in id order
        are the same dataset, however many processes worked and whatever was made beyond.

        Raises:
            UserError: fewer than `minimum_yield` are accepted, with the reasons counted.
        """
        below = _Tally(self.store)
        for index in self.launcher.assigned(index for index in count() if index not in self.finished):
            positions = self._positions(index)
            below.advance_to(index)
            self.progress.update(accepted=below.accepted, target=self.target)
            if below.accepted >= self.target or not positions or self.stopped():
                return
            self._check_yield(below)
            if self.store.summary(index) is None:
                shard = self._make(index, [self.source.recipe(position) for position in positions], below.accepted)
                if shard is None:
                    return
                yield shard

    def _positions(self, index: int) -> range:
        """Where in the source a shard's recipes are; empty when the source ended before."""
        end = (index + 1) * self.shard_size
        return range(index * self.shard_size, end if self.source.length is None else min(end, self.source.length))

    def _make(self, index: int, recipes: Sequence[Recipe], accepted_below: int) -> ShardSummary | None:
        """Make and commit a shard; None when stopped before its last batch."""
        samples: list[Sample] = []
        verdicts: list[Verdict] = []
        for start in range(0, len(recipes), self.batch_size):
            if start and self.stopped():
                return None
            batch = self._batch(recipes[start : start + self.batch_size])
            samples += [sample for sample, _ in batch]
            verdicts += [verdict for _, verdict in batch]
            accepted = accepted_below + sum(verdict.keep for verdict in verdicts)
            self.progress.update(accepted=accepted, target=self.target, made=len(batch))
        return self.store.write(index, samples, verdicts)

    def _batch(self, recipes: Sequence[Recipe]) -> list[tuple[Sample, Verdict]]:
        """The best of each recipe's candidates, of which the first has the recipe's own seed."""
        rounds = [self._judged(recipes)]
        for number in range(1, self.candidates):
            others = [replace(each, seed=seed_for(each.seed, each.id, f"candidate {number}")) for each in recipes]
            rounds.append(self._judged(others))
        return [max(candidates, key=self._goodness) for candidates in zip(*rounds, strict=True)]

    def _goodness(self, candidate: tuple[Sample, Verdict]) -> tuple[bool, float]:
        verdict = candidate[1]
        if self.candidates == 1:
            return verdict.keep, 0.0
        if self.best_by not in verdict.scores:
            raise UserError(
                f"candidates are compared by {self.best_by!r}, but the filters give the scores "
                f"{listed(verdict.scores)}; add the filter that gives it, or set candidates.best_by to one of these"
            )
        return verdict.keep, verdict.scores[self.best_by]

    def _judged(self, recipes: Sequence[Recipe]) -> list[tuple[Sample, Verdict]]:
        """Draw, label and judge, guides of another size apart, as a batch has one size."""
        found: dict[str, tuple[Sample, Verdict]] = {}
        for group in _by_size(recipes):
            found |= {sample.recipe.id: (sample, judge(sample, self.filters)) for sample in self._samples(group)}
        return [found[recipe.id] for recipe in recipes]

    def _samples(self, recipes: Sequence[Recipe]) -> list[Sample]:
        """Draw and label; always a full batch, since the last digits of a picture depend on the batch's size."""
        padded = [*recipes, *[recipes[-1]] * (self.batch_size - len(recipes))]
        images = self.generator.render(padded)
        labels = self.labeller.label(padded, images)
        return [
            Sample(recipe=recipe, image=image, labels=label_set)
            for recipe, image, label_set in zip(padded, images, labels, strict=True)
        ][: len(recipes)]

    def _check_yield(self, below: "_Tally") -> None:
        if below.made >= self.yield_after and below.accepted < below.made * self.minimum_yield:
            reasons = ", ".join(f"{reason} ({times})" for reason, times in below.rejected.most_common())
            raise UserError(
                f"only {below.accepted} of {below.made} pictures were accepted, expected at least "
                f"{self.minimum_yield:.0%}; rejected for: {reasons}. Loosen the filters or change the prompts (a new "
                "run), or go on all the same with a smaller minimum_yield"
            )


def _by_size(recipes: Sequence[Recipe]) -> list[list[Recipe]]:
    """Recipes with guides of one size together; those without a guide are of one size too, the generator's."""
    groups: dict[tuple[int, int] | None, list[Recipe]] = {}
    for recipe in recipes:
        groups.setdefault(None if recipe.guide is None else recipe.guide.size, []).append(recipe)
    return list(groups.values())


class _Tally:
    """Counts over the finished shards below an index; each mark is read once it is there, and then remembered."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._end = 0
        self._missing: list[int] = []
        self.made = 0
        self.accepted = 0
        self.rejected: Counter[str] = Counter()

    def advance_to(self, end: int) -> None:
        waiting = [*self._missing, *range(self._end, end)]
        self._end = end
        self._missing = []
        for index in waiting:
            summary = self._store.summary(index)
            if summary is None:
                self._missing.append(index)
                continue
            self.made += len(summary.verdicts)
            self.accepted += len(summary.accepted)
            self.rejected += summary.rejected
