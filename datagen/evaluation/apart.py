"""What is told of datasets before anybody learns: nothing that is measured on is learned from, whatever the files are
called, every label is there, and every class can be learned and measured."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from rich.console import Console

from datagen.datasets import AnnotatedImages, data_digest
from datagen.files import read_json, write_json
from datagen.meter import meter
from decoders.errors import UserError
from decoders.labels import AnnotatedImage, InstanceSet, Label, Taxonomy, classes_in


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What one look at all pictures of a dataset tells."""

    digest: str
    hashes: Mapping[str, str]
    """Name -> hash of the pixels."""
    labels: Mapping[str, int]
    """Name of a label -> pictures that have it."""
    shown: Sequence[Mapping[str, frozenset[int]]]
    """Of each picture: name of a label that says anything -> semantic ids in it, none where it is not of classes."""

    @property
    def pictures(self) -> Mapping[str, str]:
        """Hash of the pixels -> name."""
        return {pixels: name for name, pixels in self.hashes.items()}

    def says_anything(self, label: str) -> bool:
        """Whether that label does in any picture."""
        return any(label in each for each in self.shown)

    def classes(self, *, label: str | None = None, first: int | None = None) -> frozenset[int]:
        """Semantic ids that are labelled anywhere.

        Args:
            label: in which one; any when None.
            first: in how many of the first pictures; all when None.
        """
        chosen = (ids for each in self.shown[:first] for name, ids in each.items() if label in (None, name))
        return frozenset[int]().union(*chosen)


def survey(data: AnnotatedImages, *, folder: Path, console: Console) -> Survey:
    """Look once; remembered in a folder under the dataset's digest."""
    digest = data_digest(data)
    file = folder / f"{digest[:16]}_by_picture.json"  # older ones, which say less, are called otherwise
    if not file.exists():
        hashes: dict[str, str] = {}
        labels = Counter[str]()
        shown: list[dict[str, list[int]]] = []
        with meter("compare", console=console) as tick:
            for index, picture in enumerate(data):
                hashes[data.names[index]] = pixel_hash(picture)
                labels.update(list(picture.labels))
                saying = {name: label for name, label in picture.labels.items() if _says_anything(label)}
                shown.append({name: sorted(classes_in({name: label})) for name, label in saying.items()})
                tick(index + 1, len(data))
        write_json(file, {"hashes": hashes, "labels": labels, "shown": shown})
    noted = read_json(file)
    shown_ids = [{name: frozenset[int](ids) for name, ids in each.items()} for each in noted["shown"]]
    return Survey(digest=digest, hashes=noted["hashes"], labels=noted["labels"], shown=shown_ids)


def _says_anything(label: Label) -> bool:
    if isinstance(label, InstanceSet):
        return bool((label.masks.any(axis=(1, 2)) & ~label.is_crowd).any())
    return bool(label.valid.any())


def pixel_hash(picture: AnnotatedImage) -> str:
    """What a picture is known by, whatever its file is called."""
    return hashlib.sha256(repr(picture.image.shape).encode() + picture.image.tobytes()).hexdigest()


def check_apart(tests: Mapping[str, Survey], learned: Mapping[str, Survey]) -> None:
    """Args:
        tests: of every dataset that is measured on, by name.
        learned: of every dataset that is learned from.

    Raises:
        UserError: a test picture is also in one of those that are learned from.
    """
    for (test, measured), (name, other) in product(tests.items(), learned.items()):
        remedy = "a student must not have seen what it is measured on: take them out of one"
        check_none_shared((test, measured.pictures), (name, other.pictures), remedy=remedy)


def check_none_shared(
    measured: tuple[str, Mapping[str, str]], learned: tuple[str, Mapping[str, str]], *, remedy: str
) -> None:
    """Args:
        measured, learned: what a dataset is called, and its pictures by the hash of their pixels, as one may have two
            names.

    Raises:
        UserError: a picture is in both.
    """
    (test, mine), (name, theirs) = measured, learned
    if shared := sorted(mine.keys() & theirs.keys(), key=lambda key: mine[key]):
        raise UserError(
            f"{len(shared)} of {len(mine)} pictures of `{test}` are also in `{name}`, first {mine[shared[0]]} (there "
            f"{theirs[shared[0]]}); {remedy}"
        )


