"""The bookkeeping of benchmarks: what is measured is kept, and measured once, in one process or several."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import cells, claims, mixes, style_swap, style_swap_camvid, worth, written
from benchmarks.few_shot_reader import interval
from datagen.adaptation.adapt_plan import load_adapt_plan
from datagen.evaluation.evaluate_plan import EvaluatePlan, load_evaluate_plan
from datagen.fit_plan import load_fit_plan
from datagen.plan import load_plan
from datagen.pocket import world
from decoders.labels import Taxonomy, semantic_map

CELLS = [{"method": name, "seed": 0} for name in ("a", "b", "c")]


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cells, "RESULTS", tmp_path)
    return tmp_path


@pytest.mark.parametrize("workers", [1, 2])
def test_every_cell_is_kept_and_returned_in_order(results: Path, workers: int):
    rows = cells.measure_all("some", CELLS, dict, workers=workers)  # `dict` measures a cell as itself
    assert rows == [cell | {"hardware": cells.this_hardware()} for cell in CELLS]
    kept = json.loads((results / "some.json").read_text())
    assert sorted(entry["measured"]["method"] for entry in kept.values()) == ["a", "b", "c"]


def test_what_was_measured_is_not_measured_again():
    cells.measure_all("some", CELLS[:2], dict)
    measured: list[str] = []

    def measure(cell: Mapping[str, Any]) -> Mapping[str, Any]:
        measured.append(cell["method"])
        return {"found": 1}

    rows = cells.measure_all("some", CELLS, measure)
    assert measured == ["c"]
    assert [row["method"] for row in rows] == ["a", "b", "c"]


def test_a_failure_loses_no_finished_cell(results: Path):
    def measure(cell: Mapping[str, Any]) -> Mapping[str, Any]:
        if cell["method"] == "b":
            raise OSError("disk full")
        return {}

    with pytest.raises(OSError, match="disk full"):
        cells.measure_all("some", CELLS, measure)
    assert len(json.loads((results / "some.json").read_text())) == 1


def test_what_another_process_measures_meanwhile_is_kept(results: Path):
    def measure(cell: Mapping[str, Any]) -> Mapping[str, Any]:
        if cell["method"] == "b":
            other = {"other": {"cell": {}, "measured": {}}}
            (results / "some.json").write_text(json.dumps(other))
        return {}

    cells.measure_all("some", CELLS, measure)
    assert "other" in json.loads((results / "some.json").read_text())


def test_an_interval_needs_two_seeds():
    assert interval([4.0]) == "+4.0 (one seed)"
    assert interval([4.0, 6.0, 5.0]) == "+5.0 (+2.5..+7.5)"  # t of 2 degrees of freedom: 4.303 / sqrt 3


@pytest.mark.parametrize("scale", claims.SCALES)
@pytest.mark.parametrize("claim", claims.CLAIMS)
def test_every_step_of_a_claim_is_a_sound_plan(claim: str, scale: str, tmp_path: Path):
    loaders = {
        "adapt": load_adapt_plan,
        "fit": load_fit_plan,
        "generate": load_plan,
        "evaluate": load_evaluate_plan,
    }
    steps = list(claims.CLAIMS[claim](claims.SCALES[scale], tmp_path))
    for step in steps:
        if isinstance(step, claims.Dataset):
            assert step.arguments()[-2:] == ["--to", str(step.to)]
            continue
        verb, config, _, _, _, *chosen = step.arguments()
        assert loaders[verb](Path(config), chosen), "UserError otherwise"
        assert step.to.parent == tmp_path
    _, config, _, _, _, *chosen = steps[-1].arguments()
    assert load_evaluate_plan(Path(config), chosen).mixed_updates is None, "equal updates in all columns"


def test_claims_that_need_photographs_are_named():
    """Where there are none, `benchmarks.worth` leaves these out."""
    steps = {name: claim(claims.SCALES["full"], Path("home")) for name, claim in claims.CLAIMS.items()}
    on_photographs = [name for name, some in steps.items() if any("camvid" in str(each.arguments()) for each in some)]
    assert tuple(on_photographs) == claims.ON_PHOTOGRAPHS


@pytest.mark.parametrize("claim", mixes.MIXES)
def test_a_mix_changes_what_it_says_and_is_chosen_by_scenes_of_its_own(
    claim: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(mixes.scene_cache, "world_digest", lambda: "known")  # which draws scenes

    def scenes_of(plan: EvaluatePlan) -> set[tuple[Any, ...]]:
        tests = [test.values() for test in (plan.test, *plan.more_tests.values())]
        return {(test["split"], test["seed"] + number) for test in tests for number in range(test["count"])}

    def plan_of(study: claims.Step) -> EvaluatePlan:
        return load_evaluate_plan(Path(f"configs/{study.config}.yaml"), study.arguments()[5:])

    asked = list(mixes.all_cells([claim], [0]))
    *_, tested = claims.CLAIMS[claim](mixes.SCALE, tmp_path)
    assert isinstance(tested, claims.Step)
    folders = set[Path]()
    for cell in asked:
        made, study = mixes.steps_of(cell)
        plan = plan_of(study)
        assert (plan.columns, plan.seeds, plan.real_share) == ((cell["column"],), (0,), cell["real share"])
        assert not scenes_of(plan) & scenes_of(plan_of(tested))
        assert made[-1].settings.items() >= cell["made"].items()
        load_plan(Path(f"configs/{made[-1].config}.yaml"), made[-1].arguments()[5:])
        assert plan.synthetic.values()["root"] == made[-1].to / "exports/coco"
        folders.add(study.to)
    assert len(folders) == len(asked), "no cell is kept in another's place"


def test_a_map_of_photographs_is_read_in_the_words_of_the_pocket_world():
    names = ("sky", "pavement", "sign/symbol", "fence", "pedestrian")
    taxonomy = Taxonomy(names=names, is_thing=(False,) * 5, colors=((0, 0, 0),) * 5)
    labels = {"semantic": semantic_map(np.array([[0, 1, 2, 3, 4, 5]], np.uint8))}
    asked = style_swap_camvid.in_the_world(labels, taxonomy)
    known = ("void", *world.TAXONOMY.names)
    assert [known[each] for each in asked[0]] == ["void", "sky", "sidewalk", "traffic sign", "void", "person"]


def test_pictures_that_were_drawn_before_an_interruption_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn = list[int]()
    lasts_for = 3

    class Interrupted:
        """Draws each number as a grey level."""

        def __init__(self, **_settings: object) -> None:
            pass

        def render(self, recipes: list[int]) -> np.ndarray:
            if len(drawn) == lasts_for:
                raise KeyboardInterrupt
            drawn.extend(recipes)
            return np.stack([np.full((2, 3, 3), number, np.uint8) for number in recipes])

    monkeypatch.setattr(style_swap, "home", lambda: tmp_path)
    monkeypatch.setattr(style_swap, "Controlnet", Interrupted)
    monkeypatch.setattr(style_swap, "BATCH", 3)
    cell = {"setting": "swap", "updates": style_swap.SHIPPED_AFTER[0], "steps": 2, "guidance": 1.0, "judge scenes": 5}
    recipes: Any = list(range(7))
    with pytest.raises(KeyboardInterrupt):
        style_swap.draw(cell, recipes)
    assert drawn == [0, 1, 2]
    lasts_for = 7
    pictures, costs = style_swap.draw(cell | {"judge scenes": 9}, recipes)
    assert drawn == recipes
    assert pictures[:, 0, 0, 0].tolist() == recipes
    assert costs["seconds"] > 0


def test_figures_measured_again_are_compared(capsys: pytest.CaptureFixture[str]):
    def cell(miou: float) -> list[dict[str, Any]]:
        counts = {"real": 20, "synthetic": 0, "retrieved": 0, "updates": 5, "seed": 0}
        measured = {"semantic miou": miou, "semantic miou on night": 0.5, "semantic iou/car": 0.1}
        return [{"column": "real", **counts, "measured": measured}]

    assert worth.agrees(cell(0.41), cell(0.40))
    assert "committed 0.400, now 0.410" in capsys.readouterr().out
    assert not worth.agrees(cell(0.45), cell(0.40))
    assert worth.headlines_of(cell(0.4)) == ["semantic miou", "semantic miou on night"]
    assert "real: 20 real, 5 updates" in worth.told(cell(0.4)), "older cells say nothing of their hardware"
    newer = [each | {"hardware": "cpu, float32"} for each in cell(0.4)]
    assert worth.told(newer) == worth.told(cell(0.4))
    assert worth.agrees(newer, cell(0.4))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--seeds", "0"], [0, 1]),
        (["--seeds", "2", "1"], [0, 1, 2]),
        ([], [0, 1]),  # that scale's own is 0
        (["--again"], [0, 1]),
    ],
)
def test_no_committed_seed_is_lost(
    words: list[str], expected: list[int], results: Path, monkeypatch: pytest.MonkeyPatch
):
    def measured(seeds: Iterable[int]) -> dict[str, Any]:
        counts = {"column": "real", "real": 20, "synthetic": 0, "retrieved": 0, "updates": 5}
        return {"cells": [counts | {"seed": seed, "measured": {"semantic miou": 0.4}} for seed in seeds]}

    def measure(_: str, scale: claims.Scale, *__: Any, **___: Any) -> dict[str, Any]:
        return measured(scale.seeds)

    monkeypatch.setattr(worth, "measure", measure)
    monkeypatch.setattr("sys.argv", ["worth", "--scale", "quick", "--claims", "datasetdm_20", *words])
    cells.write_results(worth.NAME, {"quick": {"datasetdm_20": measured([0, 1])}})
    assert worth.main() == 0, "as committed, seed by seed"
    kept = json.loads((results / "worth.json").read_text())["quick"]["datasetdm_20"]["cells"]
    assert [cell["seed"] for cell in kept] == expected
    monkeypatch.setattr("sys.argv", ["worth", "--again", "--seeds", "0"])
    with pytest.raises(SystemExit):
        worth.main()


def test_a_claim_with_fewer_seeds_keeps_the_committed_ones(tmp_path: Path):
    committed = {"cells": [{"seed": 2}, {"seed": 2}]}
    assert worth.seeds_of(committed, [0, 1]) == (2, 0, 1)
    scale = replace(claims.SCALES["full"], seeds=worth.seeds_of(committed, [0, 1]))
    assert list(claims.objects(scale, tmp_path))[-1].settings["seeds"] == (2, 0)


def test_a_page_is_written_of_what_was_measured():
    cell = {"column": "real", "real": 20, "synthetic": 0, "retrieved": 0, "updates": 5, "seed": 0}
    found = {
        "cells": [cell | {"measured": {"semantic miou": 0.4}}],
        "commands": ["datagen fit x"],
        "made_with": {"torch": "2"},
    }
    page = written.page({"full": {"camvid_20": found}, "quick": {"datasetdm_20": found}})
    assert page.index("## camvid_20, full") < page.index("## datasetdm_20, quick")
    assert "1  real: 20 real, 5 updates  0.400" in page
    assert "![camvid_20](benchmarks/results/worth_full_camvid_20.png)" in page
    assert "\ndatagen fit x\n" in page
    assert "Made with torch 2." in page
