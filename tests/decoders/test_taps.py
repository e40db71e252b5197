"""Taps see what the model computes, and nobody can tell that they were there."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from decoders.taps import class_attention, cross_attention_layers, tap

KINDS = ("sd1", "sd2", "xl")
CLASSES, TOKENS = 2, 7


@pytest.fixture(params=KINDS)
def unet(request: pytest.FixtureRequest, pipelines: Mapping[str, Path]) -> Any:
    return UNet2DConditionModel.from_pretrained(pipelines[request.param], subfolder="unet", use_safetensors=True)


def _inputs(unet: Any) -> dict[str, Any]:
    noise = torch.Generator().manual_seed(0)
    inputs: dict[str, Any] = {
        "sample": torch.randn(3, 4, 8, 12, generator=noise),
        "timestep": 50,
        "encoder_hidden_states": torch.randn(3, TOKENS, unet.config.cross_attention_dim, generator=noise),
    }
    if unet.config.addition_embed_type == "text_time":
        inputs["added_cond_kwargs"] = {"text_embeds": torch.ones(3, 12), "time_ids": torch.ones(3, 6)}
    return inputs


def _transformers(unet: Any) -> list[str]:
    return [path for path, module in unet.named_modules() if cross_attention_layers(module)]


LAYERS = ["conv_in", "mid_block", "up_blocks.0.resnets.1", "up_blocks.1.attentions.0"]


def _state(unet: Any) -> dict[str, Any]:
    return {"processors": dict(unet.attn_processors), "repr": repr(unet)} | {
        f"{path} {key}": copy.copy(value) if isinstance(value, dict) else value
        for path, module in unet.named_modules()
        for key, value in vars(module).items()
        if key not in ("_parameters", "_buffers", "_modules")
    }


@torch.no_grad()
def test_outputs_are_unchanged_and_no_trace_is_left(unet: Any):
    before, plain = _state(unet), unet(**_inputs(unet)).sample
    with tap(unet, layers=LAYERS, transformers=_transformers(unet), classes=CLASSES):
        tapped = unet(**_inputs(unet)).sample
        assert dict(unet.attn_processors) == before["processors"], "fused attention stays"
        assert _state(unet) != before
    assert torch.equal(tapped, plain)
    assert _state(unet) == before


@torch.no_grad()
def test_no_trace_is_left_by_a_pass_that_fails(unet: Any):
    before = _state(unet)
    inputs = _inputs(unet) | {"encoder_hidden_states": torch.zeros(3, TOKENS, 5)}
    with (
        pytest.raises(RuntimeError, match="shapes"),
        tap(unet, layers=LAYERS, transformers=_transformers(unet), classes=CLASSES),
    ):
        unet(**inputs)
    assert _state(unet) == before


def test_no_trace_is_left_by_a_path_that_is_wrong(unet: Any):
    before = _state(unet)
    with pytest.raises(AttributeError), tap(unet, layers=["conv_in", "no_such_block"]):
        pass
    assert _state(unet) == before


@torch.no_grad()
def test_activations_are_the_modules_outputs(unet: Any):
    with tap(unet, layers=LAYERS) as recording:
        unet(**_inputs(unet))
    found = recording.activations
    assert list(found) == LAYERS
    assert torch.equal(found["conv_in"], unet.conv_in(_inputs(unet)["sample"]))
    assert [tuple(found[path].shape[2:]) for path in LAYERS] == [(8, 12), (2, 3), (2, 3), (4, 6)]


@torch.no_grad()
def test_attention_is_the_models_own(unet: Any):
    """Against diffusers' slow processor, which asks `get_attention_scores` for every probability."""
    paths = _transformers(unet)
    with tap(unet, transformers=paths, classes=CLASSES) as recording:
        unet(**_inputs(unet))
    assert set(recording.attention) == set(paths)
    wanted: dict[str, list[Tensor]] = {path: [] for path in paths}

    def spy(layer: Any, path: str) -> None:
        scores = layer.get_attention_scores

        def noting(query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
            found = scores(query, key, mask)
            wanted[path].append(found.unflatten(0, (3, layer.heads)).mean(1)[..., -CLASSES:])
            return found

        layer.get_attention_scores = noting

    unet.set_default_attn_processor()
    from diffusers.models.attention_processor import AttnProcessor

    unet.set_attn_processor(AttnProcessor())
    for path in paths:
        for layer in cross_attention_layers(unet.get_submodule(path)):
            spy(layer, path)
    unet(**_inputs(unet))
    for path in paths:
        assert len(wanted[path]) == len(unet.get_submodule(path).transformer_blocks)
        found = recording.attention[path]
        mean = torch.stack(wanted[path]).mean(0)
        torch.testing.assert_close(found.flatten(2).transpose(1, 2), mean, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_maps_lie_as_the_picture_does(unet: Any):
    """Rows stay rows: a map's grid is the transformer's, on a picture that is not square."""
    path = _transformers(unet)[-1]
    with tap(unet, layers=[path], transformers=[path], classes=CLASSES) as recording:
        unet(**_inputs(unet))
    assert recording.attention[path].shape == (3, CLASSES, *recording.activations[path].shape[2:])


def test_class_attention_of_all_tokens_sums_to_one():
    noise = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, count, 12, generator=noise) for count in (5, TOKENS))
    everything = class_attention(query, key, heads=3, classes=TOKENS)
    torch.testing.assert_close(everything.sum(-1), torch.ones(2, 5))
    torch.testing.assert_close(class_attention(query, key, heads=3, classes=2), everything[..., -2:])


def test_class_attention_survives_scores_beyond_float16():
    query = torch.full((1, 4, 8), 300.0, dtype=torch.float16)
    found = class_attention(query, torch.full((1, TOKENS, 8), 300.0, dtype=torch.float16), heads=1, classes=CLASSES)
    torch.testing.assert_close(found, torch.full((1, 4, CLASSES), 1 / TOKENS))
