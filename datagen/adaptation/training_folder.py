"""The folder of a training: which plan it belongs to, whether it is finished, and that nothing of another's is lost."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datagen.files import read_json, write_json
from decoders.errors import UserError

LOG_FILE = "log.jsonl"
"""In the folder: what happened, a line for each look and every few updates."""


class TrainingFolder:
    """Holds the plan's identity from the first update on, a checkpoint while it trains, and its result at the end."""

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, Any],
        *,
        verb: str,
        result: str,
        checkpoint: str = "checkpoint.safetensors",
    ) -> None:
        """Args:
        identity: all that decides the result, as flat JSON values: the contents of files instead of their paths.
        verb: whose plan it is; the identity stands in `<verb>.json`.
        result: file that is there once the training is finished.
        """
        self.path = path
        self._identity = dict(identity)
        self._note = path / f"{verb}.json"
        self._result = path / result
        self._checkpoint = path / checkpoint

    def is_finished(self) -> bool:
        """Whether the result of an equal plan is there.

        Raises:
            UserError: the folder is another plan's, with the keys that differ, or holds something else.
        """
        if not self._note.exists():
            others = sorted(path.name for path in self.path.glob("*") if not path.name.startswith("."))
            if others:
                raise UserError(
                    f"{self.path} holds {others[0]}, but no {self._note.name}: something else than this command put it "
                    "there; choose another folder with --to"
                )
            return False
        found = read_json(self._note)
        if found != self._identity and (self._result.exists() or self._checkpoint.exists()):
            raise UserError(
                f"{self.path} holds what another plan trained, which differs in: {self._differences(found)}. It is not "
                "overwritten: choose another folder with --to, or remove that one"
            )
        # The result is written before the checkpoint is removed: beside a checkpoint it may be half of one.
        return self._result.exists() and not self._checkpoint.exists()

    def begin(self) -> None:
        """Note whose folder it is."""
        write_json(self._note, self._identity)

    def finish(self) -> None:
        """The result has been written: forget how to go on."""
        self._checkpoint.unlink(missing_ok=True)

    def _differences(self, found: Any) -> str:
        other: dict[str, Any] = found if isinstance(found, dict) else {}
        keys = [key for key in {**self._identity, **other} if other.get(key) != self._identity.get(key)]
        return ", ".join(f"{key} ({other.get(key)} there, {self._identity.get(key)} in the plan)" for key in keys)
