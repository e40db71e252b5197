"""The verb `probe`: which reading of the model is worth fitting a reader on, found out on the user's own pictures."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from datagen.datasets import AnnotatedImages, data_digest
from datagen.files import json_bytes, read_json, write_json
from datagen.fit_plan import FitPlan, load_fit_plan
from datagen.fitting import check_tasks, fit_decoder, with_phrases
from datagen.meter import console_of, meter
from datagen.model import Model
from datagen.sheet import spread
from decoders.errors import UserError

if TYPE_CHECKING:
    from decoders.probing import Ranked

PROBE_FILE = "probe.json"
PLOT_FILE = "quality_against_cost.png"
_LISTED = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """A setting, what ridge regression says of it and, for the best, what a fitted decoder does."""

    setting: Mapping[str, Any]
    merit: float
    """By ridge regression: the mean over labels of mIoU, or of the share of the variance that is explained."""
    channels: int
    passes: int
    """Of the UNet, for each picture."""
    fitted: float | None = None
    """The merit of a decoder on held-out pictures."""

    def __str__(self) -> str:
        setting = self.setting
        timesteps = "+".join(map(str, setting["timesteps"]))
        fitted = "" if self.fitted is None else f"{self.fitted:.3f}"
        return (
            f"{timesteps:>11}{setting['noises']:>8}  {'+'.join(setting['layers']):14}{setting['attention']:10}"
            f"{self.passes:>7}{self.channels:>9}{self.merit:>8.3f}{fitted:>8}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSummary:
    """What came of a probe."""

    folder: Path
    ranked: tuple[Probed, ...]
    """The best by ridge regression first."""

    @property
    def best(self) -> Probed:
        """The best of those that a decoder was fitted for."""
        fitted = [one for one in self.ranked if one.fitted is not None] or list(self.ranked[:1])
        return max(fitted, key=lambda one: one.fitted or 0.0)

    def __str__(self) -> str:
        names = f"{'timesteps':>11}{'noises':>8}  {'layers':14}{'attention':10}"
        lines = [f"{names}{'passes':>7}{'channels':>9}{'ridge':>8}{'fit':>8}", *map(str, self.ranked[:_LISTED])]
        if len(self.ranked) > _LISTED:
            lines.append(f"... and {len(self.ranked) - _LISTED} more in {self.folder / PROBE_FILE}")
        return "\n".join([*lines, f"best: {self.best}", f"plot: {self.folder / PLOT_FILE}"])


def probe_from_plan(
    plan: Path,
    to: Path,
    overrides: Iterable[str] = (),
    *,
    pictures: int = 24,
    timesteps: Sequence[int] | None = None,
    noises: Sequence[int] | None = None,
    fits: int = 3,
    console: Console | None = None,
) -> ProbeSummary:
    """Rank the readings of the plan's model by ridge regression and fit decoders for the best; goes on where it was.

    Args:
        plan: of the verb `fit`; what it says of `perceiver`, phrases aside, is left open.
        to: folder for `probe.json` and the plot.
        pictures: how many of the plan's pictures are looked at for the ranking, spread over them; fits see all.
        timesteps, noises: what to try; the defaults of `decoders.probing` when None.
        fits: decoders are fitted for so many, with the plan's own settings.

    Raises:
        UserError: a mistake in the plan or the data, or the folder holds another probe.
    """
    from decoders import probing

    checked = load_fit_plan(plan, overrides)
    check_tasks(checked)
    console = console_of(0, console)
    data: AnnotatedImages = checked.data.build()
    model = Model(checked.model.reference())
    sweep = {
        "timesteps": list(timesteps or probing.TIMESTEPS),
        "noises": list(noises or probing.NOISES),
        "pictures": min(pictures, len(data)),
    }
    path = to / PROBE_FILE
    identity = _identity(checked, model, data, sweep)
    kept: dict[str, Any] = read_json(path) if path.exists() else {"identity": identity}
    if kept["identity"] != identity:
        raise UserError(f"{to} holds the probe of another plan, model or data; choose another folder with --to")
    if "ranked" not in kept:
        found: list[dict[str, Any]] = [
            {"setting": asdict(one.setting), "merit": one.merit, "channels": one.channels, "passes": one.setting.passes}
            for one in _rank(checked, model, data, sweep, console)
            if not (checked.decoder.open_vocabulary and one.setting.attention == "none")  # which reads nothing else
        ]
        kept["ranked"] = found
        write_json(path, kept)
    kept["fits"] = fits
    write_json(path, kept)
    for entry in kept["ranked"][:fits]:
        if entry.get("fitted") is None:
            entry["fitted"] = _fit(checked, model, data, entry["setting"], console)
            write_json(path, kept)
    summary = _summary(to, kept)
    _plot(summary)
    return summary


def chosen(folder: Path) -> dict[str, Any]:
    """The best setting of a finished probe, as keys of a plan's `perceiver`.

    Raises:
        UserError: there is none in the folder.
    """
    path = folder / PROBE_FILE
    if not path.is_file():
        raise UserError(f"{folder} holds no probe: {PROBE_FILE} is missing; run `datagen probe PLAN --to {folder}`")
    kept = read_json(path)
    ranked = kept.get("ranked", [])
    if not ranked or any(entry.get("fitted") is None for entry in ranked[: kept.get("fits", 0)]):
        raise UserError(f"the probe in {folder} is not finished; run the same `datagen probe` again, it goes on")
    return dict(_summary(folder, kept).best.setting)


def _summary(folder: Path, kept: Mapping[str, Any]) -> ProbeSummary:
    return ProbeSummary(folder=folder, ranked=tuple(Probed(**entry) for entry in kept["ranked"]))


def _identity(plan: FitPlan, model: Model, data: AnnotatedImages, sweep: Mapping[str, Any]) -> str:
    decisive = {
        "plan": plan.model_dump(mode="json", include={"tasks", "decoder", "fit"}),
        "phrases": dict(plan.perceiver.phrases),
        "keep_loras": plan.perceiver.keep_loras,
        "model": model.digest,
        "data": data_digest(data),
        "sweep": dict(sweep),
    }
    return hashlib.sha256(json_bytes(decisive)).hexdigest()


def _rank(
    plan: FitPlan, model: Model, data: AnnotatedImages, sweep: Mapping[str, Any], console: Console
) -> "list[Ranked]":
    from decoders.features import Perceiver
    from decoders.perceivers.unet import UnetPerceiver
    from decoders.probing import rank
    from decoders.tasks import find_task
    from decoders.training import fit_size

    taxonomy = with_phrases(data.taxonomy, plan.perceiver.phrases)

    def perceiver(timestep: int, noise_seed: int, group: str) -> Perceiver:
        return UnetPerceiver(
            model.checkpoint,
            phrases=taxonomy.phrases,
            timesteps=(timestep,),
            noise_seed=noise_seed,
            layers=(group,),
            attention="heads",
            keep_loras=plan.perceiver.keep_loras,
        )

    multiple = perceiver(sweep["timesteps"][0], 0, "mid").size_multiple
    few = [data[position] for position in spread(len(data), sweep["pictures"])]
    with meter("look", console=console) as looked, meter("rank", console=console) as ranked:
        return rank(
            perceiver,
            few,
            labels=list(dict.fromkeys(find_task(task).learns_from or task for task in plan.tasks)),
            classes=len(taxonomy.phrases),
            size=fit_size(plan.fit, few[0], multiple),
            timesteps=sweep["timesteps"],
            noises=sweep["noises"],
            batch_size=plan.fit.perceive_batch,
            seed=plan.fit.seed,
            on_progress=lambda stage, done, total: (looked if stage == "look" else ranked)(done, total),
        )


def _fit(plan: FitPlan, model: Model, data: AnnotatedImages, setting: Mapping[str, Any], console: Console) -> float:
    """The best merit that a decoder reaches on the pictures held out of its fit."""
    taxonomy = with_phrases(data.taxonomy, plan.perceiver.phrases)
    tried = plan.model_copy(update={"perceiver": plan.perceiver.reading(setting)})
    reader = fit_decoder(tried, model, data, taxonomy, console)
    merits = [point["merit"] for point in reader.manifest.report["points"]]
    if None in merits:
        raise UserError("a probe compares decoders on held-out pictures; set fit.holdout above 0")
    return float(max(merits))


def _plot(summary: ProbeSummary) -> None:
    """Merit against passes: ridge regressions as dots, the fitted settings ringed, the best named."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), dpi=120)
    for attention, color in (("none", "tab:gray"), ("mean", "tab:blue"), ("heads", "tab:orange")):
        of_kind = [one for one in summary.ranked if one.setting["attention"] == attention]
        axes.scatter(
            [one.passes for one in of_kind], [one.merit for one in of_kind], s=14, color=color, label=attention
        )
    fitted = [one for one in summary.ranked if one.fitted is not None]
    axes.scatter(
        [one.passes for one in fitted], [one.merit for one in fitted], s=70, facecolors="none", edgecolors="black",
        label="decoder fitted",
    )  # fmt: skip
    best = summary.best
    named = f"t {'+'.join(map(str, best.setting['timesteps']))}, {'+'.join(best.setting['layers'])}"
    axes.annotate(named, (best.passes, best.merit), textcoords="offset points", xytext=(8, -4), fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({one.passes for one in summary.ranked}))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("passes of the UNet for each picture")
    axes.set_ylabel("merit by ridge regression")
    axes.legend(title="class attention", fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(summary.folder / PLOT_FILE, metadata={"Software": None})
    pyplot.close(figure)
