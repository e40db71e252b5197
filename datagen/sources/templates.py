"""Prompts from sentences with slots, drawn by chance: a few lines describe thousands of pictures."""

from collections.abc import Iterator, Sequence
from string import Formatter
from typing import Annotated

from annotated_types import Gt, MinLen

from datagen.randomness import choose, seed_for
from datagen.records import Recipe
from datagen.settings import Settings, check_classes, listed, nearest
from datagen.sources import sample_id
from decoders.errors import UserError
from decoders.labels import Taxonomy


class Phrase(Settings):
    """One way to fill a slot, or one template; plain text stands for a phrase that wants nothing."""

    text: str
    """May hold slots, `{name}`, itself."""
    wants: tuple[str, ...] = ()
    """Classes that a picture of this text must show."""
    weight: Annotated[float, Gt(0)] = 1.0
    """How often it is drawn, relative to its neighbours."""


Phrases = Annotated[tuple[str | Phrase, ...], MinLen(1)]


class Templates:
    """`templates: ["a {look} of {objects}"]` with `slots: {look: [photo], objects: [{text: two cars, wants: [car]}]}`.

    A slot that occurs twice is drawn twice. Each draw has its own stream of noise, so a template or slot that is added
    later leaves the other draws of a sample as they were.
    """

    length = None

    def __init__(
        self,
        *,
        templates: Phrases,
        slots: dict[str, Phrases] | None = None,
        negative_prompt: str = "",
        seed: int,
        taxonomy: Taxonomy,
    ) -> None:
        """
        Args:
            templates: sentences with slots, such as `a photo of {things}`; a bare text, or `{text: ..., weight: 2}`.
            slots: name -> texts that may fill it; `{text: two red cars, wants: [car]}` says what is then asked for.
            negative_prompt: what the pictures should not show.

        Raises:
            UserError: a slot is not filled or not used, or a class is asked for that there is none of.
        """
        self._seed = seed
        self._negative_prompt = negative_prompt
        self._templates = [_phrase(template) for template in templates]
        self._slots = {name: [_phrase(value) for value in values] for name, values in (slots or {}).items()}
        self._check_slots()
        for phrase in (*self._templates, *(value for values in self._slots.values() for value in values)):
            check_classes(phrase.wants, taxonomy, at="wants")
        self._classes = taxonomy.names

    def recipe(self, index: int) -> Recipe:
        identity = sample_id(index)
        wanted: set[str] = set()
        prompt = self._expand(self._templates, identity, "template", wanted)
        return Recipe(
            id=identity,
            prompt=" ".join(prompt.split()),  # an empty slot leaves two blanks behind
            negative_prompt=self._negative_prompt,
            seed=seed_for(self._seed, identity, "picture"),
            wanted=tuple(name for name in self._classes if name in wanted),
        )

    def _expand(self, phrases: Sequence[Phrase], identity: str, role: str, wanted: set[str]) -> str:
        """One of the phrases, with its slots filled in turn; what it wants is added to `wanted`."""
        phrase = choose(phrases, [each.weight for each in phrases], seed_for(self._seed, identity, role))
        wanted.update(phrase.wants)
        text = ""
        drawn: dict[str, int] = {}
        for literal, slot in _pieces(phrase.text):
            text += literal
            if slot is not None:
                time = drawn[slot] = drawn.get(slot, -1) + 1
                text += self._expand(self._slots[slot], identity, f"{role}/{slot}.{time}", wanted)
        return text

    def _check_slots(self) -> None:
        used: set[str] = set()
        for template in self._templates:
            self._walk(template, (), used)
        unused = self._slots.keys() - used
        if unused:
            raise UserError(
                f"slots {listed(unused)} occur in no template; write {{{min(unused)}}} where one belongs, or remove it"
            )

    def _walk(self, phrase: Phrase, above: tuple[str, ...], used: set[str]) -> None:
        """Note the slots that a phrase reaches, and refuse unknown ones and those that contain themselves."""
        for _, slot in _pieces(phrase.text):
            if slot is None:
                continue
            if slot not in self._slots:
                raise UserError(
                    f"{phrase.text!r} has the unknown slot {{{slot}}}{nearest(slot, self._slots) or ';'} "
                    f"known slots: {listed(self._slots)}"
                )
            if slot in above:
                raise UserError(f"slot {{{slot}}} contains itself: {' > '.join([*above, slot])}; break the circle")
            if slot not in used or above:
                used.add(slot)
                for value in self._slots[slot]:
                    self._walk(value, (*above, slot), used)


def _phrase(value: str | Phrase) -> Phrase:
    return Phrase(text=value) if isinstance(value, str) else value


def _pieces(text: str) -> Iterator[tuple[str, str | None]]:
    """Literal text and the slot after it; `{{` and `}}` stand for braces."""
    try:
        for literal, slot, form, conversion in Formatter().parse(text):
            if form or conversion or slot == "":
                raise ValueError("a slot is a name in braces")
            yield literal, slot
    except ValueError as error:
        raise UserError(
            f"{text!r} is no template: {error}; write {{name}} for a slot and {{{{ }}}} for plain braces"
        ) from None
