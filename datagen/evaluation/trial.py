"""One cell: a student learns from its pictures and is measured on those of the test."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from datagen.adaptation.batches import Ahead
from datagen.adaptation.loop import Reporter, Schedule, advance
from datagen.adaptation.tracking import Tracker, Watched
from datagen.adaptation.training_state import STATE_FILE
from datagen.evaluation.boundaries import BoundaryErrors
from datagen.evaluation.columns import Cell, figure_on
from datagen.evaluation.cutmix import mix_labels
from datagen.evaluation.evaluate_plan import EvaluatePlan, real_slots
from datagen.evaluation.study import Kept, Part, Study, StudyBatch, at_native_size, shown
from datagen.meter import Tick, meter
from datagen.randomness import seed_for
from datagen.students import Student
from decoders.labels import CATEGORY, DenseMap, Label, LabelSet, without_unsure


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What the cells of a plan share, each dataset read into memory once."""

    student: Student
    data: Mapping[str, Kept]
    """`real`, `synthetic` and, where the plan has one, `pool`."""
    tests: Mapping[str, Kept]
    """Which it is measured on: `test`, and others by their names."""
    nearest: Callable[[int], Sequence[int]] | None
    """So many first real pictures -> numbers of the pool's, the most like them first; None without a pool."""
    device: str


def run(cell: Cell, plan: EvaluatePlan, material: Material, *, folder: Path, console: Console) -> Mapping[str, float]:
    """Train and measure; what an interrupted training has learned is found again in the folder.

    Raises:
        UserError: a picture cannot be read or lacks a label, or the loss is not finite.
        KeyboardInterrupt: stopped by a signal, after the update at hand was saved.
    """
    torch.set_num_threads(plan.threads)
    with meter("learn", console=console) as learned:
        reporter = Watched(learned, Tracker(None), console)
        network = _train(cell, plan, material, folder, reporter)
    result: dict[str, float] = {}
    with meter("measure", console=console) as measured:
        for name, test in material.tests.items():
            figures = _measure(network, plan, material, test, measured)
            result |= {figure_on(name, figure): value for figure, value in figures.items()}
    (folder / STATE_FILE).unlink(missing_ok=True)
    return result


def _train(cell: Cell, plan: EvaluatePlan, material: Material, folder: Path, reporter: Reporter) -> nn.Module:
    student = material.student
    torch.manual_seed(cell.seed)
    network = student.build().to(material.device)
    teacher = copy.deepcopy(network).requires_grad_(False).eval() if cell.taught else None
    study = Study(
        _parts(cell, plan, material),
        size=plan.size,
        augmentation=plan.views.augmentation(),
        taught=cell.taught,
        seed=cell.seed,
    )

    def loss(number: int, batch: StudyBatch) -> Mapping[str, Tensor]:
        torch.manual_seed(seed_for(cell.seed, str(number), "update"))  # of dropout, also after an interruption
        labels = list(batch.labels)
        if teacher is not None and batch.weak is not None:
            found = student.read(teacher, batch.weak.to(material.device))
            pairs = zip(found, labels[-len(found) :], strict=True)
            labels[-len(found) :] = mix_labels([taught(each, own, plan.sure_from) for each, own in pairs], batch.boxes)
        return {"loss": student.loss(network, batch.pictures.to(material.device), labels)}

    schedule = Schedule(
        updates=cell.updates,
        peak_rate=plan.learning_rate,
        warm_up=plan.warm_up,
        decay_share=plan.decay,
        average_decay=plan.ema,
    )
    with Ahead(study) as batch_of:
        return advance(
            network,
            lambda number: loss(number, batch_of(number)),
            folder=folder,
            schedule=schedule,
            teacher=teacher,
            reporter=reporter,
        )


def _parts(cell: Cell, plan: EvaluatePlan, material: Material) -> Sequence[Part]:
    """What batches are made of, real pictures first."""
    chosen: dict[str, Sequence[int]] = {"real": range(cell.real), "synthetic": range(cell.synthetic)}
    if cell.retrieved:
        assert material.nearest is not None, "there is a pool, or the plan is refused"
        chosen["pool"] = material.nearest(cell.real)[: cell.retrieved]
    names = [name for name, numbers in chosen.items() if len(numbers)]
    slots = [plan.batch_size] if len(names) == 1 else [real_slots(plan), plan.batch_size - real_slots(plan)]
    return [
        Part(pictures=material.data[name], chosen=chosen[name], slots=count)
        for name, count in zip(names, slots, strict=True)
    ]


def taught(found: LabelSet, own: LabelSet, sure_from: float) -> LabelSet:
    """What a teacher is sure enough of, to be learned from.

    Void are pixels that are void in the view's own labels, such as those outside of its picture, and all maps but that
    of the classes: of a depth a student does not say how sure it is, so that nothing would keep its first guesses out.
    """
    labels: dict[str, Label] = {}
    for name, label in found.items():
        sure, truth = without_unsure(label, sure_from), own[name]
        assert isinstance(sure, DenseMap), "a student of objects has no teacher, or the plan is refused"
        assert isinstance(truth, DenseMap), "a student's labels are of the kind that it learns from"
        known = truth.valid if sure.storage.unit == CATEGORY else np.zeros_like(truth.valid)
        labels[name] = replace(sure, valid=sure.valid & known)
    return labels


def _measure(network: nn.Module, plan: EvaluatePlan, material: Material, test: Kept, tick: Tick) -> dict[str, float]:
    """Figures as `<label> <figure>`, each picture in its own pixels."""
    student = material.student
    scores, boundaries = student.scores(), BoundaryErrors()
    for index in range(len(test)):
        picture = test[index]
        pixels = shown(picture, plan.size, student.size_multiple).to(material.device)
        found = at_native_size(student.read(network, pixels)[0], picture)
        for name, score in scores.items():
            score.add(found[name], picture.labels[name])
        if "semantic" in scores:
            boundaries.add(found, picture.labels)
        tick(index + 1, len(test))
    figures = {name: score.result() for name, score in scores.items()}
    for found in figures.values():
        found.pop("ece", None)  # how sure students are is not asked
    if "semantic" in scores:
        figures["semantic"] |= boundaries.result()
    return {f"{label} {name}": value for label, found in figures.items() for name, value in found.items()}
