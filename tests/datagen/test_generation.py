"""The verb `generate`, from a plan's file to a validated dataset."""

import json
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from datagen import generation
from datagen.generation import RunSummary, generate
from datagen.plan import build_parts, load_plan
from datagen.runs import open_run
from datagen.validation import validate
from decoders.errors import UserError
from decoders.files import no_other_writer
from decoders.labels import semantic_ids
from tests.datagen import toys
from tests.datagen.made_up import failing
from tests.datagen.test_fitting import CLASSES, photographs, write_plan
from tests.tiny_models import tiny_control


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = toys.install(tmp_path / "site")
    monkeypatch.syspath_prepend(str(folder))
    return folder


def toy_plan(folder: Path, **changes: Any) -> Path:
    return toys.write_plan(folder / "plän.yaml", toys.plan_values(folder / "my run", **changes))


def finished(summary: RunSummary | None) -> RunSummary:
    assert summary is not None
    return summary


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_plan_becomes_a_dataset(tmp_path: Path):
    summary = finished(generate(toy_plan(tmp_path)))
    assert summary.run == tmp_path / "my run"
    assert summary.accepted >= summary.target == 6
    assert summary.made == summary.accepted + sum(summary.rejected.values())
    dataset = summary.exports["coco"]
    assert dataset == tmp_path / "my run/exports/coco"
    data = json.loads((dataset / "annotations/instances.json").read_text())
    assert len(data["images"]) == 6
    assert all(image["caption"].startswith("a ") for image in data["images"])
    assert data["info"]["run_digest"] == open_run(summary.run).digest
    assert (dataset / "semantic" / data["images"][0]["file_name"]).exists()
    assert summary.sheet.read_bytes().startswith(b"\x89PNG")
    assert "6 labelled pictures" in str(summary)
    assert str(dataset) in str(summary)


def test_a_finished_run_changes_nothing_and_draws_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = generate(toy_plan(tmp_path))
    before = tree(tmp_path / "my run")

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr(toys.Noise, "render", fail)
    monkeypatch.setattr(generation, "_make_shards", fail)
    monkeypatch.setattr("datagen.exporters.coco.Coco.export", fail)
    monkeypatch.setattr("datagen.sheet.contact_sheet", fail)
    assert generate(toy_plan(tmp_path)) == first
    assert tree(tmp_path / "my run") == before


def test_a_larger_target_extends_the_run(tmp_path: Path):
    generate(toy_plan(tmp_path))
    small = tree(tmp_path / "my run/shards")
    summary = finished(generate(toy_plan(tmp_path), overrides=["target=13"]))
    grown = tree(tmp_path / "my run/shards")
    assert grown.items() >= small.items()
    assert len(list((summary.exports["coco"] / "images").iterdir())) == 13
    other = finished(generate(toy_plan(tmp_path), to=tmp_path / "at once", overrides=["target=13"]))
    first, second = (
        {name: data for name, (data, _) in tree(each.run / "exports/coco").items()} for each in (summary, other)
    )
    assert first == second


def test_a_smaller_target_is_the_beginning_of_the_larger(tmp_path: Path):
    generate(toy_plan(tmp_path))
    shards = tree(tmp_path / "my run/shards")
    summary = finished(generate(toy_plan(tmp_path), overrides=["target=4"]))
    names = [sample.recipe.id for sample in open_run(summary.run).store.accepted(4)]
    assert [path.stem for path in sorted((summary.exports["coco"] / "images").iterdir())] == names
    assert tree(tmp_path / "my run/shards") == shards


