"""Prompts of layouts: attributes by their weights, classes by their words."""

from collections import Counter
from typing import Any

import pytest

from datagen.sources.templates import Phrase
from datagen.style_prompts import StylePrompts
from decoders.errors import UserError
from tests.datagen.made_up import TAXONOMY

WEATHER = ("fog", Phrase(text="rain", weight=3.0))


def prompts(prompt: str = "{classes}", **settings: Any) -> StylePrompts:
    defaults: dict[str, Any] = {"style": {}, "words": {}, "plain_share": 0.0, "taxonomy": TAXONOMY}
    return StylePrompts(**{**defaults, **settings}, prompt=prompt)


def test_classes_are_told_by_words_phrase_or_not_at_all():
    composer = prompts("see {{{classes}}}", words={"sky": "a {red} sky", "background": ""})
    assert composer.compose(0, "a", ("sky", "car", "background")) == ("see {a {red} sky, a car}", {})
    assert composer.compose(0, "a", ()) == ("see {}", {})


def test_attributes_follow_their_weights_and_say_what_the_prompt_says():
    composer = prompts("{time} {weather}, {weather}", style={"weather": WEATHER, "time": ("by day", "", "at night")})
    drawn = [composer.compose(4, str(index), ("car",)) for index in range(2000)]
    for prompt, attributes in drawn:
        assert prompt == f"{attributes['time']} {attributes['weather']}, {attributes['weather']}".strip()
    assert 1420 < Counter(attributes["weather"] for _, attributes in drawn)["rain"] < 1580
    assert len({prompt for prompt, _ in drawn}) == 6  # time and weather are drawn apart
    assert [composer.compose(4, str(index), ("car",)) for index in range(9)] == drawn[:9]
    assert [composer.compose(5, str(index), ("car",)) for index in range(9)] != drawn[:9]


def test_an_attribute_that_is_added_leaves_the_others_as_they_were():
    few = prompts("{weather}", style={"weather": WEATHER})
    many = prompts("{time} {weather}", style={"time": ("day", "night"), "weather": WEATHER}, plain_share=1e-9)
    for index in range(30):
        before, after = (each.compose(0, str(index), ())[1] for each in (few, many))
        assert before["weather"] == after["weather"]


def test_plain_prompts_have_their_share_and_claim_no_style():
    composer = prompts("{classes} in {weather}", style={"weather": WEATHER}, plain_share=0.25)
    plain = [composer.compose(0, str(index), ("sky", "car")) for index in range(2000)]
    assert 430 < plain.count(("sky, a car", {})) < 570
    assert {prompt for prompt, _ in plain} == {"sky, a car", "sky, a car in fog", "sky, a car in rain"}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"words": {"cra": "x"}}, "words: 'cra' is no class; did you mean 'car'? classes: background"),
        (
            {"prompt": "{wether}", "style": {"weather": ("fog",)}},
            "unknown slot {wether}; did you mean 'weather'? known slots: classes, weather",
        ),
        ({"style": {"weather": ("fog",)}}, "slots weather occur in no template; write {weather} where one belongs"),
        ({"prompt": "{clases}"}, "unknown slot {clases}; did you mean 'classes'?"),
        ({"prompt": "{classes"}, "'{classes' is no template"),
        ({"prompt": "{classes[0]}"}, "unknown slot {classes[0]}"),
        ({"style": {"classes": ("fog",)}}, "style: found an attribute 'classes', expected a word"),
        ({"prompt": "{crop}", "style": {"crop": ("x",)}, "reserved": ("crop",)}, "none of classes, crop; rename it"),
        ({"prompt": "{0}", "style": {"0": ("fog",)}}, "style: found an attribute '0'"),
        ({"prompt": "{a}", "style": {"a": ("in {b}",)}}, "style.a: found 'in {b}', expected text without braces"),
        (
            {"prompt": "{a}", "style": {"a": (Phrase(text="x", wants=("car",)),)}},
            "style.a: 'x' wants car, but a layout has its classes already; remove `wants`",
        ),
    ],
)
def test_mistakes(settings: dict[str, Any], told: str):
    with pytest.raises(UserError) as caught:
        prompts(**settings)
    assert told in str(caught.value)
