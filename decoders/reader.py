"""A perceiver and a decoder as one thing: pictures in, labels out; fitted, measured, saved and loaded."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from safetensors.torch import save

from decoders.cache import OnProgress, learnable, log_progress
from decoders.decoder import PDecoder, Trunk
from decoders.errors import UserError
from decoders.features import FeatureSpec, Perceiver
from decoders.files import write_atomic
from decoders.labels import AnnotatedImage, Label, LabelSet, Taxonomy, without_unsure
from decoders.manifest import MANIFEST_FILE, WEIGHTS_FILE, ReaderManifest
from decoders.peers import ALONE, Peers
from decoders.perceiving import perceive
from decoders.resizing import Size, resize_image, working_size
from decoders.settings import DecoderSettings, FitSettings, ReadSettings
from decoders.tasks import Score, Task, decode, picture_of
from decoders.tasks.semantic import Semantic
from decoders.training import TrunkBuilder, build_decoder, fit
from decoders.weights import load_into, read_weights


class Reader:
    """Says what is in pictures of any size. The same file always gets the same labels."""

    def __init__(
        self, *, perceiver: Perceiver, decoder: PDecoder, tasks: Mapping[str, Task], manifest: ReaderManifest
    ) -> None:
        self.manifest = manifest
        self._perceiver = perceiver
        self._decoder = decoder.eval()
        self.tasks = tasks

    @property
    def taxonomy(self) -> Taxonomy:
        return self.manifest.taxonomy

    def read(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[LabelSet]:
        """Labels of each picture at its own size, one per task that does not add to another's.

        Raises:
            UserError: the model gives features that are not finite.
        """
        return self._read(images, {name: self._threshold(name) for name in self.tasks})

    @torch.inference_mode()
    def agreement(
        self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], claims: Sequence[UInt8[np.ndarray, "_ _"]]
    ) -> list[Float32[np.ndarray, "_ _"]]:
        """How likely this reader thinks the class that somebody else says of each pixel: its probability, 0..1.

        Args:
            claims: semantic ids of each picture, at its size, numbered as this reader's; 0 = nothing is said, which
                gets 0.5.

        Raises:
            UserError: it was fitted without the task semantic; or as `read`.
        """
        task = self.tasks.get("semantic")
        if not isinstance(task, Semantic):
            raise UserError(
                f"the reader says {', '.join(self.tasks)}, so that nobody can ask how likely it thinks a class; fit "
                "one with the task semantic"
            )
        found: list[Float32[np.ndarray, "_ _"]] = [np.zeros(claim.shape, np.float32) for claim in claims]
        for index, outputs in self._outputs(images, {"semantic": task}):
            found[index] = task.probability_of(outputs["semantic"], claims[index])
        return found

    @torch.inference_mode()
    def _read(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], thresholds: Mapping[str, float]) -> list[LabelSet]:
        labels: list[LabelSet] = [{} for _ in images]
        for index, outputs in self._outputs(images, self.tasks):
            labels[index] = self._read_one(outputs, images[index].shape[:2], thresholds)
        return labels

    def _outputs(
        self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], tasks: Mapping[str, Task]
    ) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Number of each picture, grouped by size, and what the heads of these tasks give for it."""
        settings = self.manifest.reading
        groups: dict[Size, list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            native = image.shape[:2]
            groups[working_size(native, short_side=settings.short_side, multiple=self._perceiver.size_multiple)].append(
                index
            )
        for size, members in groups.items():
            for start in range(0, len(members), settings.batch_size):
                batch = members[start : start + settings.batch_size]
                resized = [resize_image(images[index], size) for index in batch]
                bundles = (
                    perceive(
                        self._perceiver,
                        resized,
                        names=[f"number {index + 1} of {len(images)}" for index in batch],
                        batch_size=settings.batch_size,
                        look=look,
                    )
                    for look in range(settings.looks)
                )
                outputs = decode(self._decoder, tasks, bundles)
                for row, index in enumerate(batch):
                    yield index, {name: picture_of(output, row) for name, output in outputs.items()}

    def _read_one(self, outputs: Mapping[str, Any], size: Size, thresholds: Mapping[str, float]) -> dict[str, Label]:
        labels: dict[str, Label] = {}
        for name, task in self.tasks.items():
            if self._label_of(name) == name:
                labels[name] = without_unsure(task.read(outputs[name], size)[0], thresholds[name])
        for name, task in self.tasks.items():
            if (label := self._label_of(name)) != name:
                labels[label] = task.complete(outputs[name], labels[label])
        return labels

    def _label_of(self, task: str) -> str:
        """The label that holds what a task says: its own, or that of the task it adds to."""
        other = self.tasks[task].adds_to
        return other if other in self.tasks else task

    def _threshold(self, task: str) -> float:
        """The confidence below which answers become void."""
        coverage = self.manifest.reading.coverage
        if coverage == 1:
            return 0.0
        calibration = self.manifest.report.get("calibration")
        if not calibration:
            raise UserError(
                f"a coverage of {coverage} was asked for, but this reader's confidence was never compared with the "
                "truth; fit it with fit.holdout above 0, or read with coverage 1"
            )
        found = calibration.get(task)
        if found is None:
            return 0.0  # its answers cannot be right or wrong, as those of relative depth
        return float(np.interp(coverage, np.linspace(0, 1, len(found["thresholds"])), found["thresholds"]))

    def evaluate(self, annotated: Sequence[AnnotatedImage]) -> dict[str, dict[str, float]]:
        """Each task's named figures over all pictures, measured at their own size; all answers count, also those that
        a coverage below 1 withholds.

        Raises:
            UserError: a picture lacks the label of a task, or has a wrong one; names the picture.
        """
        return {name: score.result() for name, score in self.compare(annotated).items()}

    def compare(self, annotated: Sequence[AnnotatedImage]) -> dict[str, Score]:
        """As `evaluate`, for who wants more than figures: how sure the answers were and how often right.

        Raises:
            UserError: as `evaluate`.
        """
        scores = {name: task.score() for name, task in self.tasks.items()}
        step = self.manifest.reading.batch_size
        for start in range(0, len(annotated), step):
            stop = min(start + step, len(annotated))
            truths = [learnable(annotated[index], self.tasks) for index in range(start, stop)]
            everything = self._read([truth.image for truth in truths], dict.fromkeys(self.tasks, 0.0))
            for truth, found in zip(truths, everything, strict=True):
                for name, score in scores.items():
                    score.add(found[self._label_of(name)], truth.labels[name])
        return scores

    def save(self, folder: Path, *, model: Mapping[str, Any], overwrite: bool = False) -> None:
        """Write `decoder.safetensors` and `reader.json`, the manifest last.

        Args:
            model: where the diffusion model comes from, as plain JSON; `load_reader` hands it to whoever loads.
            overwrite: replace another reader in this folder.

        Raises:
            UserError: the folder holds another reader, or cannot be written.
        """
        weights = save({name: tensor.cpu().contiguous() for name, tensor in self._decoder.state_dict().items()})
        manifest = replace(self.manifest, model=model, weights_sha256=sha256(weights).hexdigest())
        path = folder / MANIFEST_FILE
        if path.exists() and path.read_bytes() != manifest.to_bytes() and not overwrite:
            raise UserError(f"{folder} holds another reader; choose another folder, or ask for it to be overwritten")
        write_atomic(folder / WEIGHTS_FILE, weights)
        write_atomic(path, manifest.to_bytes())
        self.manifest = manifest


def fit_reader(
    perceiver: Perceiver,
    annotated: Sequence[AnnotatedImage],
    taxonomy: Taxonomy,
    *,
    tasks: Mapping[str, Mapping[str, Any]],
    settings: FitSettings,
    decoder: DecoderSettings | None = None,
    reading: ReadSettings | None = None,
    trunk: TrunkBuilder = Trunk,
    state_file: Path | None = None,
    on_progress: OnProgress = log_progress,
    peers: Peers = ALONE,
) -> Reader:
    """Fit a decoder and join it with its perceiver.

    Args:
        tasks: task name -> options.
        reading: how the reader will look at pictures.
        state_file, peers: see `decoders.training.fit`.
        trunk: another one than ours makes a baseline to measure against; such a reader is not for saving.

    Raises:
        UserError: see `decoders.training.fit`.
    """
    decoder_settings, reading = decoder or DecoderSettings(), reading or ReadSettings()
    network, modules, report = fit(
        perceiver,
        annotated,
        taxonomy,
        tasks,
        settings,
        decoder_settings=decoder_settings,
        trunk=trunk,
        looks=reading.looks,
        state_file=state_file,
        on_progress=on_progress,
        peers=peers,
    )
    summary = asdict(report)
    del summary["seconds"]
    manifest = ReaderManifest(
        model={},
        spec=perceiver.spec,
        taxonomy=taxonomy,
        tasks=tasks,
        decoder=decoder_settings,
        reading=reading.after_fit(report.size),
        fit=settings,
        report=summary,
        weights_sha256="",
    )
    return Reader(perceiver=perceiver, decoder=network, tasks=modules, manifest=manifest)


def load_reader(
    folder: Path, perceiver_factory: Callable[[ReaderManifest], Perceiver], *, asked: Taxonomy | None = None
) -> Reader:
    """A saved reader on the model that `perceiver_factory` loads for it.

    Args:
        asked: classes to look for in the place of its own, as far as its vocabulary is open.

    Raises:
        UserError: the folder holds no whole reader, the model is not the one it was fitted on, or the reader cannot be
            asked for other classes.
    """
    manifest = ReaderManifest.read(folder)
    if asked is not None:
        manifest = manifest.asked(asked)
    weights = read_weights(folder, manifest)
    perceiver = perceiver_factory(manifest)
    # Through JSON and back, as the reader's own went: a tuple and a list are the same setting.
    found = FeatureSpec.from_json(json.loads(json.dumps(perceiver.spec.to_json())))
    manifest.spec.check(found, reader=str(folder))
    decoder, tasks = build_decoder(manifest.spec, manifest.taxonomy, manifest.tasks, manifest.decoder)
    load_into(decoder, weights, folder)
    return Reader(perceiver=perceiver, decoder=decoder, tasks=tasks, manifest=manifest)
