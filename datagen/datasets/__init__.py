"""Datasets read a user's annotated pictures, one when it is asked for: file name = format, CamelCase = class.

Settings are keyword-only arguments. A constructor lists the files and checks what needs no picture.
"""

import difflib
import hashlib
import os
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import overload

import numpy as np
from jaxtyping import Integer, UInt8

from datagen.coco_format import Category, Picture
from datagen.files import IMAGE_SUFFIXES, json_bytes
from datagen.palette import palette
from decoders.errors import UserError
from decoders.labels import AnnotatedImage, DenseMap, InstanceSet, Taxonomy

BACKGROUND = "background"
"""The class of unmarked pixels, where a dataset declares that they are one."""

_NAMED = 5
"""Of a list in a message."""

Names = Path | Sequence[str]
"""Of pictures, or a text file with a name in each line; empty lines and those that begin with # say nothing."""


class AnnotatedImages(Sequence[AnnotatedImage], ABC):
    """A dataset: pictures with their truth, loaded at each access, and the classes they are labelled with."""

    taxonomy: Taxonomy
    names: tuple[str, ...]
    """Of the chosen pictures, in order."""
    warnings: Sequence[str] = ()
    """What is odd about the files as a whole, each with what to do."""
    assumed_depth_scale: float | None = None
    """Metres per step of the depth files, where nobody said it; None where it is known."""

    @abstractmethod
    def load(self, name: str) -> AnnotatedImage:
        """
        Raises:
            UserError: a file of this picture is missing, damaged or does not fit the others.
        """

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> AnnotatedImage: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[AnnotatedImage]: ...
    def __getitem__(self, index: int | slice) -> AnnotatedImage | Sequence[AnnotatedImage]:
        """One picture; a slice loads all of its pictures."""
        if isinstance(index, slice):
            return [self.load(name) for name in self.names[index]]
        return self.load(self.names[index])


