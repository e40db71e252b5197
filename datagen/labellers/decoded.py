"""Labels read by a fitted reader, which looks again at the finished picture."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from annotated_types import Gt, Le
from jaxtyping import Float32, UInt8

from datagen.model import Model
from datagen.readers import model_of, read_manifest
from datagen.records import Recipe
from decoders.labels import LabelSet, Taxonomy
from decoders.manifest import MANIFEST_FILE, ReaderManifest

if TYPE_CHECKING:
    import decoders.features
    import decoders.reader


class Decoded:
    """Reads with the generator's own checkpoint where the reader was fitted on that one, LoRA files aside.

    Otherwise the reader's model is loaded besides: a reader fitted on Stable Diffusion 1.5 labels what XL draws.
    """

    def __init__(
        self,
        *,
        reader: Path,
        fit: Path | None = None,
        coverage: Annotated[float, Gt(0), Le(1)] | None = None,
        classes: Mapping[str, str | None] | None = None,
        model: Model | None = None,
    ) -> None:
        """
        Args:
            reader: folder written by `datagen fit`.
            fit: plan to fit it with, if that folder holds no reader yet.
            coverage: share of the answers to keep, the least sure become void; the reader's own when None.
            classes: name -> phrase of all classes to look for, of a reader with an open vocabulary; its own when None.
            model: a checkpoint to borrow.

        Raises:
            UserError: no reader there, its model is neither `model` nor where the reader says, or it cannot be asked
                for other classes.
        """
        del fit  # `prepare` has used it
        self._folder = reader
        self._manifest = read_manifest(reader, coverage=coverage, classes=classes)
        self._asked = None if classes is None else self._manifest.taxonomy
        self._model = model if model and self._fits(model) else model_of(reader, self._manifest)

    @staticmethod
    def prepare(*, reader: Path, fit: Path | None = None, **_: Any) -> None:
        """Fit the reader if it is absent and a plan says how."""
        if fit is not None and not (reader / MANIFEST_FILE).exists():
            from datagen.fitting import fit_from_plan

            fit_from_plan(fit, to=reader, overrides=[])

    @property
    def taxonomy(self) -> Taxonomy:
        return self._manifest.taxonomy

    @property
    def digest(self) -> str:
        """Identity of all that decides a label, wherever the reader and its model lie."""
        manifest = self._manifest
        decisive = {
            "weights": manifest.weights_sha256,
            "spec": manifest.spec.to_json(),
            "decoder": asdict(manifest.decoder),
            "reading": asdict(manifest.reading),
            "tasks": manifest.tasks,
            "taxonomy": asdict(manifest.taxonomy),
        }
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def label(self, recipes: Sequence[Recipe], images: UInt8[np.ndarray, "batch height width 3"]) -> Sequence[LabelSet]:
        """As `Reader.read`; nothing of the recipes is looked at."""
        del recipes
        return self._reader.read(list(images))

    def agreement(
        self, images: UInt8[np.ndarray, "batch height width 3"], claims: Sequence[UInt8[np.ndarray, "height width"]]
    ) -> Sequence[Float32[np.ndarray, "height width"]]:
        """As `Reader.agreement`."""
        return self._reader.agreement(list(images), claims)

    def _fits(self, model: Model) -> bool:
        found = model.digest if self._manifest.perceiver.get("keep_loras") else model.base_digest
        return found == self._manifest.spec.model_digest

    @cached_property
    def _reader(self) -> "decoders.reader.Reader":
        from decoders.reader import load_reader

        reader = load_reader(self._folder, self._perceiver, asked=self._asked)
        reader.manifest = replace(reader.manifest, reading=self._manifest.reading)
        return reader

    def _perceiver(self, manifest: ReaderManifest) -> "decoders.features.Perceiver":
        from decoders.perceivers.unet import UnetPerceiver

        checkpoint = self._model.checkpoint
        if checkpoint.precision != manifest.perceiver["dtype"]:  # another number format, other features
            checkpoint = model_of(self._folder, manifest).checkpoint
        return UnetPerceiver.from_settings(checkpoint, manifest.perceiver)
