"""Prompts from a text file, one per line: written by hand, by a language model, or taken from captions."""

import hashlib
import re
from pathlib import Path

from datagen.randomness import seed_for
from datagen.records import Recipe
from datagen.sources import sample_id
from decoders.errors import UserError
from decoders.labels import Taxonomy

_IRREGULAR = {
    "person": "people",
    "man": "men",
    "woman": "women",
    "child": "children",
    "mouse": "mice",
    "goose": "geese",
}


class Prompts:
    """The lines of a UTF-8 file in order, begun again with new seeds at its end; lines that start with # are left out.

    A prompt wants the classes whose name or phrase occurs in it as whole words, singular or plural.
    """

    length = None

    def __init__(self, *, file: Path, negative_prompt: str = "", seed: int, taxonomy: Taxonomy) -> None:
        """
        Args:
            file: a prompt in each line; empty lines and those that begin with # are left out.
            negative_prompt: what the pictures should not show.

        Raises:
            UserError: the file cannot be read, or holds no prompt.
        """
        try:
            content = file.read_bytes()
            lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
        except OSError as error:
            raise UserError(
                f"cannot read prompts file {file}: {error.strerror}; give the path of a text file"
            ) from None
        except UnicodeDecodeError as error:
            raise UserError(
                f"prompts file {file} is not UTF-8: byte {error.start} cannot be read; save it in that encoding"
            ) from None
        self._prompts = [line for line in lines if line and not line.startswith("#")]
        if not self._prompts:
            raise UserError(f"prompts file {file} holds no prompt, expected one per line; write at least one")
        self.digest = hashlib.sha256(content).hexdigest()
        self._seed = seed
        self._negative_prompt = negative_prompt
        self._patterns = {
            name: re.compile("|".join(_pattern(words) for words in (name, phrase)), re.IGNORECASE)
            for name, phrase in zip(taxonomy.names, taxonomy.phrases, strict=True)
        }

    def recipe(self, index: int) -> Recipe:
        identity = sample_id(index)
        prompt = self._prompts[index % len(self._prompts)]
        return Recipe(
            id=identity,
            prompt=prompt,
            negative_prompt=self._negative_prompt,
            seed=seed_for(self._seed, identity, "picture"),
            wanted=tuple(name for name, pattern in self._patterns.items() if pattern.search(prompt)),
        )


def _pattern(words: str) -> str:
    """Matches `traffic_sign` as traffic sign, traffic-sign, traffic signs, ..."""
    *first, last = re.split(r"[\s_-]+", words.strip().lower())
    plurals = [f"{re.escape(last)}(?:s|es)?"]
    if last.endswith("y"):
        plurals.append(re.escape(last[:-1]) + "ies")
    if last in _IRREGULAR:
        plurals.append(_IRREGULAR[last])
    return r"\b" + r"[\s_-]+".join([*map(re.escape, first), f"(?:{'|'.join(plurals)})"]) + r"\b"
