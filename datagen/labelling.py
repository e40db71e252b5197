"""The verb `label`: a folder of pictures becomes a labelled COCO dataset."""

import filecmp
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from datagen.datasets import list_images, normal, whole_name
from datagen.exporters.coco import CocoWriter
from datagen.files import UNREAD_SUFFIXES, read_image, require_outside
from datagen.interruption import stop_signals
from datagen.launchers import Launcher
from datagen.launchers.local import Local
from datagen.meter import Tick, console_of, meter
from datagen.readers import model_of, open_reader, read_manifest
from decoders.errors import UserError
from decoders.files import no_other_writer

if TYPE_CHECKING:
    import decoders.reader

Size = tuple[int, int]
_LISTED = 20
"""Unreadable files named in a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSummary:
    """What came of labelling a folder."""

    folder: Path
    labelled: int
    """Pictures in the dataset that are in the folder."""
    were_there: int
    """Of these, labelled by an earlier call."""
    skipped: Mapping[str, str]
    """Unreadable pictures by file, with what is wrong."""
    left_out: Sequence[str]
    """What in the folder was never looked at, such as pictures of other formats."""

    def __str__(self) -> str:
        lines = [f"{self.labelled} labelled pictures ({self.were_there} from before) in {self.folder}"]
        if self.skipped:
            lines.append(f"{len(self.skipped)} pictures could not be read and were skipped:")
        lines += _list(self.skipped)
        if self.left_out:
            lines.append(f"left out: {'; '.join(self.left_out)}")
        return "\n".join(lines)


def label(
    reader: Path,
    images: Path,
    *,
    to: Path,
    batch_size: int | None = None,
    coverage: float | None = None,
    classes: Mapping[str, str | None] | None = None,
    skip_unreadable: bool = False,
    model: str | None = None,
    console: Console | None = None,
    launcher: Launcher | None = None,
) -> LabelSummary:
    """Label the pictures of a folder and its subfolders, each at its own size; run again, it goes on where it was.

    Picture files are copied unchanged; those that share a name are called `folder__name` there. All are opened before
    the first is labelled, so that a damaged one is told at the beginning and not after hours. Pictures that came since,
    from this folder or another one, are added to `to`.

    Args:
        reader: folder written by `datagen fit`.
        batch_size: pictures of equal size per pass of the model; the reader's own when None. A dataset keeps to one,
            since another number may change the last digits.
        coverage: share of the answers to keep, the least sure become void; the reader's own when None.
        classes: name -> phrase of all classes to look for, of a reader with an open vocabulary; its own when None.
        skip_unreadable: leave out pictures that cannot be decoded, instead of stopping.
        model: where the reader's model lies now; where the reader says when None.
        console: where progress is told; stderr when None.
        launcher: knows the other processes, which divide the pictures; None when this one labels alone. The dataset is
            the same, whatever their number.

    Raises:
        UserError: no picture there, one that cannot be read, or two of one name, one of them in `to` maybe; one is in
            `to` under another name; the reader or its model is missing or another one; `to` holds something else, or
            another process is writing it.
        KeyboardInterrupt: after Ctrl-C, when the batch in hand is finished; the same call goes on from there.
    """
    manifest = read_manifest(reader, batch_size=batch_size, coverage=coverage, classes=classes)
    model_of(reader, manifest, source=model)
    launcher = launcher or Local()
    console = console_of(launcher.rank, console)
    files = _list_pictures(images, to) if launcher.rank == 0 else {}
    batch_size, coverage = manifest.reading.batch_size, manifest.reading.coverage
    info = {
        "description": "Pictures labelled by a reader of a diffusion model's activations",
        "reader": manifest.weights_sha256,
        "model": manifest.spec.model_digest,
        "batch_size": batch_size,
        "coverage": coverage,
    } | ({} if classes is None else {"phrases": list(manifest.taxonomy.phrases)})

    def dataset() -> CocoWriter:
        return CocoWriter(to, manifest.taxonomy, info=info)

    with no_other_writer(to) if launcher.rank == 0 else nullcontext():
        work = launcher.once(
            lambda: _find_work(dataset(), files, images, batch_size, skip_unreadable=skip_unreadable, console=console)
        )
        if mine := work.batches[launcher.rank :: launcher.world]:
            with meter("label", console=console) as tick:
                _label(
                    open_reader(reader, model=model, batch_size=batch_size, coverage=coverage, classes=classes),
                    mine,
                    dataset(),
                    tick,
                    console,
                )
        launcher.barrier()
        if work.batches and launcher.rank == 0:
            dataset().finish()
    return work.summary


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What is to be done, and what will have come of it."""

    batches: Sequence[Sequence[tuple[str, Path]]]
    """Names and files of pictures of one size."""
    summary: LabelSummary


