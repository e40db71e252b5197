"""Prompts for layouts: a template, the classes that can be seen, and structured attributes drawn by their weights."""

from collections.abc import Iterable, Mapping, Sequence

from datagen.randomness import choose, seed_for
from datagen.settings import check_classes, listed
from datagen.sources.templates import Phrase, Phrases, Templates
from decoders.errors import UserError
from decoders.labels import Taxonomy

CLASSES = "classes"
"""The slot of the class list."""


class StylePrompts:
    """`a street of {classes}, {weather}` with `style: {weather: [fog, {text: rain, weight: 3}]}`.

    An attribute has one text in a prompt, however often its slot occurs. Each draw has its own stream of noise, named
    after the attribute, so one that is added later leaves the others as they were.
    """

    def __init__(
        self,
        *,
        prompt: str,
        style: Mapping[str, Phrases],
        words: Mapping[str, str],
        plain_share: float,
        taxonomy: Taxonomy,
        reserved: Iterable[str] = (),
    ) -> None:
        """
        Args:
            style: texts by attribute, such as weather, time, place, camera or season.
            words: what stands for a class in the list instead of its phrase; an empty text leaves it out.
            plain_share: share of the prompts, 0..1, that are the bare class list and have no attribute.
            reserved: names that no attribute may have, beside `classes`.

        Raises:
            UserError: an unknown slot or class, an attribute without a slot, or one that is no plain text.
        """
        check_classes(words, taxonomy, at="words")
        self._style = {name: _texts(name, phrases, {CLASSES, *reserved}) for name, phrases in style.items()}
        # The grammar of `templates` checks the slots; the second template stands for prompts without a class list.
        slots: dict[str, Phrases] = {**style, CLASSES: (CLASSES,)}
        Templates(templates=(prompt, f"{{{CLASSES}}}"), slots=slots, seed=0, taxonomy=taxonomy)
        self._prompt = prompt
        self._plain_share = plain_share
        phrases = zip(taxonomy.names, taxonomy.phrases, strict=True)
        self._words = {name: words.get(name, phrase) for name, phrase in phrases}

    def listed(self, class_names: Sequence[str]) -> dict[str, str]:
        """The words of these classes, without those that have none."""
        return {name: self._words[name] for name in class_names if self._words[name]}

    def compose(self, run_seed: int, identity: str, class_names: Sequence[str]) -> tuple[str, dict[str, str]]:
        """The prompt of a sample that shows these classes, and the text of each attribute in it."""
        words = ", ".join(self.listed(class_names).values())
        weights = (self._plain_share, 1 - self._plain_share)
        if choose((True, False), weights, seed_for(run_seed, identity, "plain")):
            return words, {}
        attributes = {
            name: choose(phrases, [each.weight for each in phrases], seed_for(run_seed, identity, f"style/{name}")).text
            for name, phrases in self._style.items()
        }
        prompt = self._prompt.format_map({**attributes, CLASSES: words})
        return " ".join(prompt.split()), attributes  # an empty text leaves two blanks behind


def _texts(name: str, phrases: Phrases, reserved: set[str]) -> list[Phrase]:
    if name in reserved or not name.isidentifier():
        raise UserError(
            f"style: found an attribute {name!r}, expected a word of letters, digits and _ that is none of "
            f"{listed(reserved)}; rename it"
        )
    texts = [Phrase(text=each) if isinstance(each, str) else each for each in phrases]
    for each in texts:
        if "{" in each.text or "}" in each.text:
            raise UserError(f"style.{name}: found {each.text!r}, expected text without braces; slots go into `prompt`")
        if each.wants:
            raise UserError(
                f"style.{name}: {each.text!r} wants {listed(each.wants)}, but a layout has its classes already; remove "
                "`wants`"
            )
    return texts
