"""`datagen adapt`: a tiny model learns the look of a folder, is interrupted, saved and loaded again."""

import io
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from datagen.adaptation import training_state
from datagen.adaptation.adapt import AdaptSummary, adapt
from datagen.adaptation.adapt_plan import AdaptPlan, load_adapt_plan
from datagen.adaptation.batches import Crops, PictureBatches
from datagen.adaptation.denoising import Denoising, stratified_times
from datagen.adaptation.loop import stream
from datagen.adaptation.pictures import pictures_of_folder
from datagen.files import read_image
from decoders.checkpoint import Checkpoint, load_checkpoint
from decoders.errors import UserError
from decoders.peers import Alone
from decoders.references import LoraReference, ModelReference
from tests.datagen.toys import in_two_processes


@pytest.fixture(scope="module")
def walls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of one domain: orange, with a little noise."""
    folder = tmp_path_factory.mktemp("walls é")
    rng = np.random.default_rng(0)
    for number in range(4):
        pixels = np.clip(np.array([230, 120, 20]) + rng.normal(0, 8, (40, 48, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def write_plan(file: Path, source: Path, pictures: Path, /, **changes: Any) -> Path:
    plan: dict[str, Any] = {
        "adapted": str(file.with_name("adapted")),
        "model": {"source": str(source)},
        "images": str(pictures),
        "size": [32, 32],
        "updates": 6,
        "batch_size": 2,
        "learning_rate": 1e-2,
        "ema": 0.0,
        "threads": 1,
        "tracker": "none",
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(plan | changes, allow_unicode=True), encoding="utf-8")
    return file


def adapted(plan: Path, *overrides: str, to: Path | None = None) -> AdaptSummary:
    return adapt(plan, to, overrides, Console(quiet=True))


def loss_of(checkpoint: Checkpoint, images: Path) -> float:
    """On batches that no training saw in this order."""
    denoising = Denoising(checkpoint)
    batches = PictureBatches(pictures_of_folder(images), Crops(size=(32, 32)), batch_size=8, seed=99)
    found = 0.0
    with torch.no_grad():
        for number in range(6):
            batch = batches(number)
            latents = denoising.latents(batch.pictures)
            unet: Any = checkpoint.unet
            found += float(denoising.loss(unet, latents, batch.captions, batch.random)) / 6
    return found


def predicted(checkpoint: Checkpoint) -> Tensor:
    denoising = Denoising(checkpoint)
    latents = torch.randn(1, 4, 8, 8, generator=stream(0, 0)).to(checkpoint.device)
    kept: list[Tensor] = []

    def keep(*arguments: Any, **named: Any) -> Any:
        kept.append(checkpoint.unet(*arguments, **named)[0].detach())
        return kept

    denoising.loss(keep, latents, ["a car"], stream(0, 1))
    return kept[0]


@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_a_lora_lowers_the_loss_of_its_pictures_and_can_be_switched_off(
    kind: str, walls: Path, pipelines: Mapping[str, Path], tmp_path: Path
):
    summary = adapted(write_plan(tmp_path / "plan.yaml", pipelines[kind], walls, updates=30, batch_size=4))
    assert summary.result == tmp_path / "adapted/lora.safetensors"
    assert "loras: [{source: " in str(summary)
    source = str(pipelines[kind])
    base = load_checkpoint(ModelReference(source))
    on, off = (
        load_checkpoint(ModelReference(source, loras=(LoraReference(str(summary.result), weight),)))
        for weight in (1.0, 0.0)
    )
    assert loss_of(on, walls) < 0.97 * loss_of(base, walls)
    torch.testing.assert_close(predicted(off), predicted(base), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(predicted(on), predicted(base), atol=1e-3)


def test_full_training_writes_a_model_that_loads(walls: Path, pipelines: Mapping[str, Path], tmp_path: Path):
    plan = write_plan(tmp_path / "plan.yaml", pipelines["sd2"], walls, method="full", updates=25, batch_size=4)
    summary = adapted(plan, "learning_rate=4e-3")
    assert summary.result == tmp_path / "adapted"
    assert str(summary).endswith(f"source: {summary.result}")
    base, whole = (load_checkpoint(ModelReference(str(path))) for path in (pipelines["sd2"], summary.result))
    assert type(whole.pipeline) is type(base.pipeline)
    assert loss_of(whole, walls) < 0.9 * loss_of(base, walls)
    for part in ("vae", "text_encoder"):
        for name, tensor in getattr(base.pipeline, part).state_dict().items():
            assert torch.equal(tensor, getattr(whole.pipeline, part).state_dict()[name]), name
    assert adapted(plan, "learning_rate=4e-3").was_there


def test_the_plans_own_loras_are_what_training_begins_with(
    walls: Path, pipelines: Mapping[str, Path], loras: Mapping[str, Path], tmp_path: Path
):
    source = str(pipelines["sd1"])
    model: dict[str, Any] = {"source": source, "loras": [{"source": str(loras["sd1"]), "weight": 0.7}]}
    plan = write_plan(tmp_path / "plan.yaml", pipelines["sd1"], walls, method="full", model=model)
    whole = load_checkpoint(ModelReference(str(adapted(plan, "learning_rate=1e-12").result)))
    begun = load_checkpoint(ModelReference(source, loras=(LoraReference(str(loras["sd1"]), 0.7),)))
    torch.testing.assert_close(predicted(whole), predicted(begun), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("choices", [{}, {"method": "full", "ema": 0.9, "accumulate": 2}], ids=["lora", "full"])
def test_interrupted_and_gone_on_equals_undisturbed(
    choices: dict[str, Any],
    walls: Path,
    pipelines: Mapping[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    plan = write_plan(tmp_path / "plan.yaml", pipelines["sd1"], walls, **choices)
    whole = adapted(plan)
    plain = training_state.TrainingState.update

    def interrupted(state: training_state.TrainingState, **rates: float) -> None:
        plain(state, **rates)
        if state.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    said = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(training_state.TrainingState, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            adapt(plan, tmp_path / "cut", (), Console(file=said))
    assert "stopping after this update" in said.getvalue()
    assert training_state.finished_updates(tmp_path / "cut/checkpoint.safetensors") == 3
    with pytest.raises(UserError, match=r"another plan trained, which differs in: learning_rate \(0\.01 there, 0\.02"):
        adapted(plan, "learning_rate=0.02", to=tmp_path / "cut")
    gone_on = adapted(plan, to=tmp_path / "cut")
    assert not (tmp_path / "cut/checkpoint.safetensors").exists()
    files = {path.relative_to(whole.result.parent if whole.result.is_file() else whole.result)
             for path in (tmp_path / "adapted").rglob("*.safetensors")}  # fmt: skip
    assert files
    for file in files:
        assert (tmp_path / "adapted" / file).read_bytes() == (tmp_path / "cut" / file).read_bytes(), file
    assert not gone_on.was_there


def test_an_equal_plan_keeps_the_result_and_another_one_is_refused(
    walls: Path, pipelines: Mapping[str, Path], tmp_path: Path
):
    plan = write_plan(tmp_path / "plan.yaml", pipelines["sd1"], walls)
    before = adapted(plan).result.read_bytes()
    again = adapted(plan, "tracker=none", "samples_every=7")
    assert again.was_there
    assert "made before, kept" in str(again)
    with pytest.raises(UserError, match=r"differs in: rank \(8 there, 4 in the plan\), caption_dropout .*--to"):
        adapted(plan, "rank=4", "caption_dropout=0.5")
    with pytest.raises(UserError, match="differs in: pictures"):
        adapted(plan, "caption=a wall")
    assert again.result.read_bytes() == before
    with pytest.raises(UserError, match=r"holds adapted, but no adapt.json"):
        adapted(plan, to=tmp_path)


def test_a_lora_on_top_of_others_is_named_beside_them(
    walls: Path, pipelines: Mapping[str, Path], loras: Mapping[str, Path], tmp_path: Path
):
    """It was learned on the model with these; `full` writes them into the weights."""
    model = {"source": str(pipelines["sd1"]), "loras": [{"source": str(loras["sd1"]), "weight": 0.25}]}
    plan = write_plan(tmp_path / "plan.yaml", pipelines["sd1"], walls, model=model, updates=1)
    told = str(adapted(plan)).split("of a plan as ")[1]
    assert yaml.safe_load(told) == {"loras": [*model["loras"], {"source": str(tmp_path / "adapted/lora.safetensors")}]}
    whole = tmp_path / "whole"
    assert str(adapted(plan, "method=full", "rank=null", to=whole)).endswith(f"of a plan as source: {whole}")


def test_samples_are_drawn_from_the_same_noise_and_curves_are_kept(
    walls: Path, pipelines: Mapping[str, Path], tmp_path: Path
):
    looks: dict[str, Any] = {"tracker": "tensorboard", "prompts": ["a car", "fog"], "samples_every": 2}
    plan = write_plan(tmp_path / "plan.yaml", pipelines["sd1"], walls, updates=2, **looks)
    folder = adapted(plan, "gradient_checkpointing=true").result.parent
    names = ["000000.png", "000002.png"]
    assert sorted(path.name for path in (folder / "samples").iterdir()) == names
    rows = [read_image(folder / "samples" / name) for name in names]
    assert rows[0].shape == (32, 64, 3)
    assert (rows[0] != rows[1]).any()
    assert list((folder / "tracker").glob("events*"))
    other = adapted(plan, "tracker=none", "prompts=[]", to=tmp_path / "other").result
    assert other.read_bytes() == (folder / "lora.safetensors").read_bytes()  # looking and saving memory change nothing


def empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda _: {"images": None}, "found neither of `images` and `data`, expected one"),
        (lambda _: {"data": {"format": "pocket_scenes"}}, "found both of `images` and `data`"),
        (lambda _: {"rank": 0}, "rank: found 0, expected greater than or equal to 1"),
        (lambda _: {"rank": 4, "method": "full"}, "found `rank` beside `method: full`"),
        (lambda _: {"rank": None}, "found null for `rank` beside `method: lora`"),
        (lambda _: {"scales": [0.5, 1.5]}, r"scales\.1: found 1\.5, expected less than or equal to 1"),
        (lambda _: {"captions": "own", "caption": "x"}, "found `caption` beside `captions: own`"),
        (lambda _: {"size": [32, 36]}, r"size is \[32, 36\], expected multiples of 8 for this model; take \[32, 32\]"),
        (lambda _: {"tracker": "tensorbord"}, "unknown name 'tensorbord'; did you mean 'tensorboard'"),
        (lambda _: {"tracker": "comet_ml"}, "comet_ml needs a package that was not found; run `pip install comet-ml`"),
        (lambda folder: {"images": str(empty(folder))}, "holds no picture"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    changes: Callable[[Path], dict[str, Any]],
    message: str,
    walls: Path,
    pipelines: Mapping[str, Path],
    tmp_path: Path,
):
    plan = write_plan(tmp_path / "plan.yaml", pipelines["sd1"], walls, **changes(tmp_path))
    with pytest.raises(UserError, match=message):
        adapted(plan)
    assert not (tmp_path / "adapted").exists()


def test_what_is_written_is_no_picture_to_learn_from(walls: Path, pipelines: Mapping[str, Path], tmp_path: Path):
    plan = write_plan(tmp_path / "plan.yaml", pipelines["sd1"], walls)
    with pytest.raises(UserError, match="lies within the folder of pictures"):
        adapted(plan, to=walls / "lora")
    assert not (walls / "lora").exists()


def test_a_whole_model_in_half_precision_draws_its_samples(walls: Path, pipelines: Mapping[str, Path], tmp_path: Path):
    """On a CPU without bfloat16 as well, where what is trained is in float32 and the rest is not."""
    model = {"source": str(pipelines["sd1"]), "dtype": "bfloat16"}
    choices: dict[str, Any] = {"method": "full", "model": model, "prompts": ["a wall"], "updates": 1}
    adapted(write_plan(tmp_path / "plan.yaml", pipelines["sd1"], walls, **choices))
    assert list((tmp_path / "adapted/samples").glob("*.png"))


def test_a_loss_that_explodes_says_what_to_change(walls: Path, pipelines: Mapping[str, Path], tmp_path: Path):
    plan = write_plan(tmp_path / "plan.yaml", pipelines["sd1"], walls, method="full")
    with pytest.raises(UserError, match=r"gradient of update \d is (nan|inf).*take a smaller learning rate"):
        adapted(plan, "learning_rate=1e30", "decay=0")


@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_two_processes_have_the_loss_of_one(kind: str, pipelines: Mapping[str, Path]):
    class Half(Alone):
        count = 2

        def __init__(self, rank: int) -> None:
            self.rank = rank

    checkpoint = load_checkpoint(ModelReference(str(pipelines[kind])))
    unet: Any = checkpoint.unet
    latents = torch.randn(4, 4, 8, 6, generator=stream(0, 0))
    captions = ["a car", "", "fog", "two cars"]
    with torch.no_grad():
        whole = float(Denoising(checkpoint).loss(unet, latents, captions, stream(0, 1)))
        halves = [
            float(Denoising(checkpoint, Half(rank)).loss(unet, latents[rank::2], captions[rank::2], stream(0, 1)))
            for rank in (0, 1)
        ]
    assert sum(halves) / 2 == pytest.approx(whole, rel=1e-5)
    assert halves[0] != pytest.approx(halves[1], rel=1e-3)


@pytest.mark.parametrize(("kind", "prediction"), [("sd1", "epsilon"), ("sd2", "v_prediction"), ("sd1", "sample")])
def test_the_target_is_what_the_scheduler_says(kind: str, prediction: str, pipelines: Mapping[str, Path]):
    """Whoever answers with the target itself has no loss."""
    checkpoint = load_checkpoint(ModelReference(str(pipelines[kind])))
    checkpoint.pipeline.scheduler.register_to_config(prediction_type=prediction)
    scheduler: Any = checkpoint.pipeline.scheduler
    latents = torch.randn(3, 4, 8, 8, generator=stream(0, 0))

    def oracle(sample: Tensor, timestep: Tensor, **_: Any) -> tuple[Tensor]:
        alpha = scheduler.alphas_cumprod[timestep][:, None, None, None]
        noise = (sample - alpha.sqrt() * latents) / (1 - alpha).sqrt()
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        return ({"epsilon": noise, "sample": latents, "v_prediction": velocity}[prediction],)

    assert float(Denoising(checkpoint).loss(oracle, latents, ["fog"] * 3, stream(0, 1))) < 1e-6
    checkpoint.pipeline.scheduler.register_to_config(prediction_type="flow_prediction")
    with pytest.raises(UserError, match="prediction_type 'flow_prediction', expected epsilon, v_prediction or sample"):
        Denoising(checkpoint)


@pytest.mark.slow
def test_two_processes_make_the_lora_of_one(walls: Path, pipelines: Mapping[str, Path], tmp_path: Path):
    plan = write_plan(tmp_path / "plan.yaml", pipelines["sd1"], walls, batch_size=4, tracker="tensorboard")
    alone = load_file(adapted(plan, to=tmp_path / "alone").result)
    for expected in ("6 updates", "made before, kept"):
        done = in_two_processes(tmp_path, "adapt", plan)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("adapted to 4 pictures") == 1
        assert expected in done.stdout
    together = load_file(tmp_path / "adapted/lora.safetensors")
    assert alone.keys() == together.keys()
    for name, weight in alone.items():
        torch.testing.assert_close(together[name], weight, atol=2e-3, rtol=0, msg=name)
    assert max(float(weight.abs().max()) for name, weight in alone.items() if "lora_B" in name) > 0.02


def test_times_cover_the_schedule_evenly():
    times = stratified_times(10, 1000, stream(0, 0))
    assert [int(time) // 100 for time in times] == list(range(10))


def test_the_config_is_a_plan_and_its_keys_are_explained():
    file = Path(__file__).parents[2] / "configs/adapt.yaml"
    plan = load_adapt_plan(file, ["images=photos"])
    assert plan.images == Path("photos")
    assert set(yaml.safe_load(file.read_text())) == set(AdaptPlan.model_fields) - {"data"}
