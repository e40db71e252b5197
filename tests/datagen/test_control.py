"""Training a ControlNet: it learns, goes on where it was, and its folder is what a generator takes."""

import json
import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from datagen.adaptation import adherence
from datagen.adaptation.adapt_plan import load_adapt_plan
from datagen.adaptation.adherence import Adherence
from datagen.adaptation.control import control
from datagen.adaptation.control_plan import ControlPlan, load_control_plan
from datagen.adaptation.denoising import Denoising
from datagen.adaptation.loop import stream
from datagen.adaptation.steering import new_control, steered
from datagen.adaptation.training_state import STATE_FILE, finished_updates
from datagen.controls import ABOUT_FILE, WEIGHTS_FILE, Control
from datagen.generators.controlnet import Controlnet
from datagen.model import Model
from datagen.plan import load_plan
from datagen.pocket.world import TAXONOMY
from decoders.checkpoint import load_checkpoint
from decoders.errors import UserError
from decoders.labels import LabelSet, metric_depth, semantic_ids, semantic_map
from decoders.references import LoraReference, ModelReference
from tests.datagen.made_up import image
from tests.datagen.test_fitting import CLASSES, photographs
from tests.datagen.toys import in_two_processes, write_plan

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

SCENES = {"format": "pocket_scenes", "count": 2, "height": 32, "width": 48}
LAYOUTS: dict[str, Any] = {"kind": "layouts", "data": SCENES, "height": 32, "width": 48, "minimum_visible": 60}


RESTYLED: dict[str, Any] = {"kind": "restyle", "data": SCENES}


def values(folder: Path, pipeline: Path, **changes: Any) -> dict[str, Any]:
    return {
        "control": str(folder / "control"),
        "model": {"source": str(pipeline)},
        "condition": "one_hot",
        "source": LAYOUTS,
        "updates": 4,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "threads": 1,
        "tracker": "none",
        "samples_every": 2,
        "adherence": {"pictures": 2, "steps": 2},
        **changes,
    }


def photographed(folder: Path) -> dict[str, Any]:
    """Layouts of a folder of photographs, which brings no depth."""
    data = {"format": "label_folder", "root": str(photographs(folder / "photographs", 2)), "classes": CLASSES}
    return {"kind": "layouts", "data": {**data, "void": [9]}}


def train(folder: Path, pipeline: Path, **changes: Any) -> Any:
    return control(write_plan(folder / "plan.yaml", values(folder, pipeline, **changes)))


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "control" / "log.jsonl").read_text().splitlines()]


class Oracle:
    """A reader that sees in a picture the layout that it was drawn after, but takes every car for road."""

    taxonomy = TAXONOMY

    def __init__(self, **_: Any) -> None: ...

    def label(self, recipes: Any, images: Any) -> list[LabelSet]:
        found: list[LabelSet] = []
        for recipe, _ in zip(recipes, images, strict=True):
            ids = semantic_ids(recipe.guide.labels)
            found.append({"semantic": semantic_map(np.where(ids == 9, 2, ids).astype(np.uint8))})
        return found


def test_without_adherence_nothing_is_drawn(tmp_path: Path, pipelines: Mapping[str, Path]):
    assert train(tmp_path, pipelines["sd1"], adherence=None).adherence is None
    assert not (tmp_path / "control/samples").exists()
    assert (tmp_path / "control" / ABOUT_FILE).exists()


