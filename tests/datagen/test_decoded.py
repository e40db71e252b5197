"""The verb `generate` with Stable Diffusion 1.x, 2.x and XL, and labels read by a reader fitted on them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datagen.generation import RunSummary, generate
from datagen.labellers.decoded import Decoded
from datagen.model import Model
from datagen.runs import open_run
from decoders.errors import UserError
from decoders.labels import AnnotatedImage
from decoders.perceivers.unet import UnetPerceiver
from decoders.reader import fit_reader
from decoders.references import ModelReference
from decoders.settings import DecoderSettings, FitSettings
from tests.datagen import toys

# diffusers' schedulers hand tensors to numpy in a way that numpy will once refuse.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

FIT = FitSettings(updates=2, batch_size=2, views=1, holdout=0.0, evaluations=1)


@pytest.fixture(scope="module")
def readers(pipelines: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A hardly fitted reader for each tiny pipeline."""
    folders: dict[str, Path] = {}
    images = toys.Noise(side=32).render([toys.sample(seed=seed).recipe for seed in range(3)])
    annotated = [
        AnnotatedImage(name=str(index), image=image, labels=toys.Brightness().label([None], image[None])[0])  # pyright: ignore[reportArgumentType]
        for index, image in enumerate(images)
    ]
    for kind, pipeline in pipelines.items():
        model = Model(ModelReference(source=str(pipeline)))
        reader = fit_reader(
            UnetPerceiver(model.checkpoint, phrases=toys.TAXONOMY.phrases),
            annotated,
            toys.TAXONOMY,
            tasks={"semantic": {}, "depth": {}},
            settings=FIT,
            decoder=DecoderSettings(width=8, fine_width=8),
            on_progress=lambda _: None,
        )
        folders[kind] = tmp_path_factory.mktemp("reader") / kind
        reader.save(folders[kind], model={"source": str(pipeline)})
    return folders


def real_plan(folder: Path, pipeline: Path, reader: Path, **changes: Any) -> Path:
    values = {
        "model": {"source": str(pipeline)},
        "generator": {"kind": "stable_diffusion", "steps": 2, "height": 32, "width": 48},
        "labeller": {"kind": "decoded", "reader": str(reader)},
        "filters": [{"kind": "confidence", "minimum": 0.0}],
        "target": 3,
        "shard_size": 3,
        "batch_size": 3,
    }
    return toys.write_plan(folder / "plan.yaml", toys.plan_values(folder / "run", **{**values, **changes}))


def finished(summary: RunSummary | None) -> RunSummary:
    assert summary is not None
    return summary


@pytest.mark.parametrize("kind", ["sd1", "sd2", "xl"])
@pytest.mark.parametrize("size", [(32, 48), (64, 32)])
def test_any_stable_diffusion_with_a_lora(
    kind: str,
    size: tuple[int, int],
    tmp_path: Path,
    pipelines: Mapping[str, Path],
    loras: Mapping[str, Path],
    readers: Mapping[str, Path],
):
    """Reader fitted on the bare model; the LoRA acts on the pictures alone."""
    model = {"source": str(pipelines[kind]), "loras": [{"source": str(loras[kind]), "weight": 0.7}]}
    generator = {"kind": "stable_diffusion", "steps": 2, "height": size[0], "width": size[1]}
    file = real_plan(tmp_path, pipelines[kind], readers[kind], model=model, generator=generator)
    summary = finished(generate(file))
    run = open_run(summary.run)
    sample = next(run.store.accepted(1))
    assert sample.image.shape == (*size, 3)
    assert set(sample.labels) == {"semantic", "depth"}
    alone = Decoded(reader=readers[kind])
    again = alone.label([sample.recipe] * 3, np.stack([each.image for each in run.store.accepted(3)]))[0]
    for task, label in sample.labels.items():
        steps = label.storage.pack(label.values)  # pyright: ignore[reportAttributeAccessIssue]
        assert np.array_equal(steps, again[task].storage.pack(again[task].values))  # pyright: ignore[reportAttributeAccessIssue]


def test_one_checkpoint_is_in_memory_once(
    tmp_path: Path, pipelines: Mapping[str, Path], readers: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
):
    import decoders.checkpoint

    loaded: list[object] = []
    load = decoders.checkpoint.load_checkpoint
    monkeypatch.setattr(
        decoders.checkpoint, "load_checkpoint", lambda *arguments: loaded.append(arguments) or load(*arguments)
    )
    generate(real_plan(tmp_path, pipelines["sd1"], readers["sd1"]))
    assert len(loaded) == 1
    generate(real_plan(tmp_path, pipelines["sd1"], readers["sd1"]))
    assert len(loaded) == 1, "a finished run loads no weights"
    generate(real_plan(tmp_path / "other", pipelines["sd2"], readers["sd1"]))
    assert len(loaded) == 3, "a reader of another model brings its own"


def test_the_models_contents_decide_the_run_not_their_path(
    tmp_path: Path, pipelines: Mapping[str, Path], readers: Mapping[str, Path]
):
    file = real_plan(tmp_path, pipelines["sd1"], readers["sd1"])
    finished(generate(file))
    moved = tmp_path / "móved pipeline"
    moved.symlink_to(pipelines["sd1"], target_is_directory=True)
    generate(file, overrides=[f"model.source={moved}"])
    with pytest.raises(UserError, match=r"model.digest: [0-9a-f]{64} there"):
        generate(file, overrides=[f"model.source={pipelines['sd2']}"])


def test_a_reader_whose_model_is_gone(tmp_path: Path, pipelines: Mapping[str, Path], readers: Mapping[str, Path]):
    reader = tmp_path / "reader"
    reader.mkdir()
    for path in readers["sd1"].iterdir():
        (reader / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((reader / "reader.json").read_text())
    manifest["model"]["source"] = str(pipelines["xl"])
    (reader / "reader.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"labeller: reader .* was fitted on a model with digest"):
        generate(real_plan(tmp_path, pipelines["sd2"], reader))


def test_a_missing_reader_is_told(tmp_path: Path, pipelines: Mapping[str, Path]):
    with pytest.raises(UserError, match=r"labeller: .*no reader é is not a reader: no such folder"):
        generate(real_plan(tmp_path, pipelines["sd1"], tmp_path / "no reader é"))


def test_a_missing_reader_is_fitted_first(
    tmp_path: Path, pipelines: Mapping[str, Path], readers: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
):
    fitted: list[Path] = []

    def fit(plan: Path, to: Path, overrides: object) -> None:
        assert plan == Path("fit plan.yaml")
        assert not overrides
        to.mkdir(parents=True)
        for path in readers["sd1"].iterdir():
            (to / path.name).write_bytes(path.read_bytes())
        fitted.append(to)

    monkeypatch.setattr("datagen.fitting.fit_from_plan", fit)
    reader = tmp_path / "run/reader"
    labeller = {"kind": "decoded", "reader": str(reader), "fit": "fit plan.yaml"}
    file = real_plan(tmp_path, pipelines["sd1"], reader, labeller=labeller)
    generate(file)
    generate(file)
    assert fitted == [reader]
