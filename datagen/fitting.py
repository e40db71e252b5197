"""The verb `fit`: from a plan to a saved reader, and what it is worth on pictures that it never saw."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from datagen.datasets import AnnotatedImages, data_digest
from datagen.evaluation.apart import check_none_shared, pixel_hash
from datagen.files import read_json, write_json
from datagen.fit_plan import FitPlan, PerceiverSettings, load_fit_plan
from datagen.inspection import oddities
from datagen.launchers import Launcher
from datagen.launchers.local import Local
from datagen.meter import Counted, console_of, meter
from datagen.model import Model
from datagen.readers import open_reader
from datagen.settings import check_classes
from decoders.errors import UserError
from decoders.labels import Taxonomy
from decoders.manifest import FORMAT, MANIFEST_FILE, ReaderManifest

if TYPE_CHECKING:
    import decoders.features
    import decoders.peers
    import decoders.reader

Scores = Mapping[str, Mapping[str, float]]
"""Task -> named figures."""

_FIT_FILE = "fit.json"
_STATE_FILE = ".fit.safetensors"
"""Of an unfinished fit."""
_VALIDATION_FILE = "validation.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSummary:
    """What came of a fit."""

    reader: Path
    was_there: bool
    """The reader had been fitted by an equal plan before, and was kept."""
    pictures: int
    """Measured on so many."""
    scores: Scores
    """Empty without a validation set."""
    held_out: int
    """Pictures that the fit did not learn from, but chose its step by."""
    held_out_scores: Scores
    """Of that step on those pictures, at the size of the fit; empty with a validation set."""
    calibration: Mapping[str, tuple[float, float]]
    """Task -> expected calibration error on the pictures held out of the fit, before and after tuning (each half of
    them as tuned on the other, unless there is one alone); not of a reader that was there."""

    def __str__(self) -> str:
        lines = [f"reader: {self.reader}" + (" (fitted before, kept)" if self.was_there else "")]
        lines += _table(self.scores, f"on {self.pictures} pictures it never saw")
        lines += _table(self.held_out_scores, f"on {self.held_out} pictures held out of the fit, which chose the step")
        where = "each half of the pictures held out by the other" if self.held_out > 1 else "by the one picture itself"
        lines += [
            f"{task}: calibration error {before:.3f}, {after:.3f} after tuning {where}"
            for task, (before, after) in self.calibration.items()
        ]
        return "\n".join(lines)


def _table(scores: Scores, where: str) -> Iterator[str]:
    for task, figures in scores.items():
        yield f"{task}, {where}:"
        yield from (f"  {name:32}{value:8.3f}" for name, value in figures.items())


def fit_from_plan(
    plan: Path,
    to: Path | None = None,
    overrides: Iterable[str] = (),
    console: Console | None = None,
    *,
    probe: Path | None = None,
    launcher: Launcher | None = None,
) -> FitSummary:
    """Fit a reader, save it, and measure it if the plan has a validation set; an equal one is kept and only measured.

    Of several processes all fit, and the first alone writes and measures.

    Args:
        plan: YAML file.
        to: reader folder; the plan's own when None.
        overrides: as `key.sub=value`.
        console: where progress is told; stderr when None.
        probe: folder of a finished `datagen probe`, whose best reading takes the place of the plan's.
        launcher: knows the other processes; None when this one fits alone, as for a run whose others wait for it.

    Raises:
        UserError: a mistake in the plan or the data, or the folder holds something else. Nothing is overwritten.
    """
    checked = load_fit_plan(plan, overrides)
    if probe is not None:
        from datagen.probing import chosen

        checked = checked.model_copy(update={"perceiver": checked.perceiver.reading(chosen(probe))})
    folder = to or checked.reader
    launcher = launcher or Local()
    console = console_of(launcher.rank, console)
    data: AnnotatedImages = checked.data.build()
    taxonomy = with_phrases(data.taxonomy, checked.perceiver.phrases)
    validation: AnnotatedImages | None = checked.validation.build() if checked.validation else None
    _check_validation(data, validation)
    model = Model(checked.model.reference(), device=lambda: launcher.device)
    if not (folder / MANIFEST_FILE).exists():
        _check_free(folder)
        _check_fit(checked, model, data, taxonomy)
    identity = launcher.once(lambda: _identity(checked, model, data))
    was_there = _is_there(folder, identity)
    launcher.barrier()
    if was_there:
        reader = open_reader(folder) if validation and launcher.rank == 0 else None
    else:
        if launcher.rank == 0:
            _forget_others(folder, identity)
            write_json(folder / _FIT_FILE, identity)
            if validation is not None:
                _check_unseen(validation, data)
            gaps = any(options.get("validity") == 0 for options in checked.tasks.values())
            for warning in oddities(data, gaps=gaps):
                console.print(f"warning: {warning}", markup=False)
        launcher.barrier()
        reader = _fit(checked, model, data, taxonomy, folder, console, launcher)
    scores: Scores = {}
    report = (reader.manifest if reader else ReaderManifest.read(folder)).report
    calibration = {} if was_there else report["calibration"]
    if reader is not None and validation is not None and launcher.rank == 0:
        with meter("measure", console=console) as tick:
            scores = reader.evaluate(Counted(validation, tick))
        write_json(folder / _VALIDATION_FILE, scores)
    return FitSummary(
        reader=folder,
        was_there=was_there,
        pictures=len(validation or ()),
        scores=scores,
        held_out=len(report["held_out"]),
        held_out_scores={} if validation else _scores_of_kept(report),
        calibration={task: (found["ece_before"], found["ece_after"]) for task, found in calibration.items()},
    )


def _scores_of_kept(report: Mapping[str, Any]) -> Scores:
    """What the kept step of a fit was chosen by."""
    return next(point["scores"] for point in report["points"] if point["step"] == report["best_step"])


def _fit(
    plan: FitPlan,
    model: Model,
    data: AnnotatedImages,
    taxonomy: Taxonomy,
    folder: Path,
    console: Console,
    launcher: Launcher,
) -> "decoders.reader.Reader":
    reader = fit_decoder(plan, model, data, taxonomy, console, state_file=folder / _STATE_FILE, peers=launcher.peers())
    if launcher.rank:
        return reader
    if warning := _depth_at_another_scale(reader.manifest):
        console.print(f"warning: {warning}", markup=False)
    # The number format that the reader was fitted in, so that another machine's `auto` does not choose another.
    dtype = model.checkpoint.precision
    reader.save(folder, model=plan.model.model_copy(update={"dtype": dtype}).model_dump(mode="json"))
    (folder / _STATE_FILE).unlink(missing_ok=True)
    return reader


def _depth_at_another_scale(manifest: ReaderManifest) -> str:
    """Why metric depth will be wrong, if it will; how far off it is depends on the picture, so nothing corrects it."""
    fitted, read = min(manifest.report["size"]), manifest.reading.short_side
    if "depth" not in manifest.tasks or read == fitted:
        return ""
    other = f"with {read}" if read else "as they are"
    return (
        f"metric depth was learned from pictures with {fitted} pixels on the shorter side and will be read from "
        f"pictures {other}, where the same thing has another size and so seems nearer or farther; leave "
        "`reading.short_side` out, fit at the size that you read at (`fit.size`), or learn relative_depth instead"
    )


def fit_decoder(
    plan: FitPlan,
    model: Model,
    data: AnnotatedImages,
    taxonomy: Taxonomy,
    console: Console,
    *,
    state_file: Path | None = None,
    peers: "decoders.peers.Peers | None" = None,
) -> "decoders.reader.Reader":
    """Fit as the plan says and tell the progress; nothing is saved but the state to go on from."""
    from decoders.cache import FitProgress
    from decoders.peers import ALONE
    from decoders.reader import fit_reader

    perceiver = _perceiver_of(plan.perceiver, model, taxonomy)
    with meter("views", console=console) as seen, meter("fit", console=console) as fitted:

        def tell(progress: FitProgress) -> None:
            if progress.message:
                console.print(progress.message, markup=False)
            (seen if progress.stage == "perceive" else fitted)(progress.done, progress.total)

        return fit_reader(
            perceiver,
            data,
            taxonomy,
            tasks=plan.tasks,
            settings=plan.fit,
            decoder=plan.decoder,
            reading=plan.reading,
            state_file=state_file,
            on_progress=tell,
            peers=peers or ALONE,
        )


def check_tasks(plan: FitPlan) -> None:
    """Refuse what can be seen to be wrong with the tasks before a model is loaded.

    Raises:
        UserError: unknown task or option, or an option of the wrong type.
    """
    from decoders.tasks import checked_options

    for task, options in plan.tasks.items():
        checked_options(task, options)


def _check_fit(plan: FitPlan, model: Model, data: AnnotatedImages, taxonomy: Taxonomy) -> None:
    """Refuse what the model and one picture show to be wrong: a look at all of them may take long."""
    from decoders.training import check_fit

    check_tasks(plan)
    perceiver = _perceiver_of(plan.perceiver, model, taxonomy)
    check_fit(perceiver, data[0], taxonomy, plan.tasks, plan.fit, decoder_settings=plan.decoder)


def _perceiver_of(settings: PerceiverSettings, model: Model, taxonomy: Taxonomy) -> "decoders.features.Perceiver":
    """The perceiver that a plan's section describes; loads the model."""
    from decoders.perceivers.unet import UnetPerceiver

    choices = settings.model_dump(exclude={"phrases"})
    return UnetPerceiver(model.checkpoint, phrases=taxonomy.phrases, **choices)


