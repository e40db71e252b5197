"""The verbs. Each checks nothing and computes nothing itself: it calls one function and prints what came of it.

Only typer and rich are imported here; everything else is imported inside the verb that needs it, so that
`datagen --help` answers at once.
"""

import errno
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand, TyperGroup

from decoders.errors import UserError

if TYPE_CHECKING:
    from datagen.launchers import Launcher

BAD_INPUT = 2
INTERRUPTED = 130

_out = Console(highlight=False, soft_wrap=True)
_err = Console(highlight=False, soft_wrap=True, stderr=True)


class _Verbs(TyperGroup):
    """Turns what a user can mend into one message on stderr and exit code 2."""

    def invoke(self, ctx: Any) -> Any:  # a click context, whose module differs between versions of typer
        try:
            return super().invoke(ctx)
        except UserError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            _err.print(f"\nstopped. What is finished is kept; go on with\n  {_this_command()}", markup=False)
            raise typer.Exit(INTERRUPTED) from None
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's, which must not be imported to ask
                raise
            told = str(error).splitlines()[0]
            _fail(f"the memory of the GPU is full ({told}); take a smaller `batch_size`, or a smaller size of pictures")
        except PermissionError as error:
            place = error.filename or "a file"
            _fail(f"no permission to read or write {place}; give yourself the right to (chmod), or ask its owner")
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            place = f" while writing {error.filename}" if error.filename else ""
            _fail(f"the disk is full{place}. What is finished is kept; free some and go on with\n  {_this_command()}")


class _WithSettings(TyperCommand):
    """Lets `--set` take several `key=value` at once, as in `--set a=1 b.c=2`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        spread: list[str] = []
        in_settings = False
        for before, argument in zip(["", *args], args, strict=False):
            if in_settings and before != "--set" and "=" in argument and not argument.startswith("-"):
                spread.append("--set")
            else:
                in_settings = argument == "--set" or before == "--set"
            spread.append(argument)
        return super().parse_args(ctx, spread)


def _fail(message: str) -> None:
    _err.print(f"error: {message}", markup=False)
    raise typer.Exit(BAD_INPUT) from None


def _this_command() -> str:
    launched = "accelerate launch ... -m " if os.environ.get("WORLD_SIZE", "1") != "1" else ""
    return launched + shlex.join(["datagen", *sys.argv[1:]])


app = typer.Typer(
    cls=_Verbs,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Labelled image datasets from diffusion models, and readers that label real photographs.",
    epilog="Begin with: datagen generate configs/demo.yaml",
)
pocket = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="The embedded model and the procedural world it was trained on."
)
app.add_typer(pocket, name="pocket")

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE ...", help="Change keys of the plan; `datagen keys` tells them all."),
]
FolderForAll = Annotated[
    Path | None, typer.Option("--to", metavar="FOLDER", help="For everything; the plan's own when left out.")
]


def _print_version(wanted: bool) -> bool:
    if wanted:
        from importlib.metadata import version

        _out.print(f"datagen {version('datagen')}")
        raise typer.Exit
    return wanted


@app.callback()
def datagen(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and leave.")
    ] = False,
) -> None: ...


@app.command(cls=_WithSettings, epilog="Example: datagen generate configs/demo.yaml --to runs/mine --set target=8")
def generate(
    plan: Annotated[Path, typer.Argument(metavar="PLAN.yaml")],
    to: Annotated[
        Path | None, typer.Option("--to", metavar="RUN", help="Run folder; the plan's own when left out.")
    ] = None,
    settings: Settings = None,
) -> None:
    """Make a labelled dataset from prompts, layouts or pictures. The same command again goes on where it stopped."""
    from datagen.generation import generate as run
    from datagen.progress import Bar

    with Bar(_err) as bar:
        summary = run(plan, to=to, overrides=settings or [], progress=bar)
    if summary is not None:  # only the first of several processes has one
        _out.print(str(summary), markup=False)


@app.command(
    cls=_WithSettings,
    epilog="Example: datagen fit configs/camvid_reader.yaml --to readers/camvid --set data.root=photos",
)
def fit(
    plan: Annotated[Path, typer.Argument(metavar="PLAN.yaml")],
    to: Annotated[
        Path | None, typer.Option("--to", metavar="READER", help="Reader folder; the plan's own when left out.")
    ] = None,
    probe: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Read the model as a finished `datagen probe` found best.")
    ] = None,
    settings: Settings = None,
) -> None:
    """Fit a reader on a few annotated pictures, and measure it if the plan names a validation set."""
    from datagen.fitting import fit_from_plan

    _launched(lambda launcher: fit_from_plan(plan, to=to, overrides=settings or [], probe=probe, launcher=launcher))


@app.command(
    cls=_WithSettings,
    epilog="Example: datagen probe configs/camvid_reader.yaml --to probes/camvid --set fit.updates=200",
)
def probe(
    plan: Annotated[Path, typer.Argument(metavar="PLAN.yaml", help="A plan of `fit`.")],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="For the table and the plot.")],
    pictures: Annotated[int, typer.Option(min=2, help="Pictures that the ranking looks at; fits see all.")] = 24,
    timesteps: Annotated[str, typer.Option(metavar="T,...", help="Timesteps, tried alone and in pairs.")] = "",
    noises: Annotated[str, typer.Option(metavar="N,...", help="Numbers of noises to average.")] = "",
    fits: Annotated[int, typer.Option(min=1, help="Decoders to fit, for the best settings.")] = 3,
    settings: Settings = None,
) -> None:
    """Find out on your own pictures what of the model to read: layers, timesteps, attention. `fit --probe` uses it."""
    from datagen.probing import probe_from_plan

    found = probe_from_plan(
        plan,
        to,
        settings or [],
        pictures=pictures,
        timesteps=_numbers("--timesteps", timesteps),
        noises=_numbers("--noises", noises),
        fits=fits,
    )
    _out.print(str(found), markup=False)


@app.command(cls=_WithSettings, epilog="Example: datagen adapt configs/adapt.yaml --to models/camvid --set updates=500")
def adapt(
    plan: Annotated[Path, typer.Argument(metavar="PLAN.yaml")],
    to: FolderForAll = None,
    settings: Settings = None,
) -> None:
    """Train a model on a domain's pictures, as a LoRA file or a model of its own. The same command goes on."""
    from datagen.adaptation.adapt import adapt as run

    _launched(lambda launcher: run(plan, to=to, overrides=settings or [], launcher=launcher))


