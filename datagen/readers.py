"""A saved reader together with the model it was fitted on."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datagen.model import Model, ModelSettings
from datagen.palette import palette
from datagen.settings import check
from decoders.errors import UserError
from decoders.labels import Taxonomy
from decoders.manifest import ReaderManifest

if TYPE_CHECKING:
    import decoders.features
    import decoders.reader


def model_of(folder: Path, manifest: ReaderManifest, *, source: str | None = None) -> Model:
    """The model that a reader needs, not yet loaded.

    Args:
        source: where the model lies now; where the reader says when left out.

    Raises:
        UserError: it is not there, or it is another model.
    """
    settings = check(ModelSettings, manifest.model)
    model = Model(
        (settings.model_copy(update={"source": source, "revision": None}) if source else settings).reference()
    )
    found = model.digest if manifest.perceiver.get("keep_loras") else model.base_digest
    if found != manifest.spec.model_digest:
        raise UserError(
            f"reader {folder} was fitted on a model with digest {manifest.spec.model_digest[:12]}, but "
            f"{model.reference.source} has digest {found[:12]}; name the right one with --model, or fit a reader for "
            "this one with `datagen fit`"
        )
    return model


def read_manifest(
    folder: Path,
    *,
    batch_size: int | None = None,
    coverage: float | None = None,
    classes: Mapping[str, str | None] | None = None,
) -> ReaderManifest:
    """What a saved reader says about itself, with changes of how it looks at pictures.

    Args:
        batch_size, coverage: as the fields of `ReadSettings`; the reader's own when None.
        classes: name -> phrase of all classes to look for, where its vocabulary is open; its own when None. Without a
            phrase (None) a class keeps the one it was fitted with, a new one is asked for by its name.

    Raises:
        UserError: the folder holds no whole reader, or it cannot be asked for other classes.
    """
    manifest = ReaderManifest.read(folder)
    if classes is not None:
        manifest = manifest.asked(asked_taxonomy(manifest.taxonomy, classes))
    changes: dict[str, Any] = {"batch_size": batch_size, "coverage": coverage}
    reading = replace(manifest.reading, **{name: value for name, value in changes.items() if value is not None})
    return replace(manifest, reading=reading)


def asked_taxonomy(fitted: Taxonomy, classes: Mapping[str, str | None]) -> Taxonomy:
    """The classes asked for: known ones keep what is known of them, new ones get the next ids and are not countable."""
    known = {name: index for index, name in enumerate(fitted.names)}
    phrases = dict(zip(fitted.names, fitted.phrases, strict=True))
    free = max(fitted.category_ids) + 1
    new_ids = {name: free + index for index, name in enumerate(name for name in classes if name not in known)}
    new_colors = dict(zip(new_ids, palette(len(fitted) + len(new_ids))[len(fitted) :], strict=True))
    return Taxonomy(
        names=tuple(classes),
        is_thing=tuple(name in known and fitted.is_thing[known[name]] for name in classes),
        colors=tuple(fitted.colors[known[name]] if name in known else new_colors[name] for name in classes),
        category_ids=tuple(fitted.category_ids[known[name]] if name in known else new_ids[name] for name in classes),
        phrases=tuple(phrase or phrases.get(name, name) for name, phrase in classes.items()),
    )


def open_reader(
    folder: Path,
    *,
    model: str | None = None,
    batch_size: int | None = None,
    coverage: float | None = None,
    classes: Mapping[str, str | None] | None = None,
) -> "decoders.reader.Reader":
    """Load a reader and its model.

    Args:
        model: where its model lies now; where the reader says when left out.
        batch_size, coverage, classes: as for `read_manifest`.

    Raises:
        UserError: the folder holds no whole reader; its model is missing or another one; or as `read_manifest`.
    """
    manifest = read_manifest(folder, batch_size=batch_size, coverage=coverage, classes=classes)
    wanted = model_of(folder, manifest, source=model)

    from decoders.perceivers.unet import UnetPerceiver
    from decoders.reader import load_reader

    def perceiver(manifest: ReaderManifest) -> "decoders.features.Perceiver":
        return UnetPerceiver.from_settings(wanted.checkpoint, manifest.perceiver)

    reader = load_reader(folder, perceiver, asked=None if classes is None else manifest.taxonomy)
    reader.manifest = replace(reader.manifest, reading=manifest.reading)
    return reader
