"""The verb `probe` on a tiny random model: it ranks, fits the best, goes on, and `fit` takes its answer."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from datagen.files import read_json, write_json
from datagen.fitting import fit_from_plan
from datagen.probing import PLOT_FILE, PROBE_FILE, chosen, probe_from_plan
from decoders.errors import UserError
from decoders.manifest import ReaderManifest
from tests.datagen.test_fitting import photographs, write_plan

SWEEP = {"pictures": 3, "timesteps": [5, 60], "noises": [2], "fits": 2}


@pytest.fixture(scope="module")
def plan(pipelines: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sonde 1")
    return write_plan(folder / "plan.yaml", pipelines["sd1"], photographs(folder / "photos", 4))


@pytest.fixture(scope="module")
def probed(plan: Path) -> Path:
    folder = plan.with_name("probe")
    probe_from_plan(plan, folder, **SWEEP)  # pyright: ignore[reportArgumentType]
    return folder


def test_every_setting_is_ranked_and_the_best_are_fitted(probed: Path):
    entries = json.loads((probed / PROBE_FILE).read_text())["ranked"]
    assert len(entries) == 3 * 4 * 3
    merits = [round(entry["merit"], 4) for entry in entries]
    assert merits == sorted(merits, reverse=True)
    assert [index for index, entry in enumerate(entries) if entry.get("fitted") is not None] == [0, 1]
    with Image.open(probed / PLOT_FILE) as plot:
        assert plot.width > 400


def test_a_second_call_only_reads(plan: Path, probed: Path, monkeypatch: pytest.MonkeyPatch):
    before = (probed / PROBE_FILE).read_bytes()
    monkeypatch.setattr("decoders.probing.rank", None)
    monkeypatch.setattr("decoders.reader.fit_reader", None)
    summary = probe_from_plan(plan, probed, **SWEEP)  # pyright: ignore[reportArgumentType]
    assert (probed / PROBE_FILE).read_bytes() == before
    assert str(summary).count("\n") == 12 + 3
    assert "... and 24 more in" in str(summary)


def test_an_interrupted_probe_goes_on(plan: Path, probed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = json.loads((probed / PROBE_FILE).read_text())
    del whole["ranked"][1]["fitted"]
    (tmp_path / PROBE_FILE).write_text(json.dumps(whole))
    monkeypatch.setattr("decoders.probing.rank", None)
    probe_from_plan(plan, tmp_path, **SWEEP)  # pyright: ignore[reportArgumentType]
    assert json.loads((tmp_path / PROBE_FILE).read_text()) == json.loads((probed / PROBE_FILE).read_text())


def test_fewer_fits_than_before_are_done(plan: Path, probed: Path, tmp_path: Path):
    whole = json.loads((probed / PROBE_FILE).read_text())
    del whole["ranked"][1]["fitted"]  # stopped before the second fit
    (tmp_path / PROBE_FILE).write_text(json.dumps(whole))
    probe_from_plan(plan, tmp_path, **(SWEEP | {"fits": 1}))  # pyright: ignore[reportArgumentType]
    assert chosen(tmp_path) == whole["ranked"][0]["setting"]


def test_a_fit_takes_the_best(plan: Path, probed: Path, tmp_path: Path):
    fit_from_plan(plan, to=tmp_path / "reader", probe=probed)
    found = ReaderManifest.read(tmp_path / "reader").perceiver
    best = chosen(probed)
    assert (tuple(found["timesteps"]), found["noises"]) == (tuple(best["timesteps"]), best["noises"])
    assert found["attention"] == best["attention"]
    assert {path.split("_")[0] for path in found["layers"]} == set(best["layers"])
    assert found["phrases"] == ["a road", "car", "sky"]  # the plan's own


def test_other_settings_and_missing_probes_are_told(plan: Path, probed: Path, tmp_path: Path):
    with pytest.raises(UserError, match="holds the probe of another plan, model or data"):
        probe_from_plan(plan, probed, pictures=2)
    with pytest.raises(UserError, match=r"holds no probe: probe\.json is missing"):
        fit_from_plan(plan, to=tmp_path / "reader", probe=tmp_path)
    (tmp_path / PROBE_FILE).write_text("{}")
    with pytest.raises(UserError, match="is not finished"):
        chosen(tmp_path)
    kept = read_json(probed / PROBE_FILE)
    del kept["ranked"][1]["fitted"]  # as when it was stopped before its second fit
    write_json(tmp_path / PROBE_FILE, kept)
    with pytest.raises(UserError, match="is not finished"):
        chosen(tmp_path)
    (tmp_path / PROBE_FILE).unlink()
    with pytest.raises(UserError, match=r"set fit\.holdout above 0"):
        probe_from_plan(plan, tmp_path / "none", ["fit.holdout=0"], pictures=2, timesteps=[5], noises=[1], fits=1)


def test_a_wrong_task_is_told_before_the_ranking(plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("datagen.probing.data_digest", lambda _: pytest.fail("all pictures were looked at"))
    with pytest.raises(UserError, match="task semantic has no option 'balanc'"):
        probe_from_plan(plan, tmp_path, ["tasks.semantic.balanc=true"])