@app.command(cls=_WithSettings, epilog="Example: datagen control configs/control.yaml --to models/mine --set seed=7")
def control(
    plan: Annotated[Path, typer.Argument(metavar="PLAN.yaml")],
    to: FolderForAll = None,
    settings: Settings = None,
) -> None:
    """Train a ControlNet to draw after label maps, and measure whether it does. The same command goes on."""
    from datagen.adaptation.control import control as run

    _launched(lambda launcher: run(plan, to=to, overrides=settings or [], launcher=launcher))


@app.command(cls=_WithSettings, epilog="Example: datagen evaluate configs/evaluate.yaml --to runs/mine --set seeds=[0]")
def evaluate(
    plan: Annotated[Path, typer.Argument(metavar="PLAN.yaml")],
    to: FolderForAll = None,
    settings: Settings = None,
) -> None:
    """Train students on real and synthetic pictures and say what the synthetic ones are worth. It can be resumed."""
    from datagen.evaluation.evaluate import evaluate as run

    _launched(lambda launcher: run(plan, to=to, overrides=settings or [], launcher=launcher))


@app.command(epilog="Example: datagen compare runs/demo/exports/coco scenes --to likeness.json")
def compare(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="COCO dataset, such as the export of a run.")],
    reference: Annotated[
        Path,
        typer.Argument(metavar="REFERENCE", help="What it should be like: a COCO dataset, or a folder of pictures."),
    ],
    to: Annotated[Path | None, typer.Option("--to", metavar="FILE.json", help="The figures as JSON.")] = None,
    model: Annotated[
        str,
        typer.Option(
            help="Whose features are the space of all distances: a diffusion model, or a folder of a vision model such "
            "as DINOv2."
        ),
    ] = "package://datagen.pocket/weights",
) -> None:
    """Say how a dataset differs from another: distance, precision, recall, copies, objects and class shares."""
    from datagen.evaluation.compare import compare as run

    _out.print(str(run(dataset, reference, model=model, to=to, console=_err)), markup=False)


@app.command(
    cls=_WithSettings,
    epilog="Example: datagen inspect configs/camvid_reader.yaml --to sheet.png --set data.root=photos",
)
def inspect(
    data: Annotated[Path, typer.Argument(metavar="PLAN.yaml|DATASET", help="A plan of `fit`, or a COCO dataset.")],
    to: Annotated[
        Path | None, typer.Option("--to", metavar="SHEET.png", help="Draw pictures with their labels.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Pictures on the sheet.")] = 16,
    settings: Settings = None,
) -> None:
    """Say what was understood of annotated pictures: classes, counts, sizes and what is odd. Fits nothing."""
    from datagen.files import require_png
    from datagen.inspection import inspect as look
    from datagen.inspection import inspect_sources, overlay_sheet

    if to is not None:
        require_png(to)  # before every picture is read
    for name, source in inspect_sources(data, settings or []).items():
        _out.print(f"{name}: {look(source, console=_err)}\n", markup=False)
        if to is not None and name == "data":
            overlay_sheet(source, to=to, count=count)
            _out.print(str(to), markup=False)