@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_what_is_written_is_what_a_generator_takes(
    kind: str, tmp_path: Path, pipelines: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(adherence, "Decoded", Oracle)
    summary = train(tmp_path, pipelines[kind], adherence={"pictures": 2, "steps": 2, "reader": str(tmp_path)})
    folder = tmp_path / "control"
    assert {path.name for path in (folder / "samples").iterdir()} == {f"{step:06d}.png" for step in (0, 2, 4)}
    looks = [entry for entry in log(tmp_path) if "adherence" in entry]
    assert [entry["step"] for entry in looks] == [2, 4]
    assert 0 < looks[-1]["adherence"] < 1  # road is said where cars are
    assert summary.adherence == looks[-1]["adherence"]
    assert looks[-1]["adherence/sky"] == 1
    assert not (folder / "checkpoint.safetensors").exists()
    about = json.loads((folder / ABOUT_FILE).read_text())
    assert about == {"condition": {"kind": "one_hot"}, "classes": list(TAXONOMY.names)}

    model = Model(ModelReference(source=str(pipelines[kind])))
    Controlnet(controls=(Control(source=str(folder)),), model=model, taxonomy=TAXONOMY)
    before = log(tmp_path)
    assert train(tmp_path, pipelines[kind], samples_every=1).was_there  # looking more often teaches nothing else
    assert log(tmp_path) == before


@pytest.mark.parametrize("kind", ["sd1", "sd2", "xl"])
def test_the_control_learns_and_the_model_stays(kind: str, pipelines: Mapping[str, Path]):
    """One batch with one noise again and again: what is left of the loss must fall, by the control alone."""
    checkpoint = load_checkpoint(ModelReference(source=str(pipelines[kind])))
    unet: Any = checkpoint.unet
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    network = new_control(checkpoint, 5, begin_with=None, seed=0)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    denoising = Denoising(checkpoint)
    latents = denoising.latents(np.stack([image(seed, 32, 48) for seed in (0, 1)]))
    condition = torch.rand(2, 5, 32, 48, generator=stream(0, 1)).to(checkpoint.device)
    losses: list[float] = []
    for _ in range(12):
        loss = denoising.loss(steered(unet, network, condition), latents, ("car", "road"), stream(0, 0))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.97 * losses[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())


def test_gradients_of_deep_levels_survive_a_model_in_half_precision(pipelines: Mapping[str, Path]):
    """A GPU has it in float16, and what the loss of a large picture says to the middle is less than that can hold."""
    checkpoint = load_checkpoint(ModelReference(source=str(pipelines["sd1"]), dtype="float16"))
    device = checkpoint.device
    network = new_control(checkpoint, 3, begin_with=None, seed=0)
    latents = torch.randn(1, checkpoint.latent_channels, 4, 4, generator=stream(0, 0)).half().to(device)
    side = 4 * checkpoint.vae_scale_factor
    inputs: dict[str, Any] = {
        "encoder_hidden_states": torch.randn(1, 7, checkpoint.unet.config["cross_attention_dim"]).half().to(device),
        "added_cond_kwargs": None,
        "return_dict": False,
    }
    unet = cast(nn.Module, checkpoint.unet)
    for module in unet.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.float()  # as autocast does on a GPU, and cannot on a CPU
    condition, time = torch.ones(1, 3, side, side, device=device), torch.tensor([500], device=device)
    with torch.autocast(device.type, torch.bfloat16):
        said = steered(unet, network, condition)(latents, time, **inputs)[0]
    (said.float().square().mean() * 1e-6).backward()
    zero_convolutions = {
        name: parameter.grad
        for name, parameter in network.named_parameters()
        if name.startswith(("controlnet_down_blocks", "controlnet_mid_block")) and name.endswith("weight")
    }
    assert len(zero_convolutions) > 3
    assert [name for name, grad in zero_convolutions.items() if grad is None or grad.ne(0).float().mean() < 0.9] == []


def test_a_stopped_training_ends_like_one_that_was_not(
    tmp_path: Path, pipelines: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
):
    whole = tmp_path / "whole"
    train(whole, pipelines["sd1"], updates=5)
    halves = tmp_path / "halves"
    look = Adherence.look

    def stopping(self: Adherence, control: Path, step: int) -> Any:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return look(self, control, step)

    with monkeypatch.context() as patch:
        patch.setattr(Adherence, "look", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(halves, pipelines["sd1"], updates=5)
    assert finished_updates(halves / "control" / STATE_FILE) == 2
    train(halves, pipelines["sd1"], updates=5)
    for name in (WEIGHTS_FILE, ABOUT_FILE):
        assert (halves / "control" / name).read_bytes() == (whole / "control" / name).read_bytes()


def test_a_new_control_says_nothing_and_one_to_go_on_from_says_the_same(
    tmp_path: Path, pipelines: Mapping[str, Path], loras: Mapping[str, Path], caplog: pytest.LogCaptureFixture
):
    reference = ModelReference(source=str(pipelines["sd1"]), loras=(LoraReference(str(loras["sd1"])),))
    checkpoint = load_checkpoint(reference)
    network: Any = new_control(checkpoint, 5, begin_with=None, seed=0)
    sample, text = torch.randn(1, 4, 8, 12), torch.randn(1, 3, 16)
    condition = torch.rand(1, 5, 32, 48)

    def said(of: Any) -> Any:
        return of(sample, 3, encoder_hidden_states=text, controlnet_cond=condition, return_dict=False)

    assert all(not residual.any() for residual in [*said(network)[0], said(network)[1]])
    for parameter in network.parameters():
        parameter.data += 0.01
    network.save_pretrained(tmp_path / "first")
    torch.testing.assert_close(said(new_control(checkpoint, 5, begin_with=tmp_path / "first", seed=1)), said(network))
    wider: Any = new_control(checkpoint, 6, begin_with=tmp_path / "first", seed=1)
    assert "is shown 5 channels, this condition has 6" in caplog.text
    for name, value in network.state_dict().items():
        if name != "controlnet_cond_embedding.conv_in.weight":
            torch.testing.assert_close(wider.state_dict()[name], value, msg=name)
    other = load_checkpoint(ModelReference(source=str(pipelines["xl"])))
    with pytest.raises(UserError, match=r"begin_with: .*first cannot be gone on from"):
        new_control(other, 5, begin_with=tmp_path / "first", seed=1)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"condition": "onehot"}, r"condition\.kind: unknown kind 'onehot'; did you mean 'one_hot'"),
        ({"source": {"kind": "prompts", "file": "x"}}, "source: prompts brings no labels"),
        ({"batch": 3}, "batch: unknown key; did you mean 'batch_size'"),
        ({"source": {**LAYOUTS, "height": 30, "scale": [1.0]}}, "pictures of 30 x 48 .* expected multiples of 4"),
        ({"source": {**RESTYLED, "times": 3}}, "source: restyle ends after 6 recipes, .* take `kind: layouts`"),
        ({"begin_with": "nowhere"}, "ControlNet nowhere: found no such folder"),
        ({"begin_with": {"source": "nobody/nothing", "revision": "main"}}, "nobody/nothing: .* revision 'main'"),
        ({"begin_with": {"from": "nowhere"}}, r"begin_with\.from: unknown key"),
        ({"tracker": "tensorbord"}, "tracker: unknown name 'tensorbord'; did you mean 'tensorboard'"),
        ({"adherence": {"reader": "nowhere"}}, "nowhere is not a reader"),
        ({"adherence": {"source": {"kind": "prompts", "file": "x"}}}, r"adherence\.source: prompts brings no labels"),
        ({"adherence": {"source": RESTYLED}}, r"adherence\.pictures: found 8, expected at most 2, .* ask for fewer"),
    ],
)
def test_mistakes_are_told(changes: dict[str, Any], told: str, tmp_path: Path, pipelines: Mapping[str, Path]):
    with pytest.raises(UserError, match=told):
        train(tmp_path, pipelines["sd1"], **changes)


