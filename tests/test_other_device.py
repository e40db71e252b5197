"""Reading, drawing, training and measuring on a device that is not the CPU: tests of other files, run again there.

So a tensor that was left behind on the CPU is found without a GPU, as is one in float32 that meets the float16 that
models have there. `make test-gpu` runs them on a GPU instead.
"""

import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from datagen.adaptation import adherence, denoising, samples
from datagen.adaptation.control import control
from datagen.datasets.pocket_scenes import PocketScenes
from datagen.evaluation import vision
from datagen.launchers.local import Local
from decoders import checkpoint
from decoders.features import FeatureBundle
from decoders.labels import semantic_ids
from decoders.reader import Reader, fit_reader
from decoders.settings import DecoderSettings, FitSettings, ReadSettings
from tests.datagen import test_adapt as adapt_tests
from tests.datagen import test_compare, test_controlnet, test_evaluation, test_fitting, test_generators, toys
from tests.datagen import test_control as control_tests
from tests.decoders import test_open_vocabulary
from tests.decoders.toy_perceiver import ToyPerceiver
from tests.other_device import OTHER, REAL, other_device

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
    """On a machine with one GPU, or as if: what names no device is there."""
    if REAL:
        assert torch.cuda.is_available(), "no GPU found; `make test-slow` runs these tests without one"
    with pytest.MonkeyPatch.context() as patch:
        for perceiver in (ToyPerceiver, test_open_vocabulary.Attentive):
            patch.setattr(perceiver, "perceive", _moved(perceiver.perceive))
        with nullcontext() if REAL else _simulated():
            yield


@contextmanager
def _simulated() -> Generator[None]:
    choose: Any = checkpoint.choose_device
    adamw: Any = torch.optim.AdamW
    with pytest.MonkeyPatch.context() as patch:
        for module in (checkpoint, vision):
            patch.setattr(module, "choose_device", lambda device: choose(device or OTHER))
        for module in (adherence, denoising, samples):  # torch has no autocast for it
            patch.setattr(module, "half_precision", lambda _device, **_: nullcontext())
        patch.setattr(Local, "device", str(OTHER))
        # What torch has for real devices only.
        patch.setattr(torch, OTHER.type, torch.cpu, raising=False)
        patch.setattr(torch.optim, "AdamW", lambda *arguments, **named: adamw(*arguments, **named | {"fused": False}))
        for name in ("_read", "agreement"):
            method: Any = vars(Reader)[name]
            patch.setattr(Reader, name, torch.no_grad()(method.__wrapped__))
        with other_device():
            yield


# Fixtures, then the tests that are run again.
plan, reader = test_fitting.plan, test_fitting.reader
controls = test_controlnet.controls
walls = adapt_tests.walls
test_fit = test_fitting.test_an_equal_plan_keeps_the_reader_and_measures_it
test_draw = test_generators.test_a_lora_changes_pictures
test_image_to_image = test_controlnet.test_drawing_may_begin_from_the_picture
test_fusion = test_controlnet.test_guides_of_any_size_are_drawn_at_theirs
test_fusion_leaves_the_sampler = test_controlnet.test_fusion_leaves_the_sampler_as_it_was
test_train_control = control_tests.test_what_is_written_is_what_a_generator_takes
test_adapt_and_sample = adapt_tests.test_samples_are_drawn_from_the_same_noise_and_curves_are_kept
test_datasets_compared = test_compare.test_two_datasets
test_vision_model = test_compare.test_a_vision_model_is_a_space


if REAL:  # the simulation rounds as the CPU does, has no autocast and is slow
    test_noise = test_generators.test_the_noise_is_the_same_in_every_number_format
    test_control = test_controlnet.test_it_draws_what_the_pipeline_of_diffusers_draws
    test_controls = test_controlnet.test_several_controls_act_together_each_in_its_own_steps
    test_fusion_of_one_window = test_controlnet.test_one_window_draws_the_plain_picture
    test_fusion_keeps_regions = test_controlnet.test_large_regions_stay_as_drawn_first
    test_control_learns = control_tests.test_the_control_learns_and_the_model_stays
    test_adapt = adapt_tests.test_a_lora_lowers_the_loss_of_its_pictures_and_can_be_switched_off
    test_gradients_in_half_precision = control_tests.test_gradients_of_deep_levels_survive_a_model_in_half_precision


@pytest.mark.skipif(not REAL, reason="asks the hardware: make test-gpu")
def test_gradients_of_the_embedded_model_are_numbers(tmp_path: Path):
    """Of cuDNN's attention on an H200 they were none at the 16th update of these."""
    chosen = ["updates=24", "source.data.count=4000", "model.loras=[]", "tracker=none", "samples_every=1000"]
    chosen += ["adherence.reader=null", "adherence.fit=null"]
    assert control(Path("configs/control.yaml"), tmp_path, chosen).updates == 24


def test_student_and_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole, resumed = test_evaluation.whole_and_resumed(tmp_path, monkeypatch)
    assert resumed.results.keys() == whole.results.keys()
    if not REAL:  # a GPU adds up in another order each time
        assert resumed.results == whole.results


@pytest.mark.skipif(not REAL, reason="asks the hardware: make test-gpu")
def test_processes_share_a_gpu(tmp_path: Path):
    more = str(torch.cuda.device_count() + 1)
    plan = toys.write_plan(tmp_path / "plan.yaml", toys.plan_values(tmp_path / "run"))
    launch = ["accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", more]
    done = subprocess.run(
        [sys.executable, "-m", *launch, "--main_process_port", "0", "-m", "datagen", "generate", str(plan)],
        env=toys.environment(toys.install(tmp_path / "site")),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/exports/coco/annotations/instances.json").exists()


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
    (sure,) = reader.agreement([scenes[0].image], [semantic_ids(scenes[0].labels)])
    assert sure.shape == (32, 32)
    assert 0 <= sure.min() <= sure.max() <= 1


def test_an_open_vocabulary_is_fitted_and_asked():
    known = ("red", "green", "yellow")
    reader = test_open_vocabulary.fit_on(known, updates=3, evaluations=1)
    (picture,) = test_open_vocabulary.pictures(1, known, known=known)
    assert reader.read([picture.image])[0].keys() == {"semantic"}


@pytest.mark.skipif(REAL, reason="tests the simulation")
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
