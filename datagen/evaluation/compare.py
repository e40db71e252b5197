"""The verb `compare`: how the pictures and labels of a dataset differ from those of another, mostly a real one."""

from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Float64, Int64
from rich.console import Console

from datagen.coco_format import read_coco
from datagen.datasets import AnnotatedImages, list_images
from datagen.datasets.coco import ANNOTATIONS, Coco
from datagen.evaluation.apart import check_classes_agree
from datagen.evaluation.feature_space import FeatureSpace
from datagen.files import read_image, write_json
from datagen.instances import SIZE_BANDS, count_sizes
from datagen.meter import Tick, meter
from datagen.model import Model, ModelSettings
from datagen.settings import check
from decoders.errors import UserError
from decoders.labels import AnnotatedImage, InstanceSet, Taxonomy, class_pixels
from decoders.references import ModelReference

if TYPE_CHECKING:
    from datagen.evaluation.likeness import Likeness

LEAST = 8
"""Pictures on either side, below which no distance means anything."""
_ENOUGH = 50
"""Pictures on either side, below which a kernel distance is mostly chance."""
_NAMED = 5
_BLIND = "knows its own faults least; name another one with --model, such as a folder of DINOv2"


@dataclass(slots=True, kw_only=True)
class Contents:
    """What the labels of a dataset show."""

    pixels: Int64[np.ndarray, " ids"]
    """By semantic id, void first."""
    sizes: Int64[np.ndarray, " bands"]
    """Objects by their share of the picture, as `SIZE_BANDS`."""
    pictures: int = 0

    @classmethod
    def of(cls, taxonomy: Taxonomy) -> "Contents":
        return cls(pixels=np.zeros(len(taxonomy) + 1, np.int64), sizes=np.zeros(len(SIZE_BANDS), np.int64))

    def add(self, picture: AnnotatedImage) -> None:
        self.pictures += 1
        self.pixels += class_pixels(picture.labels, len(self.pixels))
        for label in picture.labels.values():
            if isinstance(label, InstanceSet):
                self.sizes += count_sizes(label)

    @property
    def class_shares(self) -> Float64[np.ndarray, " classes"]:
        """Of the labelled pixels."""
        return self.pixels[1:] / max(1, int(self.pixels[1:].sum()))

    @property
    def objects_per_picture(self) -> Float64[np.ndarray, " bands"]:
        return self.sizes / self.pictures


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
    labelled: bool = True
    """Whether the reference has labels; without any only the pictures are compared."""
    own: bool = False
    """Whether the model, LoRA files aside, is the one that drew the pictures."""

    def __str__(self) -> str:
        like, found, reference = self.likeness, self.found, self.reference
        frechet = "Fréchet: " + ("too few pictures for it" if like.frechet is None else f"{like.frechet:.3f}")
        listed = ", ".join(self.copies[:_NAMED]) + (", ..." if len(self.copies) > _NAMED else "")
        lines = [
            f"{found.pictures} pictures against {reference.pictures} of the reference, by features of {self.model}",
            f"KID x 1000: {like.kid:.2f} (deviation over subsets {like.kid_deviation:.2f}{self._doubt}); " + frechet,
            f"precision {like.precision:.3f}, recall {like.recall:.3f}",
            f"nearer to one of the reference than 99 % of those are to each other: {len(self.copies)}"
            + (f" ({listed})" if listed else ""),
        ]
        if self.own:
            lines.insert(1, "warning: these features are of the model that drew the pictures, which " + _BLIND)
        if not self.labelled:
            return "\n".join([*lines, "the reference is a folder of plain pictures: no objects and classes to compare"])
        lines += ["", f"{'objects per picture':28}{'here':>9}{'reference':>11}"]
        rows = zip(SIZE_BANDS, found.objects_per_picture, reference.objects_per_picture, strict=True)
        lines += [f"  {name:26}{mine:>9.2f}{theirs:>11.2f}" for name, mine, theirs in rows]
        lines += ["", f"{'share of labelled pixels':28}{'here':>9}{'reference':>11}"]
        rows = zip(self.taxonomy.names, found.class_shares, reference.class_shares, strict=True)
        lines += [f"  {name:26}{mine:>9.2%}{theirs:>11.2%}" for name, mine, theirs in rows]
        return "\n".join(lines)

    @property
    def _doubt(self) -> str:
        """What speaks against the kernel distance."""
        if min(self.found.pictures, self.reference.pictures) < _ENOUGH:
            return f": too few pictures for a kernel distance, compare {_ENOUGH} or more on either side"
        return ": not told from 0" if self.likeness.kid_deviation >= abs(self.likeness.kid) else ""

    def to_json(self) -> dict[str, object]:
        told: dict[str, dict[str, object]] = {
            name: {
                "pictures": side.pictures,
                "class_shares": dict(zip(self.taxonomy.names, side.class_shares.tolist(), strict=True)),
                "objects_per_picture": side.objects_per_picture.tolist(),
            }
            for name, side in (("found", self.found), ("reference", self.reference))
        }
        if not self.labelled:
            told["reference"] = {"pictures": self.reference.pictures}
        likeness = asdict(self.likeness)
        return {"model": self.model, "own_model": self.own, **likeness, "copies": list(self.copies), **told}


