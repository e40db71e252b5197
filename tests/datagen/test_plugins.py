"""Kinds, settings, entry points and classes of the user's own modules."""

import sys
from collections.abc import Generator
from pathlib import Path
from typing import Annotated, Any

import pytest
from annotated_types import Ge

from datagen.filters.confidence import Confidence
from datagen.generation import generate
from datagen.keys import tell
from datagen.plugins import Group, choose_part, find, kinds, settings_model
from decoders.errors import UserError
from decoders.labels import Taxonomy
from tests.datagen import toys
from tests.datagen.made_up import readme_example


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


EXPORTER = """
class Count:
    def export(self, samples, taxonomy, folder, info):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("a") as log:
            log.write(f"{len(list(samples))};")
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Path, None, None]:
    """The current folder, with the README's example in it; what is imported from it is forgotten afterwards."""
    folder = tmp_path / "meine Filter"
    folder.mkdir()
    (folder / "my_filters.py").write_text(readme_example("class Bright"), encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


@pytest.mark.usefixtures("here")
def test_a_class_in_a_file_of_the_current_folder_is_a_kind():
    part = choose_part("filters", {"kind": "my_filters:Bright", "minimum": 60}, at="filters.0")
    assert part.to_json() == {"kind": "my_filters:Bright", "minimum": 60}
    verdict = part.build().judge(toys.sample())
    assert verdict.keep == (verdict.scores["brightness"] >= 60)
    assert tell("filters", "my_filters:Bright").startswith("minimum: 40.0")
    with pytest.raises(UserError, match=r"filters\.0\.minimun: unknown key; did you mean 'minimum'"):
        choose_part("filters", {"kind": "my_filters:Bright", "minimun": 60}, at="filters.0")


@pytest.mark.usefixtures("toys_installed")
def test_a_run_belongs_to_the_module_as_it_was(here: Path):
    (here / "my_exporters.py").write_text(EXPORTER)
    filters, exports = [{"kind": "my_filters:Bright", "minimum": 1}], [{"kind": "my_exporters:Count"}]
    plan = toys.write_plan(here / "plan.yaml", toys.plan_values(here / "run", filters=filters, exports=exports))
    log = here / "run/exports/my_exporters:Count/log.txt"
    for expected in ("6;", "6;"):  # the second time nothing is left to do
        generate(plan)
        assert log.read_text() == expected
    (here / "my_exporters.py").write_text(EXPORTER + "# edited")
    generate(plan)
    assert log.read_text() == "6;6;"
    with (here / "my_filters.py").open("a") as file:
        file.write("# edited")
    with pytest.raises(UserError, match=r"belongs to another plan:\n  filters\.0\.code: "):
        generate(plan)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (
            "my_filter:Bright",
            r"filters\.0\.kind: no module 'my_filter' in .*meine Filter or installed; run the command in",
        ),
        ("nowhere.at.all:X", r"no module 'nowhere\.at\.all' in"),
        ("my_filters:Brigth", r"my_filters\.py has no class 'Brigth'; did you mean 'Bright'\? it has: Bright"),
        ("my_filters:", r"has no class ''; it has: Bright"),
        (":Bright", r"the module '' does not load \(ValueError"),
        ("broken:X", r"the module 'broken' does not load \(ModuleNotFoundError: No module named 'no_such_thing'\)"),
        ("cut:X", r"the module 'cut' does not load \(SyntaxError: .*cut\.py, line 1"),
        (
            "others:Positional",
            r"filters\.0\.kind: others:Positional is no plug-in: .*'size' of a plug-in must be keyword-only",
        ),
        ("others:Unknown", r"others:Unknown is no plug-in: name 'Missing' is not defined"),
        ("others:Odd", r"others:Odd is no plug-in: Unable to generate pydantic-core schema"),
        ("others:Empty", r"others:Empty is none of the filters: it has no method 'judge'"),
    ],
)
def test_what_is_wrong_with_a_class_of_ones_own_is_told(kind: str, told: str, here: Path):
    (here / "broken.py").write_text("import no_such_thing")
    (here / "cut.py").write_text("class X(")
    (here / "others.py").write_text(
        "class Positional:\n    def __init__(self, size: int) -> None: ...\n"
        "class Unknown:\n    def __init__(self, *, size: 'Missing') -> None: ...\n"
        "class Stranger: ...\n"
        "class Odd:\n    def __init__(self, *, size: Stranger) -> None: ...\n"
        "class Empty: ...\n"
    )
    with pytest.raises(UserError, match=told):
        choose(kind)


def test_a_broken_plugin_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "raises_at_once.py").write_text("1 / 0")
    offer(tmp_path, "broken", "[datagen.filters]\nbroken = raises_at_once:Thing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    lines = {line.split()[0]: line for line in tell("filters").splitlines()}
    assert "cannot be used: the installed plug-in 'broken' (raises_at_once:Thing) does not load" in lines["broken"]
    assert "confidence" in lines
    assert "cannot be used" not in lines["confidence"]