def test_a_removed_export_is_made_again_from_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    summary = finished(generate(toy_plan(tmp_path)))
    before = {name: data for name, (data, _) in tree(summary.exports["coco"]).items()}
    for path in sorted(summary.exports["coco"].rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    summary.exports["coco"].rmdir()
    monkeypatch.setattr(toys.Noise, "render", None)
    generate(toy_plan(tmp_path))
    assert {name: data for name, (data, _) in tree(summary.exports["coco"]).items()} == before


def test_the_folder_of_another_plan_is_refused_and_kept(tmp_path: Path):
    generate(toy_plan(tmp_path))
    before = tree(tmp_path / "my run")
    with pytest.raises(UserError, match=r"seed: 0 there, 3 in the plan"):
        generate(toy_plan(tmp_path), overrides=["seed=3"])
    assert tree(tmp_path / "my run") == before


def test_a_mistake_leaves_no_folder_behind(tmp_path: Path):
    for override in ("generator.sid=3", "source.slots.extra=[x]", "source.templates=['{lok}']", "target=x"):
        with pytest.raises(UserError):
            generate(toy_plan(tmp_path), overrides=[override])
    assert not (tmp_path / "my run").exists()


def test_a_poor_yield_is_told(tmp_path: Path):
    file = toy_plan(tmp_path, filters=[{"kind": "confidence", "minimum": 1.0}], yield_after=8)
    with pytest.raises(UserError, match=r"only 0 of 8 pictures were accepted, .* low confidence \(8\)"):
        generate(file)


def test_a_damaged_shard_is_made_again(tmp_path: Path):
    summary = finished(generate(toy_plan(tmp_path)))
    tar = summary.run / "shards/000000.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-1])
    generate(toy_plan(tmp_path))
    assert tar.read_bytes() == whole


def test_ctrl_c_finishes_the_batch_and_says_how_to_go_on(tmp_path: Path, site: Path):
    file = toy_plan(tmp_path, target=400, generator={"kind": "noise", "pause": 0.1})
    process = toys.command(site, "generate", file)
    shards = tmp_path / "my run/shards"
    while not list(shards.glob("*.done.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "stopping after this batch" in told
    assert "go on with" in told
    assert "datagen generate" in told
    assert "Traceback" not in told
    assert not list(shards.glob(".*.tmp"))
    assert not (tmp_path / "my run/exports").exists()
    kept = tree(shards)
    target = sum(len(shard.accepted) for shard in open_run(tmp_path / "my run").store.contiguous())
    generate(file, overrides=[f"target={target + 1}"])
    assert tree(shards).items() >= kept.items()


@pytest.mark.parametrize("name", ["demo", "stable_diffusion"])
def test_the_plans_that_come_along_are_valid(name: str):
    file = Path(__file__).parents[2] / f"configs/{name}.yaml"
    plan = load_plan(file)
    assert plan.labeller.kind == "decoded"
    assert yaml.safe_load(file.read_text(encoding="utf-8"))


def test_the_demo_asks_for_what_the_pocket_world_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from datagen.pocket.world import TAXONOMY

    plan = load_plan(Path(__file__).parents[2] / "configs/demo.yaml", ["labeller={kind: brightness}"])
    monkeypatch.setattr(toys.Brightness, "taxonomy", TAXONOMY)
    monkeypatch.chdir(tmp_path)
    source = build_parts(plan).source
    recipes = [source.recipe(index) for index in range(plan.target)]
    assert len({recipe.prompt for recipe in recipes}) > plan.target * 0.8
    assert {name for recipe in recipes for name in recipe.wanted} >= {"car", "person", "building"}


def test_layouts_of_other_classes_than_the_labellers_are_refused(tmp_path: Path):
    few = photographs(tmp_path / "few", 2)
    data = {"format": "label_folder", "root": str(few), "classes": CLASSES, "void": [9]}
    file = toy_plan(tmp_path, source={"kind": "layouts", "data": data, "height": 32, "width": 48})
    with pytest.raises(UserError, match=r"labeller: it says the classes sky, road, car, the layouts .* have road, car"):
        generate(file)
    assert not (tmp_path / "my run").exists()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("generator.controls.0.source=nowhere", r"generator: controls\.0: ControlNet nowhere: found no such folder"),
        ("generator.controls.0.condition=edges", "is shown 3 channels by this condition, expected 5"),
        ('generator.controls.0.class_scales={"rode": 1}', "class_scales: 'rode' is no class; did you mean 'road'"),
    ],
)
def test_mistakes_in_what_draws_are_told_before_a_reader_is_fitted(
    override: str, told: str, tmp_path: Path, pipelines: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
):
    few = photographs(tmp_path / "few", 2)
    data = {"format": "label_folder", "root": str(few), "classes": CLASSES, "void": [9]}
    control = tiny_control(pipelines["sd1"], tmp_path / "control", channels=len(CLASSES) + 2)
    file = toy_plan(
        tmp_path,
        model={"source": str(pipelines["sd1"])},
        source={"kind": "layouts", "data": data},
        generator={"kind": "controlnet", "controls": [{"source": str(control), "condition": "one_hot"}]},
        labeller={"kind": "inherited", "reader": str(tmp_path / "reader"), "fit": "fit.yaml"},
    )

    def fit(*_: object, **__: object) -> None:
        raise AssertionError("a reader is fitted")

    monkeypatch.setattr("datagen.fitting.fit_from_plan", fit)
    with pytest.raises(UserError, match=told):
        generate(file, overrides=[override])
    with pytest.raises(AssertionError, match="a reader is fitted"):
        generate(file)
    assert not (tmp_path / "my run").exists()


@pytest.mark.slow
def test_the_style_swap_that_comes_along_makes_a_dataset(tmp_path: Path):
    """Of few scenes, steps and updates, else as it is: crops around rare classes, fusion, a reader fitted first."""
    configs = Path(__file__).parents[2] / "configs"
    fit = yaml.safe_load((configs / "pocket_reader.yaml").read_text(encoding="utf-8"))
    fit["data"]["count"], fit["validation"]["count"] = 4, 2
    fit["fit"] = {"updates": 4, "views": 1}
    small = {
        "target": 2,
        "shard_size": 2,
        "batch_size": 2,
        "threads": 1,
        "source.data.count": 4,
        "generator.steps": 2,
        "labeller.reader": tmp_path / "reader",
        "labeller.fit": toys.write_plan(tmp_path / "fit.yaml", fit),
        "filters.0.minimum": 0.0,  # of what is drawn in so few steps a reader of so few updates knows nothing
    }
    overrides = [f"{key}={value}" for key, value in small.items()]
    plan = load_plan(configs / "style_swap.yaml", overrides)
    assert plan.generator.values()["fusion"] is not None
    summary = finished(generate(configs / "style_swap.yaml", tmp_path / "run", overrides))
    dataset = summary.exports["coco"]
    validate(dataset).require_sound()
    pictures = json.loads((dataset / "annotations/instances.json").read_text())["images"]
    assert [(picture["height"], picture["width"]) for picture in pictures] == [(128, 128)] * 2
    assert all("anchor" in picture["attributes"] for picture in pictures)


def test_two_runs_do_not_export_at_once(tmp_path: Path):
    with (
        no_other_writer(tmp_path / "my run/exports/coco"),
        pytest.raises(UserError, match=r"another process is writing .*coco"),
    ):
        generate(toy_plan(tmp_path))
    assert finished(generate(toy_plan(tmp_path))).accepted >= 6


def test_an_export_that_was_cut_off_is_not_taken_for_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Though a note of the smaller target, which is set again, says so."""
    generate(toy_plan(tmp_path, target=5))
    with monkeypatch.context() as patch:
        patch.setattr("datagen.exporters.coco.CocoWriter.finish", failing(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            generate(toy_plan(tmp_path))
    summary = finished(generate(toy_plan(tmp_path, target=5)))
    assert len(list((summary.exports["coco"] / "images").iterdir())) == 5
    assert not (summary.exports["coco"] / "parts").exists()


def test_layouts_become_a_dataset_of_the_best_candidates(tmp_path: Path, pipelines: Mapping[str, Path]):
    """A ControlNet draws after label maps, a reader that is fitted first compares, and the labels stay as they were."""
    few = photographs(tmp_path / "few", 4)
    channels = len(CLASSES) + 2  # void, and one more in place of four
    control = tiny_control(pipelines["sd1"], tmp_path / "control", channels=channels)
    data = {"format": "label_folder", "root": str(few), "classes": CLASSES, "void": [9]}
    reader = {"reader": str(tmp_path / "reader"), "fit": str(write_plan(tmp_path / "fit.yaml", pipelines["sd1"], few))}
    values = {
        "target": 2,
        "shard_size": 2,
        "batch_size": 2,
        "model": {"source": str(pipelines["sd1"])},
        "source": {"kind": "layouts", "data": data, "height": 32, "width": 48},
        "generator": {
            "kind": "controlnet",
            "controls": [{"source": str(control), "condition": "one_hot"}],
            "steps": 2,
        },
        "labeller": {"kind": "inherited", **reader},
        "filters": [{"kind": "agreement", "minimum": 0.0}],
    }
    agreement: dict[int, list[float]] = {}
    for candidates in (1, 3):
        file = toys.write_plan(tmp_path / "plan.yaml", {"run": str(tmp_path / f"{candidates}"), **values})
        summary = finished(generate(file, overrides=[f"candidates={candidates}"]))
        run = open_run(summary.run)
        verdicts = run.store.contiguous()[0].verdicts.values()
        agreement[candidates] = [verdict.scores["agreement"] for verdict in verdicts]
        source = load_plan(file).source.build(seed=0)
        pictures = json.loads((summary.exports["coco"] / "annotations/instances.json").read_text())["images"]
        for index, (entry, picture) in enumerate(zip(run.entries(), pictures, strict=True)):
            recipe = source.recipe(index)
            np.testing.assert_array_equal(semantic_ids(entry.labels), semantic_ids(recipe.guide.labels))
            assert picture["attributes"] == recipe.attributes
    better = [best - first for best, first in zip(agreement[3], agreement[1], strict=True)]
    assert min(better) >= 0
    assert max(better) > 0
