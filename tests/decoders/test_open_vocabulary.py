"""A reader with an open vocabulary says classes that it was never shown, as far as the attention to them tells."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import UInt8

from decoders.errors import UserError
from decoders.features import FeatureBundle, FeatureSpec, to_pixels
from decoders.labels import AnnotatedImage, DenseMap, Taxonomy, semantic_map
from decoders.manifest import ReaderManifest
from decoders.reader import Reader, fit_reader, load_reader
from decoders.settings import DecoderSettings, FitSettings

COLORS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220), "yellow": (220, 210, 40)}
SETTINGS = FitSettings(updates=150, batch_size=4, views=4, evaluations=3, learning_rate=4e-3, size=(32, 32))


def taxonomy(*names: str) -> Taxonomy:
    return Taxonomy(names=names, is_thing=(False,) * len(names), colors=tuple(COLORS[name] for name in names))


class Attentive:
    """Attention to the name of a colour is greatest where the picture has that colour; features are the picture's."""

    size_multiple = 4

    def __init__(self, phrases: Sequence[str]) -> None:
        self.phrases = tuple(phrases)
        self.spec = FeatureSpec(
            model_digest="attentive",
            strides=(4,),
            channels=(3,),
            attention_maps=(2 * len(self.phrases),),
            settings={"phrases": list(self.phrases)},
            phrase_width=8,
        )

    def perceive(self, images: UInt8[np.ndarray, "batch height width 3"], *, look: int = 0) -> FeatureBundle:
        del look
        image = to_pixels(images, torch.device("cpu"))
        small = torch.nn.functional.avg_pool2d(image, 4)
        wanted = torch.tensor([COLORS[phrase] for phrase in self.phrases]) / 127.5 - 1
        distance = (small[:, None] - wanted[None, :, :, None, None]).square().mean(2)
        vectors = torch.stack([torch.randn(8, generator=_seeded(phrase)) for phrase in self.phrases])
        maps = torch.cat([(-distance).exp(), 1 - distance], dim=1)  # as of two heads
        return FeatureBundle(image=image, levels=(small,), attention=(maps,), phrases=vectors)


def _seeded(phrase: str) -> torch.Generator:
    return torch.Generator().manual_seed(sum(phrase.encode()))


