"""A probe finds where the labels are told, and judges by pictures that a regression did not learn from."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from jaxtyping import UInt8

from decoders.errors import UserError
from decoders.features import FeatureBundle, FeatureSpec, to_pixels
from decoders.labels import AnnotatedImage, InstanceSet, Label, semantic_map
from decoders.probing import Ranked, Setting, all_settings, rank
from tests.decoders.toy_world import toy_pictures

PICTURES = toy_pictures(6)
CLASSES = 3
KNOWN = {picture.image.tobytes(): picture for picture in PICTURES}


class Telling:
    """Noise, but for what it was told to tell: the class of each pixel as features, or in one of two heads."""

    size_multiple = 1
    spec = FeatureSpec(model_digest="", strides=(1,), channels=(5,), attention_maps=(2 * CLASSES,), settings={})

    def __init__(self, tells: float, attends: float, seed: int) -> None:
        self.tells, self.attends, self.seed = tells, attends, seed

    def perceive(self, images: UInt8[np.ndarray, "batch height width 3"], *, look: int = 0) -> FeatureBundle:
        del look
        torch.manual_seed(self.seed)
        count, height, width = images.shape[:3]
        features = torch.randn(count, 5, height, width)
        heads = torch.rand(count, 2 * CLASSES, height, width)
        for index, image in enumerate(images):
            semantic = KNOWN[image.tobytes()].labels["semantic"]
            assert not isinstance(semantic, InstanceSet)
            truth = torch.nn.functional.one_hot(torch.from_numpy(semantic.values[..., 0]).long() - 1, CLASSES)
            features[index, :CLASSES] += self.tells * truth.permute(2, 0, 1)
            features[index, 3] += self.tells * torch.linspace(-1, 1, height)[:, None]
            heads[index, :CLASSES] += self.attends * truth.permute(2, 0, 1)
            heads[index, CLASSES:] -= self.attends * truth.permute(2, 0, 1)  # the mean of the heads says nothing
        return FeatureBundle(image=to_pixels(images, torch.device("cpu")), levels=(features,), attention=(heads,))


def _telling(timestep: int, noise_seed: int, group: str) -> Telling:
    del timestep, group
    return Telling(3.0, 0.0, noise_seed)


def _rank(tells: Mapping[tuple[int, str], float], attends: float = 0.0, noises: tuple[int, ...] = (1,)) -> list[Ranked]:
    def perceiver(timestep: int, noise_seed: int, group: str) -> Telling:
        seed = 1000 * timestep + 10 * noise_seed + len(group)
        return Telling(tells.get((timestep, group), 0.0), attends if group == "up" else 0.0, seed)

    return rank(
        perceiver,
        PICTURES,
        labels=["semantic"],
        classes=CLASSES,
        size=(48, 64),
        timesteps=(20, 200),
        noises=noises,
        pixels=600,
    )


def _merit(ranked: list[Ranked], **choices: object) -> float:
    """The best of the settings with these choices."""
    return max(
        one.merit for one in ranked if all(getattr(one.setting, name) == value for name, value in choices.items())
    )


def test_the_best_setting_reads_what_tells():
    ranked = _rank({(20, "up"): 3.0})
    assert len(ranked) == 3 * 4 * 3
    best = ranked[0].setting
    assert 20 in best.timesteps
    assert "up" in best.layers
    assert _merit(ranked, timesteps=(20,), layers=("up",)) > 0.8
    assert _merit(ranked, timesteps=(200,)) < 0.5  # a regression that saw the test pixels would do better
    assert _merit(ranked, layers=("mid",)) < 0.5


def test_what_two_timesteps_tell_is_mixed():
    ranked = _rank({(20, "up"): 1.0, (200, "up"): 1.0})
    alone = max(_merit(ranked, timesteps=(20,), layers=("up",)), _merit(ranked, timesteps=(200,), layers=("up",)))
    assert _merit(ranked, timesteps=(20, 200), layers=("up",)) > alone + 0.05


def test_more_noises_tell_more():
    ranked = _rank({(20, "up"): 1.0}, noises=(1, 4))
    many, one = (_merit(ranked, timesteps=(20,), layers=("up",), noises=count) for count in (4, 1))
    assert many > one + 0.1


def test_heads_that_disagree_are_told_apart():
    ranked = _rank({}, attends=3.0)
    assert _merit(ranked, layers=("up",), attention="heads") > 0.8
    assert _merit(ranked, layers=("up",), attention="mean") < 0.5
    assert _merit(ranked, layers=("up",), attention="none") < 0.5


@pytest.mark.parametrize(("label", "least"), [("instances", 0.6), ("depth", 0.3), ("normals", 0.4)])
def test_any_label_can_be_probed(label: str, least: float):
    ranked = rank(
        _telling,
        PICTURES,
        labels=[label],
        classes=CLASSES,
        size=(48, 64),
        timesteps=(50,),
        noises=(1,),
        pixels=600,
    )
    assert least < ranked[0].merits[label] <= 1


def test_costs_are_counted():
    settings = list(all_settings((5, 50, 100), (1, 4)))
    assert len(settings) == 6 * 2 * 4 * 3
    assert max(setting.passes for setting in settings) == 8
    assert Setting(timesteps=(5,), noises=1, layers=("up",), attention="none").passes == 1


def test_too_little_is_refused():
    with pytest.raises(UserError, match="found 1; give two or more"):
        rank(_telling, PICTURES[:1], labels=["semantic"], classes=CLASSES, size=(48, 64))
    void: dict[str, Label] = {"semantic": semantic_map(np.zeros((48, 64), np.uint8))}
    unknown = [AnnotatedImage(name=name, image=PICTURES[0].image, labels=void) for name in "ab"]
    with pytest.raises(UserError, match="no picture has a known pixel of the label semantic"):
        rank(_telling, unknown, labels=["semantic"], classes=CLASSES, size=(48, 64))
    bare: dict[str, Label] = {}
    pictures = [AnnotatedImage(name="a", image=PICTURES[0].image, labels=bare), PICTURES[1]]
    with pytest.raises(UserError, match=r"picture a has no label semantic \(it has none\)"):
        rank(_telling, pictures, labels=["semantic"], classes=CLASSES, size=(48, 64))
