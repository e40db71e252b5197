"""Reading, drawing, training and measuring on a device that is not the CPU: tests of other files, run again there.

So a tensor that was left behind on the CPU is found without a GPU, as is one in float32 that meets the float16 that
models have there.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from datagen.adaptation import adherence, denoising, samples
from datagen.datasets.pocket_scenes import PocketScenes
from datagen.evaluation import vision
from datagen.launchers.local import Local
from decoders import checkpoint
from decoders.features import FeatureBundle
from decoders.reader import Reader, fit_reader
from decoders.settings import DecoderSettings, FitSettings, ReadSettings
from tests.datagen import (
    test_adapt,
    test_compare,
    test_control,
    test_controlnet,
    test_evaluation,
    test_fitting,
    test_generators,
)
from tests.decoders import test_open_vocabulary
from tests.decoders.toy_perceiver import ToyPerceiver
from tests.other_device import OTHER, other_device

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # diffusers, of itself, where it decodes in half precision
]


def _moved(perceive: Callable[..., FeatureBundle]) -> Callable[..., FeatureBundle]:
    def there(*arguments: Any, **named: Any) -> FeatureBundle:
        return perceive(*arguments, **named).to(OTHER)

    return there


@pytest.fixture(autouse=True, scope="module")
def on_the_other_device() -> Iterator[None]:
    """As on a machine with one GPU: what names no device is there."""
    choose: Any = checkpoint.choose_device
    adamw: Any = torch.optim.AdamW
    with pytest.MonkeyPatch.context() as patch:
        for module in (checkpoint, vision):
            patch.setattr(module, "choose_device", lambda device: choose(device or OTHER))
        for module in (adherence, denoising, samples):  # torch has no autocast for it
            patch.setattr(module, "half_precision", lambda _device, **_: nullcontext())
        patch.setattr(Local, "device", str(OTHER))
        for perceiver in (ToyPerceiver, test_open_vocabulary.Attentive):
            patch.setattr(perceiver, "perceive", _moved(perceiver.perceive))
        # What torch has for real devices only.
        patch.setattr(torch, OTHER.type, torch.cpu, raising=False)
        patch.setattr(torch.optim, "AdamW", lambda *arguments, **named: adamw(*arguments, **named | {"fused": False}))
        read: Any = vars(Reader)["_read"]
        patch.setattr(Reader, "_read", torch.no_grad()(read.__wrapped__))
        with other_device():
            yield


# Fixtures, then the tests that are run again.
plan, reader = test_fitting.plan, test_fitting.reader
controls = test_controlnet.controls
walls = test_adapt.walls
test_fit = test_fitting.test_an_equal_plan_keeps_the_reader_and_measures_it
test_draw = test_generators.test_a_lora_changes_pictures
test_image_to_image = test_controlnet.test_drawing_may_begin_from_the_picture
test_fusion = test_controlnet.test_guides_of_any_size_are_drawn_at_theirs
test_train_control = test_control.test_what_is_written_is_what_a_generator_takes
test_adapt_and_sample = test_adapt.test_samples_are_drawn_from_the_same_noise_and_curves_are_kept
test_student_and_teacher = test_evaluation.test_an_interrupted_training_goes_on_to_the_bit
test_datasets_compared = test_compare.test_two_datasets
test_vision_model = test_compare.test_a_vision_model_is_a_space


def test_every_task_is_fitted_and_read():
    scenes = PocketScenes(count=4, height=32, width=32, close_up=True)
    tasks = ("semantic", "instances", "depth", "relative_depth", "normals", "keypoints")
    reader = fit_reader(
        ToyPerceiver(classes=len(scenes.taxonomy)),
        scenes,
        scenes.taxonomy,
        tasks={task: {} for task in tasks},
        settings=FitSettings(updates=3, batch_size=2, views=1, evaluations=1, holdout=0.5),
        decoder=DecoderSettings(width=16, fine_width=8),
        reading=ReadSettings(looks=2),
    )
    assert reader.read([scenes[0].image])[0].keys() == {*tasks} - {"keypoints"}
    assert reader.evaluate(scenes).keys() == {*tasks}


def test_an_open_vocabulary_is_fitted_and_asked():
    known = ("red", "green", "yellow")
    reader = test_open_vocabulary.fit_on(known, updates=3, evaluations=1)
    (picture,) = test_open_vocabulary.pictures(1, known, known=known)
    assert reader.read([picture.image])[0].keys() == {"semantic"}


def test_a_tensor_that_was_left_behind_is_found():
    network = nn.Conv2d(3, 4, 3).to(OTHER)
    pictures = torch.zeros(1, 3, 8, 8)
    found = network(pictures.to(OTHER))
    assert found.device == OTHER
    found.square().sum().backward()
    assert network.weight.grad is not None
    assert network.weight.grad.device == OTHER
    with pytest.raises(RuntimeError, match="one device"):
        network(pictures)
    with pytest.raises(RuntimeError, match="numpy"):
        np.asarray(found.detach())
    assert found.detach().cpu().numpy().shape == (1, 4, 6, 6)
    places = torch.tensor([0])
    assert found[places].device == OTHER
    with pytest.raises(RuntimeError, match="one device"):
        pictures[places.to(OTHER)]