@app.command(epilog="Example: datagen label --reader readers/camvid photos/ --to runs/photos")
def label(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder of pictures.")],
    reader: Annotated[Path, typer.Option("--reader", metavar="READER", help="Folder written by `datagen fit`.")],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where the labelled dataset goes.")],
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Pictures of equal size read at once; the reader's own when left out.")
    ] = None,
    coverage: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1,
            help="Share of the answers to keep: the least sure become void. The reader's own by default.",
        ),
    ] = None,
    classes: Annotated[
        str,
        typer.Option(
            metavar="NAME[=PHRASE],...",
            help="All classes to look for, of a reader with an open vocabulary, as in 'road,car,tram=a yellow tram'.",
        ),
    ] = "",
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out pictures that cannot be decoded.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="Where the reader's model lies now, if it was moved.")] = None,
) -> None:
    """Label a folder of pictures with a fitted reader, as a COCO dataset."""
    from datagen.labelling import label as run

    choices: dict[str, Any] = {"batch_size": batch_size, "coverage": coverage, "model": model}
    choices["classes"] = _phrases(classes) if classes else None
    _launched(
        lambda launcher: run(reader, images, to=to, skip_unreadable=skip_unreadable, launcher=launcher, **choices)
    )


@app.command(
    cls=_WithSettings,
    epilog="Example: datagen export coco runs/demo --to datasets/demo --set min_instance_pixels=50",
)
def export(
    format: Annotated[  # noqa: A002
        str, typer.Argument(metavar="FORMAT", help="A file name of datagen/exporters, such as coco, or module:Class.")
    ],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder written by `datagen generate`.")],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where the dataset goes.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE ...", help="Keys of the format: datagen keys exporters FORMAT"),
    ] = None,
) -> None:
    """Write the accepted samples of a run as a dataset of another format."""
    from datagen.exporting import export as write

    _out.print(f"{write(format, run, to=to, overrides=settings or [])} pictures in {to}", markup=False)


@app.command(epilog="Example: datagen validate runs/demo/exports/coco")
def validate(
    dataset: Annotated[
        Path, typer.Argument(metavar="DATASET", help="Folder with annotations/, images/, semantic/ ...")
    ],
    annotations: Annotated[
        str, typer.Option(metavar="JSON", help="Below the folder: the objects of a dataset that is not ours.")
    ] = "annotations/instances.json",
    images: Annotated[
        str, typer.Option(metavar="FOLDER", help="Below the folder: the pictures of a dataset that is not ours.")
    ] = "images",
) -> None:
    """Read a COCO dataset back and check that all in it agrees; of one that is not ours, objects and pictures."""
    from datagen.validation import validate as check

    report = check(dataset, annotations=annotations, images=images)
    report.require_sound()
    _out.print(str(report), markup=False)


@app.command(epilog="Example: datagen audit runs/demo --judge readers/other")
def audit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder written by `datagen generate`, finished or not.")],
    judge: Annotated[
        Path | None,
        typer.Option(metavar="READER", help="Reader that had no part in the run: does it see what was asked for?"),
    ] = None,
) -> None:
    """Compare what a run asked for with what it delivered: classes, styles, and why samples were rejected."""
    from datagen.audit import audit as count

    _out.print(str(count(run, judge=judge, console=_err)), markup=False)


@app.command(epilog="Example: datagen show runs/demo --to sheet.png --count 16")
def show(
    dataset: Annotated[Path, typer.Argument(metavar="RUN|DATASET")],
    to: Annotated[Path, typer.Option("--to", metavar="SHEET.png")],
    count: Annotated[int, typer.Option(min=1, help="Pictures on the sheet.")] = 16,
) -> None:
    """Draw a contact sheet: each picture with its classes, objects, depth and other labels."""
    from datagen.sheet import contact_sheet

    contact_sheet(dataset, to=to, count=count)
    _out.print(str(to), markup=False)


