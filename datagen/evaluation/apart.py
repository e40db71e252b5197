"""Nothing is learned from that is measured on: told by the pixels, whatever the files are called."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from rich.console import Console

from datagen.datasets import AnnotatedImages, data_digest
from datagen.files import read_json, write_json
from datagen.meter import meter
from decoders.errors import UserError
from decoders.labels import AnnotatedImage, Taxonomy, classes_in


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What one look at all pictures of a dataset tells."""

    digest: str
    pictures: Mapping[str, str]
    """Hash of the pixels -> name."""
    classes: frozenset[int]
    """Semantic ids that are labelled anywhere."""


def survey(data: AnnotatedImages, *, folder: Path, console: Console) -> Survey:
    """Look once; remembered in a folder under the dataset's digest."""
    digest = data_digest(data)
    file = folder / f"{digest[:16]}.json"
    if not file.exists():
        pictures: dict[str, str] = {}
        classes: set[int] = set()
        with meter("compare", console=console) as tick:
            for index, picture in enumerate(data):
                pictures[_hash(picture)] = picture.name
                classes |= classes_in(picture.labels)
                tick(index + 1, len(data))
        write_json(file, {"pictures": pictures, "classes": sorted(classes)})
    noted = read_json(file)
    return Survey(digest=digest, pictures=noted["pictures"], classes=frozenset(noted["classes"]))


def _hash(picture: AnnotatedImage) -> str:
    return hashlib.sha256(repr(picture.image.shape).encode() + picture.image.tobytes()).hexdigest()


def check_apart(tests: Mapping[str, Survey], learned: Mapping[str, Survey]) -> None:
    """Args:
        tests: of every dataset that is measured on, by name.
        learned: of every dataset that is learned from.

    Raises:
        UserError: a test picture is also in one of those that are learned from.
    """
    for (test, measured), (name, other) in product(tests.items(), learned.items()):
        mine = measured.pictures
        shared = sorted(mine.keys() & other.pictures.keys(), key=lambda key: mine[key])
        if shared:
            raise UserError(
                f"{len(shared)} of {len(mine)} pictures of `{test}` are also in `{name}`, first {mine[shared[0]]} "
                f"(there {other.pictures[shared[0]]}); a student must not have seen what it is measured on: take them "
                "out of one"
            )


def never_shown(tests: Mapping[str, Survey], learned: Mapping[str, Survey], taxonomy: Taxonomy) -> Iterator[str]:
    """What to tell about classes of the test pictures that those to learn from do not show."""
    for (test, measured), (name, other) in product(tests.items(), learned.items()):
        if missing := sorted(measured.classes - other.classes):
            classes = ", ".join(taxonomy.names[number - 1] for number in missing)
            yield f"`{name}` never shows {classes}, but `{test}` does: who learns from it alone cannot know them"


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