def _forget_others(folder: Path, identity: Mapping[str, Any]) -> None:
    """Remove what an unfinished fit of another plan, or one torn by a crash, left behind."""
    begun = folder / _FIT_FILE
    if not begun.exists() or read_json(begun) != identity:
        (folder / _STATE_FILE).unlink(missing_ok=True)


def with_phrases(taxonomy: Taxonomy, phrases: Mapping[str, str]) -> Taxonomy:
    """The taxonomy with what to ask the text encoder for, by class name.

    Raises:
        UserError: a name is no class.
    """
    check_classes(phrases, taxonomy, at="perceiver.phrases")
    return replace(taxonomy, phrases=tuple(phrases.get(name, name) for name in taxonomy.names))


def _check_validation(data: AnnotatedImages, validation: AnnotatedImages | None) -> None:
    if validation is not None and validation.taxonomy.names != data.taxonomy.names:
        raise UserError(
            f"validation has the classes {list(validation.taxonomy.names)}, expected those of data in the same order: "
            f"{list(data.taxonomy.names)}; give both the same classes"
        )


def _check_unseen(validation: AnnotatedImages, data: AnnotatedImages) -> None:
    measured, learned = ({pixel_hash(picture): picture.name for picture in each} for each in (validation, data))
    remedy = "a reader must not have seen what it is measured on: choose others. What `validation` leaves out is as in "
    check_none_shared(("validation", measured), ("data", learned), remedy=remedy + "`data`")