@app.command(epilog="Example: datagen keys generators controlnet")
def keys(
    topic: Annotated[
        str | None, typer.Argument(metavar="[PLAN|GROUP]", help="Verb with a plan, or group of plug-ins.")
    ] = None,
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help="Plug-in of that group, or module:Class of yours.")
    ] = None,
) -> None:
    """Say which keys a plan or a part of one has: default, what is expected, what it means."""
    from datagen.keys import tell

    _out.print(tell(topic, kind), markup=False)


@app.command(epilog="Example: datagen doctor")
def doctor() -> None:
    """Say what this machine has to offer and what is missing; exit code 1 when something needed is missing."""
    from datagen.doctor import examine

    broken = False
    for finding in examine():
        broken |= finding.needed
        _out.print(f"{finding.name:28}{finding.value}", markup=False, style="red" if finding.needed else None)
        if finding.remedy:
            _out.print(f"{'':28}-> {finding.remedy}", markup=False, style="dim")
    raise typer.Exit(int(broken))


@pocket.command(epilog="Example: datagen pocket scenes --count 20 --seed 0 --to scenes")
def scenes(
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where the dataset goes.")],
    count: Annotated[int, typer.Option(min=1)] = 20,
    seed: Annotated[int, typer.Option(min=0, help="First scene within the split.")] = 0,
    split: Annotated[str, typer.Option(help="Range of seeds: few_shot, test, judge or prior.")] = "few_shot",
    held_out: Annotated[
        bool, typer.Option("--held-out", help="With the look and the weather that the embedded model never saw.")
    ] = False,
    close_up: Annotated[
        bool, typer.Option("--close-up", help="Through a longer lens, with somebody large in each picture.")
    ] = False,
) -> None:
    """Render scenes of the procedural world with their exact truth, as a COCO dataset."""
    from datagen.pocket.truth import write_scenes

    write_scenes(to, count=count, seed=seed, split=split, held_out=held_out, close_up=close_up)
    _out.print(f"{count} scenes in {to}", markup=False)


@pocket.command(epilog="Example: datagen pocket train --stages prior,export --updates prior=20000")
def train(
    stages: Annotated[
        str,
        typer.Option(
            metavar="STAGE,...", help="scenes, vae, vae_decoder, latents, prior, judge, export; in this order."
        ),
    ] = "scenes,vae,vae_decoder,latents,prior",
    updates: Annotated[
        str, typer.Option(metavar="STAGE=N,...", help="Updates in all per stage; more than before trains longer.")
    ] = "",
    scene_count: Annotated[int, typer.Option("--scenes", min=1, help="Scenes the model learns from.")] = 12_000,
    judge_scenes: Annotated[int, typer.Option(min=1, help="Scenes the judge learns from.")] = 5_000,
    workers: Annotated[int, typer.Option(min=1, help="Processes that render.")] = 2,
    threads: Annotated[int, typer.Option(min=1, help="Threads that compute.")] = 2,
) -> None:
    """Train the embedded model from scratch, or further; it can be stopped and goes on where it was."""
    from datagen.pocket.training import train as run

    run(
        [stage.strip() for stage in stages.split(",")],
        scenes=scene_count,
        judge_scenes=judge_scenes,
        workers=workers,
        threads=threads,
        updates=_counts(updates),
    )


def _launched(run: Callable[["Launcher"], object]) -> None:
    """Run what several processes may share, and print what came of it once."""
    from datagen.launchers import launched

    with launched() as launcher:
        summary = run(launcher)
        if launcher.rank == 0:
            _out.print(str(summary), markup=False)


def _numbers(option: str, text: str) -> list[int]:
    entries = [entry.strip() for entry in text.split(",") if entry.strip()]
    if not all(entry.isdecimal() for entry in entries):
        raise UserError(f"{option} {text!r} is no list of whole numbers, as in {option} 20,50,100")
    return [int(entry) for entry in entries]


def _phrases(text: str) -> dict[str, str | None]:
    phrases: dict[str, str | None] = {}
    for entry in text.split(","):
        name, _, phrase = (part.strip() for part in entry.partition("="))
        if not name or name in phrases:
            raise UserError(f"--classes {text!r} names {name!r} twice or not at all, expected NAME[=PHRASE],...")
        phrases[name] = phrase or None
    return phrases


def _counts(text: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for entry in filter(None, text.split(",")):
        stage, _, number = entry.partition("=")
        if not number.strip().isdecimal():
            raise UserError(f"--updates {entry!r} is not of the form stage=number, as in --updates prior=20000")
        counts[stage.strip()] = int(number)
    return counts


def main() -> None:
    """Entry point of `datagen` and `python -m datagen`."""
    app()
