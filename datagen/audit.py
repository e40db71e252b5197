"""The verb `audit`: what a run asked for, and what it delivered."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from rich.console import Console

from datagen.instances import LEAST_PIXELS, SIZE_BANDS, count_sizes, find_objects
from datagen.judging import Judge, open_judge
from datagen.meter import meter
from datagen.runs import open_run
from datagen.shards import StoredSample
from decoders.labels import LabelSet, Taxonomy, class_pixels, classes_in

_NO_STYLE = frozenset({"source", "crop", "scale", "anchor"})
"""Attributes that say where a guide was taken from, not how its picture shall look."""
_VALUES = 20
"""Values listed of each style attribute, the commonest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a sample and its guide show, looked at once for all tallies; a guide that is not there shows nothing."""

    classes: frozenset[int]
    pixels: Int64[np.ndarray, " ids"]
    guide_pixels: Int64[np.ndarray, " ids"]
    sizes: Int64[np.ndarray, " bands"]
    guide_sizes: Int64[np.ndarray, " bands"]

    @classmethod
    def of(cls, sample: StoredSample, taxonomy: Taxonomy) -> "Seen":
        guide = {} if sample.recipe.guide is None else sample.recipe.guide.labels
        ids = len(taxonomy) + 1
        return cls(
            classes=classes_in(sample.labels),
            pixels=class_pixels(sample.labels, ids),
            guide_pixels=class_pixels(guide, ids),
            sizes=_sizes(sample.labels, taxonomy),
            guide_sizes=_sizes(guide, taxonomy),
        )


@dataclass(slots=True, kw_only=True)
class Tally:
    """What some samples asked for and what they hold."""

    pixels: Int64[np.ndarray, " ids"]
    """By semantic id; void is 0."""
    guide_pixels: Int64[np.ndarray, " ids"]
    sizes: Int64[np.ndarray, " bands"]
    """Objects by their share of the picture, as `SIZE_BANDS`."""
    guide_sizes: Int64[np.ndarray, " bands"]
    samples: int = 0
    guides: int = 0
    """Samples whose recipe has a guide."""
    wanted: Counter[str] = field(default_factory=Counter[str])
    """Class name -> recipes that ask for it."""
    anchors: Counter[str] = field(default_factory=Counter[str])
    """Class name -> recipes whose crop was chosen for its sake."""
    shown: Counter[int] = field(default_factory=Counter[int])
    """Semantic id -> pictures that show it."""
    styles: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])
    """Attribute -> value -> samples."""

    @classmethod
    def of(cls, taxonomy: Taxonomy) -> "Tally":
        """Of no sample yet."""
        pixels, guide_pixels = np.zeros((2, len(taxonomy) + 1), np.int64)
        sizes, guide_sizes = np.zeros((2, len(SIZE_BANDS)), np.int64)
        return cls(pixels=pixels, guide_pixels=guide_pixels, sizes=sizes, guide_sizes=guide_sizes)

    def add(self, sample: StoredSample, seen: Seen) -> None:
        recipe = sample.recipe
        self.samples += 1
        self.wanted.update(set(recipe.wanted))
        self.shown.update(seen.classes)
        self.pixels += seen.pixels
        self.guide_pixels += seen.guide_pixels
        self.sizes += seen.sizes
        self.guide_sizes += seen.guide_sizes
        self.guides += recipe.guide is not None
        for name, value in recipe.attributes.items():
            if name == "anchor":
                self.anchors[value] += 1
            elif name not in _NO_STYLE:
                self.styles.setdefault(name, Counter())[value] += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The finished shards of a run, up to the first gap, counted."""

    run: Path
    taxonomy: Taxonomy
    target: int
    made: Tally
    accepted: Tally
    """All accepted samples: the last shard may bring more than the dataset takes."""
    rejected: Counter[str]
    """How many, by reason."""
    judge: Judge | None = None
    """What another reader thinks of the accepted samples, if one was asked."""

    @property
    def finished(self) -> bool:
        return self.accepted.samples >= self.target

    def __str__(self) -> str:
        made, accepted = self.made.samples, self.accepted.samples
        lines = [f"{self.run}: {self.target} wanted, {accepted} accepted of {made} made{_rate(accepted, made)}"]
        if not self.finished:
            lines.append(f"unfinished: {self.target - accepted} to go; `datagen generate` with the same plan goes on")
        lines += [f"  {times} rejected: {reason}{_rate(times, made)}" for reason, times in self.rejected.most_common()]
        judged = [] if self.judge is None else [str(self.judge)]
        return "\n".join([*lines, *self._class_table(), *self._size_table(), *self._style_tables(), *judged])

    def _class_table(self) -> Iterator[str]:
        """Each cell is for what was made and, after the stroke, for what was accepted."""
        ids = range(1, len(self.taxonomy) + 1)
        names = self.taxonomy.names
        columns = {
            "wanted": self._cells(lambda tally: [str(tally.wanted[name]) for name in names]),
            "pictures": self._cells(lambda tally: [str(tally.shown[semantic_id]) for semantic_id in ids]),
            "pixels": self._cells(lambda tally: _shares(tally.pixels)),
        }
        if self.made.anchors:
            columns["anchor"] = self._cells(lambda tally: [str(tally.anchors[name]) for name in names])
        if self.made.guides:
            columns["in guides"] = self._cells(lambda tally: _shares(tally.guide_pixels))
        yield "\nof each class, made/accepted: recipes that want it, pictures that show it, share of labelled pixels"
        yield f"{'id':>5}  {'class':24}" + "".join(f"{title:>16}" for title in columns)
        for category_id, name, *cells in zip(self.taxonomy.category_ids, names, *columns.values(), strict=True):
            yield f"{category_id:>5}  {name:24}" + "".join(f"{cell:>16}" for cell in cells)

    def _size_table(self) -> Iterator[str]:
        if not self.made.sizes.any():
            return
        columns = {"made/accepted": self._cells(lambda tally: _per_picture(tally.sizes, tally.samples))}
        if self.made.guides:
            columns["in guides"] = self._cells(lambda tally: _per_picture(tally.guide_sizes, tally.guides))
        yield f"\n{'objects per picture, by size':31}" + "".join(f"{title:>16}" for title in columns)
        for name, *cells in zip(SIZE_BANDS, *columns.values(), strict=True):
            yield f"  {name:29}" + "".join(f"{cell:>16}" for cell in cells)

    def _cells(self, column: Callable[[Tally], Sequence[str]]) -> list[str]:
        pairs = zip(column(self.made), column(self.accepted), strict=True)
        return [f"{made}/{accepted}" for made, accepted in pairs]

    def _style_tables(self) -> Iterator[str]:
        for name, values in sorted(self.made.styles.items()):
            yield f"\n{name:31}{'made':>9}{'accepted':>9}{'rate':>9}"
            kept = self.accepted.styles.get(name, Counter[str]())
            for value, made in sorted(values.items(), key=lambda entry: (-entry[1], entry[0]))[:_VALUES]:
                yield f"  {value:29}{made:>9}{kept[value]:>9}{kept[value] / made:>9.1%}"
            if len(values) > _VALUES:
                yield f"  and {len(values) - _VALUES} other values"


