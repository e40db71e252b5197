"""A reader reads any size, always says the same, survives saving, and refuses what is not its own."""

import json
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decoders.errors import UserError
from decoders.features import Perceiver
from decoders.labels import DenseMap, LabelSet
from decoders.manifest import FORMAT, ReaderManifest
from decoders.reader import Reader, fit_reader, load_reader
from decoders.settings import DecoderSettings, FitSettings, ReadSettings
from tests.decoders.toy_perceiver import ToyPerceiver
from tests.decoders.toy_world import TAXONOMY, toy_picture, toy_pictures

MODEL = {"path": "models/straße", "loras": []}
TASKS: Mapping[str, Mapping[str, Any]] = {"semantic": {"dice": 1}, "depth": {}}
SETTINGS = FitSettings(updates=40, batch_size=4, views=4, evaluations=4, learning_rate=4e-3)


@pytest.fixture(scope="module")
def reader() -> Reader:
    return _fitted()


@pytest.fixture(scope="module")
def other() -> Reader:
    return _fitted(seed=1)


def _fitted(seed: int = 0, tasks: Mapping[str, Mapping[str, Any]] = TASKS) -> Reader:
    return fit_reader(
        ToyPerceiver(classes=3),
        toy_pictures(6),
        TAXONOMY,
        tasks=tasks,
        settings=replace(SETTINGS, seed=seed),
        decoder=DecoderSettings(width=32, fine_width=8),
    )


def _perceiver(manifest: ReaderManifest) -> Perceiver:
    return ToyPerceiver(classes=len(manifest.taxonomy), seed=manifest.perceiver["seed"])


def _same(first: LabelSet, second: LabelSet) -> bool:
    return first.keys() == second.keys() and all(
        np.array_equal(getattr(first[name], part), getattr(second[name], part))
        for name in first
        for part in ("values", "valid", "confidence")
    )


def test_labels_have_the_size_of_their_picture(reader: Reader):
    images = [toy_picture(seed, *size).image for seed, size in enumerate([(48, 64), (51, 37), (48, 64), (97, 120)])]
    for image, labels in zip(images, reader.read(images), strict=True):
        assert list(labels) == ["semantic", "depth"]
        for label in labels.values():
            assert isinstance(label, DenseMap)
            assert label.valid.shape == image.shape[:2]
    assert reader.read([]) == []


def test_labels_do_not_depend_on_the_company(reader: Reader):
    images = [toy_picture(seed, *size).image for seed, size in enumerate([(48, 64), (64, 48), (48, 64), (48, 64)])]
    together = reader.read(images)
    assert all(_same(reader.read([image])[0], labels) for image, labels in zip(images, together, strict=True))


def test_more_looks_are_one_answer_and_always_the_same(tmp_path: Path):
    reader = fit_reader(
        ToyPerceiver(classes=3),
        toy_pictures(6),
        TAXONOMY,
        tasks={"semantic": {}, "depth": {}},
        settings=SETTINGS,
        decoder=DecoderSettings(width=32, fine_width=8),
        reading=ReadSettings(looks=3),
    )
    assert reader.manifest.reading == ReadSettings(short_side=48, looks=3), "at the scale of the fit"
    image = toy_picture(100).image
    reader.save(tmp_path, model=MODEL)
    again = load_reader(tmp_path, _perceiver)
    assert again.manifest.reading.looks == 3
    assert _same(again.read([image])[0], reader.read([image])[0])
    reader.manifest = replace(reader.manifest, reading=ReadSettings(short_side=48))
    assert not _same(reader.read([image])[0], again.read([image])[0])
    assert set(again.manifest.report["calibration"]) == {"semantic", "depth"}


def test_unseen_pictures_are_read_well_at_another_size(reader: Reader):
    figures = reader.evaluate(toy_pictures(4, first=100, height=96, width=128))
    assert figures["semantic"]["miou"] > 0.75
    assert set(figures["semantic"]) == {"miou", "pixel_accuracy", "ece", "iou/sky", "iou/ground", "iou/ball"}
    assert figures["depth"]["absrel"] < 0.3
    assert figures["depth"]["validity_accuracy"] > 0.9


def test_pictures_are_read_at_the_scale_of_the_fit(reader: Reader):
    assert reader.manifest.reading == ReadSettings(short_side=48, batch_size=4)


def test_agreement_is_how_likely_a_class_is(reader: Reader):
    image = toy_picture(100, height=96, width=128).image
    said = reader.read([image])[0]["semantic"]
    assert isinstance(said, DenseMap)
    alone = [reader.agreement([image], [np.full((96, 128), number, np.uint8)])[0] for number in (1, 2, 3)]
    np.testing.assert_allclose(sum(alone), 1, atol=1e-5)
    np.testing.assert_allclose(np.max(alone, axis=0)[said.valid], said.confidence[said.valid], atol=1e-5)
    assert (reader.agreement([image], [np.zeros((96, 128), np.uint8)])[0] == 0.5).all()


