"""What a saved reader says about itself, readable before any weight or model is loaded."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from decoders.augmentation import Augmentation
from decoders.errors import UserError
from decoders.features import FeatureSpec
from decoders.labels import Taxonomy
from decoders.settings import DecoderSettings, FitSettings, ReadSettings

FORMAT = 2
MANIFEST_FILE = "reader.json"
WEIGHTS_FILE = "decoder.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderManifest:
    """All of a reader but its numbers."""

    model: Mapping[str, Any]
    """Where the diffusion model came from, in the words of whoever fitted the reader."""
    spec: FeatureSpec
    """What the decoder expects; `spec.settings` are the perceiver's own choices, enough to build it again."""
    taxonomy: Taxonomy
    tasks: Mapping[str, Mapping[str, Any]]
    """Task name -> options."""
    decoder: DecoderSettings
    reading: ReadSettings
    fit: FitSettings
    report: Mapping[str, Any]
    """How the fit went, without its duration: equal fits write equal files."""
    weights_sha256: str
    """Of the weights file, so that two halves of different readers are never taken for one."""

    @property
    def perceiver(self) -> Mapping[str, Any]:
        return self.spec.settings

    def asked(self, taxonomy: Taxonomy) -> "ReaderManifest":
        """The same reader, asked for other classes.

        Those it was fitted on are still attended to behind them, though not said: the model shares out its attention
        among all phrases, and what is left of three is not what the decoder learned with eleven.

        Raises:
            UserError: it has no open vocabulary.
        """
        if not self.decoder.open_vocabulary:
            raise UserError(
                f"this reader says the classes it was fitted on ({', '.join(self.taxonomy.names)}) and no others; to "
                "ask for others, fit one with `decoder: {open_vocabulary: true}`"
            )
        if len(taxonomy) < 2:
            raise UserError(
                f"only the class {taxonomy.names[0]} was asked for, which every pixel would then be; ask for two or "
                "more, such as what else there is"
            )
        fitted = self.spec.settings["phrases"]
        phrases = [*taxonomy.phrases, *(phrase for phrase in fitted if phrase not in taxonomy.phrases)]
        maps = tuple(count // len(fitted) * len(phrases) for count in self.spec.attention_maps)
        settings = {**self.spec.settings, "phrases": phrases}
        spec = replace(self.spec, attention_maps=maps, settings=settings)
        return replace(self, taxonomy=taxonomy, spec=spec)

    def to_bytes(self) -> bytes:
        data = {
            "format": FORMAT,
            "model": self.model,
            "spec": self.spec.to_json(),
            "taxonomy": asdict(self.taxonomy),
            "tasks": self.tasks,
            "decoder": asdict(self.decoder),
            "reading": asdict(self.reading),
            "fit": asdict(self.fit),
            "report": self.report,
            "weights_sha256": self.weights_sha256,
        }
        return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()

    @classmethod
    def read(cls, folder: Path) -> "ReaderManifest":
        """The manifest of a saved reader.

        Raises:
            UserError: there is none, or it is damaged or of another format.
        """
        path = folder / MANIFEST_FILE
        if not path.is_file():
            found = "no such folder" if not folder.is_dir() else f"no {MANIFEST_FILE} in it"
            raise UserError(
                f"{folder} is not a reader: {found}; expected a folder written by `datagen fit`, so fit one or "
                "correct the path"
            )
        try:
            data = json.loads(path.read_bytes())
            found_format = data["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(path, error) from error
        if found_format != FORMAT:
            raise UserError(
                f"{path} has format {found_format!r}, this version reads format {FORMAT}; use the version that wrote "
                "it, or fit the reader again with `datagen fit`"
            )
        try:
            return cls._from_json(data)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise _damaged(path, error) from error

    @classmethod
    def _from_json(cls, data: Mapping[str, Any]) -> "ReaderManifest":
        fit = dict(data["fit"])
        augmentation = dict(fit.pop("augmentation"))
        zoom = augmentation.pop("zoom")
        size = fit.pop("size")
        return cls(
            model=data["model"],
            spec=FeatureSpec.from_json(data["spec"]),
            taxonomy=Taxonomy.from_json(data["taxonomy"]),
            tasks=data["tasks"],
            decoder=DecoderSettings(**data["decoder"]),
            # Readers fitted with only a part of these settings once left the scale out.
            reading=ReadSettings(**data["reading"]).after_fit(data["report"]["size"]),
            fit=FitSettings(
                **fit,
                augmentation=Augmentation(zoom=(zoom[0], zoom[1]), **augmentation),
                size=None if size is None else (size[0], size[1]),
            ),
            report=data["report"],
            weights_sha256=data["weights_sha256"],
        )


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is damaged ({type(error).__name__}: {error}); expected the JSON that `datagen fit` writes: restore "
        "it from a copy, or fit the reader again"
    )
