"""What is told about a run is true: asked against delivered, made against accepted."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from datagen import cli
from datagen.audit import Tally, audit
from datagen.generation import generate
from datagen.records import Guide, Recipe, Sample, Verdict
from datagen.runs import Run, claim, open_run
from decoders.errors import UserError
from decoders.labels import InstanceSet, semantic_map
from tests.datagen import toys

KEPT = Verdict(keep=True)


def sample(
    number: int, ids: list[list[int]], *, recipe: dict[str, object], guide: list[list[int]] | None = None
) -> Sample:
    return Sample(
        recipe=replace(
            Recipe(id=f"{number:08d}", prompt="", seed=number),
            guide=None if guide is None else Guide(labels={"semantic": semantic_map(np.array(guide, np.uint8))}),
            **recipe,  # pyright: ignore[reportArgumentType]
        ),
        image=np.zeros((len(ids), len(ids[0]), 3), np.uint8),
        labels={"semantic": semantic_map(np.array(ids, np.uint8))},
    )


def run_of(folder: Path, *shards: list[tuple[Sample, Verdict]], target: int = 2) -> Path:
    """A run of the classes sky, road and car, as `generate` leaves it."""
    run = claim(Run(folder=folder, plan={"target": target}, identity={}, taxonomy=toys.TAXONOMY, versions={}))
    for index, shard in enumerate(shards):
        run.store.write(index, *map(list, zip(*shard, strict=True)))  # pyright: ignore[reportArgumentType]
    return folder


def swapped(folder: Path) -> Path:
    """Three samples made for guides, of which the one in fog was rejected."""
    day = {"weather": "sunny", "source": "a.png", "crop": "0 0", "scale": "1"}
    fog = {**day, "weather": "foggy", "source": "b.png", "anchor": "car"}
    return run_of(
        folder,
        [
            (sample(0, [[1, 2, 2, 0]], recipe={"attributes": day, "wanted": ("road",)}, guide=[[2, 2, 2, 2]]), KEPT),
            (
                sample(1, [[3, 3, 3, 3]], recipe={"attributes": fog, "wanted": ("road", "car")}, guide=[[2, 3, 0, 0]]),
                Verdict(keep=False, reason="no road"),
            ),
        ],
        [(sample(2, [[2, 2, 0, 0]], recipe={"attributes": {**day, "anchor": "road"}}, guide=[[2, 2, 2, 3]]), KEPT)],
    )


def test_what_was_asked_and_what_came_is_counted(tmp_path: Path):
    found = audit(swapped(tmp_path / "läufe"))
    assert (found.made.samples, found.accepted.samples, found.finished) == (3, 2, True)
    assert found.rejected == {"no road": 1}
    assert found.made.wanted == {"road": 2, "car": 1}
    assert found.accepted.wanted == {"road": 1}
    assert (found.made.anchors, found.accepted.anchors) == ({"car": 1, "road": 1}, {"road": 1})
    assert found.made.pixels.tolist() == [3, 1, 4, 4]
    assert found.accepted.pixels.tolist() == [3, 1, 4, 0]
    assert (found.made.shown, found.accepted.shown) == ({1: 1, 2: 2, 3: 1}, {1: 1, 2: 2})
    assert found.made.guide_pixels.tolist() == [2, 0, 8, 2]
    assert found.accepted.guide_pixels.tolist() == [0, 0, 7, 1]
    assert found.made.styles == {"weather": {"sunny": 2, "foggy": 1}}
    assert found.accepted.styles == {"weather": {"sunny": 2}}


def test_the_table_says_it_in_words(tmp_path: Path):
    lines = str(audit(swapped(tmp_path / "run"))).splitlines()
    assert lines[0] == f"{tmp_path / 'run'}: 2 wanted, 2 accepted of 3 made (66.7%)"
    assert lines[1] == "  1 rejected: no road (33.3%)"
    rows = {line.split()[1]: line.split()[2:] for line in lines if line.split() and line.split()[0] in ("id", "2", "3")}
    assert rows["class"] == ["wanted", "pictures", "pixels", "anchor", "in", "guides"]
    assert rows["road"] == ["2/1", "2/2", "44.44%/80.00%", "1/1", "80.00%/87.50%"]
    assert rows["car"] == ["1/0", "1/0", "44.44%/0.00%", "1/0", "20.00%/12.50%"]
    styles = lines[next(index for index, line in enumerate(lines) if line.startswith("weather")) :]
    assert [line.split() for line in styles] == [
        ["weather", "made", "accepted", "rate"],
        ["sunny", "2", "2", "100.0%"],
        ["foggy", "1", "0", "0.0%"],
    ]


def test_many_values_of_a_style_are_cut_short(tmp_path: Path):
    shard = [
        (sample(number, [[1]], recipe={"attributes": {"look": f"look {number % 30:02d}"}}), KEPT)
        for number in range(31)
    ]
    text = str(audit(run_of(tmp_path, shard)))
    assert text.index("look 00") < text.index("look 01") < text.index("look 19")
    assert "look 20" not in text
    assert text.endswith("  and 10 other values")


def test_objects_are_seen_and_a_run_without_classes_has_no_shares(tmp_path: Path):
    ball = InstanceSet.collect([np.ones((1, 2), bool)], [3], size=(1, 2))
    only_objects = replace(sample(0, [[1, 1]], recipe={}), labels={"instances": ball})
    found = audit(run_of(tmp_path, [(only_objects, KEPT)]))
    assert found.made.shown == {3: 1}
    row = next(line for line in str(found).splitlines() if line.split()[1:2] == ["car"])
    assert row.split()[2:] == ["0/0", "1/1", "-/-"]
    assert found.made.sizes.tolist() == [0, 0, 0, 1]
    assert next(line for line in str(found).splitlines() if "10.0% to all" in line).split()[-1] == "1.00/1.00"
    assert "anchor" not in str(found)
    assert "guides" not in str(found)


def test_sizes_of_objects_are_told_beside_those_that_were_asked_for(tmp_path: Path):
    asked, came = np.full((40, 50), 2), np.full((40, 50), 2)
    asked[:10, :10] = asked[30:34, 10:14] = 3  # 100 and 16 of 2,000 pixels
    came[:20, :20] = 3
    came[30:33, 10:13] = 3  # a speck
    shard = [(sample(0, came.tolist(), recipe={}, guide=asked.tolist()), KEPT)]
    found = audit(run_of(tmp_path, shard, target=1))
    assert found.made.guide_sizes.tolist() == [0, 1, 1, 0]
    assert found.made.sizes.tolist() == found.accepted.sizes.tolist() == [0, 0, 0, 1]
    table = [line.split()[-2:] for line in str(found).splitlines() if "of it" in line]
    assert table == [
        ["0.00/0.00", "0.00/0.00"],
        ["0.00/0.00", "1.00/1.00"],
        ["0.00/0.00", "1.00/1.00"],
        ["1.00/1.00", "0.00/0.00"],
    ]


def test_a_generated_run_agrees_with_its_own_summary_and_says_when_it_is_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(str(toys.install(tmp_path / "site")))
    plan = toys.write_plan(tmp_path / "plan.yaml", toys.plan_values(tmp_path / "run"))
    summary = generate(plan)
    assert summary is not None
    found = audit(summary.run)
    assert (found.made.samples, found.accepted.samples) == (summary.made, summary.accepted)
    assert found.rejected == summary.rejected
    stored = list(open_run(summary.run).store.accepted())
    for semantic_id, name in enumerate(toys.TAXONOMY.names, 1):
        truth = [np.asarray(one.labels["semantic"].values) == semantic_id for one in stored]  # pyright: ignore[reportAttributeAccessIssue]
        assert found.accepted.pixels[semantic_id] == sum(int(mask.sum()) for mask in truth)
        assert found.accepted.shown[semantic_id] == sum(bool(mask.any()) for mask in truth)
        assert found.accepted.wanted[name] == sum(name in one.recipe.wanted for one in stored)
    assert "unfinished" not in str(found)

    (summary.run / "shards/000001.done.json").unlink()
    part = CliRunner().invoke(cli.app, ["audit", str(summary.run)])
    assert part.exit_code == 0, part.output
    kept = len(open_run(summary.run).store.contiguous()[0].accepted)
    assert f"6 wanted, {kept} accepted of 4 made" in part.output
    assert f"unfinished: {6 - kept} to go; `datagen generate` with the same plan goes on" in part.output


def test_a_run_that_has_made_nothing_yet_is_told_so(tmp_path: Path):
    found = audit(run_of(tmp_path))
    assert not found.finished
    assert f"{tmp_path}: 2 wanted, 0 accepted of 0 made\nunfinished: 2 to go" in str(found)
    assert "0/0" in str(found)


def test_what_is_no_run_or_damaged_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="holds no run"):
        audit(tmp_path)
    tar = swapped(tmp_path / "run") / "shards/000001.tar"
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="it was damaged"):
        audit(tmp_path / "run")


def test_a_tally_begins_at_nothing():
    first, second = (Tally.of(toys.TAXONOMY) for _ in range(2))
    first.pixels += 1
    assert not second.pixels.any()
    assert not first.guide_pixels.any()
