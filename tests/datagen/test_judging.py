"""Somebody who had no part in a run says what is in its pictures."""

import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from datagen import cli
from datagen.audit import audit
from datagen.fitting import fit_from_plan
from datagen.judging import Judge, open_judge
from datagen.plan import part_identity
from datagen.plugins import choose_part
from datagen.readers import read_manifest
from datagen.records import Guide, Recipe, Sample, Verdict
from datagen.runs import Run, claim, open_run
from datagen.shards import StoredSample
from decoders.errors import UserError
from decoders.labels import InstanceSet, LabelSet, semantic_map
from decoders.reader import Reader
from decoders.tasks.semantic import SemanticScore
from tests.datagen import toys
from tests.datagen.test_fitting import photographs, write_plan


def judge_who_says(ids: list[list[int]]) -> Judge:
    reader = Mock(spec=Reader, manifest=SimpleNamespace(taxonomy=toys.TAXONOMY))
    reader.read.return_value = [{"semantic": semantic_map(np.array(ids, np.uint8))}]
    return Judge(name="other", reader=reader, score=SemanticScore(toys.TAXONOMY))


def stored(labels: LabelSet, **recipe: Any) -> StoredSample:
    image = np.zeros((2, 4, 3), np.uint8)
    return StoredSample(
        recipe=Recipe(id="0", prompt="", seed=0, **recipe), image=image, labels=labels, verdict=Verdict(keep=True)
    )


def test_what_is_asked_for_and_objects_are_looked_for():
    judge = judge_who_says([[1, 1, 2, 2], [3, 1, 2, 2]])
    masks = np.zeros((3, 2, 4), bool)
    masks[0, 1, 0] = True  # a car, the judge says
    masks[1, :, 1] = True  # sky, the judge says
    masks[2] = True  # a crowd, of which nothing is said
    objects = InstanceSet.collect(list(masks), [3, 3, 3], size=(2, 4), is_crowd=[False, False, True])
    ids = np.array([[1, 1, 2, 2], [3, 3, 2, 0]], np.uint8)
    judge.add(stored({"semantic": semantic_map(ids), "instances": objects}, wanted=("car", "road")))
    assert (judge.asked, judge.found) == ({"car": 1, "road": 1}, {"car": 1, "road": 1})
    assert (judge.objects, judge.denied) == ({"car": 2}, {"car": 1})
    assert judge.score.result()["iou/car"] == pytest.approx(1 / 2)
    told = str(judge)
    assert "classes asked for that it finds: 2 of 2 (100.0%)" in told
    assert "objects that it denies: 1 of 2 (50.0%)" in told
    assert told.splitlines()[-1].split() == ["car", "1,", "1", "2,", "1", "0.500"]


def test_a_guide_asks_for_its_classes_and_parts_of_the_class_map_are_objects():
    judge = judge_who_says([[1] * 40] * 20)
    ids = np.full((20, 40), 2, np.uint8)
    ids[5:10, 5:10] = 3
    ids[0, 0] = 3  # too small to be asked about
    sample = stored({"semantic": semantic_map(ids)}, guide=Guide(labels={"semantic": semantic_map(ids)}))
    judge.add(sample)
    assert judge.asked == {"road": 1, "car": 1}
    assert judge.found == {}
    assert (judge.objects, judge.denied) == ({"car": 1}, {"car": 1})
    assert "objects that it denies: 1 of 1 (100.0%)" in str(judge)


def test_a_run_without_labels_of_its_own_has_nothing_to_deny():
    judge = judge_who_says([[1, 1, 1, 1]])
    judge.add(stored({}))
    assert "denies" not in str(judge)
    assert "mIoU" not in str(judge)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, pipelines: Mapping[str, Path]) -> Path:
    folder = tmp_path_factory.mktemp("judge")
    plan = write_plan(folder / "plan.yaml", pipelines["sd1"], photographs(folder / "few", 3))
    return fit_from_plan(plan, None, ["fit.updates=2", "fit.evaluations=1"], Console(quiet=True)).reader


def run_of(folder: Path, reader: Path, plan: Mapping[str, Any], identity: Mapping[str, Any] | None = None) -> Path:
    """A run of one picture with the classes of the reader."""
    taxonomy = read_manifest(reader).taxonomy
    run = claim(Run(folder=folder, plan={"target": 1, **plan}, identity=identity or {}, taxonomy=taxonomy, versions={}))
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    labels = {"semantic": semantic_map(np.ones((48, 64), np.uint8))}
    recipe = Recipe(id="00000000", prompt="", seed=0, wanted=(taxonomy.names[0],))
    run.store.write(0, [Sample(recipe=recipe, image=image, labels=labels)], [Verdict(keep=True)])
    return folder


def test_a_judge_looks_at_the_pictures_of_a_run(reader: Path, tmp_path: Path):
    labeller = {"kind": "decoded", "reader": "moved/away"}
    run = run_of(tmp_path / "run ü", reader, {"labeller": labeller}, {"labeller": {"digest": "of another reader"}})
    told = CliRunner().invoke(cli.app, ["audit", str(run), "--judge", str(reader)])
    assert told.exit_code == 0, told.output
    assert "judges the accepted pictures, which it had no part in" in told.output
    judge = audit(run, judge=reader, console=Console(quiet=True)).judge
    assert judge is not None
    assert judge.asked.total() == 1


@pytest.mark.parametrize("place", ["labeller", "filters"])
def test_who_made_or_filtered_a_run_cannot_judge_it(place: str, reader: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(reader, copy)
    part = {"kind": "some", "reader": str(copy)}
    run = run_of(tmp_path / "run", reader, {place: part if place == "labeller" else [part]})
    with pytest.raises(UserError, match=r"is the reader of the run itself \(plan\.\w+.*reader\): whoever made or filt"):
        audit(run, judge=reader)


@pytest.mark.parametrize(
    "labeller",
    [
        {"kind": "decoded", "reader": "moved/away", "coverage": 0.9},
        {"kind": "inherited", "reader": "moved/away", "void_below": 0.5},
    ],
    ids=lambda labeller: labeller["kind"],
)
def test_the_reader_of_a_run_is_known_wherever_it_lies(labeller: dict[str, Any], reader: Path, tmp_path: Path):
    here = choose_part("labellers", {**labeller, "reader": str(reader)}, at="labeller")
    built = here.build(taxonomy=read_manifest(reader).taxonomy)
    run = run_of(tmp_path / "run", reader, {"labeller": labeller}, {"labeller": part_identity(here, built)})
    with pytest.raises(UserError, match=r"is the reader of the run itself \(plan\.labeller\.reader\)"):
        open_judge(reader, open_run(run))
    other = run_of(tmp_path / "other", reader, {"labeller": {**labeller, "kind": "uninstalled"}})
    told = str(open_judge(reader, open_run(other)))
    assert re.search(r"; whether it is .*away \(plan\.labeller\.reader\) of the run cannot be told, as no reader", told)
    assert "which it had no part in" not in told


def test_a_judge_of_other_classes_is_refused(reader: Path, tmp_path: Path):
    run = open_run(run_of(tmp_path / "run", reader, {}))
    with pytest.raises(UserError, match=r"knows the classes .*, the run has sky, road, car; fit a reader"):
        open_judge(reader, replace(run, taxonomy=toys.TAXONOMY))
    with pytest.raises(UserError, match=r"nowhere"):
        open_judge(tmp_path / "nowhere", run)
