"""From a plan to a reader, on a tiny random model: whether it is any good is measured elsewhere."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console
from torch import Tensor

from datagen.datasets import read_names
from datagen.fit_plan import PerceiverSettings, load_fit_plan
from datagen.fitting import FitSummary, fit_from_plan
from datagen.model import ModelSettings
from datagen.readers import open_reader
from decoders.errors import UserError
from decoders.fit_state import FitState
from decoders.manifest import ReaderManifest

ROOT = Path(__file__).parents[2]
CLASSES = ["road", "car", "sky"]


def photographs(root: Path, count: int, *, size: tuple[int, int] = (48, 64), seed: int = 0) -> Path:
    """Pictures whose colours tell the class, with label PNGs; 9 is void."""
    rng = np.random.default_rng(seed)
    colors = np.array([(90, 90, 90), (200, 30, 30), (120, 180, 250)])
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        ids = np.zeros(size, np.uint8)
        ids[: size[0] // 3] = 2
        left = int(rng.integers(0, size[1] - 20))
        ids[size[0] // 2 : size[0] // 2 + 12, left : left + 20] = 1
        pixels = np.clip(colors[ids] + rng.normal(0, 12, (*size, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"foto {number}é.jpg", quality=95)
        ids[-2:] = 9
        Image.fromarray(ids).save(root / "labels" / f"foto {number}é.png")
    return root


def write_plan(file: Path, model: Path, root: Path, **changes: object) -> Path:
    plan = {
        "reader": str(file.with_name("reader")),
        "model": {"source": str(model)},
        "perceiver": {"timesteps": 20, "phrases": {"road": "a road"}},
        "tasks": {"semantic": {}},
        "decoder": {"width": 16, "fine_width": 8},
        "data": {"format": "label_folder", "root": str(root), "classes": CLASSES, "void": [9], "things": ["car"]},
        "fit": {"updates": 12, "batch_size": 2, "views": 2, "evaluations": 2, "cache_gb": 0.5},
    }
    file.write_text(yaml.safe_dump(plan | changes, allow_unicode=True), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, pipelines: dict[str, Path]) -> Path:
    folder = tmp_path_factory.mktemp("a plan é")
    photographs(folder / "few", 4)
    photographs(folder / "unseen", 3, size=(53, 70), seed=1)
    return write_plan(
        folder / "plan.yaml", pipelines["sd1"], folder / "few", validation={"root": str(folder / "unseen")}
    )


def fitted(plan: Path, *overrides: str, to: Path | None = None) -> FitSummary:
    return fit_from_plan(plan, to, overrides, Console(quiet=True))


@pytest.fixture(scope="module")
def reader(plan: Path) -> FitSummary:
    return fitted(plan)


def test_a_fit_is_measured_saved_and_can_be_opened(plan: Path, reader: FitSummary):
    assert not reader.was_there
    assert reader.pictures == 3
    assert {"miou", "iou/road", "iou/car", "iou/sky"} <= reader.scores["semantic"].keys()
    assert "on 3 pictures it never saw" in str(reader)
    assert not reader.held_out_scores
    assert reader.calibration.keys() == {"semantic"}
    assert "after tuning by the one picture itself" in str(reader)
    many = replace(reader, held_out=2, calibration={"semantic": (0.04, 0.01)})
    told = "semantic: calibration error 0.040, 0.010 after tuning each half of the pictures held out by the other"
    assert told in str(many)
    manifest = ReaderManifest.read(reader.reader)
    assert manifest.taxonomy.phrases == ("a road", "car", "sky")
    assert manifest.taxonomy.category_ids == (1, 2, 3)  # the files' ids 0, 1, 2, each one higher
    assert manifest.model["dtype"] == "float32"  # not `auto`, which another machine may read otherwise
    opened = open_reader(reader.reader)
    validation = load_fit_plan(plan).validation
    assert validation is not None
    assert opened.evaluate(validation.build()) == reader.scores


def test_what_is_odd_about_the_pictures_is_told_before_the_fit(plan: Path, tmp_path: Path):
    told = StringIO()
    changes = ["fit.updates=1", "fit.evaluations=1", "validation=null", 'data.classes=["road", "car", "sky", "tram"]']
    fit_from_plan(plan, tmp_path / "reader", changes, Console(file=told, width=200))
    assert "warning: no example of tram: a reader cannot learn them" in told.getvalue()


@pytest.mark.parametrize(("short_side", "told"), [(32, "with 32"), (0, "as they are"), (None, ""), (64, "")])
def test_metric_depth_at_another_scale_is_told(short_side: int | None, told: str, plan: Path, tmp_path: Path):
    scenes = {"format": "pocket_scenes", "split": "few_shot", "count": 2}
    changes = ["fit.updates=1", "fit.evaluations=1", "fit.views=1", "fit.size=[64, 64]", "validation=null"]
    changes += [
        f"data={json.dumps(scenes)}",
        'tasks={"depth": {}}',
        f"reading={json.dumps({'short_side': short_side})}",
    ]
    output = StringIO()
    fit_from_plan(plan, tmp_path / "reader", changes, Console(file=output, width=1000))
    assert ("warning: metric depth" in output.getvalue()) == bool(told)
    assert told in output.getvalue()


def test_without_a_validation_set_the_figures_are_those_that_chose_the_step(plan: Path, tmp_path: Path):
    found = fitted(plan, "validation=null", to=tmp_path / "reader")
    assert not found.scores
    assert found.held_out == 1
    report = ReaderManifest.read(found.reader).report
    (kept,) = (point for point in report["points"] if point["step"] == report["best_step"])
    assert found.held_out_scores == kept["scores"]
    assert found.held_out_scores["semantic"]["miou"] == kept["merit"]
    assert "semantic, on 1 pictures held out of the fit, which chose the step:\n  miou" in str(found)
    assert "never saw" not in str(found)
    assert fitted(plan, "validation=null", to=tmp_path / "reader").held_out_scores == found.held_out_scores


def test_an_equal_plan_keeps_the_reader_and_measures_it(plan: Path, reader: FitSummary):
    before = {path.name: path.read_bytes() for path in reader.reader.iterdir()}
    again = fitted(plan)
    assert again.was_there
    assert again.scores == reader.scores
    assert "kept" in str(again)
    assert {path.name: path.read_bytes() for path in reader.reader.iterdir()} == before


def test_a_fit_gives_the_same_bytes_elsewhere(plan: Path, reader: FitSummary, tmp_path: Path):
    other = fitted(plan, to=tmp_path / "other")
    for name in ("reader.json", "decoder.safetensors", "fit.json"):
        assert (other.reader / name).read_bytes() == (reader.reader / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "section"), [("fit.updates=13", "fit"), ("data.first=3", "data"), ("perceiver.timesteps=3", "perceiver")]
)
def test_another_plans_reader_is_refused_and_left_alone(change: str, section: str, plan: Path, reader: FitSummary):
    before = (reader.reader / "reader.json").read_bytes()
    with pytest.raises(UserError, match=rf"another plan, which differs in: {section}.*another folder with --to"):
        fitted(plan, change)
    assert (reader.reader / "reader.json").read_bytes() == before


def test_a_folder_of_other_things_is_refused(plan: Path, tmp_path: Path):
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"holds holiday.jpg and other things, but no reader"):
        fitted(plan, to=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_validation_is_as_data_where_it_says_nothing(plan: Path):
    checked = load_fit_plan(plan, ["data.void=[9, 7]"])
    assert checked.validation is not None
    assert checked.validation.settings.model_dump(exclude={"root"}) == checked.data.settings.model_dump(
        exclude={"root"}
    )
    moved = load_fit_plan(plan, ["data.root=elsewhere", "validation={images: val}"])
    assert moved.validation is not None
    assert moved.validation.to_json()["root"] == "elsewhere"
    assert load_fit_plan(plan, ["validation=null"]).validation is None


@pytest.mark.parametrize("tasks", ["[semantic, instances]", "{semantic: , instances: null}"])
def test_a_task_that_is_only_named_has_the_default_options(tasks: str, plan: Path):
    assert load_fit_plan(plan, [f"tasks={tasks}"]).tasks == {"semantic": {}, "instances": {}}
    asked = load_fit_plan(plan, [f"tasks={tasks}", "tasks.instances.queries=100"])
    assert asked.tasks == {"semantic": {}, "instances": {"queries": 100}}


def test_validation_by_name_is_not_chosen_by_the_rule_of_data(plan: Path):
    checked = load_fit_plan(plan, ["data.first=2", 'validation.names=["foto 2é"]'])
    assert checked.validation is not None
    assert checked.validation.build().names == ("foto 2é",)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("tasks=[semantic, {instances: {queries: 100}}]", r"tasks: found .*, expected a mapping"),
        ("perceiver.noises.0=2", r"perceiver.noises is not in the plan, so it has no entry 0"),
        ("fit.update=3", r"fit.update: unknown key; did you mean 'updates'\?"),
        ("fit.augmentation.zooom=3", r"fit.augmentation.zooom: unknown key; did you mean 'zoom'\?"),
        ("fit.updates=many", r"fit.updates: found 'many', expected a valid integer"),
        ("fit.updates=0", r"updates is 0, expected at least 1"),
        ("fit=3", r"fit: found 3, expected keys and values"),
        ("data.format=label_foldr", r"data.format: unknown format 'label_foldr'; did you mean 'label_folder'\?"),
        ("data.clases=[]", r"data.clases: unknown key; did you mean 'classes'\?.*, void \(`format` is label_folder\)$"),
        ("perceiver.timesteps_=1", r"perceiver.timesteps_: unknown key; did you mean 'timesteps'\?"),
        ("perceiver.phrases={roat: street}", r"'roat' is no class; did you mean 'road'\?"),
        ("perceiver.timesteps=5000", r"timestep 5000 found, this model knows 0..999"),
        ("tasks.semantics={}", r"no task 'semantics'.*'semantic'"),
        ("tasks.depth={}", r"has no label depth"),
        ("model.source=nowhere", r"model nowhere: found no such folder"),
        ("data.root=nowhere", r"folder of pictures not found: nowhere"),
        ("data.classes=[road, car, sky, bus]", r"validation has the classes"),
        ("validation={first: 2}", r"2 of 2 pictures of `validation` are also in `data`, first .*must not have seen"),
    ],
)
def test_a_mistake_is_told_with_its_place(override: str, told: str, plan: Path, tmp_path: Path):
    overrides = [override, "validation.classes=[road, car, sky]"] if "bus" in override else [override]
    with pytest.raises(UserError, match=told):
        fitted(plan, *overrides, to=tmp_path / "reader")
    assert not (tmp_path / "reader" / "reader.json").exists()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("tasks.semantics={}", r"no task 'semantics'"),
        ("tasks.semantic.balanc=true", r"task semantic has no option 'balanc'"),
        ("tasks.semantic.balance=yes please", r"option balance of task semantic: found 'yes please'"),
        ("tasks.semantic.dice=-1", r"dice"),
        ("tasks.depth={}", r"has no label depth"),
        ("tasks=[]", r"tasks: found {}, expected 1 or more entries"),
        ("perceiver.layers=[upp]", r"'upp'"),
        ("perceiver.timesteps=5000", r"timestep 5000 found"),
        ("fit.size=[50, 64]", r"fit setting size is \(50, 64\), and this model takes multiples of"),
    ],
)
def test_what_needs_no_look_at_all_pictures_is_told_before_it(
    override: str, told: str, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for look in ("data_digest", "oddities"):
        monkeypatch.setattr(f"datagen.fitting.{look}", lambda _: pytest.fail("all pictures were looked at"))
    with pytest.raises(UserError, match=told):
        fitted(plan, override, to=tmp_path / "reader")
    assert not (tmp_path / "reader").exists()


def test_a_label_outside_the_taxonomy_on_the_command_line(plan: Path, tmp_path: Path):
    command = [
        sys.executable,
        "-m",
        "datagen",
        "fit",
        str(plan),
        "--to",
        str(tmp_path / "out"),
        "--set",
        "data.void=[]",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert "holds id 9, expected one of the classes [0, 1, 2]" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_fit_goes_on_after_a_failure_in_the_same_folder(plan: Path, tmp_path: Path):
    with pytest.raises(UserError, match="no label depth"):
        fitted(plan, "tasks.depth={}", to=tmp_path / "reader")
    assert not fitted(plan, to=tmp_path / "reader").was_there


def test_an_interrupted_fit_goes_on_to_the_same_bytes(
    plan: Path, reader: FitSummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save = FitState.save

    def save_and_stop(self: FitState, notes: Mapping[str, Any], extra: Mapping[str, Tensor]) -> None:
        save(self, notes, extra)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FitState, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            fitted(plan, to=tmp_path / "reader")
    state = tmp_path / "reader/.fit.safetensors"
    assert state.exists()
    fitted(plan, to=tmp_path / "reader")
    assert not state.exists()
    for file in ("reader.json", "decoder.safetensors"):
        assert (tmp_path / "reader" / file).read_bytes() == (reader.reader / file).read_bytes()


def test_what_an_unfinished_fit_of_another_plan_left_is_forgotten(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr("decoders.reader.ReaderManifest", _stop)  # after the last update, before the reader is saved
        with pytest.raises(KeyboardInterrupt):
            fitted(plan, to=tmp_path / "reader")
    assert (tmp_path / "reader/.fit.safetensors").exists()
    fitted(plan, "fit.seed=5", to=tmp_path / "reader")
    fitted(plan, "fit.seed=5", to=tmp_path / "fresh")
    for file in ("reader.json", "decoder.safetensors"):
        assert (tmp_path / "reader" / file).read_bytes() == (tmp_path / "fresh" / file).read_bytes()


def _stop(**_: Any) -> None:
    raise KeyboardInterrupt


def test_the_readers_model_may_move_but_not_change(reader: FitSummary, pipelines: dict[str, Path], tmp_path: Path):
    (tmp_path / "moved").symlink_to(pipelines["sd1"])
    assert open_reader(reader.reader, model=str(tmp_path / "moved")).taxonomy.names == ("road", "car", "sky")
    with pytest.raises(UserError, match=r"was fitted on a model with digest .* but .* has digest"):
        open_reader(reader.reader, model=str(pipelines["sd2"]))


def test_defaults_are_those_of_the_perceiver():
    from decoders.perceivers.unet import Reading

    reading = {field.name: field.default for field in fields(Reading) if field.default is not MISSING}
    assert PerceiverSettings().model_dump(exclude={"phrases"}) == reading


@pytest.mark.parametrize("config", sorted(ROOT.glob("configs/*_reader.yaml")), ids=lambda p: p.name)
def test_shipped_plans_are_valid(config: Path):
    checked = load_fit_plan(config)
    assert isinstance(checked.model, ModelSettings)
    assert (checked.validation is None) == (config.stem == "coco_reader"), "who has few pictures may have no others"


def test_the_shipped_photographs_are_sixty_and_spread_over_the_drives():
    names = read_names(ROOT / load_fit_plan(ROOT / "configs/camvid_reader.yaml").data.values()["names"])
    drives = [name.split("_")[0] for name in names]
    assert len(set(names)) == 60
    assert {drive: drives.count(drive) for drive in drives} == {"0001TP": 10, "0006R0": 17, "0016E5": 33}
