"""The command line as a user meets it: in a process of its own where exit codes and signals count."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import OutOfMemoryError
from typer.main import get_command
from typer.testing import CliRunner

from datagen import cli
from datagen.coco_format import read_coco
from datagen.datasets.coco import ANNOTATIONS
from decoders.errors import UserError
from tests.datagen import toys

COMMANDS: dict[str, Any] = vars(get_command(cli.app))["commands"]
VERBS = [verb for verb in COMMANDS if verb != "pocket"] + [f"pocket {verb}" for verb in COMMANDS["pocket"].commands]


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "datagen", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


def test_classes_are_asked_for_by_name_and_phrase():
    phrases = cli._phrases  # pyright: ignore[reportPrivateUsage]
    assert phrases("road, car ,tram=a yellow tram") == {"road": None, "car": None, "tram": "a yellow tram"}
    for text in ("road,road", "road,,car", "=a tram"):
        with pytest.raises(UserError, match="twice or not at all"):
            phrases(text)


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_explains_itself_with_an_example(verb: str):
    done = CliRunner().invoke(cli.app, [*verb.split(), "--help"])
    assert done.exit_code == 0
    assert f"Example: datagen {verb}" in done.output


@pytest.mark.parametrize(
    ("typed", "settings"),
    [
        (["--set", "a=1", "b.c=x y", "PLAN"], ["a=1", "b.c=x y"]),
        (["PLAN", "--set", "a=1", "--set", "b=2"], ["a=1", "b=2"]),
        (["--set", "a=-1", "--to", "x=y", "PLAN"], ["a=-1"]),
        (["PLAN"], []),
    ],
)
def test_set_takes_one_or_several(typed: list[str], settings: list[str], monkeypatch: pytest.MonkeyPatch):
    seen: list[object] = []

    def note(plan: Path, **settings: object) -> None:
        seen.extend([plan, settings["overrides"]])

    monkeypatch.setattr("datagen.fitting.fit_from_plan", note)
    done = CliRunner().invoke(cli.app, ["fit", *typed])
    assert done.exit_code == 0, done.output
    assert seen == [Path("PLAN"), settings]


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (UserError("found [bold]x[/bold], expected y"), 2, "error: found [bold]x[/bold], expected y\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/a.tar"),
            2,
            "the disk is full while writing runs/a.tar",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "readers/mine/reader.json"),
            2,
            "error: no permission to read or write readers/mine/reader.json; give yourself the right",
        ),
        (KeyboardInterrupt(), 130, "go on with\n  datagen"),
        (OutOfMemoryError("CUDA out of memory. Tried ...\nmore"), 2, "is full (CUDA out of memory. Tried ...); take a"),
    ],
)
def test_what_a_user_can_mend_is_one_message(
    raised: BaseException, code: int, told: str, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr("datagen.fitting.fit_from_plan", fail)
    done = CliRunner().invoke(cli.app, ["fit", "plan.yaml"])
    assert done.exit_code == code
    assert told in done.stderr
    assert "Traceback" not in done.output


def test_a_bug_is_a_crash(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr("datagen.fitting.fit_from_plan", fail)
    assert isinstance(CliRunner().invoke(cli.app, ["fit", "plan.yaml"]).exception, OSError)


@pytest.mark.parametrize("verb", ["generate", "fit"])
def test_a_missing_plan(verb: str, tmp_path: Path):
    done = run(verb, tmp_path / "no such plan é.yaml", "--to", tmp_path / "out")
    assert done.returncode == 2
    assert "no such plan é.yaml" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_no_plan_named():
    done = run("generate")
    assert done.returncode == 2
    assert "PLAN.yaml" in done.stderr


def test_version():
    done = run("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("datagen 0.")


def invoke(*arguments: str | Path) -> str:
    done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_from_a_plan_to_another_dataset_and_its_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(toys.install(tmp_path / "site")))
    made = tmp_path / "my run é"
    plan = toys.write_plan(tmp_path / "a plan.yaml", toys.plan_values(tmp_path / "elsewhere", filters=[]))
    told = invoke("generate", plan, "--to", made, "--set", "target=5", "seed=3")
    assert told.startswith("5 labelled pictures")
    assert str(made / "exports/coco") in told
    assert not (tmp_path / "elsewhere").exists()
    assert invoke("export", "coco", made, "--to", tmp_path / "copy") == f"5 pictures in {tmp_path / 'copy'}\n"
    chosen = ["--set", "min_instance_pixels=100000"]
    invoke("export", "coco", made, "--to", tmp_path / "no objects", *chosen)
    counts = [read_coco(tmp_path / name / ANNOTATIONS).annotations for name in ("copy", "no objects")]
    assert counts[0]
    assert not counts[1], "no region is that large"
    names = sorted(path.name for path in (tmp_path / "copy/images").iterdir())
    assert names == sorted(path.name for path in (made / "exports/coco/images").iterdir())
    assert "is sound: 5 pictures" in invoke("validate", tmp_path / "copy")
    for shown in (made, tmp_path / "copy"):
        invoke("show", shown, "--to", tmp_path / "sheet.png", "--count", "2")
        with Image.open(tmp_path / "sheet.png") as sheet:
            assert min(sheet.size) > 100
        (tmp_path / "sheet.png").unlink()
    (tmp_path / "copy/images" / names[0]).write_bytes(b"cut")
    done = CliRunner().invoke(cli.app, ["validate", str(tmp_path / "copy")])
    assert done.exit_code == 2
    assert names[0] in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["export", "coco", "nowhere", "--to", "out"], "nowhere holds no run"),
        (["export", "kitti", "nowhere", "--to", "out"], "unknown kind 'kitti'"),
        (["export", "mine:Kitti", "nowhere", "--to", "out"], "FORMAT.kind: no module 'mine' in"),
        (["export", "coco", "nowhere", "--to", "out", "--set", "min_pixels=3"], "FORMAT.min_pixels: unknown key"),
        (["validate", "nowhere"], "nowhere"),
        (["show", "nowhere", "--to", "sheet.png"], "neither a run"),
        (
            ["show", "nowhere", "--to", "sheet.jpg"],
            "sheet.jpg will be a PNG picture, expected a name that ends in .png",
        ),
        (["inspect", "nowhere.yaml", "--to", "sheet"], "sheet will be a PNG picture"),
        (["label", "--reader", "nowhere", "in", "--to", "out"], "nowhere is not a reader"),
    ],
)
def test_what_is_not_there_is_told(arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 2
    assert told in done.stderr
    assert not list(tmp_path.iterdir())
