"""The verb `compare`: how the pictures and labels of a dataset differ from those of another, mostly a real one."""

from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64, Int64
from rich.console import Console

from datagen.datasets import AnnotatedImages
from datagen.datasets.coco import Coco
from datagen.evaluation.apart import check_classes_agree
from datagen.files import write_json
from datagen.meter import Tick, meter
from datagen.model import Model
from decoders.errors import UserError
from decoders.labels import AnnotatedImage, InstanceSet, Taxonomy, class_pixels
from decoders.references import ModelReference

if TYPE_CHECKING:
    from datagen.evaluation.likeness import Embedder, Likeness

LEAST = 8
"""Pictures on either side, below which no distance means anything."""
_AREAS = (0.001, 0.01, 0.1)
"""Objects are counted by their share of the picture: up to these, and above."""
_NAMED = 5


@dataclass(slots=True, kw_only=True)
class Contents:
    """What the labels of a dataset show."""

    pixels: Int64[np.ndarray, " ids"]
    """By semantic id, void first."""
    areas: Int64[np.ndarray, " bands"]
    """Objects by their share of the picture."""
    pictures: int = 0

    @classmethod
    def of(cls, taxonomy: Taxonomy) -> "Contents":
        return cls(pixels=np.zeros(len(taxonomy) + 1, np.int64), areas=np.zeros(len(_AREAS) + 1, np.int64))

    def add(self, picture: AnnotatedImage) -> None:
        self.pictures += 1
        self.pixels += class_pixels(picture.labels, len(self.pixels))
        for label in picture.labels.values():
            if isinstance(label, InstanceSet):
                shares = label.masks[~label.is_crowd].mean(axis=(1, 2))
                bands = np.searchsorted(_AREAS, shares[shares > 0])
                self.areas += np.bincount(bands, minlength=len(self.areas))

    @property
    def class_shares(self) -> Float64[np.ndarray, " classes"]:
        """Of the labelled pixels."""
        return self.pixels[1:] / max(1, int(self.pixels[1:].sum()))

    @property
    def objects_per_picture(self) -> Float64[np.ndarray, " bands"]:
        return self.areas / self.pictures


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A dataset beside a reference."""

    taxonomy: Taxonomy
    model: str
    """Whose features the distances are told from."""
    likeness: "Likeness"
    copies: tuple[str, ...]
    """Names of the pictures that may be copies of one of the reference."""
    found: Contents
    reference: Contents

    def __str__(self) -> str:
        like, found, reference = self.likeness, self.found, self.reference
        frechet = "too few pictures for it" if like.frechet is None else f"{like.frechet:.3f}"
        listed = ", ".join(self.copies[:_NAMED]) + (", ..." if len(self.copies) > _NAMED else "")
        lines = [
            f"{found.pictures} pictures against {reference.pictures} of the reference, by features of {self.model}",
            f"KID x 1000: {like.kid:.2f} (deviation over subsets {like.kid_deviation:.2f}); Fréchet: {frechet}",
            f"precision {like.precision:.3f}, recall {like.recall:.3f}",
            f"nearer to one of the reference than 99 % of those are to each other: {len(self.copies)}"
            + (f" ({listed})" if listed else ""),
            "",
            f"{'objects per picture':28}{'here':>9}{'reference':>11}",
        ]
        bounds = ["0", *(f"{area:.1%}" for area in _AREAS)]
        names = [f"  {low} to {high} of it" for low, high in zip(bounds, [*bounds[1:], "all"], strict=True)]
        rows = zip(names, found.objects_per_picture, reference.objects_per_picture, strict=True)
        lines += [f"{name:28}{mine:>9.2f}{theirs:>11.2f}" for name, mine, theirs in rows]
        lines += ["", f"{'share of labelled pixels':28}{'here':>9}{'reference':>11}"]
        rows = zip(self.taxonomy.names, found.class_shares, reference.class_shares, strict=True)
        lines += [f"  {name:26}{mine:>9.2%}{theirs:>11.2%}" for name, mine, theirs in rows]
        return "\n".join(lines)

    def to_json(self) -> dict[str, object]:
        sides = {"found": self.found, "reference": self.reference}
        told = {
            name: {
                "pictures": side.pictures,
                "class_shares": dict(zip(self.taxonomy.names, side.class_shares.tolist(), strict=True)),
                "objects_per_picture": side.objects_per_picture.tolist(),
            }
            for name, side in sides.items()
        }
        return {"model": self.model, **asdict(self.likeness), "copies": list(self.copies), **told}


def compare(
    dataset: Path, reference: Path, *, model: str, to: Path | None = None, console: Console | None = None
) -> Comparison:
    """Read every picture of both once.

    Args:
        dataset, reference: COCO datasets with the same classes, such as the export of a run and annotated photographs.
        model: checkpoint whose features are the space: a folder, hub id or `package://...`. A model that drew the
            pictures knows its own faults least: take another one where there is one.
        to: file for the figures as JSON; none when None.

    Raises:
        UserError: other classes, fewer than 8 pictures, or torchmetrics is not installed.
    """
    _check_installed()
    sides: dict[str, AnnotatedImages] = {"dataset": Coco(root=dataset), "reference": Coco(root=reference)}
    check_classes_agree(sides["reference"], {"dataset": sides["dataset"]}, by="reference")
    for name, data in sides.items():
        if len(data) < LEAST:
            raise UserError(f"the {name} has {len(data)} pictures, expected at least {LEAST}; compare larger sets")
    from datagen.evaluation.likeness import Embedder, likeness

    embedder = Embedder(Model(ModelReference(source=model)).checkpoint)
    with meter("look", console=console) as tick:
        features, found = _look(sides["dataset"], embedder, tick)
    with meter("look at the reference", console=console) as tick:
        others, expected = _look(sides["reference"], embedder, tick)
    like = likeness(features, others)
    names = sides["dataset"].names
    comparison = Comparison(
        taxonomy=sides["reference"].taxonomy,
        model=model,
        likeness=like,
        copies=tuple(names[index] for index in like.copies),
        found=found,
        reference=expected,
    )
    if to is not None:
        write_json(to, comparison.to_json())
    return comparison


def _look(data: AnnotatedImages, embedder: "Embedder", tick: Tick) -> tuple[np.ndarray, Contents]:
    contents = Contents.of(data.taxonomy)
    rows: list[np.ndarray] = []
    for index, picture in enumerate(data):
        contents.add(picture)
        rows.append(embedder.embed(picture))
        tick(index + 1, len(data))
    return np.stack(rows), contents


def _check_installed() -> None:
    if find_spec("torchmetrics") is None:  # an extra: only who compares datasets needs it
        raise UserError(
            "`datagen compare` needs torchmetrics, which was not found; run `pip install 'datagen[students]'`"
        )
