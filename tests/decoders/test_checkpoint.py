"""A checkpoint loads as it lies there, and comes back from a reading as it went in."""

import copy
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from decoders.checkpoint import Checkpoint, LoraReference, ModelReference, load_checkpoint
from decoders.errors import UserError
from decoders.references import digest

KINDS = ("sd1", "sd2", "xl")
Load = Callable[..., Checkpoint]


@pytest.fixture
def load(pipelines: Mapping[str, Path], loras: Mapping[str, Path]) -> Load:
    def load(kind: str, *, lora_weights: tuple[float, ...] = (), **options: Any) -> Checkpoint:
        references = tuple(LoraReference(str(loras[kind]), weight) for weight in lora_weights)
        return load_checkpoint(ModelReference(str(pipelines[kind]), loras=references, **options), device="cpu")

    return load


def test_nobody_is_warned_of_a_cast_that_harms_no_module(load: Load, caplog: pytest.LogCaptureFixture):
    vae: Any = load("xl", dtype="float16").vae
    vae.to(dtype=torch.float32)  # as its pipeline does, to decode
    assert "should be kept in float32" not in caplog.text


def _unet_output(checkpoint: Checkpoint) -> Tensor:
    noise = torch.Generator().manual_seed(0)
    config: Any = checkpoint.unet.config
    conditions = (
        {"text_embeds": torch.ones(2, 12), "time_ids": torch.ones(2, 6)}
        if config.addition_embed_type == "text_time"
        else None
    )
    with torch.no_grad():
        output: Any = checkpoint.unet(
            torch.randn(2, 4, 8, 12, generator=noise),
            50,
            encoder_hidden_states=torch.randn(2, 5, config.cross_attention_dim, generator=noise),
            added_cond_kwargs=conditions,
        )
    return output.sample


def _state(checkpoint: Checkpoint) -> dict[str, Any]:
    """All that `bare` might touch, on every module."""
    state: dict[str, Any] = {}
    for part in (checkpoint.unet, checkpoint.vae, *checkpoint.text_encoders):
        for name, module in part.named_modules():
            for key, value in vars(module).items():
                if key not in ("_parameters", "_buffers", "_modules"):
                    state[f"{id(part)} {name} {key}"] = copy.copy(value) if isinstance(value, dict) else value
        state |= {f"{id(part)} {name}": (id(weight), weight.requires_grad) for name, weight in part.named_parameters()}
    return state


