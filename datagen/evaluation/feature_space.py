"""The model in whose features pictures are compared: a diffusion model, or a vision model that drew nothing."""

import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from datagen.files import read_json
from datagen.model import Model
from decoders.errors import UserError
from decoders.labels import AnnotatedImage
from decoders.references import ModelReference, file_digest

if TYPE_CHECKING:
    from datagen.evaluation.likeness import Embedder
    from datagen.evaluation.vision import VisionEmbedder

_CONFIG = "config.json"
_FILES = ("*.json", "*.safetensors")


class FeatureSpace:
    """Identified at once, loaded at the first picture."""

    def __init__(self, reference: ModelReference, *, device: str | Callable[[], str] | None = None) -> None:
        """
        Args:
            reference: its source is a folder of a vision model of transformers; or of a diffusion model, a hub id or
                `package://...`.
            device: as `Model`.

        Raises:
            UserError: a vision model with LoRA files.
        """
        self._model = Model(reference, device=device)
        self._device = device
        folder = Path(reference.source).expanduser()
        self._vision = folder if _is_vision(folder) else None
        if self._vision and reference.loras:
            raise UserError(
                f"found LoRA files beside the vision model {folder}, expected them beside diffusion models only; "
                "remove `loras`"
            )

    @cached_property
    def digest(self) -> str:
        """Identity of its files; errors as `Model`."""
        if self._vision is None:
            return self._model.digest
        files = sorted(file for pattern in _FILES for file in self._vision.glob(pattern))
        told = [[file.name, file_digest(file)] for file in files]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def embed(self, picture: AnnotatedImage) -> Float32[np.ndarray, " channels"]:
        """
        Raises:
            UserError: there is no such model, or it is damaged.
        """
        return self._embedder.embed(picture)

    @cached_property
    def _embedder(self) -> "Embedder | VisionEmbedder":
        if self._vision is None:
            from datagen.evaluation.likeness import Embedder

            return Embedder(self._model.checkpoint)
        from datagen.evaluation.vision import VisionEmbedder

        return VisionEmbedder(self._vision, self._device() if callable(self._device) else self._device)


def _is_vision(folder: Path) -> bool:
    """Whether a folder says that it holds one model of transformers; pipelines of diffusers have no such file there."""
    file = folder / _CONFIG
    return file.is_file() and "model_type" in read_json(file)
