"""A fit learns, repeats itself exactly, keeps to its cache and says what is wrong."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decoders import optimisation
from decoders.cache import CachedView, FitProgress
from decoders.decoder import PDecoder, Trunk, TrunkFeatures
from decoders.errors import UserError
from decoders.features import FeatureBundle, FeatureSpec, Perceiver
from decoders.labels import AnnotatedImage, Label, categorical, semantic_map
from decoders.optimisation import Calibration, repeat_factors, tune_confidence
from decoders.reader import fit_reader
from decoders.settings import DecoderSettings, FitSettings
from decoders.tasks import Score, Task
from decoders.tasks.semantic import SemanticScore
from decoders.training import FitReport, fit, split
from tests.decoders.toy_perceiver import ToyPerceiver
from tests.decoders.toy_world import TAXONOMY, toy_pictures

QUICK = FitSettings(updates=6, batch_size=4, views=2, evaluations=2, size=(32, 32))
LABEL_BYTES = 32 * 32 * 9
"""Of a held-out class map at that size: value, confidence, validity."""


def _fit(
    annotated: Sequence[AnnotatedImage],
    settings: FitSettings = QUICK,
    tasks: dict[str, dict[str, Any]] | None = None,
    perceiver: Perceiver | None = None,
    state_file: Path | None = None,
    stop_at: int | None = None,
    looks: int = 1,
) -> tuple[dict[str, torch.Tensor], FitReport, list[FitProgress]]:
    seen: list[FitProgress] = []

    def tell(progress: FitProgress) -> None:
        seen.append(progress)
        if progress.stage == "fit" and progress.done == stop_at:
            raise KeyboardInterrupt

    decoder, _, report = fit(
        perceiver or ToyPerceiver(classes=3),
        annotated,
        TAXONOMY,
        {"semantic": {}} if tasks is None else tasks,
        settings,
        decoder_settings=DecoderSettings(width=32, fine_width=8),
        state_file=state_file,
        looks=looks,
        on_progress=tell,
    )
    return decoder.state_dict(), report, seen


@pytest.mark.parametrize("stop_at", [1, 13, 20, 29])
def test_a_stopped_fit_ends_as_if_it_never_had(stop_at: int, tmp_path: Path):
    settings = FitSettings(updates=30, batch_size=4, views=3, evaluations=3, learning_rate=4e-3)
    whole, report, _ = _fit(toy_pictures(5), settings, {"semantic": {}, "depth": {}})
    state = tmp_path / "zustand ü.safetensors"
    with pytest.raises(KeyboardInterrupt):
        _fit(toy_pictures(5), settings, {"semantic": {}, "depth": {}}, state_file=state, stop_at=stop_at)
    weights, again, seen = _fit(toy_pictures(5), settings, {"semantic": {}, "depth": {}}, state_file=state)
    assert all(torch.equal(weights[name], tensor) for name, tensor in whole.items())
    assert (again.points, again.best_step, again.calibration) == (report.points, report.best_step, report.calibration)
    assert any(progress.message == f"going on at update {stop_at // 10 * 10}" for progress in seen) == (stop_at >= 10)


def test_a_fit_learns_classes_and_depth():
    settings = FitSettings(updates=150, batch_size=4, views=6, evaluations=5, learning_rate=4e-3)
    _, report, _ = _fit(toy_pictures(10), settings, {"semantic": {}, "depth": {}})
    first, last = report.points[0], report.points[-1]
    assert last.loss < 0.6 * first.loss
    best = next(point for point in report.points if point.step == report.best_step)
    assert best.scores["semantic"]["miou"] > 0.85
    assert best.scores["depth"]["absrel"] < 0.15
    assert best.merit == max(point.merit or 0.0 for point in report.points)


@pytest.mark.parametrize("told", [[0.2, 0.9, 0.5], [0.2, 0.9, 0.0]])
def test_the_weights_of_the_best_step_are_kept(told: list[float], monkeypatch: pytest.MonkeyPatch):
    """And of the running mean, which is what was measured."""
    merits, evaluate = iter(told), optimisation._evaluate  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(optimisation, "_evaluate", lambda *given: (evaluate(*given)[0], next(merits)))
    pictures = toy_pictures(6)
    reader = fit_reader(
        ToyPerceiver(classes=3),
        pictures,
        TAXONOMY,
        tasks={"semantic": {}},
        settings=replace(QUICK, updates=30, evaluations=3, size=(48, 64), learning_rate=0.01),
        decoder=DecoderSettings(width=32, fine_width=8),
    )
    points = reader.manifest.report["points"]
    assert reader.manifest.report["best_step"] == 20
    (held,) = (picture for picture in pictures if picture.name in reader.manifest.report["held_out"])
    found = reader.evaluate([held])["semantic"]["miou"]
    first, best, last = (point["scores"]["semantic"]["miou"] for point in points)
    assert found == pytest.approx(best, abs=0.01)
    assert min(abs(found - first), abs(found - last)) > 0.02


def test_equal_seeds_give_equal_weights_and_another_seed_others():
    pictures = toy_pictures(4)
    torch.manual_seed(1)
    first, _, _ = _fit(pictures)
    torch.manual_seed(2)  # what happened before must not matter
    again, _, _ = _fit(pictures)
    other, _, _ = _fit(pictures, replace(QUICK, seed=1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_fit_leaves_random_state_and_threads_alone():
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    _fit(toy_pictures(3), replace(QUICK, updates=1, evaluations=1, threads=threads + 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_the_perceiver_sees_each_view_once_in_full_batches():
    perceiver = ToyPerceiver(classes=3)
    _, report, _ = _fit(toy_pictures(5), replace(QUICK, perceive_batch=3), perceiver=perceiver)
    views = len(report.held_out) + report.views * len(report.fitted)
    assert views == 1 + 2 * 4
    assert perceiver.calls == [(3, 32, 32, 3)] * 3


def test_size_of_the_cache_is_announced_before_and_is_exact():
    events: list[str] = []

    class Watched(ToyPerceiver):
        def perceive(self, images: Any, *, look: int = 0) -> Any:
            events.append("perceive")
            bundle = super().perceive(images, look=look)
            sizes.append(bundle.to(torch.float16).nbytes // len(images))
            return bundle

    sizes: list[int] = []
    seen: list[FitProgress] = []
    _, _, report = fit(
        Watched(classes=3),
        toy_pictures(4),
        TAXONOMY,
        {"semantic": {}},
        QUICK,
        decoder_settings=DecoderSettings(width=32, fine_width=8),
        on_progress=lambda progress: (seen.append(progress), events.append(progress.message))[0],
    )
    assert "2 views of 3 pictures at 32 x 32 pixels and 1 of 1 held out: a cache of 0.000 GiB" in events[0]
    assert events[1] == "perceive"
    assert report.cache_bytes == (sizes[0] + 32 * 32) * (2 * 3 + 1) + LABEL_BYTES
    assert [progress.done for progress in seen if progress.stage == "fit"] == list(range(1, 7))


def test_a_small_cache_means_fewer_views_and_says_so():
    _, plenty, _ = _fit(toy_pictures(4))
    # 1 held out + 3 pictures, no second views
    room = ((plenty.cache_bytes - LABEL_BYTES) / 7 * 4.5 + LABEL_BYTES) / 2**30
    _, report, seen = _fit(toy_pictures(4), replace(QUICK, cache_gb=room))
    assert report.views == 1
    assert "computing 1 views" in seen[0].message
    assert "2 views were wanted, cache_gb" in seen[0].message


def test_a_cache_without_room_for_each_picture_is_refused():
    with pytest.raises(UserError, match=r"4 pictures need a cache of .* GiB even at one view each.*raise cache_gb"):
        _fit(toy_pictures(4), replace(QUICK, cache_gb=1e-6))


def test_pictures_may_be_loaded_when_asked_for():
    class Lazy(Sequence[AnnotatedImage]):
        def __len__(self) -> int:
            return 4

        @overload
        def __getitem__(self, index: int) -> AnnotatedImage: ...
        @overload
        def __getitem__(self, index: slice) -> "Sequence[AnnotatedImage]": ...
        def __getitem__(self, index: int | slice) -> AnnotatedImage | Sequence[AnnotatedImage]:
            assert isinstance(index, int)
            return toy_pictures(1, first=index)[0]

    lazily, _, _ = _fit(Lazy())
    at_once, _, _ = _fit(toy_pictures(4))
    assert all(torch.equal(lazily[name], at_once[name]) for name in lazily)


def test_one_picture_is_enough():
    _, report, seen = _fit(toy_pictures(1))
    assert report.held_out == ()
    assert report.best_step == 6
    assert report.points[-1].merit is None
    assert "no picture is held out, so the last weights are kept" in seen[0].message


@pytest.mark.parametrize(
    ("count", "holdout", "held"), [(20, 0.2, 4), (3, 0.1, 1), (2, 0.9, 1), (1, 0.5, 0), (9, 0.0, 0), (5000, 0.2, 256)]
)
def test_split(count: int, holdout: float, held: int):
    fitted, held_out = split(count, holdout=holdout, seed=3)
    assert len(held_out) == held
    assert sorted(fitted + held_out) == list(range(count))
    assert split(count, holdout=holdout, seed=3) == (fitted, held_out)


@pytest.mark.parametrize("only", [True, False])
def test_a_class_that_is_held_out_altogether_is_told(only: bool):
    _, (held,) = split(5, holdout=0.2, seed=0)
    common = np.ones((48, 64), np.uint8)
    rare = np.where(np.arange(64) < 32, np.uint8(3), common)
    pictures = [
        replace(picture, labels={"semantic": semantic_map(common if only and index != held else rare)})
        for index, picture in enumerate(toy_pictures(5))
    ]
    _, _, seen = _fit(pictures, replace(QUICK, updates=1, evaluations=1))
    warnings = [progress.message for progress in seen if progress.message.startswith("warning")]
    remedy = "choose another fit.seed, a smaller fit.holdout or 0, or annotate more pictures of them"
    found = f"warning: every example of ball was held out of the fit, so that a reader cannot learn them; {remedy}"
    assert warnings == ([found] if only else [])


def test_patience_stops_a_fit_that_gets_no_better():
    # Sky everywhere is learned at once; a merit of 1.0 cannot be beaten.
    plain = [
        AnnotatedImage(name=one.name, image=one.image, labels={"semantic": semantic_map(np.ones((48, 64), np.uint8))})
        for one in toy_pictures(3)
    ]
    _, report, _ = _fit(plain, replace(QUICK, updates=60, evaluations=12, patience=2, learning_rate=0.01))
    assert report.points[-1].step < 60
    assert report.points[-1].step == report.best_step + 10


@pytest.mark.parametrize("updates", [1, 2, 3, 10])
def test_few_updates_are_updates(updates: int):
    settings = replace(QUICK, updates=updates, evaluations=1, ema=0.0)
    weights, report, _ = _fit(toy_pictures(3), settings)
    before, _, _ = _fit(toy_pictures(3), replace(settings, learning_rate=1e-9))
    assert report.best_step == updates
    assert not torch.allclose(weights["trunk.project.0.weight"], before["trunk.project.0.weight"], atol=1e-5)


def test_as_long_as_nothing_is_right_a_fit_goes_on(monkeypatch: pytest.MonkeyPatch):
    merits, evaluate = iter([0.0] * 8 + [0.1] + [0.05] * 3), optimisation._evaluate  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(optimisation, "_evaluate", lambda *given: (evaluate(*given)[0], next(merits)))
    _, report, _ = _fit(toy_pictures(4), replace(QUICK, updates=24, evaluations=12, patience=2))
    assert (report.best_step, report.points[-1].step) == (18, 22)


def test_held_out_pictures_without_truth_decide_nothing():
    """The last weights are kept, as without any; a merit of 0 would have kept the first."""
    pictures = toy_pictures(4)
    held = split(4, holdout=QUICK.holdout, seed=QUICK.seed)[1]
    for index in held:
        void = {"semantic": semantic_map(np.zeros((48, 64), np.uint8))}
        pictures[index] = replace(pictures[index], labels=void)
    _, report, _ = _fit(pictures, replace(QUICK, updates=24, evaluations=12, patience=2))
    assert held
    assert report.best_step == report.points[-1].step == 24
    assert report.points[-1].merit is None


def test_more_looks_at_held_out_pictures_count_in_the_cache():
    once, thrice = (_fit(toy_pictures(4), looks=looks)[1].cache_bytes for looks in (1, 3))
    assert thrice == once + 2 * ((once - LABEL_BYTES) // 7 - 32 * 32)


def test_features_that_are_not_finite_name_the_picture():
    pictures = toy_pictures(3)
    pictures[1].image[0, 0] = (1, 2, 3)
    with pytest.raises(
        UserError, match=r"picture toy1: the model gave features that are not finite \(level 0.*float32"
    ):
        _fit(pictures, replace(QUICK, size=(48, 64)), perceiver=ToyPerceiver(classes=3, poison=True))


def test_a_loss_that_is_not_finite_names_the_pictures_and_the_remedy():
    diverging = replace(QUICK, updates=40, evaluations=40, learning_rate=1e30, gradient_clip=1e30)
    for tasks in ({"semantic": {}}, {"instances": {}}):
        with pytest.raises(UserError, match=r"(the loss became|not finite).*lower learning_rate"):
            _fit(toy_pictures(3), diverging, tasks)


@pytest.mark.parametrize(
    ("tasks", "text"),
    [
        ({"depth": {}}, r"picture toy\d has no label depth \(it has semantic\)"),
        ({}, "at least one annotated picture and one task"),
        ({"instance": {}}, "there is no task 'instance'"),
    ],
)
def test_wrong_wishes_are_refused(tasks: dict[str, dict[str, Any]], text: str):
    pictures = [
        AnnotatedImage(name=one.name, image=one.image, labels={"semantic": one.labels["semantic"]})
        for one in toy_pictures(3)
    ]
    with pytest.raises(UserError, match=text):
        _fit(pictures, tasks=tasks)


def test_a_wrong_id_names_the_picture_even_where_no_view_shows_it():
    pictures = toy_pictures(3)
    ids = np.full((48, 64), 1, np.uint8)
    ids[0, 0] = 9
    pictures[2] = AnnotatedImage(name="odd one", image=pictures[2].image, labels={"semantic": semantic_map(ids)})
    with pytest.raises(UserError, match=r"picture odd one: label ids \[9\] lie outside the taxonomy"):
        _fit(pictures)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"size": (33, 32)}, r"multiples of 8; the nearest is \(32, 32\)"),
        ({"updates": 0}, "fit setting updates is 0, expected at least 1"),
        ({"holdout": 1.0}, "fit setting holdout is 1.0, expected at least 0 and below 1"),
        ({"threads": 0}, "fit setting threads is 0"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, Any], text: str):
    with pytest.raises(UserError, match=text):
        _fit(toy_pictures(2), replace(QUICK, **change))


@given(
    shown=st.lists(st.frozensets(st.integers(1, 6), max_size=4), min_size=1, max_size=30),
    below=st.floats(0, 0.99),
)
def test_rare_classes_are_repeated(shown: list[frozenset[int]], below: float):
    factors = repeat_factors(shown, below)
    assert factors.min() >= 1
    for semantic_id in frozenset[int]().union(*shown):
        share = sum(semantic_id in classes for classes in shown) / len(shown)
        least = min(factors[index] for index, classes in enumerate(shown) if semantic_id in classes)
        assert least >= math.sqrt(below / share) - 1e-9
    if not below:
        assert factors.max() == 1


def test_a_class_of_one_picture_in_four_is_seen_twice_as_often_as_without_balance():
    shown = [frozenset({1, 2}), frozenset({1}), frozenset({1}), frozenset({1})]
    assert repeat_factors(shown, 0.25).tolist() == [1, 1, 1, 1]
    np.testing.assert_allclose(repeat_factors(shown, 0.99), [(0.99 * 4) ** 0.5, 1, 1, 1])


def test_a_balanced_fit_repeats_itself_and_sees_rare_classes_more_often(monkeypatch: pytest.MonkeyPatch):
    seen: list[str] = []
    loss = optimisation._loss  # pyright: ignore[reportPrivateUsage]

    def watched(decoder: Any, tasks: Any, batch: Any, device: Any) -> torch.Tensor:
        seen.extend(view.picture for view in batch)
        return loss(decoder, tasks, batch, device)

    monkeypatch.setattr(optimisation, "_loss", watched)
    pictures = toy_pictures(5)
    common = np.ones((48, 64), np.uint8)
    rare = np.where(np.arange(64) < 20, np.uint8(3), common)
    pictures = [
        replace(picture, labels={"semantic": semantic_map(common if index else rare)})
        for index, picture in enumerate(pictures)
    ]
    settings = replace(QUICK, updates=30, holdout=0.0)
    plain, _, _ = _fit(pictures, settings)
    first, _, _ = _fit(pictures, replace(settings, repeat_below=0.9))
    second, _, _ = _fit(pictures, replace(settings, repeat_below=0.9))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], plain[name]) for name in first)
    parts = [Counter(seen[start : start + 120]) for start in (0, 120)]
    often = [part[pictures[0].name] / (120 - part[pictures[0].name]) * 4 for part in parts]
    assert often == [pytest.approx(1), pytest.approx((0.9 * 5) ** 0.5, rel=0.2)], "of the others, on average"


class Counting(Task[torch.Tensor]):
    """Says the first class everywhere, as surely as it was right in the pictures that it was tuned on."""

    chance: torch.Tensor

    def __init__(self) -> None:
        super().__init__(TAXONOMY)
        self.register_buffer("chance", torch.tensor(0.6))

    def calibrate(self, targets: Iterable[torch.Tensor]) -> None:
        raise NotImplementedError

    def forward(self, features: TrunkFeatures) -> torch.Tensor:
        return features.fine

    def target(self, label: Label) -> torch.Tensor:
        raise NotImplementedError

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def merge(self, looks: Sequence[torch.Tensor]) -> torch.Tensor:
        return looks[0]

    def tune_confidence(self, pairs: Iterable[tuple[torch.Tensor, Label]]) -> None:
        rights = [float((categorical({"it": label}).values == 1).mean()) for _, label in pairs]
        self.chance.fill_(float(np.mean(rights)))

    def read(self, output: torch.Tensor, size: tuple[int, int]) -> list[Label]:
        return [semantic_map(np.ones(size, np.uint8), np.full(size, float(self.chance), np.float32))] * len(output)

    def score(self) -> Score:
        return SemanticScore(TAXONOMY)


def tuned(task: Counting, ids: Sequence[int]) -> Calibration:
    """Of held-out pictures that show one class each."""
    spec = FeatureSpec(model_digest="x", strides=(4,), channels=(4,), attention_maps=(0,), settings={})
    views = [
        CachedView(
            picture=str(number),
            features=FeatureBundle(
                image=torch.zeros(1, 3, 8, 8),
                levels=(torch.zeros(1, 4, 2, 2),),
                attention=(torch.zeros(1, 0, 2, 2),),
            ),
            more=(),
            targets={},
            classes=frozenset(),
            labels={"it": semantic_map(np.full((8, 8), truth, np.uint8))},
            device=torch.device("cpu"),
        )
        for number, truth in enumerate(ids)
    ]
    decoder = PDecoder(Trunk(spec, DecoderSettings(width=8, fine_width=8)), {"it": task})
    return tune_confidence(decoder, {"it": task}, views)["it"]


@pytest.mark.parametrize(("ids", "chance"), [([1, 1, 1, 1], 1.0), ([1, 2, 1, 2], 0.6), ([2], 0.0)])
def test_a_tuning_that_does_not_carry_over_is_left_out(ids: list[int], chance: float):
    """Held-out pictures are dealt to two halves: what one teaches must be true of the other."""
    task = Counting()
    found = tuned(task, ids)
    assert float(task.chance) == pytest.approx(chance)
    assert found.ece_after <= found.ece_before


@pytest.mark.parametrize(
    ("ids", "before", "after"),
    [([1, 1, 1, 1, 1, 1, 1, 2], 0.275, 0.25), ([1, 1, 1, 1], 0.4, 0.0), ([1, 2, 1, 2], 0.1, 0.1), ([2], 0.6, 0.0)],
)
def test_what_tuning_brought_is_measured_on_the_half_that_did_not_teach_it(ids: list[int], before: float, after: float):
    """A half without a mistake teaches 1 where three in four are right, and the other way round."""
    found = tuned(Counting(), ids)
    assert found.ece_before == pytest.approx(before, abs=1e-6)
    assert found.ece_after == pytest.approx(after, abs=1e-6)
