"""`datagen keys`: what it says is what plans take, and nothing is left unexplained."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from datagen.cli import app
from datagen.keys import TASKS, keys, tell, topics
from datagen.plugins import choose_part
from datagen.settings import PLANS
from decoders.errors import UserError
from tests.datagen import toys

PARTS = [
    ("sources", "templates", {"templates": ["a road"]}),
    ("generators", "stable_diffusion", {}),
    ("labellers", "decoded", {"reader": "readers/a"}),
    ("filters", "confidence", {}),
    ("exporters", "coco", {}),
    ("datasets", "label_folder", {"root": "photos"}),
    ("students", "segmenter", {}),
]


def everything() -> list[tuple[str, str | None]]:
    found: list[tuple[str, str | None]] = [(verb, None) for verb in PLANS]
    groups = [topic for topic in topics() if topic not in PLANS]
    return found + [(group, line.split()[0]) for group in groups for line in tell(group).splitlines()]


@pytest.mark.parametrize(("topic", "kind"), everything())
def test_every_key_is_explained(topic: str, kind: str | None):
    found = keys(topic, kind)
    assert [key.name for key in found if not key.says or not key.takes] == []
    assert len({key.name for key in found}) == len(found)
    for key in found:
        assert key.default is None or isinstance(yaml.safe_load(f"{{key: {key.default}}}"), dict)
        assert not isinstance(yaml.safe_load(key.default or ""), dict) or key.takes.startswith(("mapping", "anything"))


@pytest.mark.parametrize(("group", "kind", "needed"), PARTS)
def test_defaults_written_out_are_the_defaults(group: Any, kind: str, needed: dict[str, Any]):
    word = "format" if group == "datasets" else "kind"
    told = {key.name: key.default for key in keys(group, kind) if "." not in key.name}
    assert {name for name, default in told.items() if default is None} == set(needed)
    written = {name: yaml.safe_load(default) for name, default in told.items() if default}
    plain = choose_part(group, {word: kind, **needed}, at=group)
    assert choose_part(group, {word: kind, **written, **needed}, at=group).to_json() == plain.to_json()


def test_bounds_choices_and_keys_within_keys_are_told():
    found = {key.name: key for key in keys("generators", "controlnet")}
    assert found["steps"].takes == "whole number >= 1 and <= 1000"
    assert found["scheduler"].takes.endswith("unipc or null")
    assert found["controls"].default is None
    assert found["controls.0.class_scales"].takes == "mapping of text to number >= 0"
    assert (found["fusion"].default, found["fusion.tile_batch"].default) == ("null", "8")
    assert "1 or less switches it off" in found["guidance"].says, "what it inherits is explained there"
    fit = {key.name: key for key in keys("fit")}
    assert fit["fit.augmentation.zoom"].default == "[0.8, 1.6]"
    assert str(fit["data"]).startswith("data:  ")
    assert fit["data"].takes == "one of: datagen keys datasets"
    assert fit["validation"].takes == "one of: datagen keys datasets or null"
    layouts = {key.name: key for key in keys("sources", "layouts")}
    assert layouts["prompt"].default == '"{classes}"'
    assert layouts["words"].takes == "mapping of text to text or null"
    assert {key.name: key for key in keys("generate")}["filters"].takes == "list of, each one of: datagen keys filters"
    assert "has no keys" in tell("conditions", "one_hot")


def test_plug_ins_of_others_are_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(toys.install(tmp_path / "site")))
    assert "noise" in tell("generators")
    assert [(key.name, key.default, key.says) for key in keys("generators", "noise")] == [
        ("side", "16", ""),
        ("pause", "0.0", ""),
    ]


@pytest.mark.parametrize(
    ("topic", "kind", "told"),
    [
        ("generator", None, "unknown topic 'generator'; did you mean 'generators'"),
        ("generators", "contrlnet", "unknown kind 'contrlnet'; did you mean 'controlnet'"),
        (TASKS, "depht", "unknown task 'depht'; did you mean 'depth'"),
        ("datasets", "cocoo", "unknown format 'cocoo'; did you mean 'coco'"),
        ("fit", "x", "a plan of fit has no kinds, found 'x'"),
    ],
)
def test_what_is_not_there_is_told(topic: str, kind: str | None, told: str):
    with pytest.raises(UserError, match=told):
        tell(topic, kind)


def test_the_verb():
    shown = CliRunner().invoke(app, ["keys"])
    assert shown.exit_code == 0
    assert "datagen keys generators controlnet" in shown.output
    shown = CliRunner().invoke(app, ["keys", "filters", "agreement"])
    assert "minimum_of_class: 0.0" in shown.output
