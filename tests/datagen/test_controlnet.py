"""Guides keep their geometry: against diffusers' own ControlNet pipelines, and window by window."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from datagen.conditions.depth import Depth
from datagen.conditions.edges import Edges
from datagen.conditions.one_hot import OneHot
from datagen.conditions.palette import Palette
from datagen.controls import ABOUT_FILE, WEIGHTS_FILE, Control, Fusion, control_digest, locate_control, read_control
from datagen.files import encode_png
from datagen.generators import Generator
from datagen.generators._controlled_unet import ControlledUnet, Signal, Windows
from datagen.generators._fusion import Canvas, large_regions, tile_prompt
from datagen.generators._tiles import feather, tiles
from datagen.generators.controlnet import Controlnet
from datagen.generators.stable_diffusion import StableDiffusion
from datagen.guides import guide_of, pad_guide
from datagen.model import Model
from datagen.plugins import choose_part
from datagen.randomness import seed_for
from datagen.records import Guide, Recipe
from decoders import checkpoint
from decoders.errors import UserError
from decoders.features import to_pixels
from decoders.labels import semantic_ids, semantic_map
from decoders.references import ModelReference, Precision
from tests.datagen.made_up import TAXONOMY, image, labels, objects
from tests.tiny_models import tiny_control

# diffusers' schedulers hand tensors to numpy in a way that numpy will once refuse.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

SIZE = (32, 48)
STEPS = 3


def guide(seed: int) -> Guide:
    return Guide(labels=labels(seed, *SIZE), image=image(seed, *SIZE))


RECIPES = [
    Recipe(id="00000000", prompt="a red car", seed=5, guide=guide(0)),
    Recipe(id="00000001", prompt="road, sky", seed=6, guide=guide(1)),
]


@pytest.fixture(scope="module")
def controls(pipelines: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """One of classes for each kind of pipeline, and one of colours for the first."""
    folder = tmp_path_factory.mktemp("controls")
    made = {kind: tiny_control(pipelines[kind], folder / kind, channels=len(TAXONOMY) + 1) for kind in pipelines}
    return made | {"colours": tiny_control(pipelines["sd1"], folder / "colours", channels=3, seed=1)}


def control(folder: Path, **choices: Any) -> Control:
    return Control(source=str(folder), condition=OneHot(taxonomy=TAXONOMY), **choices)


def generator(
    pipeline: Path, *chosen: Control, steps: int = STEPS, dtype: Precision = "auto", **settings: Any
) -> Controlnet:
    model = Model(ModelReference(source=str(pipeline), dtype=dtype))
    return Controlnet(controls=chosen, steps=steps, model=model, taxonomy=TAXONOMY, **settings)


def stock(
    kind: str,
    pipeline: Path,
    networks: Any,
    images: Any,
    *,
    name: str = "ControlNet",
    scheduler: Any = None,
    **more: Any,
) -> np.ndarray:
    """What diffusers' own pipeline draws."""
    whole_name = f"StableDiffusion{'XL' if kind == 'xl' else ''}{name}Pipeline"
    extra: dict[str, Any] = {} if kind == "xl" else {"safety_checker": None}
    stock: Any = getattr(diffusers, whole_name).from_pretrained(
        pipeline, controlnet=networks, dtype=torch.float32, **extra
    )
    stock.set_progress_bar_config(disable=True)
    if scheduler is not None:
        stock.scheduler = scheduler.from_config(stock.scheduler.config)
    return stock(
        prompt=[recipe.prompt for recipe in RECIPES],
        image=images,
        generator=[torch.Generator("cpu").manual_seed(recipe.seed) for recipe in RECIPES],
        guidance_scale=7.5,
        height=SIZE[0],
        width=SIZE[1],
        output_type="np",
        **{"num_inference_steps": STEPS, **more},
    ).images


