"""The verb `export`: the accepted samples of a run in another format."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datagen.plugins import choose_part
from datagen.runs import open_run
from datagen.settings import put
from decoders.errors import UserError


def export(kind: str, run: Path, *, to: Path, overrides: Iterable[str] = ()) -> int:
    """Write the samples that a run has so far, at most its target; returns how many there are.

    Args:
        overrides: settings of the exporter, as `key=value`.

    Raises:
        UserError: no such format, setting or run, nothing accepted yet, or `to` holds something else.
    """
    settings: dict[str, Any] = {}
    for override in overrides:
        put(settings, override)
    exporter = choose_part("exporters", {**settings, "kind": kind}, at="FORMAT")
    found = open_run(run)
    count = min(found.target, sum(len(shard.accepted) for shard in found.store.contiguous()))
    if not count:
        raise UserError(f"run {run} has no accepted sample yet; let `datagen generate` finish a shard first")
    exporter.build(taxonomy=found.taxonomy).export(found.entries(count), found.taxonomy, to, found.info())
    return count
