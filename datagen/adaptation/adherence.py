"""How well a ControlNet in training is obeyed: pictures of fixed layouts, and a reader's mIoU against these."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from datagen.adaptation.control_plan import AdherenceSettings
from datagen.adaptation.hardware import half_precision
from datagen.adaptation.training import Look
from datagen.controls import Control
from datagen.files import encode_png
from datagen.generators.controlnet import Controlnet
from datagen.guides import guide_of
from datagen.labellers.decoded import Decoded
from datagen.labellers.inherited import translation
from datagen.model import Model
from datagen.records import Recipe
from decoders.files import write_atomic
from decoders.labels import Taxonomy, categorical, semantic_ids, semantic_map
from decoders.tasks.semantic import SemanticScore

_BATCH = 4


class Adherence:
    """Always the same layouts from the same noise."""

    def __init__(
        self, recipes: Sequence[Recipe], settings: AdherenceSettings, *, model: Model, taxonomy: Taxonomy, folder: Path
    ) -> None:
        """`folder` gets the pictures, as `000500.png`.

        Raises:
            UserError: no reader there, or it knows other classes than the layouts.
        """
        self._recipes = recipes
        self._settings = settings
        self._model = model
        self._taxonomy = taxonomy
        self._folder = folder
        self._reader = None if settings.reader is None else Decoded(reader=settings.reader, model=model)
        self._ids = None if self._reader is None else translation(self._reader.taxonomy, taxonomy)

    def look(self, control: Path, step: int) -> Look:
        """What is drawn with the ControlNet in a folder after `step` updates, and how well that keeps the layouts.

        The values are `adherence`, the mIoU of what the reader finds against the layouts, and `adherence/<class>`; none
        without a reader.
        """
        generator = Controlnet(
            controls=(Control(source=str(control)),),
            steps=self._settings.steps,
            guidance=self._settings.guidance,
            model=self._model,
            taxonomy=self._taxonomy,
        )
        parts: list[np.ndarray] = []
        score = SemanticScore(self._taxonomy)
        for start in range(0, len(self._recipes), _BATCH):
            recipes = self._recipes[start : start + _BATCH]
            with half_precision(self._model.checkpoint.device):
                pictures = generator.render(recipes)
            parts.append(pictures)
            self._compare(recipes, pictures, score)
        drawn = np.concatenate(parts)
        write_atomic(self._folder / f"{step:06d}.png", encode_png(self._sheet(drawn)))
        return Look(drawn, self._named(score.result()))

    def _compare(
        self, recipes: Sequence[Recipe], pictures: UInt8[np.ndarray, "batch height width 3"], score: SemanticScore
    ) -> None:
        if self._reader is None or self._ids is None:
            return
        for recipe, found in zip(recipes, self._reader.label(recipes, pictures), strict=True):
            score.add(semantic_map(self._ids[semantic_ids(found)]), categorical(guide_of(recipe).labels))

    def _named(self, result: Mapping[str, float]) -> dict[str, float]:
        classes = {f"adherence/{name[4:]}": value for name, value in result.items() if name.startswith("iou/")}
        return {"adherence": result["miou"], **classes} if "miou" in result else {}

    def _sheet(self, drawn: UInt8[np.ndarray, "batch height width 3"]) -> UInt8[np.ndarray, "_ _ 3"]:
        """Rows: what the layouts were made for, the layouts, what was drawn."""
        colors = np.array([(0, 0, 0), *self._taxonomy.colors], np.uint8)
        guides = [guide_of(recipe) for recipe in self._recipes]
        layouts = [colors[semantic_ids(guide.labels)] for guide in guides]
        rows = [layouts, list(drawn)]
        originals = [guide.image for guide in guides if guide.image is not None]
        if len(originals) == len(guides):
            rows.insert(0, originals)
        return np.concatenate([np.concatenate(row, axis=1) for row in rows])