def same(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for a rounding here and there: sums of residuals are taken in another order."""
    steps = np.abs(found - np.rint(expected * 255))
    assert steps.max() <= 1
    assert (steps > 0).mean() < 0.001


def like_stock(found: np.ndarray, expected: np.ndarray) -> None:
    """The same, as far as the number format goes: the stock pipelines are in float32, ours is as the device has it."""
    if in_half_precision():
        steps = np.abs(found - np.rint(expected * 255))
        assert steps.max() <= 4
        assert (steps > 1).mean() < 0.02
    else:
        same(found, expected)


def in_half_precision() -> bool:
    return checkpoint.choose_dtype("auto", checkpoint.choose_device(None)) != torch.float32


def network(folder: Path) -> Any:
    return diffusers.ControlNetModel.from_pretrained(folder, dtype=torch.float32)


def shown(condition: Any) -> Tensor:
    return torch.from_numpy(np.stack([condition.draw(recipe.guide) for recipe in RECIPES]))


@pytest.mark.parametrize("kind", ["sd1", "sd2", "xl"])
def test_it_draws_what_the_pipeline_of_diffusers_draws(
    kind: str, pipelines: Mapping[str, Path], controls: Mapping[str, Path]
):
    draws = generator(pipelines[kind], control(controls[kind], scale=0.7))
    assert isinstance(draws, Generator)
    found = draws.render(RECIPES)
    one_hot = shown(OneHot(taxonomy=TAXONOMY))
    expected = stock(kind, pipelines[kind], network(controls[kind]), one_hot, controlnet_conditioning_scale=0.7)
    like_stock(found, expected)
    assert not np.array_equal(found, generator(pipelines[kind], control(controls[kind], scale=0.0)).render(RECIPES))


def test_several_controls_act_together_each_in_its_own_steps(
    pipelines: Mapping[str, Path], controls: Mapping[str, Path]
):
    colours = Control(source=str(controls["colours"]), condition=Palette(taxonomy=TAXONOMY), scale=0.5, begin=0.3)
    found = generator(pipelines["sd1"], control(controls["sd1"], end=0.7), colours).render(RECIPES)
    conditions = [shown(OneHot(taxonomy=TAXONOMY)), shown(Palette(taxonomy=TAXONOMY))]
    expected = stock(
        "sd1",
        pipelines["sd1"],
        [network(controls["sd1"]), network(controls["colours"])],
        conditions,
        controlnet_conditioning_scale=[1.0, 0.5],
        control_guidance_start=[0.0, 0.3],
        control_guidance_end=[0.7, 1.0],
    )
    like_stock(found, expected)


@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_what_is_said_of_the_whole_picture_is_amplified_by_guidance(
    kind: str, pipelines: Mapping[str, Path], controls: Mapping[str, Path], tmp_path: Path
):
    """As diffusers has it for ControlNets such as `shuffle`: they act with the prompt alone."""
    pooled = tmp_path / "pooled"
    shutil.copytree(controls[kind], pooled)
    settings = json.loads((pooled / "config.json").read_text(encoding="utf-8"))
    (pooled / "config.json").write_text(json.dumps(settings | {"global_pool_conditions": True}), encoding="utf-8")
    found = generator(pipelines[kind], control(pooled)).render(RECIPES)
    like_stock(found, stock(kind, pipelines[kind], network(pooled), shown(OneHot(taxonomy=TAXONOMY))))
    everywhere = control(pooled, class_scales=dict.fromkeys(TAXONOMY.names, 1.0))
    np.testing.assert_array_equal(generator(pipelines[kind], everywhere).render(RECIPES), found)


@pytest.mark.parametrize(
    ("begin", "end", "steps", "strength"),
    [(0.5, 0.3, 25, 1.0), (0.5, 0.52, 25, 1.0), (0.9, 1.0, 3, 1.0), (1.0, 1.0, 7, 1.0), (0.5, 0.7, 8, 0.5)],
)
def test_a_control_that_acts_in_no_step_is_told(
    begin: float, end: float, steps: int, strength: float, pipelines: Mapping[str, Path], controls: Mapping[str, Path]
):
    def built(begin: float, end: float) -> Controlnet:
        chosen = control(controls["sd1"], begin=begin, end=end)
        return generator(pipelines["sd1"], control(controls["sd1"]), chosen, steps=steps, strength=strength)

    drawn = int(steps * strength)
    told = rf"controls\.1: .* from {begin:g} \(`begin`\) to {end:g} \(`end`\) .* of the {drawn} that are drawn"
    with pytest.raises(UserError, match=told) as caught:
        built(begin, end)
    advised = str(caught.value).split("set begin to ")[1].split(" or more")[0].split(" and end to ")
    built(float(advised[0]), float(advised[1]))


def test_a_picture_depends_on_its_recipe_alone(pipelines: Mapping[str, Path], controls: Mapping[str, Path]):
    draws = generator(pipelines["sd1"], control(controls["sd1"], class_scales={"sky": 0.2}))
    pictures = draws.render(RECIPES)
    assert np.array_equal(draws.render(RECIPES[::-1])[::-1], pictures)
    assert not np.array_equal(pictures[0], pictures[1])


def test_class_scales_are_strengths_at_places(pipelines: Mapping[str, Path], controls: Mapping[str, Path]):
    def drawn(**choices: Any) -> np.ndarray:
        return generator(pipelines["sd1"], control(controls["sd1"], **choices)).render(RECIPES)

    full, none = drawn(), drawn(scale=0.0)
    nowhere = dict.fromkeys(TAXONOMY.names, 0.0)
    everywhere = dict.fromkeys(TAXONOMY.names, 1.0)
    np.testing.assert_array_equal(drawn(class_scales=everywhere), full)
    part = drawn(class_scales=nowhere)  # void keeps its strength
    assert not np.array_equal(part, full)
    assert not np.array_equal(drawn(class_scales={"sky": 0.0}), full)
    assert np.abs(part.astype(int) - none).mean() < np.abs(full.astype(int) - none).mean()


def test_a_weight_map_is_a_strength_at_places(
    pipelines: Mapping[str, Path], controls: Mapping[str, Path], tmp_path: Path
):
    def drawn(**choices: Any) -> np.ndarray:
        return generator(pipelines["sd1"], control(controls["sd1"], **choices)).render(RECIPES)

    def weights(name: str, grey: np.ndarray) -> Path:
        path = tmp_path / name
        path.write_bytes(encode_png(grey.astype(np.uint8)))
        return path

    white, black = weights("weiß.png", np.full((7, 5), 255)), weights("black.png", np.zeros((7, 5)))
    half = weights("half.png", np.repeat([[0, 255]], 8, axis=0))
    np.testing.assert_array_equal(drawn(weight_map=white), drawn())
    np.testing.assert_array_equal(drawn(weight_map=black), drawn(scale=0.0))
    left, right = np.split(np.abs(drawn(weight_map=half).astype(int) - drawn(scale=0.0)), 2, axis=2)
    assert right.mean() > left.mean()

    def digest(path: Path) -> str:
        one_hot: Any = choose_part("conditions", "one_hot", at="condition")
        source = str(controls["sd1"])
        return generator(pipelines["sd1"], Control(source=source, condition=one_hot, weight_map=path)).digest

    assert digest(white) == digest(weights("again.png", np.full((7, 5), 255))) != digest(half)
    with pytest.raises(UserError, match=r"controls\.0: picture not found"):
        drawn(weight_map=tmp_path / "missing.png")


def test_drawing_may_begin_from_the_picture(pipelines: Mapping[str, Path]):
    """Image to image without any control: the less is drawn anew, the nearer it stays."""
    pictures = [generator(pipelines["sd1"], strength=strength).render(RECIPES) for strength in (0.4, 0.99)]
    assert pictures[0].shape == (2, *SIZE, 3)
    assert not np.array_equal(pictures[0], pictures[1])
    blank = [Recipe(id="0", prompt="", seed=1, guide=Guide(labels=labels(0, *SIZE)))]
    with pytest.raises(UserError, match=r"guidance_rescale is 0\.5.*draw with strength 1"):
        generator(pipelines["sd1"], strength=0.4, guidance_rescale=0.5).render(RECIPES)
    with pytest.raises(UserError, match="strength below 1 begins from the guide's picture"):
        generator(pipelines["sd1"], strength=0.5).render(blank)


@pytest.mark.parametrize(("kind", "scheduler"), [("sd1", None), ("sd2", None), ("xl", None), ("sd2", "heun")])
def test_from_a_picture_the_parts_of_a_control_are_those_of_the_steps_gone(
    kind: str, scheduler: Any, pipelines: Mapping[str, Path], controls: Mapping[str, Path]
):
    chosen = control(controls[kind], begin=0.2, end=0.7)
    found = generator(pipelines[kind], chosen, strength=0.5, steps=8, scheduler=scheduler).render(RECIPES)
    expected = stock(
        kind,
        pipelines[kind],
        network(controls[kind]),
        np.stack([image(seed, *SIZE) for seed in (0, 1)]).astype(np.float32) / 255,
        name="ControlNetImg2Img",
        scheduler=None if scheduler is None else diffusers.HeunDiscreteScheduler,
        num_inference_steps=8,
        control_image=shown(OneHot(taxonomy=TAXONOMY)),
        strength=0.5,
        controlnet_conditioning_scale=1.0,
        control_guidance_start=0.2,
        control_guidance_end=0.7,
    )
    same(found, expected)


@pytest.mark.parametrize("steps", [3, 7, 25])
def test_a_strength_that_leaves_no_step_is_told(
    steps: int, pipelines: Mapping[str, Path], controls: Mapping[str, Path]
):
    with pytest.raises(UserError, match=rf"strength 0\.03 of {steps} steps, .* set strength to 0\.\d+, or") as caught:
        generator(pipelines["sd1"], strength=0.03, steps=steps)
    advised = float(str(caught.value).split("set strength to ")[1].split(",")[0])
    generator(pipelines["sd1"], strength=advised, steps=steps)
    with pytest.raises(UserError, match=rf"fusion.strength 0\.03 of {steps} steps"):
        generator(pipelines["sd1"], control(controls["sd1"]), fusion=Fusion(strength=0.03), steps=steps)


@pytest.mark.parametrize("fusion", [None, Fusion(tile=32)])
def test_guides_of_any_size_are_drawn_at_theirs(
    fusion: Fusion | None, pipelines: Mapping[str, Path], controls: Mapping[str, Path]
):
    odd = Guide(labels={**labels(0, 27, 45), "instances": objects(27, 45)}, image=image(0, 27, 45))
    draws = generator(pipelines["sd1"], control(controls["sd1"]), fusion=fusion)
    found = draws.render([replace(recipe, guide=odd) for recipe in RECIPES])
    assert found.shape == (2, 27, 45, 3)
    padded = pad_guide(odd, (32, 48))
    np.testing.assert_array_equal(semantic_ids(padded.labels)[:27, :45], semantic_ids(odd.labels))
    whole = draws.render([replace(recipe, guide=padded) for recipe in RECIPES])
    np.testing.assert_array_equal(whole[:, :27, :45], found)


def test_the_checkpoint_stays_as_it_was(pipelines: Mapping[str, Path], controls: Mapping[str, Path]):
    model = Model(ModelReference(source=str(pipelines["sd1"])))
    plain = StableDiffusion(steps=STEPS, height=SIZE[0], width=SIZE[1], model=model)
    before = plain.render(RECIPES)
    unet = model.checkpoint.pipeline.unet
    Controlnet(controls=(control(controls["sd1"]),), steps=STEPS, model=model, taxonomy=TAXONOMY).render(RECIPES)
    assert model.checkpoint.pipeline.unet is unet
    np.testing.assert_array_equal(plain.render(RECIPES), before)


class Pointwise(nn.Module):
    """A UNet that looks at nothing but each cell, and adds what the control says of it."""

    def forward(self, sample: Tensor, _time: Any, *, mid_block_additional_residual: Tensor, **_: Any) -> Any:
        return (sample * 2 + mid_block_additional_residual,)


class Echo(nn.Module):
    """A ControlNet that says of each cell what it is shown there."""

    def forward(self, *_: Any, controlnet_cond: Tensor, conditioning_scale: float, **__: Any) -> Any:
        return [], conditioning_scale * nn.functional.avg_pool2d(controlnet_cond, 2)


@given(
    st.tuples(st.integers(4, 13), st.integers(4, 13)),
    st.tuples(st.integers(3, 8), st.integers(3, 8)),
    st.floats(0, 0.9),
    st.integers(1, 5),
)
def test_windows_of_a_pointwise_denoiser_say_what_it_says_of_the_whole(
    size: tuple[int, int], tile: tuple[int, int], overlap: float, batch: int
):
    random = torch.Generator().manual_seed(0)
    sample = torch.randn(4, 1, *size, generator=random)  # two pictures with and without guidance
    condition = torch.randn(2, 1, 2 * size[0], 2 * size[1], generator=random)
    scheduler: Any = diffusers.DDIMScheduler()
    scheduler.set_timesteps(5)
    unet = ControlledUnet(Pointwise(), cell=2, scheduler=scheduler)
    signals = [Signal(network=Echo(), condition=condition, scale=0.5)]
    unet.show(signals)
    context = torch.zeros(4, 1, 1)
    whole = unet(sample, scheduler.timesteps[0], context)[0]
    torch.testing.assert_close(whole, 2 * sample + 0.5 * nn.functional.avg_pool2d(condition, 2).repeat(2, 1, 1, 1))
    unet.show(signals, Windows(tiles=tiles(size, tile, overlap), batch=batch))
    torch.testing.assert_close(unet(sample, scheduler.timesteps[0], context)[0], whole)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.floats(0, 0.95))
def test_windows_cover_everything_and_stay_inside(
    height: int, width: int, tile_height: int, tile_width: int, overlap: float
):
    covered = np.zeros((height, width), int)
    for tile in tiles((height, width), (tile_height, tile_width), overlap):
        part = covered[tile.window]
        assert part.shape == (min(tile_height, height), min(tile_width, width))
        part += 1
    assert covered.min() >= 1
    assert feather(tile_height, tile_width).min() > 0


@pytest.mark.parametrize(("kind", "dtype"), [("sd1", "auto"), ("xl", "auto"), ("sd1", "float16")])
def test_one_window_draws_the_plain_picture(
    kind: str, dtype: Precision, pipelines: Mapping[str, Path], controls: Mapping[str, Path]
):
    """A canvas that is one window, of which nothing is kept, is the plain picture of the canvas' own noise."""
    fusion = Fusion(supersampling=1, tile=32, keep_above=1.0, tile_prompts=False)
    square = [replace(recipe, guide=Guide(labels=labels(recipe.seed, 32, 32))) for recipe in RECIPES]
    found = generator(pipelines[kind], control(controls[kind]), dtype=dtype, fusion=fusion).render(square)
    anew = [replace(recipe, seed=seed_for(recipe.seed, recipe.id, "canvas")) for recipe in square]
    same(found, generator(pipelines[kind], control(controls[kind]), dtype=dtype).render(anew) / 255)


@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_one_window_drawn_anew_in_part_is_image_to_image(
    kind: str, pipelines: Mapping[str, Path], controls: Mapping[str, Path]
):
    """It begins from the first drawing, and what is drawn of it is what image to image draws."""
    fusion = Fusion(strength=0.5, supersampling=1, tile=32, keep_above=1.0, tile_prompts=False)
    square = [replace(recipe, guide=Guide(labels=labels(recipe.seed, 32, 32))) for recipe in RECIPES]
    chosen = control(controls[kind])
    found = generator(pipelines[kind], chosen, fusion=fusion).render(square)
    first = generator(pipelines[kind], chosen).render(square)
    begun = [
        replace(recipe, seed=seed_for(recipe.seed, recipe.id, "canvas"), guide=replace(guide_of(recipe), image=picture))
        for recipe, picture in zip(square, first, strict=True)
    ]
    same(found, generator(pipelines[kind], chosen, strength=0.5).render(begun) / 255)
    assert np.abs(found.astype(int) - first).max() > 0


@pytest.mark.parametrize("kind", ["sd1", "xl"])
@pytest.mark.parametrize(
    ("scheduler", "strength"),
    [
        (None, 1.0),
        ("ddim", 1.0),
        ("dpm_solver", 1.0),
        ("unipc", 1.0),
        ("euler", 1.0),
        ("dpm_solver", 0.5),
        ("euler", 0.5),
    ],
)
def test_large_regions_stay_as_drawn_first(
    kind: str, scheduler: Any, strength: float, pipelines: Mapping[str, Path], controls: Mapping[str, Path]
):
    """Where all is one region, the second drawing is the first one, seen through the codec, whatever the sampler."""
    everything = Guide(labels={"semantic": semantic_map(np.ones(SIZE, np.uint8))})
    recipes = [replace(recipe, guide=everything) for recipe in RECIPES]
    fusion = Fusion(strength=strength, supersampling=1, tile=32, keep_above=0.9)
    chosen = control(controls[kind])
    found = generator(pipelines[kind], chosen, fusion=fusion, scheduler=scheduler).render(recipes)
    first = generator(pipelines[kind], chosen, scheduler=scheduler).render(recipes)
    loaded = Model(ModelReference(source=str(pipelines[kind]))).checkpoint
    with torch.no_grad():
        latents = loaded.encode(to_pixels(first, loaded.device)) / loaded.vae.config["scaling_factor"]
        decoded: Any = loaded.vae.decode(latents.to(loaded.dtype))
    pixels = (decoded.sample.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy() * 255
    assert np.abs(found - pixels).max() <= (2 if in_half_precision() else 1)


@pytest.mark.parametrize(
    ("sampler", "left_out"),
    [
        (diffusers.DDIMScheduler, 0),
        (diffusers.DDIMScheduler, 2),
        (diffusers.DPMSolverMultistepScheduler, 0),
        (diffusers.DPMSolverMultistepScheduler, 2),
        (diffusers.UniPCMultistepScheduler, 0),
        (diffusers.UniPCMultistepScheduler, 2),
        (diffusers.PNDMScheduler, 0),  # begun later it takes its second step twice, which its timesteps do not say
        (diffusers.EulerDiscreteScheduler, 0),
        (diffusers.EulerDiscreteScheduler, 2),
        (diffusers.HeunDiscreteScheduler, 0),
        (diffusers.HeunDiscreteScheduler, 2),
    ],
)
def test_large_regions_are_put_back_at_the_noise_of_the_state(
    sampler: Any, left_out: int, pipelines: Mapping[str, Path]
):
    """A sampler that is told the noise of what is kept goes from state to state of it, so nothing is left to change."""
    model = Model(ModelReference(source=str(pipelines["sd1"]), dtype="float32"))
    everything = Guide(labels={"semantic": semantic_map(np.ones(SIZE, np.uint8))})
    canvas = Canvas(model.checkpoint, Fusion(keep_above=0.9), [everything] * 2, tile=32)
    assert canvas.settled.all()
    pictures, seeds = np.stack([image(seed, *SIZE) for seed in (0, 1)]), (3, 4)
    clean = model.checkpoint.encode(to_pixels(pictures, model.checkpoint.device))
    noise = torch.stack([torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    noise = noise.to(clean)
    config: Any = model.checkpoint.pipeline.scheduler.config
    scheduler = sampler.from_config({**config, "clip_sample": False})
    scheduler.set_timesteps(6)
    skipped = left_out * scheduler.order
    if skipped and hasattr(scheduler, "set_begin_index"):  # as the pipelines from pictures do
        scheduler.set_begin_index(skipped)
    put_back = canvas.keep(pictures, seeds, skipped=skipped)
    times = scheduler.timesteps[skipped:]
    state = scheduler.add_noise(clean, noise, times[:1].repeat(2))
    for step, time in enumerate(times):
        state = scheduler.step(noise, time, state).prev_sample
        kept = put_back(SimpleNamespace(scheduler=scheduler), step, time, {"latents": state})["latents"]
        last = step + 1 == len(times)
        torch.testing.assert_close(kept, clean if last else state, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scheduler", ["ddim", "dpm_solver", "unipc"])
def test_windows_of_what_is_kept_alone_may_go_unseen(
    scheduler: Any, pipelines: Mapping[str, Path], controls: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
):
    """What they would say is overwritten, and nothing of it is left in the memory of samplers of several steps."""
    ids = np.ones(SIZE, np.uint8)
    ids[:, SIZE[1] // 2 :] = np.where(np.arange(SIZE[1] // 2) % 8 < 4, 2, 3)
    half = Guide(labels={"semantic": semantic_map(ids)})
    model = Model(ModelReference(source=str(pipelines["sd1"]), dtype="float32"))
    looks = [0]

    def count(_module: Any, given: tuple[Tensor, ...]) -> None:
        looks[-1] += len(given[0])

    model.checkpoint.unet.register_forward_pre_hook(count)

    def drawn() -> np.ndarray:
        looks.append(0)
        return Controlnet(
            controls=(control(controls["sd1"]),),
            steps=4,
            scheduler=scheduler,
            model=model,
            taxonomy=TAXONOMY,
            fusion=Fusion(supersampling=1, tile=16, keep_above=0.3),
        ).render([replace(RECIPES[0], guide=half)])

    found, windows = drawn(), Canvas.windows

    def every_window(canvas: Canvas, *given: Any, **named: Any) -> Windows:
        return replace(windows(canvas, *given, **named), settled=None)

    monkeypatch.setattr(Canvas, "windows", every_window)
    expected = drawn()
    assert looks[1] < looks[2]
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("scheduler", [None, "ddim"])
def test_fusion_leaves_the_sampler_as_it_was(
    scheduler: Any, pipelines: Mapping[str, Path], controls: Mapping[str, Path]
):
    """Else what was drawn before would change the last digits on a GPU."""
    draws = generator(pipelines["sd1"], control(controls["sd1"]), scheduler=scheduler, fusion=Fusion(tile=32))
    levels = draws._pipeline.scheduler.alphas_cumprod  # pyright: ignore[reportPrivateUsage]
    draws.render(RECIPES)
    assert draws._pipeline.scheduler.alphas_cumprod is levels  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_fusion_draws_each_window_for_what_it_shows(
    kind: str, pipelines: Mapping[str, Path], controls: Mapping[str, Path]
):
    halves = np.ones(SIZE, np.uint8)
    halves[:, SIZE[1] // 2 :] = 2
    chosen = Guide(labels={"semantic": semantic_map(halves)})
    words = {"sky": "sky", "car": "a red car"}
    listed = [replace(recipe, prompt="sky, a red car", listed=words, guide=chosen) for recipe in RECIPES]

    def drawn(recipes: list[Recipe], **settings: Any) -> np.ndarray:
        fusion = Fusion(tile=32, overlap=0.2, tile_batch=3, keep_above=1.0, **settings)
        return generator(pipelines[kind], control(controls[kind]), fusion=fusion).render(recipes)

    pictures = drawn(listed)
    assert pictures.shape == (2, *SIZE, 3)
    assert np.array_equal(drawn(listed[::-1])[::-1], pictures)
    assert not np.array_equal(drawn(listed, tile_prompts=False), pictures)
    stripes = np.where(np.arange(SIZE[1]) % 8 < 4, 1, 2).astype(np.uint8)[None].repeat(SIZE[0], axis=0)
    everywhere = [replace(each, guide=Guide(labels={"semantic": semantic_map(stripes)})) for each in listed]
    # Each window shows all that the prompt asks for.
    np.testing.assert_array_equal(drawn(everywhere), drawn(everywhere, tile_prompts=False))


def test_each_window_of_xl_is_told_where_it_is(pipelines: Mapping[str, Path], controls: Mapping[str, Path]):
    """Else it takes each for a picture of its own, of the size of the whole."""
    told = set[tuple[int, ...]]()
    model = Model(ModelReference(source=str(pipelines["xl"])))

    def note(_module: Any, _given: Any, named: dict[str, Any]) -> None:
        told.update(tuple(map(int, row)) for row in named["added_cond_kwargs"]["time_ids"].tolist())

    model.checkpoint.unet.register_forward_pre_hook(note, with_kwargs=True)
    fusion = Fusion(tile=32, overlap=0.2, keep_above=1.0)
    draws = Controlnet(controls=(control(controls["xl"]),), steps=STEPS, model=model, taxonomy=TAXONOMY, fusion=fusion)
    draws.render(RECIPES[:1])
    height, width = 2 * SIZE[0], 2 * SIZE[1]
    whole = {row for row in told if row[4:] != (32, 32)}
    windows = told - whole
    assert whole == {(*SIZE, 0, 0, *SIZE)}
    assert {row[:2] for row in windows} == {(height, width)}
    assert {row[2] for row in windows} >= {0, height - 32}
    assert {row[3] for row in windows} >= {0, width - 32}


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.9))
def test_large_regions_are_connected_and_of_one_class(seed: int, keep_above: float):
    ids = np.random.default_rng(seed).integers(0, 3, (4, 5), np.uint8).repeat(2, axis=0).repeat(3, axis=1)
    kept = large_regions(ids, keep_above)
    assert not kept[ids == 0].any()
    reached = {(int(row), int(column)) for row, column in np.argwhere(ids > 0)}
    while reached:
        region, frontier = set[tuple[int, int]](), [reached.pop()]
        while frontier:
            row, column = frontier.pop()
            region.add((row, column))
            around = {(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)} & reached
            same_class = {place for place in around if ids[place] == ids[row, column]}
            reached -= same_class
            frontier += same_class
        assert {bool(kept[place]) for place in region} == {len(region) > keep_above * ids.size}


def test_a_window_is_asked_for_what_it_shows():
    recipe = Recipe(id="0", prompt="fog, a car, the sky, night", seed=0, listed={"car": "a car", "sky": "the sky"})
    assert tile_prompt(recipe, np.array([[1, 0]], np.uint8), TAXONOMY.names) == "fog, the sky, night"
    assert tile_prompt(recipe, np.array([[1, 2]], np.uint8), TAXONOMY.names) == recipe.prompt
    assert tile_prompt(recipe, np.array([[4]], np.uint8), TAXONOMY.names) == recipe.prompt
    assert tile_prompt(replace(recipe, listed={}), np.array([[1]], np.uint8), TAXONOMY.names) == recipe.prompt


def test_wrong_controls_are_told(tmp_path: Path, pipelines: Mapping[str, Path], controls: Mapping[str, Path]):
    def told(match: str, chosen: Control, pipeline: str = "sd1") -> None:
        with pytest.raises(UserError, match=match):
            generator(pipelines[pipeline], chosen).render(RECIPES)

    told(r"controls\.0: ControlNet nowhere: found no such folder", Control(source="nowhere"))
    told("does not say what it is to be shown", Control(source=str(controls["sd1"])))
    told("is shown 5 channels by this condition, expected 3", control(controls["colours"]))
    told(r"class_scales: 'skye' is no class; did you mean 'sky'\?", control(controls["sd1"], class_scales={"skye": 1}))
    told("was made for a model with cross_attention_dim 16, but the plan's has 40", control(controls["sd1"]), "xl")
    told("holds a StableDiffusionPipeline|found no readable config.json", control(pipelines["sd1"]))

    copied = tmp_path / "copied"
    shutil.copytree(controls["sd1"], copied)
    about = {"condition": {"kind": "one_hot"}, "classes": ["sky", "car"]}
    (copied / ABOUT_FILE).write_text(json.dumps(about))
    told("was trained on the classes sky, car, but the labels have sky, car, traffic sign", Control(source=str(copied)))
    told("was trained on the classes sky, car, but", control(copied))
    one_hot: Any = choose_part("conditions", "one_hot", at="condition")
    told("was trained on the classes sky, car, but", Control(source=str(copied), condition=one_hot))
    for damaged in ('["sky"]', '{"classes": ["sky"]}', '{"condition": "one_hot", "classes": 3}'):
        (copied / ABOUT_FILE).write_text(damaged)
        told("expected what `datagen control` writes; train again", Control(source=str(copied)))
    (copied / ABOUT_FILE).write_text("{")
    told("cannot be read as JSON", Control(source=str(copied)))
    (copied / ABOUT_FILE).write_text(json.dumps(about | {"classes": TAXONOMY.names}))
    same = generator(pipelines["sd1"], Control(source=str(copied))).render(RECIPES)
    np.testing.assert_array_equal(same, generator(pipelines["sd1"], control(controls["sd1"])).render(RECIPES))
    (copied / "diffusion_pytorch_model.safetensors").write_bytes(b"not weights")
    told("could not be loaded", Control(source=str(copied)))
    (copied / "diffusion_pytorch_model.safetensors").unlink()
    told("a .bin is a pickle", Control(source=str(copied)))


def test_what_shows_no_classes_goes_with_any(
    tmp_path: Path, pipelines: Mapping[str, Path], controls: Mapping[str, Path]
):
    """A ControlNet of edges, or one that learned classes but is shown something else."""
    copied = tmp_path / "copied"
    shutil.copytree(controls["colours"], copied)
    cases: list[tuple[str, dict[str, Any]]] = [("edges", {}), ("palette", {"condition": Edges()})]
    for kind, chosen in cases:
        (copied / ABOUT_FILE).write_text(json.dumps({"condition": {"kind": kind}, "classes": ["sky", "car"]}))
        generator(pipelines["sd1"], Control(source=str(copied), **chosen))


def test_colours_that_a_published_control_may_not_know_are_told(
    tmp_path: Path, pipelines: Mapping[str, Path], controls: Mapping[str, Path], caplog: pytest.LogCaptureFixture
):
    def shown_colours(folder: Path, *left_out: str) -> str:
        caplog.clear()
        colors = {name: (1, 2, 3) for name in TAXONOMY.names if name not in left_out}
        palette = Palette(colors=colors, taxonomy=TAXONOMY)
        generator(pipelines["sd1"], Control(source=str(folder), condition=palette))
        return caplog.text

    assert "the labels' own colours of sky, car, which" in shown_colours(controls["colours"], "sky", "car")
    assert not shown_colours(controls["colours"])
    ours = tmp_path / "ours"
    shutil.copytree(controls["colours"], ours)
    about = {"condition": {"kind": "palette"}, "classes": TAXONOMY.names}
    (ours / ABOUT_FILE).write_text(json.dumps(about))
    assert not shown_colours(ours, "sky", "car")


def test_weights_in_half_precision_are_downloaded_where_there_are_no_others(
    tmp_path: Path, controls: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
):
    repository, cached = tmp_path / "repository", tmp_path / "cached"
    asked: list[set[str]] = []

    def download(_name: str, *, allow_patterns: list[str], ignore_patterns: list[str], **_: Any) -> str:
        assert not ignore_patterns
        asked.append({file.name for file in repository.iterdir()} & set(allow_patterns))
        for name in asked[-1]:
            shutil.copy(repository / name, cached / name)
        return str(cached)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    for names in (["diffusion_pytorch_model"], ["diffusion_pytorch_model.fp16"], ["diffusion_pytorch_model", "other"]):
        for folder in (repository, cached):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        shutil.copy(controls["sd1"] / "config.json", repository)
        for name in names:
            shutil.copy(controls["sd1"] / WEIGHTS_FILE, repository / f"{name}.safetensors")
        read_control(locate_control("someone/control", "0" * 40), torch.float32)
    fewest, whole = {"config.json"}, {"config.json", WEIGHTS_FILE}
    assert asked == [whole, fewest, fewest | {"diffusion_pytorch_model.fp16.safetensors"}, whole]


def test_recipes_without_a_fitting_guide_are_told(pipelines: Mapping[str, Path], controls: Mapping[str, Path]):
    draws = generator(pipelines["sd1"], control(controls["sd1"]))
    with pytest.raises(UserError, match="recipe 00000009 brings no geometry"):
        draws.render([Recipe(id="00000009", prompt="", seed=1)])
    other = Recipe(id="00000003", prompt="", seed=1, guide=Guide(labels=labels(0, 32, 32)))
    with pytest.raises(UserError, match="guides of sizes"):
        draws.render([RECIPES[0], other])
    with pytest.raises(UserError, match="expected one of them: fusion draws from pure noise"):
        generator(pipelines["sd1"], control(controls["sd1"]), fusion=Fusion(), strength=0.5)
    with pytest.raises(UserError, match=r"fusion\.tile is 20, expected a multiple of 8"):
        generator(pipelines["sd1"], control(controls["sd1"]), fusion=Fusion(tile=20)).render(RECIPES)
    with pytest.raises(UserError, match="windows of 72 pixels at a picture drawn at 64 x 96, expected smaller"):
        generator(pipelines["sd1"], control(controls["sd1"]), fusion=Fusion(tile=72)).render(RECIPES)
    with pytest.raises(UserError, match="nothing would keep the geometry"):
        generator(pipelines["sd1"])


def test_a_plan_names_controls_and_only_their_contents_decide_the_run(
    tmp_path: Path, pipelines: Mapping[str, Path], controls: Mapping[str, Path]
):
    model = Model(ModelReference(source=str(pipelines["sd1"])))

    def built(folder: Path, **choices: Any) -> tuple[Any, Any]:
        entry = {"source": str(folder), "condition": {"kind": "one_hot"}, **choices}
        part = choose_part("generators", {"kind": "controlnet", "controls": [entry]}, at="generator")
        return part, part.build(model=model, taxonomy=TAXONOMY)

    part, first = built(controls["sd1"])
    assert "controls" in part.path_settings
    assert part.to_json()["controls"][0]["condition"] == {"kind": "one_hot"}
    moved = tmp_path / "moved"
    shutil.copytree(controls["sd1"], moved)
    assert built(moved)[1].digest == first.digest
    assert built(moved, scale=0.5)[1].digest != first.digest
    with pytest.raises(
        UserError, match=r"generator\.controls\.condition\.kind: unknown kind 'onehot'; did you mean 'one_hot'"
    ):
        built(moved, condition="onehot")


def test_a_reader_behind_a_condition_decides_the_run_and_its_place_does_not(
    pipelines: Mapping[str, Path], controls: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
):
    class Named:
        def __init__(self, *, reader: Path, **_: Any) -> None:
            self.digest = reader.name

    monkeypatch.setattr("datagen.conditions.depth.Decoded", Named)

    def digest(condition: Any) -> str:
        return generator(pipelines["sd1"], Control(source=str(controls["colours"]), condition=condition)).digest

    def read_by(reader: str) -> str:
        return digest(choose_part("conditions", {"kind": "depth", "reader": reader}, at="condition"))

    assert read_by("here/mine") == read_by("there/mine") != read_by("here/other")
    assert digest(Depth(reader=Path("here/mine"))) == digest(Depth(reader=Path("there/mine")))
    assert digest(Depth(reader=Path("here/mine"))) != digest(Depth(reader=Path("here/other")))
    shown = {"condition": {"kind": "depth", "reader": None}}
    told = {**shown, "scale": 1.0, "begin": 0.0, "end": 1.0, "class_scales": {}}
    plain = [control_digest(controls["colours"]), told]  # as it was before conditions had digests
    one = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
    assert digest(choose_part("conditions", "depth", at="condition")) == hashlib.sha256(one.encode()).hexdigest()
