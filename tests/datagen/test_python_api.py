"""What is shipped, used from Python: the README's own examples, word for word but for their numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from datagen.adaptation.control import ControlSummary
from datagen.adaptation.control_plan import load_control_plan
from datagen.controls import Control
from datagen.datasets.pocket_scenes import PocketScenes
from datagen.generators.controlnet import Controlnet
from datagen.model import Model
from datagen.pocket import world
from datagen.pocket.truth import write_scenes
from datagen.records import Guide, Recipe
from datagen.validation import validate
from decoders.perceivers.unet import UnetPerceiver
from decoders.reader import fit_reader
from decoders.references import ModelReference
from decoders.settings import DecoderSettings, FitSettings
from tests.datagen.made_up import readme_example

POCKET = "package://datagen.pocket/weights"

# diffusers' schedulers hand tensors to numpy in a way that numpy will once refuse.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that has learned next to nothing."""
    fitted = fit_reader(
        UnetPerceiver(Model(ModelReference(source=POCKET)).checkpoint, phrases=world.TAXONOMY.phrases),
        PocketScenes(count=2),
        world.TAXONOMY,
        tasks={"semantic": {}, "depth": {}},
        settings=FitSettings(updates=3, batch_size=2, views=1, holdout=0.0, evaluations=1),
        decoder=DecoderSettings(width=8, fine_width=8),
        on_progress=lambda _: None,
    )
    folder = tmp_path_factory.mktemp("reader")
    fitted.save(folder, model={"source": POCKET})
    return folder


def test_the_readmes_example_reads_a_picture(reader: Path, tmp_path: Path):
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "photo.jpg")
    code = readme_example("open_reader")
    for said, meant in (("runs/demo/reader", reader), ("photo.jpg", tmp_path / "photo.jpg")):
        assert code.count(said) == 1, said
        code = code.replace(said, str(meant))
    found: dict[str, Any] = {"Path": Path}  # which the first piece has imported
    exec(compile(code, "README.md", "exec"), found)
    assert found["ids"].shape == found["confidence"].shape == (48, 64)
    assert found["name"] in world.TAXONOMY.names


def test_the_readmes_example_makes_a_dataset(reader: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code = readme_example("Factory(")
    for said, small in (
        ('Path("runs/demo/reader")', repr(reader)),
        ('Path("runs/mine")', repr(tmp_path / "run")),
        ('Path("datasets/mine")', repr(tmp_path / "dataset")),
        ("target=16", "target=2, shard_size=2, batch_size=2"),
        ("accepted(16)", "accepted(2)"),
        ("steps=25", "steps=2"),
        ('wants=("car",)', "wants=()"),  # the reader finds none
    ):
        assert code.count(said) == 1, said
        code = code.replace(said, small.replace("PosixPath", "Path"))
    exec(compile(code, "README.md", "exec"), {})
    assert "0 2 accepted" in capsys.readouterr().out
    report = validate(tmp_path / "dataset")
    assert report.sound
    assert report.pictures == 2


def test_the_readmes_example_calls_verbs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """By small plans of the same names; no ControlNet is trained."""
    shipped = Path("configs/control.yaml").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    Path("configs/control.yaml").write_text(shipped, encoding="utf-8")
    Path("configs/evaluate.yaml").write_text(
        yaml.safe_dump(
            {
                "evaluation": "worth",
                "student": {"kind": "segmenter", "encoder": "tu-mobilenetv3_small_050"},
                "real": {"format": "pocket_scenes", "count": 2},
                "synthetic": {"format": "coco", "root": "nowhere"},
                "test": {"split": "test", "count": 1},
                "columns": ["real", "both"],
                "seeds": [0, 1],
                "size": [32, 32],
                "updates": 1,
                "batch_size": 2,
            }
        )
    )
    write_scenes(Path("runs/mine/exports/coco"), count=3, seed=50, split="few_shot")

    def train(plan: Path, *, to: Path, overrides: Sequence[str]) -> ControlSummary:
        updates = load_control_plan(plan, overrides).updates
        return ControlSummary(control=to / "control", was_there=False, updates=updates, adherence=updates / 1000)

    monkeypatch.setattr("datagen.adaptation.control.control", train)
    exec(compile(readme_example("import evaluate"), "README.md", "exec"), {})
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "controls/mine/control 0.6"
    assert [line.split()[:3] for line in told[1:]] == [["real", "2", "0"], ["both", "2", "3"]]
    assert all(0 <= float(line.split()[3]) <= 1 for line in told[1:])


def test_the_control_that_is_shipped_steers_the_model_that_is_shipped():
    scenes = PocketScenes(count=2)
    recipes = [Recipe(id="0", prompt="a photo of a street", seed=1, guide=Guide(labels=each.labels)) for each in scenes]
    generator = Controlnet(
        controls=(Control(source="package://datagen.pocket/control"),),
        steps=2,
        guidance=1.0,
        model=Model(ModelReference(source=POCKET)),
        taxonomy=world.TAXONOMY,
    )
    one, other = (generator.render([recipe])[0] for recipe in recipes)
    assert one.shape == (world.SIZE, world.SIZE, 3)
    assert np.abs(one.astype(int) - other).mean() > 2, "from the same noise, after other layouts"
