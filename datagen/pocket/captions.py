"""What one would say about a scene: only what is seen, in several forms, so that every class name occurs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from numpy.random import Generator

from datagen.pocket.atmosphere import Domain

LOOK_WORDS = {"game": "a game render", "photo": "a photo", "film": "a film photo", "dashcam": "a dashcam photo"}
WEATHER_WORDS = {"clear": "clear weather", "fog": "fog", "snow": "snow", "rain": "rain"}
TIME_WORDS = {"day": "by day", "dusk": "at dusk", "night": "at night"}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLURALS = {"person": "people", "bus": "buses"}
EXTRAS = ("building", "vegetation", "terrain", "sidewalk", "pole", "traffic sign")
"""Stuff that a sentence may mention after the countable things, in this order."""
EXTRA_WORDS = {"building": "buildings", "vegetation": "vegetation", "terrain": "terrain", "sidewalk": "a sidewalk",
               "pole": "poles", "traffic sign": "traffic signs"}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Captions:
    """Three ways to describe one picture; training adds the empty one."""

    sentence: str
    """Look, weather and time, counts and colours."""
    classes: str
    """The bare list of all visible classes."""
    phrase: str
    """One visible class with the look, weather or time."""


def count_phrase(count: int, name: str, color: str) -> str:
    """`two red cars`, `one person`; more than nine are `many`."""
    noun = name if count == 1 else PLURALS.get(name, f"{name}s")
    number = NUMBERS[count] if count < len(NUMBERS) else "many"
    return " ".join(word for word in (number, color, noun) if word)


def describe(rng: Generator, domain: Domain, visible: Sequence[str], objects: Sequence[tuple[str, str]]) -> Captions:
    """Captions of a scene from its visible classes and its visible objects as (class, colour name)."""
    place = f"{LOOK_WORDS[domain.look]} of a street in {WEATHER_WORDS[domain.weather]} {TIME_WORDS[domain.time]}"
    groups = [
        count_phrase(count, name, color)
        for (name, color), count in Counter(objects).items()
        if name in ("car", "bus", "bicycle", "person")
    ]
    kept = [str(group) for group in groups[:4]]
    extras = [EXTRA_WORDS[name] for name in EXTRAS if name in visible and rng.random() < 0.4]
    sentence = ", ".join([place, *kept, *extras[:3]])
    subject = str(rng.choice(list(visible) or ["street"]))
    setting = str(rng.choice(["", LOOK_WORDS[domain.look], WEATHER_WORDS[domain.weather], TIME_WORDS[domain.time]]))
    phrase = {
        "": subject,
        LOOK_WORDS[domain.look]: f"{LOOK_WORDS[domain.look]} of {subject}",
        WEATHER_WORDS[domain.weather]: f"{subject} in {WEATHER_WORDS[domain.weather]}",
    }.get(setting, f"{subject} {setting}")
    return Captions(sentence=sentence, classes=", ".join(visible), phrase=phrase)
