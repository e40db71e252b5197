"""What a reader that had no part in a run says of its pictures: is there what was asked for, are its objects there?"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datagen.instances import LEAST_PIXELS, find_objects
from datagen.plugins import choose_part
from datagen.readers import open_reader, read_manifest
from datagen.runs import Run
from datagen.shards import StoredSample
from decoders.errors import UserError
from decoders.labels import classes_in, semantic_ids
from decoders.manifest import ReaderManifest

if TYPE_CHECKING:
    import decoders.reader
    import decoders.tasks.semantic

_SHOWN = 0.001
"""Share of a picture from which a class counts as found in it."""
_CONFIRMED = 0.5
"""Share of an object's pixels that the judge must give the object's class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Adds up what it thinks of the samples that it is shown."""

    name: str
    reader: "decoders.reader.Reader"
    score: "decoders.tasks.semantic.SemanticScore"
    """Its answers against the labels of the run."""
    untold: tuple[str, ...] = ()
    """Readers of the run that are no longer there, so that nobody can tell whether this is one of them."""
    asked: Counter[str] = field(default_factory=Counter[str])
    """Class -> pictures whose prompt or guide asks for it."""
    found: Counter[str] = field(default_factory=Counter[str])
    """Class -> those of them in which the judge finds it."""
    objects: Counter[str] = field(default_factory=Counter[str])
    """Class -> labelled objects."""
    denied: Counter[str] = field(default_factory=Counter[str])
    """Class -> those of them that are mostly something else, the judge says."""

    def add(self, sample: StoredSample) -> None:
        names = self.reader.manifest.taxonomy.names
        answer = self.reader.read([sample.image])[0]["semantic"]
        ids = semantic_ids({"semantic": answer})
        shown = np.bincount(ids.ravel(), minlength=len(names) + 1) >= max(1.0, _SHOWN * ids.size)
        guide = sample.recipe.guide
        asked = set(sample.recipe.wanted)
        if guide is not None:
            asked |= {names[number - 1] for number in classes_in(guide.labels) if number}
        self.asked.update(asked)
        self.found.update(name for name in asked if shown[names.index(name) + 1])
        if "semantic" in sample.labels:
            self.score.add(answer, sample.labels["semantic"])
        for mask, category in self._objects(sample):
            self.objects[names[category - 1]] += 1
            if (ids[mask] == category).mean() < _CONFIRMED:
                self.denied[names[category - 1]] += 1

    def _objects(self, sample: StoredSample) -> Iterator[tuple[np.ndarray, int]]:
        found = find_objects(sample.labels, self.reader.manifest.taxonomy, min_pixels=LEAST_PIXELS)
        if found is not None:
            objects, _ = found
            single = ~objects.is_crowd & objects.masks.any(axis=(1, 2))
            yield from zip(objects.masks[single], objects.category_ids[single].tolist(), strict=True)

    def __str__(self) -> str:
        told = ", which it had no part in"
        if self.untold:
            told = f"; whether it is {' or '.join(self.untold)} of the run cannot be told, as no reader is there now"
        lines = [f"\nas {self.name} judges the accepted pictures{told}"]
        if self.asked:
            lines.append(f"  classes asked for that it finds: {_of(self.found, self.asked)}")
        if self.objects:
            lines.append(f"  objects that it denies: {_of(self.denied, self.objects)}")
        figures = self.score.result()
        if figures:
            lines.append(f"  its mIoU against the labels: {figures['miou']:.3f}")
        lines.append(f"  {'class':24}{'asked, found':>16}{'objects, denied':>18}{'IoU':>8}")
        for name in self.reader.manifest.taxonomy.names:
            asked, objects = (f"{self.asked[name]}, {self.found[name]}", f"{self.objects[name]}, {self.denied[name]}")
            iou = figures.get(f"iou/{name}")
            lines.append(f"  {name:24}{asked:>16}{objects:>18}" + ("" if iou is None else f"{iou:>8.3f}"))
        return "\n".join(lines)


def open_judge(folder: Path, run: Run) -> Judge:
    """Load a reader that judges a run.

    Raises:
        UserError: no reader there, it says no classes or others than the run's, or it labelled or filtered the run.
    """
    manifest = read_manifest(folder)
    if "semantic" not in manifest.tasks:
        raise UserError(
            f"judge {folder} says {', '.join(manifest.tasks)}, expected `semantic` among them; take another"
        )
    if manifest.taxonomy.names != run.taxonomy.names:
        raise UserError(
            f"judge {folder} knows the classes {', '.join(manifest.taxonomy.names)}, the run has "
            f"{', '.join(run.taxonomy.names)}; fit a reader for the run's classes, in their order"
        )
    untold: list[str] = []
    for at, reader in _readers(run.plan):
        weights, same = _weights(reader), _labels_alike(folder, run) if at == "plan.labeller.reader" else None
        if same or reader == folder.expanduser().resolve() or weights == manifest.weights_sha256:
            raise UserError(
                f"judge {folder} is the reader of the run itself ({at}): whoever made or filtered the labels cannot "
                "judge them; fit another one, on other annotated pictures"
            )
        if same is None and weights is None:
            untold.append(f"{reader} ({at})")
    from decoders.tasks.semantic import SemanticScore

    return Judge(name=str(folder), reader=open_reader(folder), score=SemanticScore(run.taxonomy), untold=tuple(untold))


def _readers(settings: Any, at: str = "plan") -> Iterator[tuple[str, Path]]:
    """Every `reader:` anywhere in a plan, and where."""
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            if key == "reader" and isinstance(value, str):
                yield f"{at}.{key}", Path(value).expanduser().resolve()
            yield from _readers(value, f"{at}.{key}")
    elif isinstance(settings, list):
        for index, value in enumerate(settings):
            yield from _readers(value, f"{at}.{index}")


def _labels_alike(folder: Path, run: Run) -> bool | None:
    """Whether the labeller of a run, given this reader, is the one that it had, wherever that lies now; None where the
    run does not say."""
    digest = run.identity.get("labeller", {}).get("digest")
    try:
        part = choose_part("labellers", {**run.plan["labeller"], "reader": str(folder)}, at="labeller")
        return None if digest is None else part.build(taxonomy=run.taxonomy).digest == digest
    except UserError:  # a labeller that is not installed any more, or that cannot use such a reader
        return None


def _weights(folder: Path) -> str | None:
    try:
        return ReaderManifest.read(folder).weights_sha256
    except UserError:  # moved away since, which is its owner's right
        return None


def _of(part: Counter[str], whole: Counter[str]) -> str:
    return f"{part.total()} of {whole.total()} ({part.total() / whole.total():.1%})"