def audit(run: Path, *, judge: Path | None = None, console: Console | None = None) -> Audit:
    """Count what the recipes of a run asked for and what its samples hold; one sample in memory at a time.

    A run that is not finished yet is counted as far as it has come.

    Args:
        judge: folder of a reader that had no part in the run, which then looks at every accepted picture.

    Raises:
        UserError: there is no run, one of its shards is damaged, or the judge cannot judge it.
    """
    opened = open_run(run)
    store = opened.store
    shards = store.contiguous()
    found = Audit(
        run=run,
        taxonomy=opened.taxonomy,
        target=opened.target,
        made=Tally.of(opened.taxonomy),
        accepted=Tally.of(opened.taxonomy),
        rejected=sum((shard.rejected for shard in shards), Counter[str]()),
        judge=None if judge is None else open_judge(judge, opened),
    )
    total = sum(len(shard.verdicts) for shard in shards)
    with meter("audit", console=console) as tick:
        for shard in shards:
            store.verify(shard)
            for sample in store.read(shard.index):
                seen = Seen.of(sample, found.taxonomy)
                found.made.add(sample, seen)
                if sample.verdict.keep:
                    found.accepted.add(sample, seen)
                    if found.judge is not None:
                        found.judge.add(sample)
                tick(found.made.samples, total)
    return found


def _sizes(labels: LabelSet, taxonomy: Taxonomy) -> Int64[np.ndarray, " bands"]:
    """Of the objects that are given, or else of the connected parts of the class map."""
    found = find_objects(labels, taxonomy, min_pixels=LEAST_PIXELS)
    return np.zeros(len(SIZE_BANDS), np.int64) if found is None else count_sizes(found[0])


def _per_picture(sizes: Int64[np.ndarray, " bands"], pictures: int) -> list[str]:
    return [f"{count / pictures:.2f}" if pictures else "-" for count in sizes.tolist()]


def _shares(pixels: Int64[np.ndarray, " ids"]) -> list[str]:
    labelled = int(pixels[1:].sum())
    return [f"{count / labelled:.2%}" if labelled else "-" for count in pixels[1:].tolist()]


def _rate(part: int, whole: int) -> str:
    return f" ({part / whole:.1%})" if whole else ""
