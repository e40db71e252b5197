"""Recipes are functions of their position."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from datagen.plugins import choose_part
from datagen.randomness import choose, seed_for
from datagen.sources.prompts import Prompts
from datagen.sources.templates import Phrase, Templates
from decoders.errors import UserError
from decoders.labels import Taxonomy

STREET = Taxonomy(
    names=("sky", "traffic sign", "car", "bus", "person", "body"),
    is_thing=(False, True, True, True, True, True),
    colors=((0, 0, 0),) * 6,
    phrases=("sky", "traffic sign", "car", "coach", "person", "body"),
)


def templates(seed: int = 0, **settings: Any) -> Templates:
    return Templates(seed=seed, taxonomy=STREET, **settings)


def prompts(file: Path, text: str | bytes, seed: int = 0) -> Prompts:
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return Prompts(file=file, seed=seed, taxonomy=STREET)


def test_a_seed_depends_on_run_sample_and_role_alone():
    assert seed_for(0, "00000001", "picture") == 1356354736194462539  # another number would change every dataset
    assert 0 <= seed_for(2**80, "x", "y") < 2**63
    assert len({seed_for(run, sample, role) for run in (0, 1) for sample in "ab" for role in "cd"}) == 8


def test_choices_follow_their_weights():
    counts = Counter(choose("ab", [1.0, 3.0], seed_for(0, str(index), "")) for index in range(2000))
    assert 1400 < counts["b"] < 1600


def test_recipes_do_not_depend_on_the_order_of_asking():
    source = templates(
        templates=("a {look} of {what}", "{what}, {look}"), slots={"look": ("p", "q"), "what": ("r", "s")}
    )
    forward = [source.recipe(index) for index in range(20)]
    assert [source.recipe(index) for index in reversed(range(20))] == forward[::-1]
    assert [recipe.id for recipe in forward[:2]] == ["00000000", "00000001"]
    assert len({recipe.seed for recipe in forward}) == 20
    assert {recipe.prompt for recipe in forward} == {
        f"{form}".format(look=look, what=what)
        for form in ("a {look} of {what}", "{what}, {look}")
        for look in "pq"
        for what in "rs"
    }


def test_another_run_seed_gives_other_recipes():
    first, second = (templates(seed, templates=("{n}",), slots={"n": tuple("abcdefgh")}) for seed in (0, 1))
    assert [first.recipe(index).prompt for index in range(9)] != [second.recipe(index).prompt for index in range(9)]
    assert first.recipe(0).seed != second.recipe(0).seed


def test_wanted_classes_are_collected_in_taxonomy_order():
    source = templates(
        templates=(Phrase(text="{a} {b} {b}", wants=("person",)),),
        slots={
            "a": (Phrase(text="cars", wants=("car",)),),
            "b": (Phrase(text="{c} sky", wants=("sky",)),),
            "c": ("red",),
        },
    )
    assert source.recipe(0).wanted == ("sky", "car", "person")
    assert source.recipe(0).prompt == "cars red sky red sky"


def test_a_slot_that_occurs_twice_is_drawn_twice():
    source = templates(templates=("{n}{n}",), slots={"n": ("a", "b")})
    assert {source.recipe(index).prompt for index in range(40)} == {"aa", "ab", "ba", "bb"}


def test_a_later_slot_leaves_other_draws_as_they_were():
    short = templates(templates=("{n}",), slots={"n": tuple("abcd")})
    long = templates(templates=("{m} {n}",), slots={"n": tuple("abcd"), "m": tuple("wxyz")})
    assert all(long.recipe(index).prompt.endswith(short.recipe(index).prompt) for index in range(20))


def test_weights_and_braces():
    source = templates(templates=("{{{n}}}",), slots={"n": (Phrase(text="a", weight=1e-9), "b")})
    assert {source.recipe(index).prompt for index in range(20)} == {"{b}"}


def test_an_empty_value_leaves_no_double_blank():
    assert templates(templates=("a {n} car",), slots={"n": ("",)}).recipe(3).prompt == "a car"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"templates": ["a {lok}"], "slots": {"look": ["x"]}},
            "unknown slot {lok}; did you mean 'look'? known slots: look",
        ),
        (
            {"templates": ["a"], "slots": {"look": ["x"]}},
            "slots look occur in no template; write {look} where one belongs",
        ),
        ({"templates": ["{a}"], "slots": {"a": ["{b}"], "b": ["{a}"]}}, "slot {a} contains itself: a > b > a"),
        ({"templates": ["{a"], "slots": {}}, "'{a' is no template"),
        ({"templates": ["{}"]}, "'{}' is no template: a slot is a name in braces"),
        ({"templates": ["{a:3}"], "slots": {"a": ["x"]}}, "is no template"),
        ({"templates": []}, "source.templates: found [], expected "),
        ({"templates": ["{a}"], "slots": {"a": []}}, "source.slots.a: found [], expected "),
        (
            {"templates": [{"text": "a", "wants": ["cra"]}]},
            "wants: 'cra' is no class; did you mean 'car'?",
        ),
        ({"templates": [{"text": "a", "weight": 0}]}, "source.templates.0.weight: found 0, expected greater than 0"),
    ],
)
def test_mistakes_in_templates(settings: dict[str, Any], told: str):
    with pytest.raises(UserError) as caught:
        choose_part("sources", {"kind": "templates", **settings}, at="source").build(seed=0, taxonomy=STREET)
    assert told in str(caught.value)
    assert str(caught.value).startswith("source")


def test_prompts_come_in_order_and_again_with_new_seeds(tmp_path: Path):
    source = prompts(tmp_path / "prömpts list.txt", "\ufeff# written by hand\n\na red car\r\n  two buses  \n# end\n")
    recipes = [source.recipe(index) for index in range(4)]
    assert [recipe.prompt for recipe in recipes] == ["a red car", "two buses", "a red car", "two buses"]
    assert len({recipe.seed for recipe in recipes}) == 4


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("two Cars and a coach", ("car", "bus")),
        ("traffic-signs under a sky", ("sky", "traffic sign")),
        ("three people, many bodies", ("person", "body")),
        ("buses", ("bus",)),
        ("cargo, a skyline, a scar, carpet, personal", ()),
        ("a sign in traffic", ()),
    ],
)
def test_wanted_classes_are_whole_words(tmp_path: Path, prompt: str, wanted: tuple[str, ...]):
    assert prompts(tmp_path / "p.txt", prompt).recipe(0).wanted == wanted


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "holds no prompt, expected one per line; write at least one"),
        (b"# only\n\n  \n", "holds no prompt"),
        (b"a caf\xe9\n", "is not UTF-8: byte 5 cannot be read; save it in that encoding"),
    ],
)
def test_bad_prompt_files(tmp_path: Path, content: bytes, told: str):
    with pytest.raises(UserError, match=told):
        prompts(tmp_path / "p.txt", content)
