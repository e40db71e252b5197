"""A run's folder: whose it is, what it holds, and how its samples come out again.

plan.yaml   the plan with all defaults, the digest of what decides the bytes, the classes, the versions at the start
shards/     datagen.shards            exports/<kind>/   a view, rebuilt from the shards at any time
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from datagen.exporters import Entry
from datagen.files import json_bytes
from datagen.shards import ShardStore
from decoders.errors import UserError
from decoders.files import write_atomic
from decoders.labels import Taxonomy

_LIBRARIES = ("datagen", "diffusers", "numpy", "torch", "transformers")
_FILE = "plan.yaml"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What `plan.yaml` says."""

    folder: Path
    plan: Mapping[str, Any]
    """All settings, defaults included, as JSON values."""
    identity: Mapping[str, Any]
    """What decides the bytes of the shards; `datagen.plan.identity`."""
    taxonomy: Taxonomy
    versions: Mapping[str, str]
    """Libraries that the run was begun with."""
    hardware: str = ""
    """What makes its shards; empty before the first one."""

    @property
    def digest(self) -> str:
        return hashlib.sha256(json_bytes(self.identity)).hexdigest()

    @property
    def target(self) -> int:
        return self.plan["target"]

    @property
    def store(self) -> ShardStore:
        return ShardStore(self.folder)

    def info(self) -> dict[str, Any]:
        """Where the samples come from, for a dataset's `info`; the same while the run grows."""
        return {
            "description": "Synthetic pictures with labels read from a diffusion model's activations",
            "run_digest": self.digest,
            "model": self.plan["model"],
            "made_with": dict(self.versions),
        }

    def entries(self, count: int | None = None) -> Iterator[Entry]:
        """The dataset: the first `count` accepted samples, or the target, in id order; errors as `accepted`."""
        for sample in self.store.accepted(self.target if count is None else count):
            recipe = sample.recipe
            extra: dict[str, Any] = {"caption": recipe.prompt, "seed": recipe.seed, "wanted": list(recipe.wanted)}
            if recipe.negative_prompt:
                extra["negative_prompt"] = recipe.negative_prompt
            if recipe.attributes:
                extra["attributes"] = dict(recipe.attributes)
            yield Entry(name=recipe.id, image=sample.image, labels=sample.labels, extra=extra)


def open_run(folder: Path) -> Run:
    """Read a run's folder.

    Raises:
        UserError: there is no run, or its plan.yaml is damaged.
    """
    file = folder / _FILE
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
        run = Run(
            folder=folder,
            plan=data["plan"],
            identity=data["identity"],
            taxonomy=Taxonomy.from_json(data["taxonomy"]),
            versions=data["versions"],
            hardware=data.get("hardware", ""),
        )
        if run.digest != data["digest"]:
            raise ValueError("its digest is another than it says")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder} holds no run: {_FILE} is missing; give a folder that `datagen generate` wrote"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        found = f"it has no {error}" if isinstance(error, KeyError) else error
        raise UserError(
            f"{file} cannot be read ({found}), expected what `datagen generate` wrote; name another folder, if it is "
            "of another verb, restore it from a copy, or start a new run with --to"
        ) from error
    return run


def claim(run: Run) -> Run:
    """Make the folder this run's own, or go on with it; returns what stands in it then.

    Another target or other exports of the same run are taken over; the versions stay those of the beginning.

    Raises:
        UserError: the folder belongs to another run; names what differs. Nothing is overwritten.
    """
    versions, hardware = run.versions, run.hardware
    if (run.folder / _FILE).exists():
        found = open_run(run.folder)
        if found.digest != run.digest:
            raise UserError(
                f"run folder {run.folder} belongs to another plan:\n{_differences(found, run)}\n"
                "Nothing was overwritten: choose another folder with --to, or set these keys back"
            )
        for library, number in found.versions.items():
            if versions.get(library) != number:
                _log.warning(
                    "this run was begun with %s %s, now it is %s: new shards may differ in their last digits",
                    library,
                    number,
                    versions.get(library),
                )
        versions, hardware = found.versions, found.hardware
        if found.plan == run.plan and found.taxonomy == run.taxonomy:
            return found
    elif any((run.folder / "shards").glob("*.tar")):
        raise UserError(
            f"run folder {run.folder} holds shards but no {_FILE}, which says what made them; choose another folder "
            "with --to"
        )
    claimed = replace(run, versions=versions, hardware=hardware)
    _write(claimed)
    return claimed


def note_hardware(run: Run, hardware: str) -> None:
    """Write down what makes the run's shards, or say that it is another than before: it rounds in another way."""
    if not run.hardware:
        _write(replace(run, hardware=hardware))
    elif run.hardware != hardware:
        _log.warning(
            "this run was begun on %s, now it is %s: new shards are not those that would have been made there",
            run.hardware,
            hardware,
        )


def _write(run: Run) -> None:
    data = {
        "digest": run.digest,
        "plan": run.plan,
        "identity": run.identity,
        "taxonomy": asdict(run.taxonomy),
        "versions": dict(run.versions),
        "hardware": run.hardware,
    }
    text = yaml.safe_dump(_plain(data), sort_keys=False, allow_unicode=True, width=120)
    write_atomic(run.folder / _FILE, text.encode())


def library_versions() -> dict[str, str]:
    """Versions that may change the last digits of a picture, without importing any of them."""
    return {library: version(library) for library in _LIBRARIES}


def _differences(there: Run, now: Run) -> str:
    before, after = _flat(there.identity), _flat(now.identity)
    return "\n".join(
        f"  {key}: {before.get(key, 'nothing')} there, {after.get(key, 'nothing')} in the plan"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    )


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Nested settings as `key.sub` -> value."""
    if isinstance(value, Mapping):
        entries = value.items()
    elif isinstance(value, list):
        entries = enumerate(value)
    else:
        return {key: value}
    return {name: found for part, sub in entries for name, found in _flat(sub, f"{key}.{part}".lstrip(".")).items()}


def _plain(value: Any) -> Any:
    """Tuples as lists, for YAML."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
