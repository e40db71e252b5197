"""The trunk: any size, no picture influences another, scale of the input forgotten, the picture seen at each scale."""

import pytest
import torch

from decoders.decoder import PDecoder
from decoders.errors import UserError
from decoders.features import FeatureBundle, FeatureSpec
from decoders.settings import DecoderSettings
from decoders.training import build_decoder
from tests.decoders.toy_world import TAXONOMY

SPEC = FeatureSpec(model_digest="x", strides=(16, 8), channels=(24, 16), attention_maps=(3, 0), settings={})


def _decoder(spec: FeatureSpec = SPEC, dropout: float = 0.1) -> PDecoder:
    torch.manual_seed(0)
    decoder, _ = build_decoder(
        spec, TAXONOMY, {"semantic": {}, "depth": {}}, DecoderSettings(width=32, fine_width=8, dropout=dropout)
    )
    return decoder.eval()


def _bundle(batch: int, height: int, width: int, spec: FeatureSpec = SPEC) -> FeatureBundle:
    def grid(channels: int, stride: int) -> torch.Tensor:
        return torch.randn(batch, channels, -(-height // stride), -(-width // stride))

    return FeatureBundle(
        image=torch.rand(batch, 3, height, width) * 2 - 1,
        levels=tuple(grid(c, s) for c, s in zip(spec.channels, spec.strides, strict=True)),
        attention=tuple(grid(c, s) for c, s in zip(spec.attention_maps, spec.strides, strict=True)),
    )


@pytest.mark.parametrize("size", [(32, 32), (48, 80), (64, 16)])
@torch.no_grad()
def test_outputs_have_the_size_of_the_picture(size: tuple[int, int]):
    outputs = _decoder()(_bundle(2, *size))
    assert outputs["semantic"].shape == (2, 3, *size)
    assert outputs["depth"].shape == (2, 3, *size)


@pytest.mark.parametrize("strides", [(4, 2), (1,), (14,), (12, 6)])
@torch.no_grad()
def test_strides_need_not_be_powers_of_two(strides: tuple[int, ...]):
    spec = FeatureSpec(
        model_digest="x", strides=strides, channels=(8,) * len(strides), attention_maps=(0,) * len(strides), settings={}
    )
    assert _decoder(spec)(_bundle(1, 28, 36, spec))["semantic"].shape == (1, 3, 28, 36)


@torch.no_grad()
def test_a_picture_does_not_depend_on_the_others_of_its_batch():
    decoder, bundle = _decoder(), _bundle(3, 32, 48)
    together = decoder(bundle)
    changed = FeatureBundle(
        image=bundle.image.clone(), levels=tuple(x.clone() for x in bundle.levels), attention=bundle.attention
    )
    changed.image[1:] = 1.0
    for level in changed.levels:
        level[1:] = 100.0
    apart = decoder(changed)
    assert all(torch.equal(together[task][0], apart[task][0]) for task in together)
    assert not torch.equal(together["semantic"][1], apart["semantic"][1])


@torch.no_grad()
def test_calibration_makes_inputs_standard_whatever_their_scale():
    decoder, bundle = _decoder(), _bundle(6, 32, 32)
    scaled = FeatureBundle(
        image=bundle.image,
        levels=tuple(level * 1000 - 70 for level in bundle.levels),
        attention=tuple(maps * 1e-3 for maps in bundle.attention),
    )
    decoder.trunk.calibrate([bundle])
    plain = decoder(bundle)
    decoder.trunk.calibrate([scaled])
    torch.testing.assert_close(decoder(scaled), plain, rtol=1e-2, atol=1e-3)


@torch.no_grad()
def test_a_dead_channel_stays_finite():
    decoder, bundle = _decoder(), _bundle(2, 32, 32)
    bundle.levels[0][:, 0] = 5.0
    decoder.trunk.calibrate([bundle])
    assert torch.isfinite(decoder(bundle)["semantic"]).all()


@torch.no_grad()
def test_the_picture_is_seen_pixel_by_pixel_and_joins_what_is_deep():
    decoder, bundle = _decoder(), _bundle(1, 32, 32)
    before = decoder.trunk(bundle)
    bundle.image[0, :, 10, 20] += 1
    after = decoder.trunk(bundle)
    change = (after.fine - before.fine).abs().sum((0, 1))
    row, column = divmod(int(change.argmax()), 32)
    assert abs(row - 10) <= 2
    assert abs(column - 20) <= 2
    assert not torch.equal(after.deep, before.deep)


@pytest.mark.parametrize(("settings", "text"), [({"width": 30}, "multiples of 8"), ({"dropout": 1.0}, "below 1")])
def test_impossible_sizes_are_refused(settings: dict[str, float], text: str):
    with pytest.raises(UserError, match=text):
        DecoderSettings(**settings)  # pyright: ignore[reportArgumentType]