class PlainPictures(AnnotatedImages):
    """Pictures of a folder and its subfolders that say nothing of the classes."""

    def __init__(self, folder: Path, taxonomy: Taxonomy) -> None:
        """
        Raises:
            UserError: there is no such folder, or two pictures have one name.
        """
        self._files = list_images(folder, what="reference pictures")
        self.names = tuple(self._files)
        self.taxonomy = taxonomy

    def load(self, name: str) -> AnnotatedImage:
        return AnnotatedImage(name=name, image=read_image(self._files[name]))


def compare(
    dataset: Path, reference: Path, *, model: str, to: Path | None = None, console: Console | None = None
) -> Comparison:
    """Read every picture of both once.

    Args:
        dataset: COCO dataset, such as the export of a run.
        reference: COCO dataset with the same classes, such as annotated photographs, or a folder of plain pictures.
        model: whose features are the space: a local folder of a vision model (DINOv2, ViT, CLIP), or a diffusion model
            as a folder, hub id or `package://...`. A model that drew the pictures knows its own faults least, and is
            told as such: take another one where there is one.
        to: file for the figures as JSON; none when None.

    Raises:
        UserError: other classes, fewer than 8 pictures, or torchmetrics is not installed.
    """
    _check_installed()
    mine = Coco(root=dataset)
    labelled = (reference.expanduser() / ANNOTATIONS).exists()
    theirs = Coco(root=reference) if labelled else PlainPictures(reference.expanduser(), mine.taxonomy)
    sides: dict[str, AnnotatedImages] = {"dataset": mine, "reference": theirs}
    check_classes_agree(sides["reference"], {"dataset": sides["dataset"]}, by="reference")
    for name, data in sides.items():
        if len(data) < LEAST:
            raise UserError(f"the {name} has {len(data)} pictures, expected at least {LEAST}; compare larger sets")
    from datagen.evaluation.likeness import likeness

    space = FeatureSpace(ModelReference(source=model))
    with meter("look", console=console) as tick:
        features, found = _look(sides["dataset"], space, tick)
    with meter("look at the reference", console=console) as tick:
        others, expected = _look(sides["reference"], space, tick)
    like = likeness(features, others)
    names = sides["dataset"].names
    comparison = Comparison(
        taxonomy=sides["reference"].taxonomy,
        model=model,
        likeness=like,
        copies=tuple(names[index] for index in like.copies),
        found=found,
        reference=expected,
        labelled=labelled,
        own=_drew(model, dataset.expanduser() / ANNOTATIONS),
    )
    if to is not None:
        write_json(to, comparison.to_json())
    return comparison


def _drew(model: str, annotations: Path) -> bool:
    """Whether a dataset says that it was drawn by this model, whatever LoRA files were put on it."""
    told = read_coco(annotations).info.get("model")
    if not isinstance(told, dict):
        return False
    try:
        drawn_by = check(ModelSettings, cast("dict[str, Any]", told))
        source = drawn_by.source
        if source == model:
            return True
        if not source.startswith("package://") and not Path(source).expanduser().exists():
            return False  # moved away since, or a hub id, for which nothing shall be downloaded
        return Model(drawn_by.reference()).base_digest == Model(ModelReference(source=model)).base_digest
    except UserError:  # another program's word for a model, or the space is no diffusion model
        return False


def _look(data: AnnotatedImages, space: FeatureSpace, tick: Tick) -> tuple[np.ndarray, Contents]:
    contents = Contents.of(data.taxonomy)
    rows: list[np.ndarray] = []
    for index, picture in enumerate(data):
        contents.add(picture)
        rows.append(space.embed(picture))
        tick(index + 1, len(data))
    return np.stack(rows), contents


def _check_installed() -> None:
    if find_spec("torchmetrics") is None:  # an extra: only who compares datasets needs it
        raise UserError(
            "`datagen compare` needs torchmetrics, which was not found; run `pip install 'datagen[students]'`"
        )