def select(found: Sequence[str], *, names: Names | None, first: int | None, every: int, where: Path) -> tuple[str, ...]:
    """Either the listed names, or of all found every n-th, and of these the first so many.

    Raises:
        UserError: nothing was found, a name or the file of names is not there, or both ways of choosing are used.
    """
    if not found:
        raise UserError(f"{where} holds no picture with a label, expected at least one; check the path and the names")
    if every < 1 or (first is not None and first < 1):
        raise UserError(f"found every={every}, first={first}, expected 1 or more: `every: 2` takes each second picture")
    if names is None:
        return tuple(found[::every][:first])
    if first is not None or every != 1:
        raise UserError("found `names` beside `first` or `every`; give the list of names or the rule, not both")
    if isinstance(names, Path):
        names = read_names(names)
    if not names:
        raise UserError("found an empty list of `names`, expected at least one; leave `names` out for all pictures")
    known = {normal(name): name for name in found}
    if missing := [name for name in names if normal(name) not in known]:
        near = difflib.get_close_matches(missing[0], found, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise UserError(
            f"{len(missing)} of {len(names)} names are not among the {len(found)} pictures of {where}, first "
            f"{missing[0]!r}{hint}; names are file names without suffix, `folder__name` where several share one"
        )
    if len({normal(name) for name in names}) != len(names):
        raise UserError(f"a name is listed twice among {list(names)}; list each picture once")
    return tuple(known[normal(name)] for name in names)


def read_names(file: Path) -> list[str]:
    """
    Raises:
        UserError: the file is missing, is no text, or names nothing.
    """
    try:
        lines = [line.strip() for line in file.expanduser().read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read ({error}), expected a text file with a name in each line") from error
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise UserError(f"{file} names nothing, expected a name in each line")
    return names


def normal(name: str) -> str:
    """One spelling of names that look equal: macOS and Linux store accents differently."""
    return unicodedata.normalize("NFC", name)


def place(file: PurePath, ending: str = "") -> str:
    """`sub/name` of a file below a folder: without suffix, and without the `ending` of its stem."""
    return normal((file.parent / file.stem.removesuffix(ending)).as_posix())


def whole_name(file: PurePath, ending: str = "") -> str:
    """`sub__name`: as `place`, where no folder may stand."""
    return place(file, ending).replace("/", "__")


def name_apart(files: Sequence[PurePath], ending: str = "") -> list[str]:
    """The name of each file below a folder: its stem less `ending`, or `sub__name` where others have that stem too."""
    stems = [normal(file.stem.removesuffix(ending)) for file in files]
    times = Counter(stems)
    return [stem if times[stem] == 1 else whole_name(file, ending) for stem, file in zip(stems, files, strict=True)]


def list_images(
    folder: Path, *, what: str, ending: str = "", suffixes: Container[str] = IMAGE_SUFFIXES
) -> dict[str, Path]:
    """Picture files of a folder and its subfolders, sorted, by their names as `name_apart` gives them.

    Raises:
        UserError: the folder is missing, or two files have one name.
        PermissionError: it may not be read; subfolders that may not are passed over.
    """
    if not folder.is_dir():
        raise UserError(f"folder of {what} not found: {folder}; check the path")
    os.scandir(folder).close()  # `rglob` takes a folder that may not be read for an empty one
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in suffixes
        and path.stem.endswith(ending)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    found: dict[str, Path] = {}
    for name, path in zip(name_apart([path.relative_to(folder) for path in files], ending), files, strict=True):
        other = found.setdefault(name, path)
        if other != path:
            raise UserError(f"{what} {other} and {path} share the name {name!r}, which must be unique; rename one")
    return dict(sorted(found.items()))


def check_present(file_names: Sequence[str], *, root: Path, images: str) -> None:
    """
    Raises:
        UserError: a picture is missing in the folder `images`; counts them, and says where they lie if that is clear.
    """
    if missing := [name for name in file_names if not (root / images / name).is_file()]:
        below_root = all((root / name).is_file() for name in missing)
        remedy = "their names are as seen from root: set `images: .`" if below_root else "check `images`"
        first = root / images / missing[0]
        raise UserError(f"{len(missing)} of {len(file_names)} pictures are missing, first {first}; {remedy}")


def check_categories(categories: Sequence[Category], json: Path) -> None:
    """
    Raises:
        UserError: two categories of a COCO file share an id.
    """
    if len({category.id for category in categories}) != len(categories):
        raise UserError(f"{json}: two categories share an id; give each its own")


def pictures_by_name(pictures: Iterable[Picture], json: Path) -> dict[str, Picture]:
    """Those of a COCO file, by their names as `name_apart` gives them.

    Raises:
        UserError: two share a name or an id.
    """
    pictures = list(pictures)
    found: dict[str, Picture] = {}
    by_id: dict[int, Picture] = {}
    for name, picture in zip(name_apart([picture.path for picture in pictures]), pictures, strict=True):
        other = by_id.setdefault(picture.id, picture)
        if other is not picture:
            raise UserError(
                f"{json}: pictures {other.file_name} and {picture.file_name} share the id {picture.id}, expected ids "
                "that differ, as annotations name their picture by it; number the pictures and the `image_id` of their "
                "annotations anew, as when two exports became one file"
            )
        other = found.setdefault(name, picture)
        if other is not picture:
            raise UserError(
                f"{json}: pictures {other.file_name} and {picture.file_name} share the name {name!r}, expected "
                "names that differ; rename one"
            )
    return found


def with_pixels(objects: InstanceSet, called: Sequence[str]) -> tuple[InstanceSet, tuple[str, ...], tuple[str, ...]]:
    """The objects that cover a pixel, what these are called, and what the others are."""
    covers = np.asarray(objects.masks.any(axis=(1, 2)))
    names, empty = (tuple(called[index] for index in np.flatnonzero(chosen).tolist()) for chosen in (covers, ~covers))
    return objects if covers.all() else objects.only(covers), names, empty


def first_few(entries: Sequence[str]) -> str:
    """The first entries of a list that may be long, and how many more there are."""
    more = f" and {len(entries) - _NAMED} more" if len(entries) > _NAMED else ""
    return "; ".join(entries[:_NAMED]) + more


def make_taxonomy(
    classes: Mapping[int, str], *, things: Iterable[str], colors: Mapping[str, tuple[int, int, int]] | None
) -> Taxonomy:
    """Classes by the user's own label ids, which become the category ids, all one higher where 0 is among them.

    Raises:
        UserError: `things` or `colors` name an unknown class, or the taxonomy is not valid.
    """
    names = tuple(classes.values())
    things = set(things)
    given = dict(colors or {})
    if unknown := sorted((things | given.keys()) - set(names)):
        raise UserError(f"`things` or `colors` name {unknown}, which are no classes; known classes: {list(names)}")
    shift = 1 if 0 in classes else 0
    return Taxonomy(
        names=names,
        is_thing=tuple(name in things for name in names),
        colors=tuple(given.get(name, color) for name, color in zip(names, palette(len(names)), strict=True)),
        category_ids=tuple(label_id + shift for label_id in classes),
    )


def to_semantic_ids(
    labels: Integer[np.ndarray, "height width"], table: Mapping[int, int], *, path: Path
) -> UInt8[np.ndarray, "height width"]:
    """Label ids of a file -> semantic ids (0 = void) by a table that must know every id that occurs.

    Raises:
        UserError: an id is not in the table.
    """
    lookup = np.zeros(int(labels.max()) + 1, np.uint8)
    for label_id in (int(value) for value in np.unique(labels)):
        if label_id not in table:
            classes, void = (sorted(key for key in table if bool(table[key]) is known) for known in (True, False))
            raise UserError(
                f"label file {path} holds id {label_id}, expected one of the classes {classes} or void {void}; "
                f"add {label_id} to `classes` with a name, or to `void` to ignore its pixels"
            )
        lookup[label_id] = table[label_id]
    return lookup[labels]


def check_size(
    image: UInt8[np.ndarray, "height width 3"], label_shape: tuple[int, ...], *, paths: tuple[Path, Path]
) -> None:
    """
    Raises:
        UserError: a picture and its label file differ in size.
    """
    height, width = image.shape[:2]
    if label_shape[:2] != (height, width):
        raise UserError(
            f"picture {paths[0]} is {width} x {height} (its EXIF orientation applied), but {paths[1]} is "
            f"{label_shape[1]} x {label_shape[0]}; a label needs one value per pixel: make the sizes equal"
        )


def data_digest(data: AnnotatedImages) -> str:
    """A data set's own `digest`, or one over all its pictures and labels."""
    own = getattr(data, "digest", None)
    if own is not None:
        return own
    total = hashlib.sha256(json_bytes(asdict(data.taxonomy)))
    for picture in data:
        for content in _contents(picture):
            total.update(content)
    return total.hexdigest()


def _contents(picture: AnnotatedImage) -> Iterator[bytes]:
    yield f"{picture.name} {picture.image.shape}".encode()
    yield picture.image.tobytes()
    for name, label in sorted(picture.labels.items()):
        yield name.encode()
        if isinstance(label, DenseMap):
            yield label.storage.unit.encode()
            yield from (plane.tobytes() for plane in (label.values, label.valid, label.confidence))
        else:
            yield from (column.tobytes() for column in (label.masks, label.category_ids, label.is_crowd))
            if label.keypoints_px is not None:
                yield label.keypoints_px.tobytes()