def check_labels(surveys: Mapping[str, Survey], labels: Sequence[str]) -> None:
    """Args:
        surveys: of every dataset that is learned from or measured on, by name.
        labels: what a student learns from and answers with.

    Raises:
        UserError: a picture lacks one of them.
    """
    for (name, seen), label in product(surveys.items(), labels):
        if lacking := len(seen.hashes) - seen.labels.get(label, 0):
            others = ", ".join(sorted(seen.labels)) or "none"
            raise UserError(
                f"{lacking} of {len(seen.hashes)} pictures of `{name}` have no label {label!r}, labels there are: "
                f"{others}; take a student that learns from these, or a dataset that has it"
            )


def check_measurable(tests: Mapping[str, Survey], headline: str) -> None:
    """Refuse test sets that the headline cannot be measured on.

    Raises:
        UserError: no picture of a test says anything of the label that the headline is of.
    """
    for test, measured in tests.items():
        if not measured.says_anything(headline.split(" ")[0]):
            raise UserError(
                f"no picture of `{test}` has anything to measure {headline!r} on; check the labels of `{test}`"
            )


def never_measured(tests: Mapping[str, Survey], headline: str, taxonomy: Taxonomy) -> Iterator[str]:
    """What to tell about classes that a headline is silent on, as no test picture shows them."""
    label = headline.split(" ")[0]
    for test, measured in tests.items():
        shown = measured.classes(label=label)
        asked = zip(taxonomy.names, taxonomy.is_thing, strict=True)
        missing = [
            name for number, (name, thing) in enumerate(asked, start=1)
            if number not in shown and (thing or label != "instances")
        ]  # fmt: skip
        if shown and missing:
            yield f"no picture of `{test}` shows {', '.join(missing)}: its {headline} says nothing of these classes"


def also_real(surveys: Mapping[str, Survey]) -> frozenset[str]:
    """Names of the pool's pictures that are among the real ones: nothing is like a picture as itself is."""
    real = surveys["real"].pictures
    return frozenset(name for name, pixels in surveys["pool"].hashes.items() if pixels in real)


def never_shown(
    tests: Mapping[str, Survey], learned: Mapping[str, Survey], taxonomy: Taxonomy, counts: Mapping[str, int]
) -> Iterator[str]:
    """What to tell about classes of the test pictures that those to learn from do not show.

    Args:
        counts: the fewest first pictures of a dataset that are learned from; of others all are looked at.
    """
    for (test, measured), (name, other) in product(tests.items(), learned.items()):
        first = counts.get(name, len(other.shown))
        if missing := sorted(measured.classes() - other.classes(first=first)):
            classes = ", ".join(taxonomy.names[number - 1] for number in missing)
            some, they = (f"`{name}` never shows", "it")
            if first < len(other.shown):
                some, they = (f"the first {first} of {len(other.shown)} pictures of `{name}` never show", "these")
            yield f"{some} {classes}, but `{test}` does: who learns from {they} alone cannot know them"


def check_classes_agree(test: AnnotatedImages, others: Mapping[str, AnnotatedImages], *, by: str = "test") -> None:
    """Args:
        by: what `test` is called.

    Raises:
        UserError: a dataset has other classes than the test, or counts others.
    """
    mine = test.taxonomy
    for name, data in others.items():
        theirs = data.taxonomy
        if mine.names != theirs.names:
            only = [f"{one} (in `{by}` only)" for one in mine.names if one not in theirs.names]
            only += [f"{one} (in `{name}` only)" for one in theirs.names if one not in mine.names]
            told = ", ".join(only) or f"the order: {', '.join(theirs.names)} instead of {', '.join(mine.names)}"
            raise UserError(
                f"`{name}` and `{by}` have other classes: {told}; give both the same classes in the same order"
            )
        if mine.is_thing != theirs.is_thing:
            differing = [one for one, *flags in zip(mine.names, mine.is_thing, theirs.is_thing, strict=True)
                         if flags[0] != flags[1]]  # fmt: skip
            raise UserError(
                f"`{name}` and `{by}` disagree on whether {', '.join(differing)} can be counted; name the same `things`"
            )