def test_agreement_needs_classes():
    reader = _fitted(tasks={"depth": {}})
    with pytest.raises(
        UserError, match=r"the reader says depth, so that nobody can ask.*fit one with the task semantic"
    ):
        reader.agreement([toy_picture(0).image], [np.zeros((48, 64), np.uint8)])


def test_evaluation_names_a_picture_without_truth(reader: Reader):
    picture = toy_pictures(1)[0]
    bare = type(picture)(name="bare", image=picture.image, labels={"depth": picture.labels["depth"]})
    with pytest.raises(UserError, match="picture bare has no label semantic"):
        reader.evaluate([bare])


def test_features_that_are_not_finite_name_the_picture(reader: Reader):
    poisoned = Reader(
        perceiver=ToyPerceiver(classes=3, poison=True),
        decoder=reader._decoder,  # pyright: ignore[reportPrivateUsage]
        tasks=reader.tasks,
        manifest=reader.manifest,
    )
    image = toy_picture(0).image.copy()
    image[0, 0] = (1, 2, 3)
    with pytest.raises(UserError, match="picture number 2 of 2: the model gave features that are not finite"):
        poisoned.read([toy_picture(1).image, image])


def test_what_the_perceiver_refuses_names_the_pictures(reader: Reader, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise UserError("features overflow; load in float32")

    monkeypatch.setattr(ToyPerceiver, "perceive", refuse)
    with pytest.raises(UserError, match="picture number 1 of 2 or number 2 of 2: features overflow; load in float32"):
        reader.read([toy_picture(0).image] * 2)


def test_a_saved_reader_says_the_same(reader: Reader, tmp_path: Path):
    folder = tmp_path / "my réader"
    reader.save(folder, model=MODEL)
    assert sorted(path.name for path in folder.iterdir()) == ["decoder.safetensors", "reader.json"]
    loaded = load_reader(folder, _perceiver)
    images = [toy_picture(7).image, toy_picture(8, 50, 70).image]
    assert all(_same(*pair) for pair in zip(reader.read(images), loaded.read(images), strict=True))
    assert loaded.manifest == ReaderManifest.read(folder)
    assert loaded.manifest.model == MODEL
    assert loaded.taxonomy == TAXONOMY
    assert loaded.manifest.fit == SETTINGS
    assert loaded.manifest.report["best_step"] in (10, 20, 30, 40)


def test_equal_fits_write_equal_files(reader: Reader, tmp_path: Path):
    reader.save(tmp_path / "a", model=MODEL)
    _fitted().save(tmp_path / "b", model=MODEL)
    for name in ("reader.json", "decoder.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_another_reader_is_not_overwritten_unless_told(reader: Reader, other: Reader, tmp_path: Path):
    reader.save(tmp_path, model=MODEL)
    reader.save(tmp_path, model=MODEL)  # the same one may be written again
    before = (tmp_path / "decoder.safetensors").read_bytes()
    with pytest.raises(UserError, match="holds another reader"):
        other.save(tmp_path, model=MODEL)
    assert (tmp_path / "decoder.safetensors").read_bytes() == before
    other.save(tmp_path, model=MODEL, overwrite=True)
    assert load_reader(tmp_path, _perceiver).manifest.fit.seed == 1


def test_another_model_is_refused_before_weights_load(reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reader.save(tmp_path, model=MODEL)

    def never(*_: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("decoders.reader.load_into", never)
    with pytest.raises(UserError, match=r"was fitted on another model(.|\n)*model_digest(.|\n)*settings.*seed"):
        load_reader(tmp_path, lambda _: ToyPerceiver(classes=3, seed=9))


def test_a_torn_pair_of_files_is_refused(reader: Reader, other: Reader, tmp_path: Path):
    reader.save(tmp_path / "a", model=MODEL)
    other.save(tmp_path / "b", model=MODEL)
    (tmp_path / "b/decoder.safetensors").replace(tmp_path / "a/decoder.safetensors")
    with pytest.raises(UserError, match=r"not the file that reader\.json beside it names: found sha256 .*, expected"):
        load_reader(tmp_path / "a", _perceiver)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda folder: (folder / "reader.json").unlink(), r"is not a reader: no reader\.json in it"),
        (lambda folder: (folder / "reader.json").write_text('{"format": 2, "mod'), r"reader\.json is damaged \(JSON"),
        (lambda folder: (folder / "reader.json").write_bytes(b'{"a": "\xff"}'), r"reader\.json is damaged \(Unicode"),
        (lambda folder: (folder / "reader.json").write_text("[]"), r"reader\.json is damaged \(TypeError"),
        (lambda folder: (folder / "reader.json").write_text(f'{{"format": {FORMAT}}}'), r"damaged \(KeyError: 'fit'"),
        (
            lambda folder: (folder / "reader.json").write_text('{"format": 1}'),
            f"has format 1, this version reads format {FORMAT}",
        ),
        (lambda folder: (folder / "decoder.safetensors").unlink(), r"decoder\.safetensors is missing"),
        (lambda folder: (folder / "decoder.safetensors").write_bytes(b"abc"), "damaged or of another reader"),
    ],
)
def test_damaged_files_are_refused(reader: Reader, tmp_path: Path, damage: Any, text: str):
    reader.save(tmp_path, model=MODEL)
    damage(tmp_path)
    with pytest.raises(UserError, match=text):
        load_reader(tmp_path, _perceiver)


def test_a_file_that_only_claims_to_be_safetensors_is_refused(reader: Reader, tmp_path: Path):
    reader.save(tmp_path, model=MODEL)
    _replace_weights(tmp_path, b"no tensors in here")
    with pytest.raises(UserError, match="is no safetensors file"):
        load_reader(tmp_path, _perceiver)


def test_weights_of_another_shape_are_refused(reader: Reader, tmp_path: Path):
    reader.save(tmp_path, model=MODEL)
    data = json.loads((tmp_path / "reader.json").read_text())
    data["decoder"]["width"] = 64
    (tmp_path / "reader.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"do not fit the decoder that its reader\.json describes"):
        load_reader(tmp_path, _perceiver)


@pytest.mark.parametrize("name", ["decoder.pt", "decoder.safetensors"])
def test_pickles_are_refused_with_the_way_out(reader: Reader, tmp_path: Path, name: str):
    reader.save(tmp_path, model=MODEL)
    (tmp_path / "decoder.safetensors").unlink()
    torch.save({"weight": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(UserError, match=r"is a pickle.*expected safetensors.*python -c .*save_file"):
        load_reader(tmp_path, _perceiver)


def test_a_missing_folder_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="is not a reader: no such folder"):
        load_reader(tmp_path / "nothing", _perceiver)


def test_a_folder_that_cannot_be_written_is_a_user_error(reader: Reader, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*choose another"):
        reader.save(tmp_path / "file" / "reader", model=MODEL)


def _replace_weights(folder: Path, data: bytes) -> None:
    (folder / "decoder.safetensors").write_bytes(data)
    manifest = json.loads((folder / "reader.json").read_text())
    manifest["weights_sha256"] = sha256(data).hexdigest()
    (folder / "reader.json").write_text(json.dumps(manifest))


def test_coverage_voids_the_least_sure(reader: Reader):
    """About so many answers stay, none of them changed, and the wrong ones go first."""
    manifest = reader.manifest
    pictures = toy_pictures(6, first=200)
    whole = reader.read([picture.image for picture in pictures])
    reader.manifest = replace(manifest, reading=replace(manifest.reading, coverage=0.7))
    try:
        part = reader.read([picture.image for picture in pictures])
    finally:
        reader.manifest = manifest
    kept: list[np.ndarray] = []
    right: list[np.ndarray] = []
    for all_of_it, some, picture in zip(whole, part, pictures, strict=True):
        before, after, truth = all_of_it["semantic"], some["semantic"], picture.labels["semantic"]
        assert isinstance(before, DenseMap)
        assert isinstance(after, DenseMap)
        assert isinstance(truth, DenseMap)
        assert np.array_equal(after.values[after.valid], before.values[after.valid])
        assert not after.values[~after.valid].any()
        kept.append(after.valid)
        right.append((before.values == truth.values)[..., 0])
    chosen, hit = np.concatenate(kept), np.concatenate(right)
    assert 0.5 < chosen.mean() < 0.9
    assert hit[chosen].mean() > hit.mean() > hit[~chosen].mean()


def test_coverage_changes_no_figure(reader: Reader):
    """What is withheld was still answered, rightly or wrongly."""
    manifest, pictures = reader.manifest, toy_pictures(4, first=200)
    figures = reader.evaluate(pictures)
    reader.manifest = replace(manifest, reading=replace(manifest.reading, coverage=0.7))
    try:
        assert reader.evaluate(pictures) == figures
    finally:
        reader.manifest = manifest


def test_coverage_needs_a_reader_that_knows_how_sure_it_is(reader: Reader):
    manifest = reader.manifest
    reader.manifest = replace(
        manifest,
        reading=replace(manifest.reading, coverage=0.7),
        report={name: value for name, value in manifest.report.items() if name != "calibration"},
    )
    try:
        with pytest.raises(UserError, match=r"coverage of 0\.7 was asked for.*fit it with fit\.holdout above 0"):
            reader.read([toy_picture(0).image])
    finally:
        reader.manifest = manifest
    with pytest.raises(UserError, match="coverage above 0"):
        ReadSettings(coverage=0.0)