@pytest.mark.parametrize("kind", KINDS)
def test_load(kind: str, load: Load, pipelines: Mapping[str, Path]):
    checkpoint = load(kind)
    assert (checkpoint.latent_channels, checkpoint.vae_scale_factor) == (4, 4)
    assert len(checkpoint.text_encoders) == len(checkpoint.tokenizers) == (2 if kind == "xl" else 1)
    assert checkpoint.dtype == checkpoint.unet.dtype == checkpoint.vae.dtype == torch.float32
    assert checkpoint.device.type == "cpu"
    assert checkpoint.digest == checkpoint.base_digest == digest(pipelines[kind])
    assert getattr(checkpoint.pipeline, "safety_checker", None) is None
    assert not any(weight.requires_grad for weight in checkpoint.unet.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_has_the_dtype_asked_for(kind: str, load: Load):
    checkpoint = load(kind, dtype="bfloat16")
    parts = (checkpoint.unet, checkpoint.vae, *checkpoint.text_encoders)
    assert {part.dtype for part in parts} == {torch.bfloat16}


def test_files_in_float16_run_on_the_cpu(load: Load, pipelines: Mapping[str, Path], tmp_path: Path):
    load("sd1").pipeline.to(torch.float16).save_pretrained(tmp_path / "plain")
    load("sd1").pipeline.to(torch.float16).save_pretrained(tmp_path / "variant", variant="fp16")
    for folder in (tmp_path / "plain", tmp_path / "variant"):
        checkpoint = load_checkpoint(ModelReference(str(folder)), device="cpu")
        assert {part.dtype for part in (checkpoint.unet, checkpoint.vae, *checkpoint.text_encoders)} == {torch.float32}
        torch.testing.assert_close(_unet_output(checkpoint), _unet_output(load("sd1")), atol=0.01, rtol=0.01)
        assert checkpoint.digest != digest(pipelines["sd1"])


@pytest.mark.parametrize("kind", KINDS)
def test_lora_acts_by_its_weight(kind: str, load: Load):
    plain, none, half, twice = (load(kind, lora_weights=weights) for weights in ((), (0.0,), (0.5,), (0.5, 0.5)))
    assert torch.equal(_unet_output(plain), _unet_output(none))
    assert (_unet_output(half) - _unet_output(plain)).abs().mean() > 1e-3
    assert (_unet_output(twice) - _unet_output(half)).abs().mean() > 1e-3
    assert len({checkpoint.digest for checkpoint in (plain, none, half, twice)}) == 4
    assert {checkpoint.base_digest for checkpoint in (none, half, twice)} == {plain.digest}


def test_a_lora_of_the_unet_alone_is_loaded_without_a_word(
    pipelines: Mapping[str, Path], loras: Mapping[str, Path], tmp_path: Path
):
    of_unet = {name: value for name, value in load_file(loras["sd1"]).items() if name.startswith("unet.")}
    save_file(of_unet, tmp_path / "unet.safetensors")
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    diffusers_logger = logging.getLogger("diffusers")
    diffusers_logger.addHandler(handler)
    try:
        reference = LoraReference(str(tmp_path / "unet.safetensors"))
        load_checkpoint(ModelReference(source=str(pipelines["sd1"]), loras=(reference,)), "cpu")
    finally:
        diffusers_logger.removeHandler(handler)
    assert said == []


def test_lora_of_another_model(pipelines: Mapping[str, Path], loras: Mapping[str, Path], tmp_path: Path):
    weights = {f"{name}.lora_{side}.weight": torch.ones(2, 2) for name in ("transformer.x", "else.y") for side in "AB"}
    save_file(weights, tmp_path / "other.safetensors")
    for file, kind in ((tmp_path / "other.safetensors", "sd1"), (loras["xl"], "sd1"), (loras["sd1"], "xl")):
        with pytest.raises(
            UserError, match=r"(?s)LoRA .*(does not fit|belongs to this).*expected one made for a Stable"
        ):
            load_checkpoint(ModelReference(str(pipelines[kind]), loras=(LoraReference(str(file)),)), device="cpu")


def test_damaged_weights(pipelines: Mapping[str, Path], tmp_path: Path):
    folder = shutil.copytree(pipelines["sd1"], tmp_path / "damaged")
    weights = folder / "vae/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"(?s)could not be loaded \(.*expected a complete folder"):
        load_checkpoint(ModelReference(str(folder)), device="cpu")


def test_inpainting_checkpoint(load: Load, tmp_path: Path):
    pipeline = load("sd1").pipeline
    config = dict(pipeline.unet.config) | {"in_channels": 9}
    pipeline.unet = type(pipeline.unet).from_config(config)
    pipeline.save_pretrained(tmp_path / "inpainting")
    with pytest.raises(UserError, match="UNet of 9 input channels found on a VAE of 4, expected equal numbers"):
        load_checkpoint(ModelReference(str(tmp_path / "inpainting")), device="cpu")


def _dress(checkpoint: Checkpoint) -> list[str]:
    """All that a generator may put on a pipeline; returns the notes that its hook writes."""
    notes: list[str] = []
    checkpoint.pipeline.enable_attention_slicing(1)
    checkpoint.pipeline.enable_freeu(s1=0.5, s2=0.2, b1=1.6, b2=1.9)
    checkpoint.vae.enable_tiling()
    checkpoint.vae.enable_slicing()
    checkpoint.unet.conv_in.register_forward_hook(lambda *_: notes.append("unet"))
    checkpoint.vae.register_forward_pre_hook(lambda *_: notes.append("vae"))
    return notes


@pytest.mark.parametrize("kind", KINDS)
def test_bare_gives_the_model_as_loaded_and_puts_everything_back(kind: str, load: Load):
    wanted = _unet_output(load(kind))
    checkpoint = load(kind, lora_weights=(0.8,))
    notes = _dress(checkpoint)
    before, painted = _state(checkpoint), _unet_output(checkpoint)
    assert not torch.equal(painted, wanted)
    notes.clear()
    with checkpoint.bare():
        assert torch.equal(_unet_output(checkpoint), wanted)
        assert notes == []
    assert _state(checkpoint) == before
    assert torch.equal(_unet_output(checkpoint), painted)
    assert notes == ["unet"]


def test_a_large_models_pictures_pass_its_vae_one_at_a_time(load: Load, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("decoders.checkpoint._SLICED_FROM", 1)
    checkpoint = load("sd1")
    sizes: list[int] = []
    checkpoint.vae.encoder.conv_in.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    checkpoint.encode(torch.zeros(3, 3, 32, 32))
    assert sizes == [1, 1, 1]
    assert checkpoint.vae.use_slicing
    checkpoint.vae.disable_slicing()
    with checkpoint.bare():
        assert checkpoint.vae.use_slicing, "as it was loaded"
    assert not checkpoint.vae.use_slicing


def test_bare_puts_everything_back_after_an_exception(load: Load):
    checkpoint = load("sd1", lora_weights=(0.8,))
    _dress(checkpoint)
    before = _state(checkpoint)
    with pytest.raises(KeyError), checkpoint.bare():
        raise KeyError
    assert _state(checkpoint) == before


def test_bare_leaves_an_undressed_model_alone(load: Load):
    checkpoint = load("sd1")
    before = _state(checkpoint)
    with checkpoint.bare():
        pass
    assert _state(checkpoint) == before


def test_bare_can_keep_loras(load: Load):
    checkpoint = load("sd1", lora_weights=(0.8,))
    wanted = _unet_output(checkpoint)
    with checkpoint.bare(keep_loras=True):
        assert torch.equal(_unet_output(checkpoint), wanted)


def test_bare_leaves_a_switched_off_lora_off(load: Load):
    checkpoint = load("sd1", lora_weights=(0.8,))
    checkpoint.pipeline.disable_lora()
    before = _state(checkpoint)
    with checkpoint.bare():
        pass
    assert _state(checkpoint) == before


def test_fused_lora_is_refused(load: Load):
    checkpoint = load("sd1", lora_weights=(0.8,))
    checkpoint.pipeline.fuse_lora()
    with pytest.raises(UserError, match=r"LoRA found fused .*load it without `fuse_lora\(\)`"), checkpoint.bare():
        pass


def test_latents_are_scaled_modes(load: Load):
    checkpoint = load("sd1")
    pixels = torch.rand(2, 3, 16, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        posterior: Any = checkpoint.vae.encode(pixels)
        found = checkpoint.encode(pixels)
    assert torch.equal(found, posterior.latent_dist.mode() * 0.2)
    checkpoint.vae.register_to_config(shift_factor=0.5)
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.encode(pixels), (posterior.latent_dist.mode() - 0.5) * 0.2)


def test_vae_that_overflows_in_float16_still_encodes(pipelines: Mapping[str, Path], tmp_path: Path):
    folder = shutil.copytree(pipelines["xl"], tmp_path / "loud")
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["encoder.conv_in.weight"] = weights["encoder.conv_in.weight"].abs() * 1e5
    save_file(weights, file, metadata={"format": "pt"})
    half, full = (
        load_checkpoint(ModelReference(str(folder), dtype=dtype), device="cpu") for dtype in ("float16", "float32")
    )
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        silent: Any = half.vae.encode(pixels.half())
        assert not silent.latent_dist.mode().isfinite().all(), "the trap this test is about"
        torch.testing.assert_close(half.encode(pixels), full.encode(pixels), atol=0.02, rtol=0.05)
    assert half.vae.dtype == torch.float16
