"""Nothing is learned from that is measured on: told by the pixels, whatever the files are called."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from datagen.datasets import AnnotatedImages, data_digest
from datagen.files import read_json, write_json
from datagen.meter import meter
from decoders.errors import UserError
from decoders.labels import AnnotatedImage


def fingerprints(data: AnnotatedImages, digest: str, *, folder: Path, console: Console) -> dict[str, str]:
    """Hash of the pixels of each picture -> its name; remembered in a folder under the dataset's digest."""
    file = folder / f"{digest[:16]}.json"
    if file.exists():
        return read_json(file)
    found: dict[str, str] = {}
    with meter("compare", console=console) as tick:
        for index, picture in enumerate(data):
            found[_hash(picture)] = picture.name
            tick(index + 1, len(data))
    write_json(file, found)
    return found


def _hash(picture: AnnotatedImage) -> str:
    return hashlib.sha256(repr(picture.image.shape).encode() + picture.image.tobytes()).hexdigest()


def check_apart(
    test: AnnotatedImages, others: Mapping[str, AnnotatedImages], *, folder: Path, console: Console
) -> dict[str, str]:
    """Digests of all datasets by name, `test` among them.

    Raises:
        UserError: a test picture is also in one of the others.
    """
    digests = {name: data_digest(data) for name, data in {"test": test, **others}.items()}
    mine = fingerprints(test, digests["test"], folder=folder, console=console)
    for name, data in others.items():
        theirs = fingerprints(data, digests[name], folder=folder, console=console)
        if shared := sorted(mine.keys() & theirs.keys(), key=lambda key: mine[key]):
            raise UserError(
                f"{len(shared)} of {len(mine)} test pictures are also in `{name}`, first {mine[shared[0]]} (there "
                f"{theirs[shared[0]]}); a student must not have seen what it is measured on: take them out of one"
            )
    return digests


def check_classes_agree(test: AnnotatedImages, others: Mapping[str, AnnotatedImages]) -> None:
    """Raises:
    UserError: a dataset has other classes than the test, or counts others.
    """
    mine = test.taxonomy
    for name, data in others.items():
        theirs = data.taxonomy
        if mine.names != theirs.names:
            only = [f"{one} (in `test` only)" for one in mine.names if one not in theirs.names]
            only += [f"{one} (in `{name}` only)" for one in theirs.names if one not in mine.names]
            told = ", ".join(only) or f"the order: {', '.join(theirs.names)} instead of {', '.join(mine.names)}"
            raise UserError(
                f"`{name}` and `test` have other classes: {told}; give both the same classes in the same order"
            )
        if mine.is_thing != theirs.is_thing:
            differing = [one for one, *flags in zip(mine.names, mine.is_thing, theirs.is_thing, strict=True)
                         if flags[0] != flags[1]]  # fmt: skip
            raise UserError(
                f"`{name}` and `test` disagree on whether {', '.join(differing)} can be counted; name the same `things`"
            )
