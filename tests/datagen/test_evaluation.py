"""`datagen evaluate`: cells, what is told of them, and one small evaluation from its plan to its plot."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import UInt8
from rich.console import Console

from datagen.adaptation.loop import advance
from datagen.datasets import AnnotatedImages, data_digest
from datagen.datasets.pocket_scenes import PocketScenes
from datagen.evaluation import columns as columns_of
from datagen.evaluation import evaluate as evaluation
from datagen.evaluation import trial
from datagen.evaluation.apart import Survey, check_classes_agree, never_measured, never_shown
from datagen.evaluation.boundaries import BoundaryErrors, distance_to_boundary
from datagen.evaluation.columns import Cell, cells_of
from datagen.evaluation.cutmix import draw_box, mix_labels, mix_pictures
from datagen.evaluation.evaluate import PLOT_FILE, RESULTS_FILE, TABLE_FILE, EvaluationSummary, evaluate
from datagen.evaluation.evaluate_plan import Column, load_evaluate_plan
from datagen.evaluation.feature_space import FeatureSpace
from datagen.evaluation.report import Row, break_even, differences, half_width, interval, rows_of, table
from datagen.evaluation.retrieval import Retrieval
from datagen.evaluation.study import Kept, Part, Study, at_native_size, shown
from datagen.files import read_image, read_json
from datagen.fit_plan import load_fit_plan
from decoders.augmentation import Augmentation
from decoders.errors import UserError
from decoders.labels import AnnotatedImage, DenseMap, Label, Taxonomy, metric_depth, semantic_ids, semantic_map
from decoders.references import ModelReference
from tests.datagen.toys import in_two_processes

SCENE = {"format": "pocket_scenes", "height": 32, "width": 48}


def write_plan(file: Path, /, **changes: Any) -> Path:
    plan: dict[str, Any] = {
        "evaluation": str(file.with_name("worth")),
        "student": {"kind": "segmenter", "encoder": "tu-mobilenetv3_small_050"},
        "real": {**SCENE, "count": 4},
        "synthetic": {**SCENE, "seed": 50, "count": 3},
        "test": {"split": "test", "count": 2},
        "real_counts": [2, 4],
        "seeds": [0, 1],
        "size": [32, 32],
        "updates": 2,
        "mixed_updates": 3,
        "batch_size": 4,
        "threads": 1,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(plan | changes, allow_unicode=True), encoding="utf-8")
    return file


def evaluated(plan: Path, *overrides: str) -> EvaluationSummary:
    return evaluate(plan, overrides=overrides, console=Console(quiet=True))


def test_from_plan_to_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    columns = ["real", "synthetic", "both"]
    plan = write_plan(tmp_path / "plan ü.yaml", columns=columns, mixed_updates=None)
    summary = evaluated(plan)
    assert [cell.column for cell in summary.results][:5] == ["real", "real", "synthetic", "both", "both"]
    assert len(summary.results) == 10
    for result in summary.results.values():
        assert 0 <= result["semantic miou"] <= 1
        assert {"semantic error/0-1 px", "semantic iou/road"} <= result.keys()
    cells = read_json(summary.folder / RESULTS_FILE)
    assert [cell["measured"] for cell in cells] == list(summary.results.values())
    assert {cell["hardware"] for cell in cells} == {"cpu, float32"}
    assert read_image(summary.folder / PLOT_FILE).std() > 5
    assert "2 seeds: mean ± half of the 95 % interval over seeds, which vary the student alone" in summary.table
    assert "4 - 1, as many updates on real pictures alone: " in summary.table
    assert "real pictures, learned from for as long" in summary.table

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(trial, "run", refuse)
    assert evaluated(plan).results == summary.results
    fewer = evaluated(plan, "columns=[real,both]", "seeds=[1]", "real_counts=[4]")
    assert len(fewer.results) == 2
    assert "one seed: no intervals" in fewer.table
    with pytest.raises(AssertionError, match="measured again"):
        evaluated(plan, "learning_rate=0.002")
    monkeypatch.setattr(columns_of, "FORMAT", 0)
    with pytest.raises(AssertionError, match="measured again"):
        evaluated(plan)


def test_columns_that_do_the_same_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[Cell] = []

    def count(cell: Cell, *_: Any, **__: Any) -> dict[str, float]:
        seen.append(cell)
        return {"semantic miou": 0.5}

    monkeypatch.setattr(trial, "run", count)
    summary = evaluated(write_plan(tmp_path / "plan.yaml", mixed_updates=2, columns=["real", "real_long"]))
    assert len(summary.results) == 8
    assert len(seen) == 4


def test_cells_of_different_hardware_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(trial, "run", lambda *_, **__: {"semantic miou": 0.5})
    plan = write_plan(tmp_path / "plan.yaml", columns=["real"], seeds=[0])
    assert "hardware" not in evaluated(plan).table
    monkeypatch.setattr(evaluation, "hardware", lambda *_: "some GPU, float32")
    several = evaluate(plan, overrides=["seeds=[0,1]"])
    told = "cells of this table come from different hardware (cpu, float32; some GPU, float32)"
    assert told in " ".join(capsys.readouterr().err.split()), "before anybody learns"
    assert told in several.table
    assert told in (several.folder / TABLE_FILE).read_text()


def test_an_interrupted_training_goes_on_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole, resumed = whole_and_resumed(tmp_path, monkeypatch)
    assert list(resumed.results.values()) == list(whole.results.values())


def whole_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[EvaluationSummary, EvaluationSummary]:
    """Students with a teacher, undisturbed and interrupted."""
    chosen: dict[str, Any] = {"columns": ["teacher"], "real_counts": [4], "seeds": [0], "mixed_updates": 4}
    chosen |= {"student": {"kind": "segmenter", "architecture": "fpn", "encoder": "resnet18"}}  # which has dropout
    chosen |= {"sure_from": 0.0}
    whole = evaluated(write_plan(tmp_path / "whole/plan.yaml", **chosen))
    plan = write_plan(tmp_path / "parts/plan.yaml", **chosen)
    batch = Study.__call__

    def stop(self: Study, number: int) -> Any:
        if number == 2:
            raise KeyboardInterrupt
        return batch(self, number)

    # Stopped at a known update; checkpoints are written every few minutes, here after each update.
    monkeypatch.setattr(trial, "advance", partial(advance, save_seconds=-1.0))
    with monkeypatch.context() as patch:
        patch.setattr(Study, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluated(plan)
    assert list((tmp_path / "parts/worth/cells").glob("*/checkpoint.safetensors"))
    resumed = evaluated(plan)
    assert not list((tmp_path / "parts/worth/cells").glob("*/checkpoint.safetensors"))
    return whole, resumed


@pytest.mark.parametrize("space", ["diffusion", "vision"])
def test_what_is_most_like_the_real_pictures_is_retrieved(
    space: str, pipelines: Mapping[str, Path], dinov2: Path, tmp_path: Path
):
    """The pool holds the real pictures themselves, after others: these must be found first."""
    real, pool = (PocketScenes(count=count, seed=seed, height=32, width=32) for count, seed in ((2, 10), (6, 8)))
    sides = {"real": (data_digest(real), real), "pool": (data_digest(pool), pool)}
    source = str({"diffusion": pipelines["sd1"], "vision": dinov2}[space])
    seen_by = FeatureSpace(ModelReference(source=source))
    found = Retrieval(**sides, space=seen_by, folder=tmp_path, console=Console(quiet=True), left_out=())
    assert set(found.nearest(2)[:2]) == {2, 3}
    assert found.nearest(1)[0] == 2
    others = Retrieval(**sides, space=seen_by, folder=tmp_path, console=Console(quiet=True), left_out={2, 3})
    assert sorted(others.nearest(2)) == [0, 1, 4, 5]
    assert sorted(found.nearest(2)) == list(range(6))
    assert len(list(tmp_path.glob("*.npy"))) == 2


def test_students_learn_from_what_was_retrieved(pipelines: Mapping[str, Path], tmp_path: Path):
    plan = write_plan(
        tmp_path / "plan.yaml",
        columns=["retrieved"],
        real_counts=[4],
        seeds=[0],
        pool={"seed": 70, "count": 5},
        pool_model={"source": str(pipelines["sd1"])},
    )
    summary = evaluated(plan)
    assert [str(row) for row in rows_of(summary.results)] == ["retrieved: 4 real + 3 retrieved, 3 updates"]
    told = "2 of 5 pictures of `pool` are also in `real`: these are not retrieved"
    assert told not in summary.table
    some = evaluated(plan, "pool.seed=2")
    assert told in some.table
    assert told in (some.folder / TABLE_FILE).read_text()
    with pytest.raises(UserError, match=r"3 of 5 pictures of `pool` are also in `real`, which leaves 2, expected .* 3"):
        evaluated(plan, "pool.seed=1")
    with pytest.raises(UserError, match=r"pool: found 2 pictures, expected as many as synthetic ones, 3"):
        evaluated(plan, "pool.count=2")
    with pytest.raises(UserError, match=r"pictures of `test` are also in `pool`"):
        evaluated(plan, "pool.split=test", "pool.seed=0")


@pytest.mark.slow
def test_two_processes_share_the_cells(tmp_path: Path):
    chosen = {"columns": ["real", "both"], "real_counts": [4]}
    alone = evaluated(write_plan(tmp_path / "alone/plan.yaml", **chosen))
    plan = write_plan(tmp_path / "together/plan.yaml", **chosen)
    done = in_two_processes(tmp_path, "evaluate", plan)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 seeds: mean") == 1
    assert "cell 1 of 2" in done.stderr, "each has half of the four cells"
    cells = read_json(tmp_path / "together/worth" / RESULTS_FILE)
    assert [cell["measured"] for cell in cells] == list(alone.results.values())


def test_the_same_students_on_several_tests(tmp_path: Path):
    chosen = {"columns": ["real", "both"], "real_counts": [4], "seeds": [0], "mixed_updates": None}
    alone = evaluated(write_plan(tmp_path / "alone/plan.yaml", **chosen))
    more = {"night": {"time": ["night"]}, "others": {"seed": 7}}
    plan = write_plan(tmp_path / "several/plan.yaml", **chosen, more_tests=more)
    several = evaluated(plan)
    for one, other in zip(alone.results.values(), several.results.values(), strict=True):
        assert one.items() <= other.items(), "more tests do not change what is learned"
        assert {"semantic miou on night", "semantic iou/road on others"} <= other.keys()
        assert other["semantic miou on night"] != other["semantic miou"]
    for name in ("semantic miou", "semantic miou on night", "semantic miou on others"):
        assert f"\n{name}\n2 - 1, as many updates on real pictures alone: " in several.table
    assert read_image(several.folder / PLOT_FILE).shape[1] > 2 * read_image(alone.folder / PLOT_FILE).shape[1]
    with pytest.raises(UserError, match=r"4 of 4 pictures of `night` are also in `real`"):
        evaluated(plan, "more_tests.night={split: few_shot, count: 4}")
    with pytest.raises(UserError, match=r"more_tests.*nowhere"):
        evaluated(plan, "more_tests.night={format: coco, root: nowhere}")
    with pytest.raises(UserError, match=r"more_tests: found 'test'"):
        evaluated(plan, "more_tests={test: {seed: 3}}")
    with pytest.raises(UserError, match=r"more_tests: found 'real', which another dataset is called already"):
        evaluated(plan, "more_tests={real: {seed: 3}}")


def test_a_teacher_decides_what_is_learned(tmp_path: Path):
    chosen = {"columns": ["teacher"], "real_counts": [4], "seeds": [0], "mixed_updates": 4}
    plan = write_plan(tmp_path / "plan.yaml", **chosen)
    sure, unsure = evaluated(plan, "sure_from=0.0"), evaluated(plan, "sure_from=1.0")
    assert list(sure.results.values()) != list(unsure.results.values())


def test_a_teacher_labels_classes_that_it_is_sure_of_inside_the_picture():
    ids, confidence = np.array([[1, 2, 2]], np.uint8), np.array([[0.9, 0.9, 0.4]], np.float32)
    near = metric_depth(np.ones((1, 3), np.float32))
    own = {"semantic": semantic_map(np.array([[0, 1, 1]], np.uint8)), "depth": near}
    found = {"semantic": semantic_map(ids, confidence), "depth": near}
    labels = trial.taught(found, own, 0.5)
    assert semantic_ids(labels).tolist() == [[0, 2, 0]], "the border, what is sure, what is not"
    depth = labels["depth"]
    assert isinstance(depth, DenseMap)
    assert not depth.valid.any(), "of depth it says no doubt"


def test_objects_have_no_teacher(tmp_path: Path):
    objects = {"student": {"kind": "detector"}, "real_counts": None}
    plan = load_evaluate_plan(write_plan(tmp_path / "plan.yaml", **objects))
    assert plan.columns == ("real", "real_long", "synthetic", "both")
    with pytest.raises(UserError, match=r"columns: found `teacher` with the student `detector`, expected .*leave"):
        load_evaluate_plan(write_plan(tmp_path / "plan.yaml", **objects, columns=["both", "teacher"]))
    assert "teacher" in load_evaluate_plan(write_plan(tmp_path / "plan.yaml")).columns


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"real_share": 0.05}, r"leaves no place for real pictures"),
        ({"seeds": [1, 1]}, r"seeds: found \[1, 1\], expected each entry once$"),
        ({"columns": []}, r"columns: "),
        ({"columns": ["reel"]}, r"columns\.0: found 'reel'"),
        ({"updates": "many"}, r"updates: found 'many'"),
        ({"real_counts": [5]}, r"real_counts: found 5, but there are 4 pictures"),
        ({"student": {"kind": "segmentor"}}, r"student\.kind: unknown kind 'segmentor'; did you mean 'segmenter'"),
        ({"test": {"split": "few_shot", "count": 2}}, r"2 of 2 pictures of `test` are also in `real`, first 01000000"),
        ({"synthetic": {"format": "coco", "root": "nowhere"}}, r"synthetic: .*nowhere"),
        ({"columns": ["retrieved"]}, r"columns: `retrieved` takes pictures from a pool, expected `pool:`"),
        ({"pool_model": {"source": "x"}}, r"found `pool` or `pool_model`, but no column that uses them"),
        ({"views": {"zoom": [2.0, 1.0]}}, r"zoom must be two rising numbers"),
    ],
)
def test_mistakes_are_told(changes: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        evaluated(write_plan(tmp_path / "plan.yaml", **changes))


class Other(AnnotatedImages):
    """Scenes whose classes, or labels, differ."""

    def __init__(self, scenes: PocketScenes, **changes: Any) -> None:
        self._scenes = scenes
        self.names = scenes.names
        self.taxonomy = replace(scenes.taxonomy, **changes)

    def load(self, name: str) -> Any:
        return self._scenes.load(name)


def test_other_classes_are_refused():
    scenes = PocketScenes(count=1)
    names = ("heaven", *scenes.taxonomy.names[1:])
    with pytest.raises(UserError, match=r"sky \(in `test` only\), heaven \(in `real` only\)"):
        check_classes_agree(scenes, {"real": Other(scenes, names=names)})
    with pytest.raises(UserError, match=r"the order: person, .* instead of sky"):
        check_classes_agree(scenes, {"real": Other(scenes, names=scenes.taxonomy.names[::-1])})
    things = (True, *scenes.taxonomy.is_thing[1:])
    with pytest.raises(UserError, match=r"disagree on whether sky can be counted"):
        check_classes_agree(scenes, {"real": Other(scenes, is_thing=things)})


def test_a_label_that_is_not_there_is_told():
    kept = Kept(PocketScenes(count=1, height=32, width=32), labels=("semantic", "flow"))
    with pytest.raises(UserError, match=r"picture 01000000 has no label 'flow', only depth, instances, normals, sem"):
        kept[0]


@pytest.mark.parametrize(
    ("name", "label", "message"),
    [
        ("depth", None, r"2 of 2 pictures of `test` have no label 'depth', labels there are: instances, .*; take"),
        ("semantic", semantic_map(np.zeros((32, 48), np.uint8)), r"no picture of `test` has anything to measure 'sem"),
    ],
)
def test_what_a_test_lacks_is_told_before_anybody_learns(
    name: str, label: Label | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    load = PocketScenes.load
    tested = PocketScenes(split="test", count=2).names

    def changed(self: PocketScenes, picture: str) -> AnnotatedImage:
        loaded = load(self, picture)
        labels = {other: value for other, value in loaded.labels.items() if other != name}
        labels |= {} if label is None else {name: label}
        return replace(loaded, labels=labels) if picture in tested else loaded

    monkeypatch.setattr(PocketScenes, "load", changed)
    monkeypatch.setattr(trial, "run", lambda *_, **__: pytest.fail("somebody has learned"))
    student = {"kind": "segmenter", "encoder": "tu-mobilenetv3_small_050", "depth_weight": 0.5}
    with pytest.raises(UserError, match=message):
        evaluated(write_plan(tmp_path / "plan.yaml", student=student))


def test_classes_that_nobody_shows_are_told():
    def seen(*classes: int) -> Survey:
        shown = [{"semantic": frozenset({each}), "depth": frozenset[int]()} for each in classes]
        return Survey(digest="", hashes={}, labels={}, shown=shown)

    taxonomy = Taxonomy(names=("sky", "road", "car"), is_thing=(False, False, True), colors=((0, 0, 0),) * 3)
    tests, learned = {"test": seen(1, 2)}, {"real": seen(1, 2), "synthetic": seen(2, 3)}
    assert list(never_shown(tests, learned, taxonomy, {"real": 2})) == [
        "`synthetic` never shows sky, but `test` does: who learns from it alone cannot know them"
    ]
    (told,) = never_shown(tests, {"real": seen(1, 2)}, taxonomy, {"real": 1})
    assert told.startswith(
        "the first 1 of 2 pictures of `real` never show road, but `test` does: who learns from these"
    )
    assert list(never_measured(tests, "semantic miou", taxonomy)) == [
        "no picture of `test` shows car: its semantic miou says nothing of these classes"
    ]
    assert not list(never_measured(tests, "depth absrel", taxonomy))
    objects = {"test": replace(tests["test"], shown=[{"instances": frozenset({3})}])}
    assert not list(never_measured(objects, "instances ap", taxonomy)), "sky cannot be counted"


def test_the_fewest_pictures_that_are_learned_from_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trial, "run", lambda *_, **__: {"semantic miou": 0.5})
    chosen = {"columns": ["real", "synthetic"], "real_counts": [4, 1], "synthetic_counts": [3]}
    told = evaluated(write_plan(tmp_path / "plan.yaml", **chosen)).table
    assert "the first 1 of 4 pictures of `real` never show" in told
    assert "pictures of `synthetic` never show" not in told
    assert "pictures of `synthetic` never show" in evaluated(tmp_path / "plan.yaml", "synthetic_counts=[1]").table


def test_a_size_that_the_student_cannot_take_is_told_before_pictures_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(evaluation, "survey", lambda *_, **__: pytest.fail("pictures were looked at"))
    message = r"size: found \[100, 32\], but the student `segmenter` .* multiples of 32; .* is `size: \[96, 32\]`"
    with pytest.raises(UserError, match=message):
        evaluated(write_plan(tmp_path / "plan.yaml", size=[100, 32]))


def test_the_config_to_copy_is_sound():
    plan = load_evaluate_plan(Path(__file__).parents[2] / "configs/evaluate.yaml")
    assert plan.test.values()["split"] == "test"
    assert plan.real.values()["split"] == "few_shot"
    assert plan.mixed_updates is None, "more training must not pass for better data"
    assert plan.real_counts == (load_fit_plan(Path("configs/pocket_reader.yaml")).data.values()["count"],)
    cells = list(cells_of(plan, real=plan.real.values()["count"], synthetic=1))
    assert {cell.real for cell in cells if cell.column == "real"} == {50, 100, 200, 400}, "a curve"
    told = table({cell: {"miou": cell.real / 1000 + cell.synthetic / 20} for cell in cells}, ["miou"])
    assert "no break-even" not in told
    for number, column in enumerate(plan.columns, start=1):
        assert (f"{number} is worth " in told) == (column != "real")


@st.composite
def label_maps(draw: st.DrawFn) -> UInt8[np.ndarray, "height width"]:
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    cells = draw(st.lists(st.integers(0, 3), min_size=height * width, max_size=height * width))
    return np.array(cells, np.uint8).reshape(height, width)


@given(label_maps())
def test_distance_to_the_nearest_boundary(ids: UInt8[np.ndarray, "height width"]):
    """Against the definition: the way to the nearest pixel of another class; void is none."""
    places = np.argwhere(np.ones(ids.shape, bool))
    ways = np.sqrt(((places[:, None] - places[None]) ** 2).sum(axis=-1))
    one, other = ids.ravel()[:, None], ids.ravel()[None]
    ways[(one == other) | (one == 0) | (other == 0)] = np.inf
    np.testing.assert_allclose(distance_to_boundary(ids), ways.min(axis=1).reshape(ids.shape), atol=1e-3)


def test_errors_are_counted_by_their_distance():
    truth = np.ones((3, 40), np.uint8)
    truth[:, 20:] = 2
    answer = truth.copy()
    answer[:, 19] = 2  # at the boundary
    answer[:, :5] = 3  # far from it
    errors = BoundaryErrors()
    errors.add({"semantic": semantic_map(answer)}, {"semantic": semantic_map(truth)})
    errors.add({"semantic": semantic_map(answer)}, {"semantic": semantic_map(np.zeros_like(truth))})  # void: no truth
    found = errors.result()
    assert found["error/0-1 px"] == pytest.approx(3 / 6)
    assert found["error/1-3 px"] == found["error/3-7 px"] == 0
    assert found["error/over 7 px"] == pytest.approx(15 / 78)


def test_the_edge_of_what_is_void_is_no_boundary():
    truth = np.ones((3, 40), np.uint8)
    truth[:, 20:] = 0
    answer = np.full_like(truth, 2)
    errors = BoundaryErrors()
    errors.add({"semantic": semantic_map(answer)}, {"semantic": semantic_map(truth)})
    assert errors.result() == {"error/over 7 px": 1.0}


def row(column: Column, real: int, values: list[float], synthetic: int = 0) -> Row:
    results = {seed: {"miou": value} for seed, value in enumerate(values)}
    return Row(cell=Cell(column=column, real=real, synthetic=synthetic, updates=1, seed=0), results=results)


def test_what_synthetic_pictures_are_worth():
    curve = [row("real", 100, [0.6, 0.6]), row("real", 10, [0.4, 0.4])]
    for value, expected in (
        (0.3, "fewer than 10"),
        (0.4, "about 10"),
        (0.5, "about 32"),
        (0.6, "about 100"),
        (0.7, "more than 100"),
    ):
        assert break_even(row("synthetic", 0, [value], 5), curve, "miou") == expected
    peak = [row("real", 10, [0.5, 0.5]), row("real", 20, [0.7, 0.7]), row("real", 40, [0.6, 0.6])]
    assert break_even(row("synthetic", 0, [0.7], 5), peak, "miou") == "about 20"
    falling = [row("real", 10, [0.5, 0.5]), row("real", 20, [0.4, 0.4])]
    assert break_even(row("synthetic", 0, [0.5], 5), falling, "miou") == "about 10"


def test_intervals():
    assert half_width([0.5]) is None
    assert half_width([0.0, 2.0]) == pytest.approx(12.706, rel=1e-3)  # Student's t of one degree of freedom
    assert interval([0.5]) == "0.500"
    assert interval([0.1, 0.1], signed=True) == "+0.100 ± 0.000"
    assert differences(row("both", 2, [0.5, 0.7], 3), row("real", 2, [0.4, 0.4]), "miou") == pytest.approx([0.1, 0.3])


def test_synthetic_pictures_are_held_against_others_in_their_place():
    rows = [
        Cell(column="both", real=2, synthetic=3, updates=1, seed=0),
        Cell(column="teacher", real=2, synthetic=3, updates=1, seed=0),
        Cell(column="retrieved", real=2, synthetic=0, retrieved=3, updates=1, seed=0),
        Cell(column="teacher", real=2, synthetic=3, updates=2, seed=0),
        Cell(column="both", real=4, synthetic=3, updates=1, seed=0),
    ]
    told = table({cell: {"miou": 0.5 - number / 10} for number, cell in enumerate(rows)}, ["miou"])
    assert "1, 2, 3, 4, 5: no break-even count, which needs real pictures alone at two counts" in told
    assert "name more in `curve_counts`" in told
    assert "1 - 2, the same pictures with labels of a teacher: +0.100" in told
    assert "1 - 3, as many retrieved pictures in their place: +0.200" in told
    assert not any(wrong in told for wrong in ("1 - 4", "5 - ")), "of other updates, of other real pictures"


def test_a_break_even_count_that_is_missing_is_told_with_its_remedy():
    conditions: list[tuple[Column, int, int, int]] = [
        ("real", 2, 0, 1),
        ("synthetic", 0, 3, 1),
        ("both", 2, 3, 2),
        ("real_long", 2, 0, 2),
    ]
    cells = [
        Cell(column=column, real=real, synthetic=synthetic, updates=updates, seed=0)
        for column, real, synthetic, updates in conditions
    ]
    told = table({cell: {"miou": 0.5} for cell in cells}, ["miou"]).splitlines()
    remedies = {line[0]: line.partition("name more in ")[2] for line in told if "no break-even" in line}
    assert remedies == {
        "2": "`real_counts` (of the column `real`), or in `curve_counts` where all columns have equal updates",
        "3": "`curve_counts`",
    }


def test_a_figure_that_some_cells_lack_is_left_out_of_those():
    cells = [Cell(column="real", real=2, synthetic=0, updates=1, seed=seed) for seed in (0, 1)]
    told = table({cells[0]: {"miou": 0.5, "iou/car": 0.25}, cells[1]: {"miou": 0.5}}, ["miou"])
    assert "iou/car  0.250" in told
    assert "1  real: 2 real, 1 updates  0.500 ± 0.000" in told


def test_the_lines_of_a_table_of_many_conditions_stay_short():
    counts, seeds = range(1, 25), (0, 1)
    cells = [Cell(column="real", real=real, synthetic=0, updates=1, seed=seed) for real in counts for seed in seeds]
    told = table({cell: {"miou": 0.5, "iou/traffic sign": cell.real / 100} for cell in cells}, ["miou"])
    overview, said, *parts = told.split("\n\n")
    assert "interval over seeds" in said
    assert overview.count("0.500 ± 0.000") == len(counts)
    heads, values = zip(*(part.splitlines() for part in parts), strict=True)
    assert [int(number) for head in heads for number in head.split()] == list(counts)
    found = [value for line in values for value in line.removeprefix("iou/traffic sign").split(" ± 0.000")[:-1]]
    assert [round(100 * float(value)) for value in found] == list(counts)
    assert max(map(len, (*heads, *values))) <= 120


def test_other_tests_can_be_taken_out_of_a_plan(tmp_path: Path):
    plan = write_plan(tmp_path / "plan.yaml", more_tests={"night": {"time": ["night"]}})
    assert list(load_evaluate_plan(plan).more_tests) == ["night"]
    assert load_evaluate_plan(plan, ["more_tests=null"]).more_tests == {}


def test_cells_come_seed_by_seed(tmp_path: Path):
    plan = load_evaluate_plan(write_plan(tmp_path / "plan.yaml"))
    cells = list(cells_of(plan, real=4, synthetic=3))
    assert [cell.seed for cell in cells] == [0] * 9 + [1] * 9
    assert {(cell.real, cell.synthetic, cell.updates) for cell in cells if cell.column == "synthetic"} == {(0, 3, 2)}
    assert {(cell.real, cell.synthetic, cell.updates) for cell in cells if cell.column == "both"} == {
        (2, 3, 3),
        (4, 3, 3),
    }
    assert plan.test.values()["height"] == 32, "what test leaves out is as in real"


@pytest.mark.parametrize(
    ("columns", "mixed_updates", "expected"),
    [
        (["real", "real_long", "both"], 3, [("real_long", 1), ("real_long", 3)]),  # 2 is there already
        (["real", "both"], 3, [("real_long", 1), ("real_long", 2), ("real_long", 3)]),
        (["real", "both"], None, [("real", 1), ("real", 3)]),
        (["both"], None, [("real", 1), ("real", 2), ("real", 3)]),
    ],
)
def test_a_curve_of_real_pictures_alone(
    columns: list[str], mixed_updates: int | None, expected: list[tuple[str, int]], tmp_path: Path
):
    chosen = {"columns": columns, "real_counts": [2], "seeds": [0], "mixed_updates": mixed_updates}
    plan = load_evaluate_plan(write_plan(tmp_path / "plan.yaml", **chosen, curve_counts=[1, 2, 3]))
    cells = list(cells_of(plan, real=4, synthetic=3))
    mixed = plan.mixed_updates or plan.updates
    assert [(cell.column, cell.real) for cell in cells[len(columns) :]] == expected
    assert {cell.updates for cell in cells[len(columns) :]} == {mixed}
    told = table({cell: {"miou": cell.real / 10 + cell.synthetic / 20} for cell in cells}, ["miou"])
    both = columns.index("both") + 1
    assert f"{both} is worth more than 3 real pictures, learned from for as long" in told
    with pytest.raises(UserError, match=r"curve_counts: found 3, but there are 2 pictures"):
        list(cells_of(plan, real=2, synthetic=3))


@pytest.fixture
def scenes() -> Kept:
    return Kept(PocketScenes(count=3, height=32, width=48), labels=("semantic", "depth"))


def test_batches_are_functions_of_their_number(scenes: Kept):
    def study() -> Study:
        parts = [Part(pictures=scenes, chosen=(0, 1), slots=1), Part(pictures=scenes, chosen=(2, 0, 1), slots=2)]
        return Study(parts, size=(32, 32), augmentation=Augmentation(), taught=True, seed=1)

    first, second = study(), study()
    first(0)
    one, other = first(1), second(1)
    assert torch.equal(one.pictures, other.pictures)
    assert one.pictures.shape == (3, 3, 32, 32)
    assert one.weak is not None
    assert one.weak.shape == (2, 3, 32, 32)
    assert [sorted(labels) for labels in one.labels] == [["depth", "semantic"]] * 3
    assert not torch.equal(first(0).pictures, one.pictures)


def test_a_student_sees_in_other_colours_and_partly_covered_what_its_teacher_sees(scenes: Kept):
    parts = [Part(pictures=scenes, chosen=range(3), slots=3)]
    study = Study(parts, size=(32, 32), augmentation=Augmentation(), taught=True, seed=0)
    batches = [study(number) for number in range(8)]
    boxes = [box for batch in batches for box in batch.boxes]
    assert None in boxes
    assert any(boxes)
    for batch in batches:
        assert batch.weak is not None
        assert not torch.equal(batch.weak, batch.pictures)
        origin = mix_pictures(batch.weak, batch.boxes)  # where what the student sees comes from
        for seen, own in zip(batch.pictures, origin, strict=True):  # what is dark stays dark, within one picture
            assert torch.corrcoef(torch.stack([seen.mean(0).flatten(), own.mean(0).flatten()]))[0, 1] > 0.5
        ours = [label["semantic"] for label in batch.labels]
        for index, (label, box) in enumerate(zip(mix_labels(batch.labels, batch.boxes), batch.boxes, strict=True)):
            expected = semantic_ids(batch.labels[index])
            if box is not None:
                expected[box] = semantic_ids(batch.labels[(index + 1) % 3])[box]
            assert np.array_equal(semantic_ids(label), expected)
        assert all(label["semantic"] is kept for label, kept in zip(batch.labels, ours, strict=True)), "not in place"


@given(seed=st.integers(0, 2**31), height=st.integers(8, 90), width=st.integers(8, 90))
def test_a_box_lies_in_the_view(seed: int, height: int, width: int):
    box = draw_box(np.random.default_rng(seed), (height, width))
    if box is not None:
        rows, columns = box
        assert 0 <= rows.start <= rows.stop <= height
        assert 0 <= columns.start <= columns.stop <= width
        assert (rows.stop - rows.start) * (columns.stop - columns.start) <= 0.4 * height * width + height + width


def test_little_memory_reads_again(monkeypatch: pytest.MonkeyPatch):
    data = PocketScenes(count=3, height=32, width=32)
    loaded: list[str] = []
    load = PocketScenes.load

    def watched(self: PocketScenes, name: str) -> Any:
        loaded.append(name)
        return load(self, name)

    monkeypatch.setattr(PocketScenes, "load", watched)
    plenty, little = Kept(data, labels=("semantic",)), Kept(data, labels=("semantic",), memory=1)
    for kept, times in ((plenty, 3), (little, 6)):
        loaded.clear()
        for index in (0, 1, 2, 0, 1, 2):
            assert kept[index].labels.keys() == {"semantic"}
        assert len(loaded) == times


def test_pictures_of_other_shapes_are_answered_in_their_own_pixels():
    scene = PocketScenes(count=1, height=50, width=90)[0]
    pixels = shown(scene, (64, 32), 32)
    assert pixels.shape == (1, 3, 32, 64)
    found = at_native_size({"semantic": semantic_map(np.ones((32, 64), np.uint8))}, scene)
    assert semantic_ids(found).shape == (50, 90)
