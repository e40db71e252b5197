"""The verb `generate`: from a plan to shards, and from shards to datasets."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from datagen.datasets.coco import ANNOTATIONS
from datagen.factory import Factory
from datagen.files import json_bytes, read_json, write_json
from datagen.interruption import stop_signals
from datagen.launchers import Launcher, launched
from datagen.model import hardware
from datagen.plan import GeneratePlan, Parts, build_parts, identity, load_plan
from datagen.progress import Progress, Silent
from datagen.runs import Run, claim, library_versions, note_hardware
from datagen.shards import ShardSummary
from decoders.errors import UserError

_NOTE = "finished.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What came of a run."""

    run: Path
    made: int
    """Samples in finished shards, rejected ones included."""
    accepted: int
    """All accepted ones: the last shard may bring more than the dataset takes."""
    target: int
    """Samples in the dataset."""
    rejected: Mapping[str, int]
    """How many, by reason."""
    exports: Mapping[str, Path]
    """Folder of each dataset, by format."""
    sheet: Path

    def __str__(self) -> str:
        reasons = "".join(f"\n  {times} rejected: {reason}" for reason, times in Counter(self.rejected).most_common())
        datasets = "".join(f"\n{kind}: {folder}" for kind, folder in self.exports.items())
        return (
            f"{self.target} labelled pictures, of {self.accepted} accepted and {self.made} made{reasons}{datasets}"
            f"\nsheet: {self.sheet}"
        )


def generate(
    plan: Path, to: Path | None = None, overrides: Iterable[str] = (), progress: Progress | None = None
) -> RunSummary | None:
    """Make the dataset that a plan describes, or go on with it; a finished run loads no weights.

    Of several processes that share a run only the first returns a summary.

    Args:
        plan: YAML file.
        to: run folder; the plan's own when None.
        overrides: as `key.sub=value`.

    Raises:
        UserError: a mistake in the plan, a folder of another plan, too few accepted samples, a full disk.
        KeyboardInterrupt: after Ctrl-C, when the batch in hand is finished; the same call goes on from there.
    """
    checked = load_plan(plan, overrides)
    if to is not None:
        checked = checked.model_copy(update={"run": to})
    with launched() as launcher:
        return _generate(checked, launcher, progress if progress and launcher.rank == 0 else Silent())


def _generate(plan: GeneratePlan, launcher: Launcher, progress: Progress) -> RunSummary | None:
    def prepare() -> None:
        if launcher.rank == 0:
            plan.labeller.prepare()
        launcher.barrier()

    parts = build_parts(plan, device=lambda: launcher.device, prepare=prepare)
    # One process looks at everything that decides the bytes, a dataset's pictures among it, and tells the others.
    decisive = launcher.once(lambda: identity(plan, parts))
    run = Run(
        folder=plan.run,
        plan=plan.model_dump(mode="json"),
        identity=decisive,
        taxonomy=parts.labeller.taxonomy,
        versions=library_versions(),
    )
    if launcher.rank == 0:
        run = claim(run)
    launcher.barrier()
    # One process reads the marks: many would ask a file system for the same ones, and might not see the same.
    if launcher.once(lambda: _accepted(run.store.contiguous())) < plan.target:
        _make_shards(plan, parts, run, launcher, progress)
    launcher.barrier()
    if launcher.rank:
        return None
    shards = run.store.contiguous()
    _check_target(plan, parts, shards)
    return _finish(plan, parts, run, shards, progress)


def _check_target(plan: GeneratePlan, parts: Parts, shards: list[ShardSummary]) -> None:
    accepted, made = _accepted(shards), sum(len(shard.verdicts) for shard in shards)
    if accepted >= plan.target:
        return
    if made == parts.source.length:
        raise UserError(
            f"the source ended after {made} recipes with {accepted} accepted samples, expected {plan.target}; lower "
            f"the target with --set target={accepted}, or extend the source (a new run)"
        )
    raise UserError(
        f"shard {len(shards)} is not there though all processes are through, and those before it hold {accepted} "
        f"accepted samples, expected {plan.target}; run the same command again: it makes what is missing, or finds "
        "what the file system showed too late"
    )


def _make_shards(plan: GeneratePlan, parts: Parts, run: Run, launcher: Launcher, progress: Progress) -> None:
    import torch  # here, not above: a finished run does not come this far

    torch.set_num_threads(plan.threads)
    if launcher.rank == 0:
        note_hardware(run, hardware(launcher.device, plan.model.dtype if plan.model else "float32"))
    finished = launcher.once(lambda: frozenset(shard.index for shard in run.store.done()))
    with stop_signals(lambda: progress.say("stopping after this batch; once more to stop at once")) as stopped:
        factory = Factory(
            source=parts.source,
            generator=parts.generator,
            labeller=parts.labeller,
            filters=parts.filters,
            store=run.store,
            target=plan.target,
            shard_size=plan.shard_size,
            batch_size=plan.batch_size,
            candidates=plan.candidates.count,
            best_by=plan.candidates.best_by,
            minimum_yield=plan.minimum_yield,
            yield_after=plan.yield_after,
            launcher=launcher,
            finished=finished,
            progress=progress,
            stopped=stopped,
        )
        for _ in factory.run():
            pass
        if stopped():
            raise KeyboardInterrupt


def _finish(plan: GeneratePlan, parts: Parts, run: Run, shards: list[ShardSummary], progress: Progress) -> RunSummary:
    """Write the datasets, validate them and draw the contact sheet, unless a note says that just these are there."""
    exports = {kind: run.folder / "exports" / kind for kind in parts.exporters}
    sheet = run.folder / "sheet.png"
    content = [run.digest, plan.target, [part.decisive() for part in plan.exports], [shard.sha256 for shard in shards]]
    note = {"content": hashlib.sha256(json_bytes(content)).hexdigest()}
    if not all(path.exists() for path in (*exports.values(), sheet)) or not _says(run.folder / _NOTE, note):
        (run.folder / _NOTE).unlink(missing_ok=True)  # of an export that is no longer whole from here on
        for kind, exporter in parts.exporters.items():
            progress.say(f"writing {exports[kind]}")
            exporter.export(run.entries(), run.taxonomy, exports[kind], run.info())
            _validate(exports[kind])
        from datagen.sheet import contact_sheet

        contact_sheet(run.folder, to=sheet)
        write_json(run.folder / _NOTE, note)
    return RunSummary(
        run=run.folder,
        made=sum(len(shard.verdicts) for shard in shards),
        accepted=_accepted(shards),
        target=plan.target,
        rejected=sum((shard.rejected for shard in shards), Counter[str]()),
        exports=exports,
        sheet=sheet,
    )


def _says(file: Path, note: Mapping[str, str]) -> bool:
    try:
        return read_json(file) == note
    except UserError:  # none there, or damaged: it only saves time
        return False


def _validate(dataset: Path) -> None:
    """Read a dataset back, if it is of the form that can be."""
    if (dataset / ANNOTATIONS).exists():
        from datagen.validation import validate

        validate(dataset).require_sound()


def _accepted(shards: Iterable[ShardSummary]) -> int:
    return sum(len(shard.accepted) for shard in shards)