def _identity(plan: FitPlan, model: Model, data: AnnotatedImages) -> dict[str, Any]:
    """All that decides a reader, as JSON values: the contents of files instead of their paths."""
    sections = plan.model_dump(mode="json", include={"perceiver", "tasks", "decoder", "fit", "reading"})
    return sections | {
        "reader_format": FORMAT,
        "model": {"digest": model.digest, "dtype": plan.model.dtype},
        "data": {"classes": list(data.taxonomy.names), "pictures": len(data), "digest": data_digest(data)},
    }


def _check_free(folder: Path) -> None:
    """Refuse a folder without a reader that holds something else."""
    others = [path.name for path in folder.glob("*") if path.name != _FIT_FILE and not path.name.startswith(".")]
    if others:
        raise UserError(
            f"{folder} holds {sorted(others)[0]} and other things, but no reader; choose another folder with --to"
        )


def _is_there(folder: Path, identity: Mapping[str, Any]) -> bool:
    """Whether the folder holds the reader that the plan would make.

    Raises:
        UserError: it holds another one.
    """
    if not (folder / MANIFEST_FILE).exists():
        return False
    if not (folder / _FIT_FILE).exists():
        raise UserError(f"{folder} holds a reader that no plan made; choose another folder with --to")
    found = read_json(folder / _FIT_FILE)
    if found == identity:
        return True
    differing = sorted(key for key in identity if not isinstance(found, dict) or found.get(key) != identity[key])
    raise UserError(
        f"{folder} holds a reader fitted by another plan, which differs in: {', '.join(differing)}. It is not "
        "overwritten: choose another folder with --to, or remove that one"
    )
