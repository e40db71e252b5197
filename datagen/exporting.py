"""The verb `export`: the accepted samples of a run in another format."""

from pathlib import Path

from datagen.plugins import choose_part
from datagen.runs import open_run
from decoders.errors import UserError


def export(kind: str, run: Path, *, to: Path) -> int:
    """Write the samples that a run has so far, at most its target; returns how many there are.

    Raises:
        UserError: no such format or run, nothing accepted yet, or `to` holds something else.
    """
    exporter = choose_part("exporters", kind, at="FORMAT")
    found = open_run(run)
    count = min(found.target, sum(len(shard.accepted) for shard in found.store.contiguous()))
    if not count:
        raise UserError(f"run {run} has no accepted sample yet; let `datagen generate` finish a shard first")
    exporter.build(taxonomy=found.taxonomy).export(found.entries(count), found.taxonomy, to, found.info())
    return count
