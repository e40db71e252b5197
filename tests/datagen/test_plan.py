"""Reading plans: every mistake is one clear message, before anything slow begins."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from datagen.adaptation.adapt_plan import load_adapt_plan
from datagen.adaptation.control_plan import load_control_plan
from datagen.evaluation.evaluate_plan import load_evaluate_plan
from datagen.fit_plan import load_fit_plan
from datagen.plan import build_parts, identity, load_plan
from datagen.runs import Run, claim, library_versions, note_hardware, open_run
from datagen.settings import Settings, check, filled, read_settings
from decoders.errors import UserError
from tests.datagen import toys


@pytest.fixture(autouse=True)
def toys_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(toys.install(tmp_path / "site")))


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    return toys.write_plan(tmp_path / "plän.yaml", toys.plan_values(tmp_path / "run"))


def text_plan(folder: Path, text: str) -> Path:
    file = folder / "plan.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_overrides_reach_every_depth(plan_file: Path):
    plan = load_plan(
        plan_file,
        ["target=9", "generator.side=32", "filters.0.minimum_share=5e-4", "source.slots.look=[painting]", "exports=[]"],
    )
    assert plan.target == 9
    assert plan.generator.to_json()["side"] == 32
    assert plan.filters[0].to_json()["minimum_share"] == 5e-4
    assert plan.source.to_json()["slots"]["look"] == ["painting"]
    assert plan.exports == ()


def test_candidates_may_be_just_their_number(plan_file: Path):
    found = load_plan(plan_file, ["candidates=4"]).candidates
    assert found == load_plan(plan_file, ["candidates.count=4"]).candidates
    assert (found.count, found.best_by) == (4, "agreement")


def test_coco_is_the_default_export(plan_file: Path):
    assert [part.kind for part in load_plan(plan_file).exports] == ["coco"]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("generator.stepps=3", "generator.stepps: unknown key; known keys: kind, pause, side"),
        ("generator.sidee=3", "generator.sidee: unknown key; did you mean 'side'? known keys: kind, pause, side"),
        (
            "templates=[x]",
            "templates: unknown key; did you mean 'source.templates'? known keys: batch_size, candidates",
        ),
        (
            "generatr.side=3",
            "generatr: unknown key; did you mean 'generator'? known keys: batch_size, candidates, exports",
        ),
        ("generator.side=wide", "generator.side: found 'wide', expected a valid integer"),
        ("generator.side=12.5", "generator.side: found 12.5, expected a valid integer"),
        ("target=0", "target: found 0, expected greater than or equal to 1"),
        ("candidates=0", "candidates: found 0, expected greater than or equal to 1"),
        ("candidates=true", "candidates: found True, expected a valid integer"),
        ("candidates=many", "candidates: found 'many', expected "),
        ("target=true", "target: found True, expected a valid integer"),
        ("threads='2'", "threads: found '2', expected a valid integer"),
        ("minimum_yield=.nan", "minimum_yield: found "),
        ("filters.3.minimum=1", "--set filters.3.minimum: filters.3 is not there, the list has entries 0 to 0"),
        ("filters.x.minimum=1", "filters.x is not there"),
        ("target.x=1", "--set target.x: target is the number 6 and has no key 'x'; set target itself"),
        ("filters=confidence", "filters: found 'confidence', expected a list"),
        ("target", "--set 'target' is not of the form key.sub=value"),
        ("=3", "is not of the form key.sub=value"),
        ("target=[1", "--set target, line 1"),
        (
            "model.sorce=x",
            "model.sorce: unknown key; did you mean 'source'? known keys: dtype, loras, revision, source",
        ),
        ("model.revision=x", "model.source: missing; it has no default, so add it"),
        (
            "model={source: x, loras: [{source: y, wait: 1}]}",
            "model.loras.0.wait: unknown key; did you mean 'weight'? known keys: source",
        ),
        ("model={source: x, dtype: float64}", "model.dtype: found 'float64', expected 'auto', 'float32'"),
        ("exports=[coco, coco]", "exports: coco is given 2 times; keep one"),
        ("model=3", "model: found 3, expected a mapping"),
        ("model={source: x, loras: 3}", "model.loras: found 3, expected a list"),
        ("model.source=3", "model.source: found 3, expected text"),
        (
            "model.loras.0.weight=2",
            "--set model.loras.0.weight: model.loras is not in the plan, so it has no entry 0; set model.loras itself",
        ),
        ("labeller.kind=brightnes", "labeller.kind: unknown kind 'brightnes'; did you mean 'brightness'?"),
        ("source.slots.look=[{txt: a}]", "source.slots.look.0"),
    ],
)
def test_a_mistake_names_its_key_and_the_nearest(plan_file: Path, override: str, told: str):
    with pytest.raises(UserError) as caught:
        load_plan(plan_file, [override])
    assert told in str(caught.value)


def test_a_mistake_within_alternatives_is_told_once(plan_file: Path):
    with pytest.raises(UserError) as caught:
        load_plan(plan_file, ["source.slots.look=[{text: a, wants: 3}]"])
    assert "Phrase" not in str(caught.value)
    assert "source.slots.look.0.wants: found 3, expected" in str(caught.value)


CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("load", "wanted", "config", "verb"),
    [
        (load_plan, "generate", "pocket_reader", "fit"),
        (load_fit_plan, "fit", "demo", "generate"),
        (load_evaluate_plan, "evaluate", "demo", "generate"),
        (load_adapt_plan, "adapt", "control", "control"),
        (load_control_plan, "control", "adapt", "adapt"),
        (load_plan, "generate", "evaluate", "evaluate"),
    ],
)
def test_a_plan_of_another_verb_is_told_alone(load: Callable[[Path], object], wanted: str, config: str, verb: str):
    file = CONFIGS / f"{config}.yaml"
    with pytest.raises(UserError) as caught:
        load(file)
    assert str(caught.value) == (
        f"{file} looks like a plan of `datagen {verb}`, expected one of `datagen {wanted}`; run `datagen {verb} "
        f"{file}`, or give another plan"
    )


@pytest.mark.parametrize("change", ["updates=3", "data=3", "sorce={kind: prompts}"])
def test_a_plan_with_a_key_of_another_verb_is_not_taken_for_its_plan(plan_file: Path, change: str):
    with pytest.raises(UserError, match=rf"^{change.split('=')[0]}: unknown key"):
        load_plan(plan_file, [change])


def test_what_a_run_says_about_itself_is_a_plan_of_it(plan_file: Path):
    run = claim(run_of(plan_file, "candidates=2"))
    record = run.folder / "plan.yaml"
    assert load_plan(record).model_dump(mode="json") == run.plan
    assert run_of(record, "target=20").digest == run.digest
    assert load_plan(record, ["target=20"]).target == 20
    with pytest.raises(UserError, match="looks like a plan of `datagen generate`, expected one of `datagen fit`"):
        load_fit_plan(record)


def test_a_word_in_a_list_is_a_key_that_says_nothing_more(tmp_path: Path):
    file = text_plan(tmp_path, "tasks: [semantic, instances]\nmore:\n- {names: [a, b]}\nnothing:\n")
    found = read_settings(file, ["tasks.instances.queries=100", "more.0.names.a.x=1", "nothing.key=2"])
    assert found == {
        "tasks": {"semantic": None, "instances": {"queries": 100}},
        "more": [{"names": {"a": {"x": 1}, "b": None}}],
        "nothing": {"key": 2},
    }
    with pytest.raises(UserError, match=r"tasks.depth is not there, the list has entries 0 to 1"):
        read_settings(file, ["tasks.depth.validity=0"])


@pytest.mark.parametrize(
    ("data", "other", "chosen"),
    [
        ({"first": 60, "every": 2}, {"names": ["a"]}, {"names": ["a"]}),
        ({"names": ["a"]}, {"first": 3}, {"first": 3}),
        ({"names": ["a"]}, {"every": 2}, {"every": 2}),
        ({"first": 60}, {"every": 2}, {"first": 60, "every": 2}),
        ({"names": ["a"], "first": 3}, {}, {"names": ["a"], "first": 3}),
        ({}, {"names": ["a"], "first": 3}, {"names": ["a"], "first": 3}),
    ],
)
def test_pictures_chosen_in_one_way_are_not_chosen_in_the_other_as_well(
    data: dict[str, Any], other: dict[str, Any], chosen: dict[str, Any]
):
    assert filled({"root": "there", **other}, {"root": "here", "void": [9], **data}) == {
        "root": "there",
        "void": [9],
        **chosen,
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("run: [a\ntarget: 3\n", "line 2"),
        ("run: a\nrun: b\n", "line 2, column 1: key 'run' is given twice"),
        ("on: a\n", "key 'on' is no text"),
        ("- a\n", "holds a list, expected `key: value` lines"),
        ("", "holds nothing, expected `key: value` lines"),
        ("run: !!python/object/apply:os.system [ls]\n", "line 1"),
        ("run: a\ttarget: x: y\n", "line 1"),
    ],
)
def test_bad_yaml_is_told_with_its_line(tmp_path: Path, text: str, told: str):
    with pytest.raises(UserError) as caught:
        load_plan(text_plan(tmp_path, text))
    assert told in str(caught.value)
    assert "plan.yaml" in str(caught.value)


def test_numbers_may_be_keys_and_home_is_where_the_shell_has_it(tmp_path: Path):
    file = text_plan(tmp_path, "reader: ~/readers/a\nclasses: {7: road}\n")
    assert read_settings(file)["classes"] == {"7": "road"}

    class Named(Settings):
        reader: Path
        classes: Mapping[int, str]

    found = check(Named, read_settings(file))
    assert found.reader == Path.home() / "readers/a"
    assert found.classes == {7: "road"}
    file = text_plan(tmp_path, "reader: ~2023/a\nclasses: {}\n")
    assert check(Named, read_settings(file)).reader == Path("~2023/a"), "nobody is called so"


def test_what_is_no_plan_is_told(tmp_path: Path):
    with pytest.raises(UserError, match=r"plan .*plan\.yaml.*expected valid YAML"):
        load_plan(text_plan(tmp_path, "run: 2024-13-45\n"))
    with pytest.raises(UserError, match="holds itself, by an alias"):
        load_plan(text_plan(tmp_path, "run: &a [*a]\n"))


def test_an_unreadable_file(tmp_path: Path):
    with pytest.raises(UserError, match=r"cannot read plan .*nö such.yaml: No such file or directory; give the path"):
        load_plan(tmp_path / "nö such.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"run: \xe9\n")
    with pytest.raises(UserError, match="not UTF-8 text"):
        load_plan(tmp_path / "latin.yaml")


def test_merge_keys_are_no_doubled_keys(tmp_path: Path):
    values = toys.plan_values(tmp_path / "run")
    del values["filters"]
    file = toys.write_plan(tmp_path / "plan.yaml", values)
    file.write_text(
        file.read_text() + "filters:\n- &f {kind: confidence, minimum: 0.1}\n- {<<: *f, minimum: 0.2}\n",
        encoding="utf-8",
    )
    assert [part.to_json()["minimum"] for part in load_plan(file).filters] == [0.1, 0.2]


def digest(plan_file: Path, *overrides: str) -> str:
    return run_of(plan_file, *overrides).digest


def run_of(plan_file: Path, *overrides: str, **changes: Any) -> Run:
    plan = load_plan(plan_file, overrides)
    parts = build_parts(plan)
    values: dict[str, Any] = {
        "folder": plan.run,
        "plan": plan.model_dump(mode="json"),
        "identity": identity(plan, parts),
        "taxonomy": parts.labeller.taxonomy,
        "versions": library_versions(),
    }
    return Run(**{**values, **changes})


def test_the_digest_is_of_what_decides_the_bytes(plan_file: Path):
    same = ["target=99", "run=elsewhere", "exports=[]", "minimum_yield=0.5", "yield_after=3"]
    other = [
        "seed=1",
        "batch_size=4",
        "threads=2",
        "shard_size=2",
        "generator.side=32",
        "filters=[]",
        "labeller.depth=false",
    ]
    assert {digest(plan_file, override) for override in same} == {digest(plan_file)}
    assert len({digest(plan_file, override) for override in other} | {digest(plan_file)}) == len(other) + 1


def test_a_default_written_out_is_the_same_plan(plan_file: Path):
    assert digest(plan_file, "generator.side=16") == digest(plan_file)


def test_files_count_by_content_not_by_path(plan_file: Path, tmp_path: Path):
    first, second, third = (tmp_path / name for name in ("a.txt", "b.txt", "c.txt"))
    first.write_text("a car\n")
    second.write_text("a car\n")
    third.write_text("a road\n")
    digests = [digest(plan_file, f"source={{kind: prompts, file: {file}}}") for file in (first, second, third)]
    assert digests[0] == digests[1] != digests[2]


def test_a_claimed_folder_goes_on_with_the_same_plan(plan_file: Path):
    claimed = claim(run_of(plan_file))
    assert open_run(claimed.folder) == claimed
    before = (claimed.folder / "plan.yaml").read_bytes()
    assert claim(run_of(plan_file)) == claimed
    assert (claimed.folder / "plan.yaml").read_bytes() == before
    claim(run_of(plan_file, "target=20"))
    assert open_run(claimed.folder).target == 20


def test_a_folder_of_another_plan_is_refused(plan_file: Path):
    claimed = claim(run_of(plan_file))
    before = (claimed.folder / "plan.yaml").read_bytes()
    with pytest.raises(UserError) as caught:
        claim(run_of(plan_file, "seed=7", "generator.side=32"))
    told = str(caught.value)
    assert "  generator.side: 16 there, 32 in the plan" in told
    assert "  seed: 0 there, 7 in the plan" in told
    assert "batch_size" not in told
    assert "--to" in told
    assert (claimed.folder / "plan.yaml").read_bytes() == before


def test_shards_without_a_plan_are_nobodys(plan_file: Path):
    run = run_of(plan_file)
    (run.folder / "shards").mkdir(parents=True)
    (run.folder / "shards/000000.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds shards but no plan.yaml"):
        claim(run)


def test_other_versions_go_on_with_a_warning(plan_file: Path, caplog: pytest.LogCaptureFixture):
    claim(run_of(plan_file, versions={**library_versions(), "torch": "1.0"}))
    run = claim(run_of(plan_file))
    assert run.versions["torch"] == "1.0"
    assert "this run was begun with torch 1.0" in caplog.text


def test_other_hardware_goes_on_with_a_warning(plan_file: Path, caplog: pytest.LogCaptureFixture):
    run = claim(run_of(plan_file))
    info = run.info()
    note_hardware(run, "cpu, float32")
    run = claim(run_of(plan_file, "target=20"))
    note_hardware(run, "cpu, float32")
    assert not caplog.text
    assert run.info() == info, "a dataset that is there goes on"
    note_hardware(run, "NVIDIA H100 80GB HBM3, float16")
    assert "begun on cpu, float32, now it is NVIDIA H100 80GB HBM3, float16" in caplog.text
    assert open_run(run.folder).hardware == "cpu, float32"


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("", ""),
        ("evaluation: x\n", "it has no 'plan'"),
        ("[", ""),
        ("digest: x\nplan: {}\nidentity: {}\n", "it has no 'taxonomy'"),
    ],
)
def test_a_damaged_plan_file_is_told(plan_file: Path, damage: str, told: str):
    run = claim(run_of(plan_file))
    (run.folder / "plan.yaml").write_text(damage)
    with pytest.raises(UserError, match=rf"plan.yaml cannot be read \(.*{told}"):
        open_run(run.folder)


def test_a_folder_without_a_run(tmp_path: Path):
    with pytest.raises(UserError, match=r"holds no run: plan.yaml is missing"):
        open_run(tmp_path)
