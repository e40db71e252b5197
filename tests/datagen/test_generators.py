"""Stable Diffusion 1.x, 2.x and XL by one and the same code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datagen.generators import Generator
from datagen.generators.stable_diffusion import StableDiffusion
from datagen.model import Model
from datagen.plugins import choose_part
from datagen.records import Recipe
from decoders.errors import UserError
from decoders.references import LoraReference, ModelReference

# diffusers' schedulers hand tensors to numpy in a way that numpy will once refuse.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

RECIPES = [
    Recipe(id="00000000", prompt="a red car", seed=5),
    Recipe(id="00000001", prompt="road, sky, tree", seed=2**63 - 1),
    Recipe(id="00000002", prompt="", seed=7),
]


def generator(folder: Path, *loras: Path, **settings: Any) -> StableDiffusion:
    reference = ModelReference(source=str(folder), loras=tuple(LoraReference(str(lora), 0.5) for lora in loras))
    values: dict[str, Any] = {"steps": 2, "height": 32, "width": 48, "model": Model(reference)}
    return StableDiffusion(**{**values, **settings})


@pytest.mark.parametrize("kind", ["sd1", "sd2", "xl"])
@pytest.mark.parametrize("size", [(32, 48), (48, 32)])
def test_every_kind_draws_at_any_size(kind: str, size: tuple[int, int], pipelines: Mapping[str, Path]):
    draws = generator(pipelines[kind], height=size[0], width=size[1])
    assert isinstance(draws, Generator)
    pictures = draws.render(RECIPES)
    assert pictures.shape == (3, *size, 3)
    assert pictures.std() > 1


@pytest.mark.parametrize("kind", ["sd1", "sd2", "xl"])
def test_a_picture_depends_on_its_recipe_alone(kind: str, pipelines: Mapping[str, Path]):
    draws = generator(pipelines[kind])
    pictures = draws.render(RECIPES)
    assert np.array_equal(draws.render(RECIPES[::-1])[::-1], pictures)
    assert np.array_equal(draws.render([RECIPES[1]] * 3)[2], pictures[1])
    assert np.array_equal(generator(pipelines[kind]).render(RECIPES), pictures)


@pytest.mark.parametrize("kind", ["sd1", "sd2", "xl"])
def test_a_lora_changes_pictures(kind: str, pipelines: Mapping[str, Path], loras: Mapping[str, Path]):
    plain = generator(pipelines[kind]).render(RECIPES)
    assert not np.array_equal(generator(pipelines[kind], loras[kind]).render(RECIPES), plain)


def test_prompt_negative_prompt_seed_steps_and_guidance_all_matter(pipelines: Mapping[str, Path]):
    model = Model(ModelReference(source=str(pipelines["sd1"])))
    recipe = RECIPES[0]
    changed = [
        Recipe(id=recipe.id, prompt="fog", seed=recipe.seed),
        Recipe(id=recipe.id, prompt=recipe.prompt, negative_prompt="blue bus", seed=recipe.seed),
        Recipe(id=recipe.id, prompt=recipe.prompt, seed=recipe.seed + 1),
    ]
    pictures = [generator(pipelines["sd1"], model=model).render([each])[0] for each in (recipe, *changed)]
    settings = ({"steps": 3}, {"guidance": 1.0}, {"guidance_rescale": 1.0}, {"scheduler": "euler"})
    pictures += [generator(pipelines["sd1"], model=model, **each).render([recipe])[0] for each in settings]
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm", "dpm_solver", "euler", "euler_ancestral", "heun", "unipc"])
def test_every_scheduler_is_deterministic_and_leaves_the_checkpoint_alone(
    scheduler: str, pipelines: Mapping[str, Path]
):
    model = Model(ModelReference(source=str(pipelines["sd2"])))
    own = model.checkpoint.pipeline.scheduler
    draws = generator(pipelines["sd2"], model=model, scheduler=scheduler)
    assert np.array_equal(draws.render(RECIPES), draws.render(RECIPES))
    assert model.checkpoint.pipeline.scheduler is own
    assert own.config.prediction_type == "v_prediction"


def test_a_sampler_that_cannot_begin_with_pure_noise_is_refused(pipelines: Mapping[str, Path]):
    model = Model(ModelReference(source=str(pipelines["sd2"])))
    model.checkpoint.pipeline.scheduler.register_to_config(rescale_betas_zero_snr=True)
    with pytest.raises(UserError, match=r"scheduler is heun.*zero terminal SNR.*take one of ddim, ddpm"):
        generator(pipelines["sd2"], model=model, scheduler="heun").render(RECIPES)
    generator(pipelines["sd2"], model=model, scheduler="euler").render(RECIPES)


def test_latents_are_not_clipped_by_a_default(pipelines: Mapping[str, Path]):
    import diffusers

    model = Model(ModelReference(source=str(pipelines["sd1"])))
    pipeline = model.checkpoint.pipeline
    pipeline.register_modules(scheduler=diffusers.UniPCMultistepScheduler.from_config(pipeline.scheduler.config))
    config = {name: value for name, value in pipeline.scheduler.config.items() if name != "clip_sample"}
    pipeline.scheduler._internal_dict = type(pipeline.scheduler.config)(config)  # pyright: ignore[reportPrivateUsage]
    draws = generator(pipelines["sd1"], model=model, scheduler="ddpm")
    draws.render(RECIPES)
    assert draws._pipeline.scheduler.config.clip_sample is False  # pyright: ignore[reportPrivateUsage]


def test_the_size_is_the_models_own_when_left_out(pipelines: Mapping[str, Path]):
    assert generator(pipelines["sd1"], height=None, width=None).render(RECIPES[:1]).shape == (1, 32, 32, 3)


@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_a_side_that_is_left_out_is_the_models_own(kind: str, pipelines: Mapping[str, Path]):
    assert generator(pipelines[kind], height=48, width=None).render(RECIPES[:1]).shape == (1, 48, 32, 3)


@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_the_noise_is_the_same_in_every_number_format(
    kind: str, pipelines: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
):
    """Older versions of torch draw another in half precision; here, none at all."""
    draw = torch.randn

    def drawn(*shape: Any, dtype: torch.dtype | None = None, **named: Any) -> torch.Tensor:
        return draw(*shape, dtype=dtype, **named) * (dtype in (None, torch.float32))

    monkeypatch.setattr(torch, "randn", drawn)
    pictures = [
        generator(pipelines[kind], model=Model(ModelReference(source=str(pipelines[kind]), dtype=dtype))).render(
            RECIPES
        )
        for dtype in ("float32", "bfloat16")
    ]
    assert np.abs(pictures[0].astype(int) - pictures[1]).mean() < 2


def test_a_size_that_does_not_fit_is_told(pipelines: Mapping[str, Path]):
    with pytest.raises(UserError, match=r"generator.width is 50, expected a multiple of 8 for this model; take 48"):
        generator(pipelines["sd1"], width=50).render(RECIPES)


def test_pixels_that_are_no_numbers_are_told(pipelines: Mapping[str, Path]):
    draws = generator(pipelines["sd1"])
    checkpoint = draws._model.checkpoint  # pyright: ignore[reportPrivateUsage]
    torch.nn.init.constant_(checkpoint.vae.decoder.conv_out.weight, torch.nan)
    with pytest.raises(UserError, match=r"NaN\) in float32, .* set model.dtype to bfloat16 or float32"):
        draws.render(RECIPES)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"steps": 0}, "generator.steps: found 0, expected greater than or equal to 1"),
        ({"stepps": 5}, "generator.stepps: unknown key; did you mean 'steps'? known keys: guidance, guidance_rescale,"),
        ({"scheduler": "eular"}, "generator.scheduler: found 'eular', expected 'ddim', 'ddpm', 'dpm_solver', 'euler'"),
        ({"height": "tall"}, "generator.height: found 'tall', expected a valid integer"),
    ],
)
def test_settings_are_checked_before_any_model_is_looked_at(setting: dict[str, Any], told: str):
    with pytest.raises(UserError) as caught:
        choose_part("generators", {"kind": "stable_diffusion", **setting}, at="generator")
    assert told in str(caught.value)


def test_a_whole_number_is_good_for_guidance(pipelines: Mapping[str, Path]):
    part = choose_part("generators", {"kind": "stable_diffusion", "guidance": 3}, at="generator")
    assert isinstance(part.build(model=Model(ModelReference(source=str(pipelines["sd1"])))), StableDiffusion)


def test_a_long_prompt_is_told_and_never_cut_silently(pipelines: Mapping[str, Path], caplog: pytest.LogCaptureFixture):
    long = [Recipe(id="00000000", prompt="car road sky tree " * 5, seed=1)]
    with pytest.raises(UserError, match=r"has 22 tokens.*leave out `long_prompts: refuse`"):
        generator(pipelines["sd1"], long_prompts="refuse").render(long)
    draws = generator(pipelines["sd1"])
    first = draws.render(long)
    assert "its end is left out" in caplog.text
    shorter = [Recipe(id="00000000", prompt="car road sky tree " * 4, seed=1)]  # 18 tokens: cut to the same
    assert np.array_equal(draws.render(shorter), first)
    for word in ("car", "road", "car"):
        draws.render([Recipe(id="00000000", prompt=f"{word} sky tree bus " * 4, seed=1)])
    told = [
        number
        for number in range(1, 5)
        if f"its end is left out; so far, prompts cut in this way: {number}" in caplog.text
    ]
    assert told == [1, 2, 4]
    assert caplog.text.count("its end is left out") == 3
