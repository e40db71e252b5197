"""Verdicts: what is kept, and why not."""

from dataclasses import replace

import numpy as np
import pytest

from datagen.filters import judge
from datagen.filters.class_coverage import ClassCoverage
from datagen.filters.confidence import Confidence
from datagen.records import Recipe, Sample, Verdict
from decoders.errors import UserError
from decoders.labels import InstanceSet, Taxonomy, metric_depth, semantic_map, without_unsure

TAXONOMY = Taxonomy(names=("sky", "road", "car"), is_thing=(False, False, True), colors=((0, 0, 0),) * 3)


def sample(ids: list[list[int]], confidence: list[list[float]] | None = None, wanted: tuple[str, ...] = ()) -> Sample:
    label = semantic_map(np.array(ids, np.uint8), None if confidence is None else np.array(confidence, np.float32))
    return Sample(
        recipe=Recipe(id="00000000", prompt="", seed=0, wanted=wanted),
        image=np.zeros((*label.valid.shape, 3), np.uint8),
        labels={"depth": metric_depth(np.ones(label.valid.shape, np.float32)), "semantic": label},
    )


def test_confidence_is_a_mean_over_labelled_pixels():
    verdict = Confidence(minimum=0.5).judge(sample([[1, 1, 0]], [[0.4, 0.8, 0.0]]))
    assert verdict.keep
    assert verdict.reason == ""
    assert verdict.scores["confidence"] == pytest.approx(0.6)
    assert verdict.scores["sure_share"] == pytest.approx(1 / 3)


def test_low_confidence_is_rejected():
    verdict = Confidence(minimum=0.7).judge(sample([[1, 1]], [[0.4, 0.8]]))
    assert (verdict.keep, verdict.reason) == (False, "low confidence")


def test_too_few_sure_pixels_are_rejected():
    verdict = Confidence(minimum=0.0, sure_from=0.75, minimum_sure=0.5).judge(sample([[1, 1, 0]], [[0.4, 0.8, 1.0]]))
    assert (verdict.keep, verdict.reason) == (False, "too few sure pixels")


@pytest.mark.parametrize(("threshold", "kept"), [(0.7, True), (0.75, False)])
def test_a_share_of_the_pixels_must_be_as_sure_as_the_labellers_coverage_asks(threshold: float, kept: bool):
    read = sample([[1, 2, 3, 1]], [[0.7, 0.8, 0.9, 0.6]])
    labelled = replace(read, labels={"semantic": without_unsure(read.labels["semantic"], threshold)})
    verdict = Confidence(sure_from=0.0, minimum_sure=0.75).judge(labelled)
    assert (verdict.keep, verdict.scores["sure_share"]) == (kept, 0.75 if kept else 0.5)


def test_a_picture_without_labels_has_no_confidence():
    verdict = Confidence(minimum=0.01).judge(sample([[0, 0]], [[1.0, 1.0]]))
    assert (verdict.keep, verdict.scores["confidence"]) == (False, 0.0)


def test_a_wanted_class_must_be_there():
    coverage = ClassCoverage(minimum_share=0.5, taxonomy=TAXONOMY)
    kept = coverage.judge(sample([[3, 3, 1, 0]], wanted=("car",)))
    assert kept.keep
    assert kept.scores == {"share.car": 0.5, "classes": 1.0}
    rejected = coverage.judge(sample([[3, 3, 1, 1]], wanted=("car", "road")))
    assert (rejected.keep, rejected.reason, rejected.scores["share.road"]) == (False, "no road", 0.0)


def test_coverage_counts_pixels_and_classes():
    picture = sample([[1, 1, 2, 3]], wanted=("car",))
    assert not ClassCoverage(minimum_share=0.0, minimum_pixels=2, taxonomy=TAXONOMY).judge(picture).keep
    verdict = ClassCoverage(minimum_share=0.0, minimum_classes=4, taxonomy=TAXONOMY).judge(picture)
    assert (verdict.reason, verdict.scores["classes"]) == ("too few classes", 3.0)


def test_an_unknown_wanted_class_is_told():
    with pytest.raises(UserError, match="'cat' is no class; did you mean 'car'"):
        ClassCoverage(taxonomy=TAXONOMY).judge(sample([[1]], wanted=("cat",)))


def test_filters_need_a_map_of_classes():
    only_depth = replace(sample([[1]]), labels={"depth": metric_depth(np.ones((1, 1), np.float32))})
    with pytest.raises(UserError, match=r"found the labels \['depth'\], expected .* use a reader"):
        Confidence().judge(only_depth)
    assert Confidence(label="depth", minimum=0.9).judge(only_depth).keep
    with pytest.raises(UserError, match=r"asks for the label 'objects', but samples have depth; name one"):
        Confidence(label="objects").judge(only_depth)


def test_objects_have_one_confidence_each():
    pixel = np.ones((1, 1), bool)
    objects = InstanceSet.collect([pixel, pixel], [3, 3], size=(1, 1), scores=[0.9, 0.3])
    verdict = Confidence(label="instances").judge(replace(sample([[1]]), labels={"instances": objects}))
    assert verdict.scores == pytest.approx({"confidence": 0.6, "sure_share": 0.5})
    none = InstanceSet.collect([], [], size=(1, 1))
    assert not Confidence(label="instances").judge(replace(sample([[1]]), labels={"instances": none})).keep


def test_the_first_that_rejects_names_the_reason_and_all_scores_are_kept():
    class Fixed:
        def __init__(self, keep: bool, reason: str, score: float) -> None:
            self.verdict = Verdict(keep=keep, reason=reason, scores={"x": score})

        def judge(self, sample: Sample) -> Verdict:
            del sample
            return self.verdict

    verdict = judge(sample([[1]]), [Fixed(True, "", 1.0), Fixed(False, "first", 2.0), Fixed(False, "second", 3.0)])
    assert verdict == Verdict(keep=False, reason="first", scores={"x": 1.0, "x.1": 2.0, "x.2": 3.0})


def test_no_filter_keeps_everything():
    assert judge(sample([[1]]), []) == Verdict(keep=True)