def test_layouts_of_other_classes_are_not_looked_at(tmp_path: Path, pipelines: Mapping[str, Path]):
    with pytest.raises(UserError, match=r"adherence\.source: labels of the classes road, car, sky, expected those of"):
        train(tmp_path, pipelines["sd1"], adherence={"source": photographed(tmp_path)})


def test_a_reader_behind_the_condition_leaves_the_model_in_training_alone(
    tmp_path: Path, pipelines: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
):
    """Training asks it in another thread; looks are taken in this one, where it may borrow the model."""
    lent: dict[bool, list[Any]] = {True: [], False: []}

    class Near:
        digest = "near"

        def __init__(self, *, model: Model, **_: Any) -> None:
            self._model = model

        def label(self, _recipes: Any, images: Any) -> list[LabelSet]:
            lent[threading.current_thread() is threading.main_thread()].append(self._model.checkpoint)
            return [{"depth": metric_depth(np.ones(images.shape[1:3], np.float32))}]

    monkeypatch.setattr("datagen.conditions.depth.Decoded", Near)
    condition = {"kind": "depth", "reader": str(tmp_path / "reader")}
    train(tmp_path, pipelines["sd1"], condition=condition, source=photographed(tmp_path), updates=1, samples_every=1)
    assert lent[False]
    assert lent[True]
    assert all(one is not other for one in lent[False] for other in lent[True])
    assert "reader" not in json.loads((tmp_path / "control" / "control_plan.json").read_text())["condition"]


def test_a_folder_of_another_plan_is_refused(tmp_path: Path, pipelines: Mapping[str, Path]):
    train(tmp_path, pipelines["sd1"], updates=1)
    before = (tmp_path / "control" / WEIGHTS_FILE).read_bytes()
    with pytest.raises(UserError, match=r"holds what another plan trained, which differs in: updates \(1 there, 2 in"):
        train(tmp_path, pipelines["sd1"], updates=2)
    assert (tmp_path / "control" / WEIGHTS_FILE).read_bytes() == before


@pytest.mark.slow
def test_two_processes_make_the_control_of_one(tmp_path: Path, pipelines: Mapping[str, Path]):
    changes: dict[str, Any] = {
        "batch_size": 4,
        "updates": 3,
        "samples_every": 3,
        "adherence": {"pictures": 1, "steps": 1},
    }
    train(tmp_path / "alone", pipelines["sd1"], **changes)
    plan = write_plan(tmp_path / "plan.yaml", values(tmp_path / "together", pipelines["sd1"], **changes))
    done = in_two_processes(tmp_path, "control", plan)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ControlNet of 3 updates") == 1
    alone, together = (load_file(tmp_path / name / "control" / WEIGHTS_FILE) for name in ("alone", "together"))
    assert alone.keys() == together.keys()
    for name, weight in alone.items():
        torch.testing.assert_close(together[name], weight, atol=2e-3, rtol=0, msg=name)


@pytest.mark.parametrize("name", ["control", "game_look", "style_swap"])
def test_the_configs_are_plans(name: str):
    file = Path(__file__).parents[2] / f"configs/{name}.yaml"
    if name == "control":
        plan = load_control_plan(file)
        assert set(yaml.safe_load(file.read_text())) | {"begin_with", "accumulate"} == set(ControlPlan.model_fields)
        assert plan.source.build(seed=0).taxonomy.names == TAXONOMY.names
    elif name == "game_look":
        assert load_adapt_plan(file).method == "lora"
    else:
        swap = load_plan(file, ["source.rare_classes=null"])  # which would count the classes of 200 scenes
        recipe = swap.source.build(seed=0).recipe(0)
        assert recipe.attributes.keys() >= {"source", "crop"}
        assert swap.generator.kind == "controlnet"
