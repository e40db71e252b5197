"""`datagen compare`: distances between sets of features that are known, and between two datasets."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

from datagen.evaluation.compare import Comparison, Contents, compare
from datagen.evaluation.feature_space import FeatureSpace
from datagen.evaluation.likeness import Likeness, likeness
from datagen.evaluation.vision import VisionEmbedder
from datagen.exporters import Entry
from datagen.exporters.coco import Coco
from datagen.files import encode_png, read_json
from decoders.errors import UserError
from decoders.labels import AnnotatedImage, InstanceSet, Taxonomy, semantic_map
from decoders.references import LoraReference, ModelReference
from tests.datagen.made_up import TAXONOMY, image, labels


def draw(count: int, seed: int, *, shift: float = 0.0, spread: float = 1.0, channels: int = 4) -> np.ndarray:
    return (shift + spread * np.random.default_rng(seed).normal(size=(count, channels))).astype(np.float32)


def test_halves_of_one_set_are_alike():
    found = likeness(draw(200, 0), draw(200, 1))
    assert abs(found.kid) < 3 * found.kid_deviation + 1
    assert found.frechet is not None
    assert found.frechet < 0.2
    assert found.precision > 0.9
    assert found.recall > 0.9
    assert len(found.copies) < 20


def test_what_lies_elsewhere_is_far_and_what_varies_less_recalls_less():
    away = likeness(draw(100, 0, shift=8.0), draw(100, 1))
    assert away.kid > 1000
    assert away.frechet == pytest.approx(4 * 64, rel=0.3)  # the squared distance of the means, in its deviations
    assert away.precision == away.recall == 0
    assert away.copies == ()
    narrow = likeness(draw(100, 0, spread=0.2), draw(100, 1))
    assert narrow.precision == 1
    assert narrow.recall < 0.5


def test_blocks_of_distances_say_the_same_as_all_at_once(monkeypatch: pytest.MonkeyPatch):
    pictures, reference = draw(50, 0), draw(70, 1)
    pictures[7] = reference[3]
    whole = likeness(pictures, reference)
    monkeypatch.setattr("datagen.evaluation.likeness._BLOCK", 16)
    assert likeness(pictures, reference) == whole


def test_copies_are_found():
    reference = draw(100, 1)
    pictures = draw(50, 0)
    pictures[7] = reference[3] + 1e-4
    assert 7 in likeness(pictures, reference).copies
    assert likeness(reference, reference).copies == tuple(range(100))
    twice = reference.copy()
    twice[1] = twice[0]
    pictures[7] = twice[3]
    assert 7 in likeness(pictures, twice).copies, "what the reference shows twice does not hide what was copied"


def test_few_pictures_have_no_frechet_distance():
    assert likeness(draw(20, 0, channels=32), draw(40, 1, channels=32)).frechet is None


def test_contents_count_objects_by_their_share():
    taxonomy = Taxonomy(names=("sky", "car"), is_thing=(False, True), colors=((0, 0, 0), (1, 1, 1)))
    masks = np.zeros((3, 20, 50), bool)
    masks[0, 0, 0] = True  # a thousandth
    masks[1, :10] = True  # half
    masks[2] = True
    objects = InstanceSet.collect(list(masks), [2, 2, 2], size=(20, 50), is_crowd=[False, False, True])
    ids = np.ones((20, 50), np.uint8)
    ids[:5] = 0
    ids[5:10] = 2
    contents = Contents.of(taxonomy)
    black = np.zeros((20, 50, 3), np.uint8)
    contents.add(AnnotatedImage(name="a", image=black, labels={"semantic": semantic_map(ids), "instances": objects}))
    contents.add(AnnotatedImage(name="b", image=black, labels={}))
    np.testing.assert_allclose(contents.class_shares, [2 / 3, 1 / 3])
    np.testing.assert_allclose(contents.objects_per_picture, [0.5, 0, 0, 0.5])


def test_subsets_of_few_pictures_differ():
    assert likeness(draw(8, 0), draw(12, 1)).kid_deviation > 0


@pytest.mark.parametrize(
    ("pictures", "reference", "kid", "told"),
    [
        (200, 20, 800.0, "(deviation over subsets 3.00: too few pictures for a kernel distance, compare 50 or more on"),
        (20, 200, 800.0, "too few pictures for a kernel distance"),
        (60, 60, -2.0, "KID x 1000: -2.00 (deviation over subsets 3.00: not told from 0); Fréchet"),
        (60, 60, 800.0, "KID x 1000: 800.00 (deviation over subsets 3.00); Fréchet"),
    ],
)
def test_a_kernel_distance_of_few_pictures_is_doubted(pictures: int, reference: int, kid: float, told: str):
    sides = [Contents.of(TAXONOMY), Contents.of(TAXONOMY)]
    sides[0].pictures, sides[1].pictures = pictures, reference
    like = Likeness(kid=kid, kid_deviation=3.0, frechet=None, precision=1.0, recall=1.0, copies=())
    found = Comparison(
        taxonomy=TAXONOMY, model="some", likeness=like, copies=(), found=sides[0], reference=sides[1], labelled=False
    )
    assert told in str(found)


def write(folder: Path, numbers: range, **info: Any) -> Path:
    """A dataset of made-up pictures, the same for the same number."""
    entries = (Entry(str(number), image(number), labels(number), {}) for number in numbers)
    Coco().export(entries, TAXONOMY, folder, info=info)
    return folder


def test_two_datasets(pipelines: Mapping[str, Path], tmp_path: Path):
    mine, theirs = write(tmp_path / "mein ö", range(8)), write(tmp_path / "theirs", range(5, 14))
    quiet = Console(quiet=True)
    found = compare(mine, theirs, model=str(pipelines["sd1"]), to=tmp_path / "told.json", console=quiet)
    assert {"5", "6", "7"} <= set(found.copies)
    told = read_json(tmp_path / "told.json")
    assert told["kid"] == found.likeness.kid
    assert told["found"]["pictures"] == 8
    assert sum(told["reference"]["class_shares"].values()) == pytest.approx(1)
    for line in ("8 pictures against 9 of the reference", "recall", "10.0% to all of it", TAXONOMY.names[0]):
        assert line in str(found)


def test_a_vision_model_is_a_space(dinov2: Path, tmp_path: Path):
    mine, theirs = write(tmp_path / "mine", range(8)), write(tmp_path / "theirs", range(5, 14))
    found = compare(mine, theirs, model=str(dinov2), console=Console(quiet=True))
    assert {"5", "6", "7"} <= set(found.copies)
    assert not found.own
    space = FeatureSpace(ModelReference(source=str(dinov2)))
    features = space.embed(AnnotatedImage(name="0", image=image(0)))
    assert features.shape == (16,)
    np.testing.assert_array_equal(features, space.embed(AnnotatedImage(name="again", image=image(0))))
    moved = tmp_path / "moved"
    shutil.copytree(dinov2, moved)
    assert FeatureSpace(ModelReference(source=str(moved))).digest == space.digest
    (moved / "preprocessor_config.json").write_text("{}")
    assert FeatureSpace(ModelReference(source=str(moved))).digest != space.digest
    with pytest.raises(UserError, match="LoRA files beside the vision model"):
        FeatureSpace(ModelReference(source=str(dinov2), loras=(LoraReference(source="x"),)))


def test_half_a_vision_model_is_refused(dinov2: Path, tmp_path: Path):
    half, bare = tmp_path / "half", tmp_path / "bare"
    shutil.copytree(dinov2, half)
    weights = load_file(half / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, half / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights, first layernorm\.weight, which would be random"):
        VisionEmbedder(half)
    shutil.copytree(dinov2, bare)
    (bare / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"could not be loaded .*expected config\.json, preprocessor_config\.json"):
        VisionEmbedder(bare)


def test_the_space_of_who_drew_the_pictures_is_told(pipelines: Mapping[str, Path], dinov2: Path, tmp_path: Path):
    own, copied = str(pipelines["sd1"]), tmp_path / "copied"
    shutil.copytree(own, copied)
    reference = write(tmp_path / "reference", range(8))
    drawn = write(tmp_path / "drawn", range(8), model={"source": own, "loras": [{"source": "look.safetensors"}]})
    quiet = Console(quiet=True)
    for space, expected in ((own, True), (str(copied), True), (str(pipelines["sd2"]), False), (str(dinov2), False)):
        found = compare(drawn, reference, model=space, console=quiet)
        assert found.own == expected
        assert ("of the model that drew the pictures, which knows its own faults least" in str(found)) == expected
    foreign = write(tmp_path / "foreign", range(8), model={"name": "some camera"})
    assert not compare(foreign, reference, model=own, console=quiet).own


def test_plain_pictures_are_a_reference(dinov2: Path, tmp_path: Path):
    mine, plain = write(tmp_path / "mine", range(8)), tmp_path / "plain ö"
    for number in range(5, 14):
        (plain / "sub").mkdir(parents=True, exist_ok=True)
        (plain / "sub" / f"{number}.png").write_bytes(encode_png(image(number)))
    found = compare(mine, plain, model=str(dinov2), to=tmp_path / "told.json", console=Console(quiet=True))
    assert {"5", "6", "7"} <= set(found.copies)
    told = str(found)
    assert "8 pictures against 9 of the reference" in told
    assert "plain pictures: no objects and classes to compare" in told
    assert "share of labelled pixels" not in told
    assert read_json(tmp_path / "told.json")["reference"] == {"pictures": 9}
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="the reference has 0 pictures, expected at least 8"):
        compare(mine, tmp_path / "empty", model=str(dinov2))
    with pytest.raises(UserError, match="folder of reference pictures not found"):
        compare(mine, tmp_path / "nowhere", model=str(dinov2))


def test_mistakes_are_told(pipelines: Mapping[str, Path], tmp_path: Path):
    enough, few = write(tmp_path / "enough", range(8)), write(tmp_path / "few", range(2))
    with pytest.raises(UserError, match="the dataset has 2 pictures, expected at least 8"):
        compare(few, enough, model=str(pipelines["sd1"]), console=Console(quiet=True))
    with pytest.raises(UserError, match="nothing"):
        compare(tmp_path / "nothing", enough, model=str(pipelines["sd1"]), console=Console(quiet=True))
