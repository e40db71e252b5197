"""Kinds, settings and entry points."""

from pathlib import Path
from typing import Annotated, Any

import pytest
from annotated_types import Ge

from datagen.filters.confidence import Confidence
from datagen.plugins import Group, choose_part, find, kinds, settings_model
from decoders.errors import UserError
from decoders.labels import Taxonomy
from tests.datagen import toys


class Plugin:
    def __init__(
        self,
        *,
        count: Annotated[int, Ge(1)],
        folder: Path | None = None,
        names: tuple[str, ...] = (),
        taxonomy: Taxonomy,
    ) -> None:
        self.arguments = (count, folder, names, taxonomy)


@pytest.fixture
def toys_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(toys.install(tmp_path / "site packages é")))


def choose(values: Any, group: Group = "filters", at: str = "filters.0") -> Any:
    return choose_part(group, values, at=at).build(taxonomy=toys.TAXONOMY)


def test_a_kind_is_a_file_and_its_class():
    part = choose_part("filters", {"kind": "confidence", "minimum": 0.25}, at="filters.0")
    assert part.factory is Confidence
    assert part.to_json() == {
        "kind": "confidence",
        "label": None,
        "minimum": 0.25,
        "sure_from": 0.5,
        "minimum_sure": 0.0,
    }
    assert isinstance(part.build(), Confidence)


def test_a_bare_word_is_a_kind_without_settings():
    assert isinstance(choose("confidence"), Confidence)


def test_every_group_lists_its_kinds():
    assert {"templates", "prompts"} <= set(kinds("sources"))
    assert "stable_diffusion" in kinds("generators")
    assert "decoded" in kinds("labellers")
    assert "coco" in kinds("exporters")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"kind": "confidense"}, "filters.0.kind: unknown kind 'confidense'; did you mean 'confidence'? known kinds:"),
        ({"kind": "zzz"}, "filters.0.kind: unknown kind 'zzz'; known kinds: agreement, class_coverage, confidence"),
        (
            {"kind": "confidence", "minimun": 0.5},
            "filters.0.minimun: unknown key; did you mean 'minimum'? known keys: kind, label, minimum, minimum_sure",
        ),
        ({"kind": "confidence", "minimum": "high"}, "filters.0.minimum: found 'high', expected a valid number"),
        ({"kind": "confidence", "minimum": True}, "filters.0.minimum: found True, expected a valid number"),
        ({"kind": "confidence", "minimum": 1.5}, "filters.0.minimum: found 1.5, expected less than or equal to 1"),
        (
            {"kind": "class_coverage", "minimum_pixels": 1.0},
            "filters.0.minimum_pixels: found 1.0, expected",
        ),
        ({"minimum": 0.5}, "filters.0: found {'minimum': 0.5}, expected `kind:` and its settings"),
        (3, "filters.0: found 3, expected `kind:`"),
        ({"kind": "class_coverage", "taxonomy": []}, "filters.0.taxonomy: unknown key"),
    ],
)
def test_mistakes_are_told_with_their_full_key(values: Any, told: str):
    with pytest.raises(UserError) as caught:
        choose(values)
    assert told in str(caught.value)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(UserError) as caught:
        choose({"kind": "confidence", "minimum": -1, "sure_from": "x"})
    assert len(str(caught.value).splitlines()) == 2


def test_a_schema_is_the_signature_without_what_is_given():
    schema = settings_model(Plugin, given=("taxonomy",))
    assert list(schema.model_fields) == ["count", "folder", "names"]
    values = schema.model_validate_json('{"count": 2, "folder": "a/b", "names": ["x"]}')
    assert (values.model_dump()) == {"count": 2, "folder": Path("a/b"), "names": ("x",)}


def test_a_class_with_untyped_arguments_is_no_plugin():
    class Untyped:
        def __init__(self, *, size=3):  # pyright: ignore[reportMissingParameterType]
            self.size = size

    class Positional:
        def __init__(self, size: int) -> None:
            self.size = size

    for factory in (Untyped, Positional):
        with pytest.raises(TypeError, match="'size' of a plug-in must be keyword-only and have a type"):
            settings_model(factory, given=())


def test_what_the_plan_lacks_is_named():
    with pytest.raises(
        UserError, match=r"generator: stable_diffusion needs a model, found none in the plan; add `model:`"
    ):
        choose({"kind": "stable_diffusion"}, "generators", "generator")


def test_an_error_from_the_constructor_names_the_place():
    part = choose_part("sources", {"kind": "prompts", "file": "no/such file.txt"}, at="source")
    with pytest.raises(UserError, match=r"^source: cannot read prompts file no/such file.txt"):
        part.build(taxonomy=toys.TAXONOMY, seed=0)


@pytest.mark.usefixtures("toys_installed")
def test_an_installed_package_adds_a_generator():
    assert "noise" in kinds("generators")
    part = choose_part("generators", {"kind": "noise", "side": 24}, at="generator")
    assert part.to_json() == {"kind": "noise", "side": 24, "pause": 0.0}
    assert type(part.build()).__qualname__ == "Noise"
    with pytest.raises(UserError, match=r"generator.sid: unknown key; did you mean 'side'\?"):
        choose_part("generators", {"kind": "noise", "sid": 24}, at="generator")
    with pytest.raises(UserError, match=r"generator.side: found 4, expected greater than or equal to 8"):
        choose_part("generators", {"kind": "noise", "side": 4}, at="generator")


def offer(folder: Path, package: str, entries: str) -> None:
    (folder / f"{package}-1.0.dist-info").mkdir(parents=True)
    (folder / f"{package}-1.0.dist-info/METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (folder / f"{package}-1.0.dist-info/entry_points.txt").write_text(entries)


def test_a_plugin_that_does_not_load_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    offer(tmp_path, "broken", "[datagen.filters]\nbroken = no_such_module:Thing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"plug-in 'broken' \(no_such_module:Thing\) does not load: No module named"):
        choose("broken")


def test_nobody_replaces_a_kind_unseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    offer(tmp_path, "first", "[datagen.filters]\nconfidence = a:B\nsharp = a:B\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find("filters", "confidence", at="") is Confidence
    offer(tmp_path / "more", "second", "[datagen.filters]\nsharp = c:D\n")
    monkeypatch.syspath_prepend(str(tmp_path / "more"))
    with pytest.raises(UserError, match="two installed packages offer the kind 'sharp'"):
        find("filters", "sharp", at="")