def _find_work(
    writer: CocoWriter,
    files: Mapping[str, Path],
    images: Path,
    batch_size: int,
    *,
    skip_unreadable: bool,
    console: Console,
) -> _Work:
    """Look at all pictures, and make the dataset ready for more, or finish it where there are none."""
    todo = {name: path for name, path in files.items() if not writer.has(name)}
    _check_same({name: files[name] for name in files.keys() - todo.keys()}, writer.folder)
    _check_names(files, images, writer)
    with meter("check", console=console) as tick:
        sizes, damaged = _open_all(list(todo.values()), tick)
    if damaged and not skip_unreadable:
        listed = "\n".join(_list(damaged))
        raise UserError(
            f"{len(damaged)} of {len(files)} pictures in {images} cannot be read:\n{listed}\n"
            "replace or remove them, or leave them out with --skip-unreadable; the others were not labelled yet"
        )
    if len(damaged) == len(files):
        raise UserError(f"none of the {len(files)} pictures in {images} can be read; check the folder")
    if sizes:
        writer.reopen()
    else:
        writer.finish()
    names = {path: name for name, path in todo.items()}
    return _Work(
        batches=[[(names[path], path) for path in batch] for batch in _batches(sizes, batch_size)],
        summary=LabelSummary(
            folder=writer.folder,
            labelled=len(files) - len(damaged),
            were_there=len(files) - len(todo),
            skipped={str(path): fault for path, fault in damaged.items()},
            left_out=_left_out(images),
        ),
    )


def _label(
    reader: "decoders.reader.Reader",
    batches: Sequence[Sequence[tuple[str, Path]]],
    writer: CocoWriter,
    tick: Tick,
    console: Console,
) -> None:
    done, total = 0, sum(map(len, batches))
    with stop_signals(lambda: console.print("stopping after this batch; once more to stop at once")) as stopped:
        for batch in batches:
            found = reader.read([read_image(path) for _, path in batch])
            for (name, path), labels in zip(batch, found, strict=True):
                writer.add(name, path.read_bytes(), labels)
            done += len(batch)
            tick(done, total)
            if stopped() and done < total:
                raise KeyboardInterrupt


def _list_pictures(images: Path, to: Path) -> Mapping[str, Path]:
    """By the names of the files that they are copied to."""
    require_outside(to, images)
    found = list_images(images, what="pictures")
    if not found:
        passed = "".join(f"; left out: {one}" for one in _left_out(images))
        raise UserError(f"{images} holds no picture (.png, .jpg, .webp, .bmp, .tif){passed}; check the path")
    return {path.name if normal(path.stem) == name else name + path.suffix: path for name, path in found.items()}


def _left_out(images: Path) -> list[str]:
    """What may be missed of a folder and its subfolders, hidden files aside, and what to do about it."""
    folders: list[str] = []
    formats: Counter[str] = Counter()

    def unread(error: OSError) -> None:
        folders.append(f"folder {error.filename} ({error.strerror})")

    for top, inner, files in os.walk(images, onerror=unread):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        folders += [
            f"folder {top}/{name} (a link; label where it leads)" for name in inner if Path(top, name).is_symlink()
        ]
        suffixes = [Path(name).suffix.lower() for name in files if not name.startswith(".")]
        formats.update(suffix for suffix in suffixes if suffix in UNREAD_SUFFIXES)
    counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(formats.items()))
    return ([f"{counts} (convert them to .jpg or .png)"] if counts else []) + folders


def _check_same(labelled: Mapping[str, Path], to: Path) -> None:
    """Refuse a picture that bears the name of a labelled one and is another: its label would be missing silently."""
    for name, path in sorted(labelled.items()):
        if not filecmp.cmp(path, to / "images" / name, shallow=False):
            raise UserError(
                f"{to} holds the labels of another picture named {name} than {path}; label into a new folder, or "
                "rename the picture"
            )


def _check_names(files: Mapping[str, Path], images: Path, writer: CocoWriter) -> None:
    """Refuse a labelled picture whose name is another now, with others of it there or gone: it would be there twice."""
    elsewhere = writer.file_names - files.keys()
    for name, path in sorted(files.items()):
        for other in elsewhere & {path.name, whole_name(path.relative_to(images)) + path.suffix}:
            if filecmp.cmp(path, writer.folder / "images" / other, shallow=False):
                raise UserError(
                    f"{writer.folder} holds {path} as {other}, and would hold it again as {name}: which pictures of "
                    f"{images} share a name has changed since; label into a new folder"
                )


def _open_all(paths: Sequence[Path], tick: Tick) -> tuple[dict[Path, Size], dict[Path, str]]:
    """(height, width) of those that decode whole, and what is wrong with the others."""
    sizes: dict[Path, Size] = {}
    damaged: dict[Path, str] = {}
    for done, path in enumerate(paths, start=1):
        try:
            height, width = read_image(path).shape[:2]
            sizes[path] = (height, width)
        except UserError as error:
            damaged[path] = str(error)
        tick(done, len(paths))
    return sizes, damaged


def _batches(sizes: Mapping[Path, Size], batch_size: int) -> Iterator[list[Path]]:
    """Pictures of one size together, so that few passes of the model are filled up with copies."""
    for _, group in groupby(sorted(sizes, key=lambda path: (sizes[path], path)), key=sizes.__getitem__):
        members = list(group)
        for start in range(0, len(members), batch_size):
            yield members[start : start + batch_size]


def _list(damaged: Mapping[str, str] | Mapping[Path, str]) -> list[str]:
    faults = [f"  {fault}" for fault in damaged.values()]
    rest = len(faults) - _LISTED
    return [*faults[:_LISTED], f"  ... and {rest} more"] if rest > 0 else faults
