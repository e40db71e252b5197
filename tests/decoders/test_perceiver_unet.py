"""One contract for 1.x, 2.x and XL: the spec says what comes, and the same picture gives the same features."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from decoders.checkpoint import Checkpoint, LoraReference, ModelReference, load_checkpoint
from decoders.errors import UserError
from decoders.features import FeatureBundle, FeatureSpec
from decoders.perceivers.unet import UnetPerceiver
from decoders.phrases import reading_context

KINDS = ("sd1", "sd2", "xl")
PHRASES = ("car", "red house", "sky")
Load = Callable[..., Checkpoint]


@pytest.fixture(scope="module")
def loaded(pipelines: Mapping[str, Path]) -> Mapping[str, Checkpoint]:
    return {kind: load_checkpoint(ModelReference(str(folder)), device="cpu") for kind, folder in pipelines.items()}


def _pictures(count: int, height: int, width: int) -> Any:
    return np.random.default_rng(count + height).integers(0, 256, (count, height, width, 3), np.uint8)


def _tensors(bundle: FeatureBundle) -> tuple[torch.Tensor, ...]:
    return (bundle.image, *bundle.levels, *bundle.attention)


def _same(first: FeatureBundle, second: FeatureBundle) -> bool:
    return all(torch.equal(a, b) for a, b in zip(_tensors(first), _tensors(second), strict=True))


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (36, 52), (16, 20)])
@pytest.mark.parametrize("kind", KINDS)
def test_features_are_as_the_spec_says(kind: str, size: tuple[int, int], loaded: Mapping[str, Checkpoint]):
    perceiver = UnetPerceiver(loaded[kind], phrases=PHRASES)
    spec = perceiver.spec
    bundle = perceiver.perceive(_pictures(3, *size))
    assert perceiver.size_multiple == 4
    assert (spec.strides, spec.channels) == ((16, 8, 4), (24 + 24, 16, 8))
    assert spec.attention_maps == ((3, 3, 0) if kind == "xl" else (3, 3, 3))
    grids = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in spec.strides]
    assert [level.shape for level in bundle.levels] == [
        (3, channels, *grid) for channels, grid in zip(spec.channels, grids, strict=True)
    ]
    assert [maps.shape for maps in bundle.attention] == [
        (3, count, *grid) for count, grid in zip(spec.attention_maps, grids, strict=True)
    ]
    assert all(tensor.dtype == torch.float32 and bool(tensor.isfinite().all()) for tensor in _tensors(bundle))
    assert all(level.std() > 1e-3 for level in bundle.levels)
    assert all(0.2 < maps.mean() < 5 for maps in bundle.attention if maps.shape[1]), "1 = spread evenly"
    assert bundle.phrases is not None
    assert bundle.phrases.shape == (len(PHRASES), spec.phrase_width)


@pytest.mark.parametrize("kind", KINDS)
def test_perceiving_is_a_function_of_the_picture(kind: str, loaded: Mapping[str, Checkpoint]):
    perceiver = UnetPerceiver(loaded[kind], phrases=PHRASES)
    pictures = _pictures(3, 32, 48)
    bundle = perceiver.perceive(pictures)
    torch.manual_seed(99)
    assert _same(bundle, UnetPerceiver(loaded[kind], phrases=PHRASES).perceive(pictures))
    mirrored, alone = perceiver.perceive(pictures[::-1]), perceiver.perceive(pictures[1:2])
    for many, other, one in zip(_tensors(bundle), _tensors(mirrored), _tensors(alone), strict=True):
        torch.testing.assert_close(many, other.flip(0), atol=1e-5, rtol=1e-5)  # matrix kernels round by place
        torch.testing.assert_close(many[1:2], one, atol=1e-5, rtol=1e-5)


def test_image_is_the_picture(loaded: Mapping[str, Checkpoint]):
    pictures = _pictures(2, 32, 48)
    pictures.flags.writeable = False
    image = UnetPerceiver(loaded["sd1"], phrases=PHRASES).perceive(pictures).image
    assert np.array_equal(((image + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy(), pictures)


@pytest.mark.parametrize(
    "choice",
    [
        {"timesteps": (51,)},
        {"timesteps": (50, 51)},
        {"noises": 2},
        {"attention": "heads"},
        {"noise_seed": 1},
        {"layers": ("down", "mid", "up")},
        {"phrases": ("car", "sky", "red house")},
        {"attention": "none"},
    ],
)
def test_each_choice_changes_numbers_and_spec(choice: dict[str, Any], loaded: Mapping[str, Checkpoint]):
    plain = UnetPerceiver(loaded["sd1"], phrases=PHRASES)
    choices: dict[str, Any] = {"phrases": PHRASES, **choice}
    other = UnetPerceiver(loaded["sd1"], **choices)
    pictures = _pictures(2, 32, 32)
    before, after = plain.perceive(pictures), other.perceive(pictures)
    assert plain.spec != other.spec
    assert any(
        a.shape != b.shape or not torch.equal(a, b) for a, b in zip(_tensors(before), _tensors(after), strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_spec_survives_json_and_rebuilds_the_perceiver(kind: str, loaded: Mapping[str, Checkpoint]):
    perceiver = UnetPerceiver(
        loaded[kind], phrases=PHRASES, timesteps=(7, 90), noises=2, noise_seed=4, layers=("up", "conv_in")
    )
    stored = FeatureSpec.from_json(json.loads(json.dumps(perceiver.spec.to_json())))
    again = UnetPerceiver.from_settings(loaded[kind], stored.settings)
    stored.check(again.spec, reader="some reader")
    assert _same(again.perceive(_pictures(2, 32, 32)), perceiver.perceive(_pictures(2, 32, 32)))


def test_loras_count_only_where_they_are_kept(pipelines: Mapping[str, Path], loras: Mapping[str, Path]):
    reference = ModelReference(str(pipelines["sd1"]), loras=(LoraReference(str(loras["sd1"])),))
    plain = load_checkpoint(ModelReference(str(pipelines["sd1"])), device="cpu")
    adapted = load_checkpoint(reference, device="cpu")
    assert UnetPerceiver(adapted, phrases=PHRASES).spec == UnetPerceiver(plain, phrases=PHRASES).spec
    kept = UnetPerceiver(adapted, phrases=PHRASES, keep_loras=True).spec
    assert kept.model_digest != UnetPerceiver(plain, phrases=PHRASES).spec.model_digest


@pytest.mark.parametrize("kind", KINDS)
def test_timesteps_are_joined_and_noises_averaged(kind: str, loaded: Mapping[str, Checkpoint]):
    def look(**choices: Any) -> FeatureBundle:
        perceiver = UnetPerceiver(loaded[kind], phrases=PHRASES, **choices)
        bundle = perceiver.perceive(pictures)
        assert tuple(level.shape[1] for level in bundle.levels) == perceiver.spec.channels
        assert tuple(maps.shape[1] for maps in bundle.attention) == perceiver.spec.attention_maps
        return bundle

    pictures = _pictures(2, 32, 32)
    near, far, both = look(timesteps=(20,)), look(timesteps=(300,)), look(timesteps=(20, 300))
    first, second, mean = look(), look(noise_seed=1), look(noises=2)
    for one, other, joined in zip(_tensors(near)[1:], _tensors(far)[1:], _tensors(both)[1:], strict=True):
        assert torch.equal(torch.cat([one, other], dim=1), joined)
    for one, other, averaged in zip(_tensors(first), _tensors(second), _tensors(mean), strict=True):
        torch.testing.assert_close((one + other) / 2, averaged)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_attention_is_that_of_the_heads(kind: str, loaded: Mapping[str, Checkpoint]):
    pictures = _pictures(1, 32, 32)
    mean = UnetPerceiver(loaded[kind], phrases=PHRASES).perceive(pictures).attention
    heads = UnetPerceiver(loaded[kind], phrases=PHRASES, attention="heads").perceive(pictures).attention
    for one, many in zip(mean, heads, strict=True):
        if one.shape[1]:
            assert many.shape[1] > one.shape[1]
            each = many.unflatten(1, (-1, len(PHRASES)))
            # Blocks of one grid may differ in their number of heads, so only the range is the same for sure.
            assert (each.amin(1) <= one + 1e-5).all()
            assert (one <= each.amax(1) + 1e-5).all()


def test_another_look_is_another_noise(loaded: Mapping[str, Checkpoint]):
    pictures = _pictures(1, 32, 32)
    for noises in (1, 2):
        perceiver = UnetPerceiver(loaded["sd1"], phrases=PHRASES, noises=noises)
        moved = UnetPerceiver(loaded["sd1"], phrases=PHRASES, noises=noises, noise_seed=3 * noises)
        assert _same(perceiver.perceive(pictures, look=3), moved.perceive(pictures))


def test_impossible_choices_are_refused(loaded: Mapping[str, Checkpoint]):
    choices: tuple[tuple[dict[str, Any], str], ...] = (
        ({"timesteps": ()}, r"found timesteps \[\] and noises 1"),
        ({"timesteps": (50, 50)}, "expected different timesteps"),
        ({"noises": 0}, "noises 0; expected"),
    )
    for choice, text in choices:
        with pytest.raises(UserError, match=text):
            UnetPerceiver(loaded["sd1"], phrases=PHRASES, **choice)


def test_precision_is_part_of_the_spec(pipelines: Mapping[str, Path]):
    reference = ModelReference(str(pipelines["xl"]), dtype="bfloat16")
    perceiver = UnetPerceiver(load_checkpoint(reference, device="cpu"), phrases=PHRASES)
    assert perceiver.spec.settings["dtype"] == "bfloat16"
    bundle = perceiver.perceive(_pictures(1, 32, 32))
    assert all(tensor.dtype == torch.float32 and bool(tensor.isfinite().all()) for tensor in _tensors(bundle))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' Euler scheduler
@pytest.mark.parametrize("kind", KINDS)
def test_borrowing_from_a_generator_with_lora(
    kind: str, loaded: Mapping[str, Checkpoint], pipelines: Mapping[str, Path], loras: Mapping[str, Path]
):
    reference = ModelReference(str(pipelines[kind]), loras=(LoraReference(str(loras[kind]), 0.9),))
    borrowed = load_checkpoint(reference, device="cpu")

    def paint() -> Any:
        generator = torch.Generator().manual_seed(5)
        return borrowed.pipeline(
            "a red car", height=32, width=32, num_inference_steps=2, generator=generator, output_type="np"
        ).images

    painted = paint()
    fresh, bare, kept = (
        UnetPerceiver(checkpoint, phrases=PHRASES, keep_loras=keep)
        for checkpoint, keep in ((loaded[kind], False), (borrowed, False), (borrowed, True))
    )
    pictures = _pictures(2, 32, 32)
    assert bare.spec == fresh.spec != kept.spec
    assert _same(bare.perceive(pictures), fresh.perceive(pictures))
    assert not _same(kept.perceive(pictures), fresh.perceive(pictures))
    assert np.array_equal(paint(), painted), "the generator gets its LoRA back"


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_phrase_is_the_mean_of_its_own_words(kind: str, loaded: Mapping[str, Checkpoint]):
    checkpoint = loaded[kind]
    context = reading_context(checkpoint, PHRASES)
    tokenizer, encoder = checkpoint.tokenizers[0], checkpoint.text_encoders[0]
    assert context.tokens.shape[1] == tokenizer.model_max_length + len(PHRASES)
    assert context.pooled is None

    def hidden(text: str) -> torch.Tensor:
        ids = tokenizer(text, padding="max_length", return_tensors="pt").input_ids
        with torch.no_grad():
            return encoder(ids)[0]

    assert torch.equal(context.tokens[:, : -len(PHRASES)], hidden(""))
    for index, (phrase, words) in enumerate(zip(PHRASES, (1, 2, 1), strict=True)):
        vector = context.tokens[0, tokenizer.model_max_length + index]
        torch.testing.assert_close(vector, hidden(phrase)[0, 1 : 1 + words].mean(0))


def test_xl_reads_both_encoders_and_the_pictures_own_size(
    loaded: Mapping[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
):
    checkpoint = loaded["xl"]
    context = reading_context(checkpoint, PHRASES)
    first, second = checkpoint.text_encoders
    ids = checkpoint.tokenizers[1]("red house", padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        hidden = second(ids, output_hidden_states=True).hidden_states[-2]
    width = first.config.hidden_size
    torch.testing.assert_close(context.tokens[0, -2, width:], hidden[0, 1:3].mean(0))
    assert context.pooled is not None

    seen: dict[str, Any] = {}
    forward = checkpoint.unet.forward

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.update(kwargs)
        return forward(*args, **kwargs)

    monkeypatch.setattr(checkpoint.unet, "forward", spy)
    UnetPerceiver(checkpoint, phrases=PHRASES).perceive(_pictures(2, 32, 48))
    assert seen["added_cond_kwargs"]["time_ids"].tolist() == [[32, 48, 0, 0, 32, 48]] * 2
    assert torch.equal(seen["added_cond_kwargs"]["text_embeds"], context.pooled.expand(2, -1))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"timesteps": (50, 1000)}, r"timestep 1000 found, this model knows 0\.\.999"),
        ({"layers": ("mid_blok",)}, r"layer 'mid_blok' is not in this UNet; .*such as mid_block"),
        ({"layers": ()}, "no layers to read; name some of down, mid, up"),
        ({"layers": ("time_embedding",)}, "'time_embedding' gives an output of 2 axes, expected 4"),
        ({"phrases": ()}, "attention maps were asked for without phrases; give one per class"),
        ({"phrases": ("car", " ")}, "phrase ' ' found, expected at least one word"),
        ({"phrases": ("car " * 20,)}, r"makes 22 tokens, the text encoder reads 16; choose a shorter one"),
    ],
)
def test_refused_choices(choice: dict[str, Any], message: str, loaded: Mapping[str, Checkpoint]):
    choices: dict[str, Any] = {"phrases": PHRASES, **choice}
    with pytest.raises(UserError, match=message):
        UnetPerceiver(loaded["sd1"], **choices).perceive(_pictures(1, 32, 32))


@pytest.mark.parametrize(("height", "width", "near"), [(42, 32, "40 x 32"), (32, 47, "32 x 48"), (8, 100, "16 x 100")])
def test_refused_sizes(height: int, width: int, near: str, loaded: Mapping[str, Checkpoint]):
    with pytest.raises(
        UserError, match=f"{height} x {width} pixels .* reads multiples of 4 from 16 on; .* say to {near} "
    ):
        UnetPerceiver(loaded["sd1"], phrases=PHRASES).perceive(_pictures(1, height, width))


@pytest.mark.parametrize(
    ("dtype", "cause"),
    [("float16", "has probably overflowed: set the model's `dtype: float32`"), ("float32", "damaged")],
)
def test_features_that_are_not_finite(dtype: Any, cause: str, pipelines: Mapping[str, Path], tmp_path: Path):
    folder = shutil.copytree(pipelines["sd1"], tmp_path / "poisoned")
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    scale = 1e4 if dtype == "float16" else float("nan")
    weights["mid_block.resnets.0.conv2.weight"] *= scale
    weights["mid_block.resnets.0.norm2.weight"] *= scale
    save_file(weights, file, metadata={"format": "pt"})
    checkpoint = load_checkpoint(ModelReference(str(folder), dtype=dtype), device="cpu")
    with pytest.raises(UserError, match=f"in {dtype} are not finite .*{cause}"):
        UnetPerceiver(checkpoint, phrases=PHRASES).perceive(_pictures(1, 32, 32))


def test_attention_can_be_left_out(loaded: Mapping[str, Checkpoint]):
    perceiver = UnetPerceiver(loaded["sd2"], phrases=(), attention="none")
    assert perceiver.spec.attention_maps == (0, 0, 0)
    assert [maps.shape[1] for maps in perceiver.perceive(_pictures(2, 32, 32)).attention] == [0, 0, 0]