def pictures(count: int, names: Sequence[str], *, known: Sequence[str]) -> list[AnnotatedImage]:
    """Patches of the named colours; those that are not known are void."""
    found: list[AnnotatedImage] = []
    for seed in range(count):
        stream = np.random.default_rng(seed)
        patches = stream.integers(0, len(names), (4, 4)).repeat(8, axis=0).repeat(8, axis=1)
        table = np.array([COLORS[name] for name in names])
        image = (table[patches] + stream.normal(0, 12, (32, 32, 3))).clip(0, 255).astype(np.uint8)
        ids = np.array([known.index(name) + 1 if name in known else 0 for name in names], np.uint8)[patches]
        found.append(AnnotatedImage(name=f"p{seed}", image=image, labels={"semantic": semantic_map(ids)}))
    return found


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fitted on all but blue, in pictures that hold blue too."""
    known = ("red", "green", "yellow")
    folder = tmp_path_factory.mktemp("reader")
    reader = fit_on(known)
    reader.save(folder, model={})
    return folder


def fit_on(known: tuple[str, ...], tasks: dict[str, dict[str, Any]] | None = None, **changes: Any) -> Reader:
    return fit_reader(
        Attentive(known),
        pictures(8, tuple(COLORS), known=known),
        taxonomy(*known),
        tasks=tasks or {"semantic": {"smallest_px": 0}},
        settings=replace(SETTINGS, **changes),
        decoder=DecoderSettings(width=32, fine_width=8, open_vocabulary=True),
    )


def _factory(manifest: ReaderManifest) -> Attentive:
    return Attentive(manifest.perceiver["phrases"])


def test_a_class_that_was_never_shown_is_found(fitted: Path):
    asked = taxonomy("blue", "green", "red", "yellow")
    reader = load_reader(fitted, _factory, asked=asked)
    assert reader.taxonomy == asked
    found = reader.evaluate(pictures(20, tuple(COLORS), known=asked.names)[8:])["semantic"]
    assert found["iou/blue"] > 0.6
    assert found["miou"] > 0.7


def test_fewer_classes_can_be_asked_for(fitted: Path):
    reader = load_reader(fitted, _factory, asked=taxonomy("yellow", "red"))
    label = reader.read([pictures(1, ("red",), known=("red",))[0].image])[0]["semantic"]
    assert isinstance(label, DenseMap)
    assert np.median(label.values) == 2


def test_what_a_class_looks_like_does_not_depend_on_which_others_are_asked_for(fitted: Path):
    image = pictures(1, tuple(COLORS), known=())[0].image
    every, two = (
        load_reader(fitted, _factory, asked=taxonomy(*names)).read([image])[0]["semantic"]
        for names in (("red", "green", "yellow"), ("yellow", "green"))
    )
    assert isinstance(every, DenseMap)
    assert isinstance(two, DenseMap)
    for before, now in ((2, 2), (3, 1)):
        told = every.values == before
        np.testing.assert_array_equal(two.values[told], now)
        np.testing.assert_allclose(two.confidence[told[..., 0]], every.confidence[told[..., 0]], atol=1e-5)
    is_red = every.values[..., 0] == 1
    assert two.confidence[is_red].mean() < 0.4, "a pixel that is neither is no sure find"


def test_one_class_alone_is_no_question(fitted: Path):
    with pytest.raises(UserError, match="only the class yellow was asked for, which every pixel would then be"):
        load_reader(fitted, _factory, asked=taxonomy("yellow"))


def test_its_own_classes_come_first_and_equal_files_read_equally(fitted: Path):
    image = pictures(1, tuple(COLORS), known=())[0].image
    plain, asked = (
        load_reader(fitted, _factory, asked=wanted).read([image])[0]["semantic"]
        for wanted in (None, taxonomy("red", "green", "yellow"))
    )
    assert isinstance(plain, DenseMap)
    assert isinstance(asked, DenseMap)
    np.testing.assert_array_equal(plain.values, asked.values)
    np.testing.assert_array_equal(plain.confidence, asked.confidence)


def test_a_fixed_vocabulary_cannot_be_asked(tmp_path: Path):
    known = ("red", "green")
    reader = fit_reader(
        Attentive(known),
        pictures(3, known, known=known),
        taxonomy(*known),
        tasks={"semantic": {}},
        settings=replace(SETTINGS, updates=2, evaluations=1),
        decoder=DecoderSettings(width=32, fine_width=8),
    )
    reader.save(tmp_path, model={})
    with pytest.raises(UserError, match=r"fitted on \(red, green\) and no others; .*open_vocabulary: true"):
        load_reader(tmp_path, _factory, asked=taxonomy("blue"))


def test_what_cannot_be_open_is_refused():
    with pytest.raises(UserError, match="task instances says the classes it was fitted on"):
        fit_on(("red", "green"), {"semantic": {}, "instances": {}}, updates=2, evaluations=1)
    perceiver = Attentive(("red",))
    perceiver.spec = replace(perceiver.spec, attention_maps=(0,))
    with pytest.raises(UserError, match="this perceiver gives none; set its `attention`"):
        fit_reader(
            perceiver,
            pictures(3, ("red",), known=("red",)),
            taxonomy("red"),
            tasks={"semantic": {}},
            settings=SETTINGS,
            decoder=DecoderSettings(open_vocabulary=True),
        )


def test_a_reader_from_before_phrases_had_a_width_still_fits():
    spec = Attentive(("red",)).spec
    old = {name: value for name, value in spec.to_json().items() if name != "phrase_width"}
    FeatureSpec.from_json(old).check(spec, reader="old")
    with pytest.raises(UserError, match="phrase_width: reader 8, model 9"):
        spec.check(replace(spec, phrase_width=9), reader="other")
