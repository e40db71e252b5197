"""One pass through a UNet under a tap: which layers are read, and how their tensors become levels."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from decoders.errors import UserError
from decoders.phrases import ReadingContext
from decoders.taps import cross_attention_layers, tap

AttentionReduction = Literal["mean", "heads", "none"]
_GROUPS = ("down", "mid", "up")


def read_unet(
    unet: nn.Module,
    latents: Float[Tensor, "batch channels rows columns"],
    context: ReadingContext,
    *,
    timestep: int,
    layers: Sequence[str],
    classes: int,
    reduction: AttentionReduction = "mean",
    image_size: tuple[int, int],
) -> tuple[tuple[Float32[Tensor, "batch _ _ _"], ...], tuple[Float32[Tensor, "batch _ _ _"], ...]]:
    """Levels and attention, coarse -> fine: features of one grid are joined, attention is averaged.

    The last `classes` tokens of the context get a map each, from every cross-attention of the blocks in which a layer
    is read; 1.0 is what an even spread over all tokens would give. `image_size` is height and width of the picture.

    Args:
        reduction: "heads" keeps the maps of every head of every block, joined like features.
    """
    layers = expand_layers(unet, layers)
    transformers = _transformers_near(unet, layers) if classes else ()
    batch = len(latents)
    conditions = (
        None
        if context.pooled is None
        else {
            "text_embeds": context.pooled.expand(batch, -1).to(latents),
            # XL asks for original size, crop corner and target size: the picture is taken for what it is
            "time_ids": latents.new_tensor([[*image_size, 0, 0, *image_size]]).expand(batch, -1),
        }
    )
    by_head = reduction == "heads"
    with tap(unet, layers=layers, transformers=transformers, classes=classes, by_head=by_head) as recording:
        unet(
            latents,
            torch.tensor(timestep, device=latents.device),
            encoder_hidden_states=context.tokens.expand(batch, -1, -1).to(latents),
            added_cond_kwargs=conditions,
            return_dict=False,
        )
    features = _by_grid(recording.activations)
    maps = _by_grid(recording.attention)
    levels = tuple(torch.cat(tensors, dim=1).float() for tensors in features.values())
    even = context.tokens.shape[1]
    attention = tuple(
        _reduce(maps[grid], by_head=by_head) * even if grid in maps else level.new_zeros(batch, 0, *grid)
        for grid, level in zip(features, levels, strict=True)
    )
    return levels, attention


def _reduce(maps: list[Tensor], *, by_head: bool) -> Tensor:
    return torch.cat(maps, dim=1) if by_head else torch.stack(maps).mean(0)


def _by_grid(tensors: Mapping[str, Tensor]) -> dict[tuple[int, int], list[Tensor]]:
    """Group [batch, channels, rows, columns] tensors by (rows, columns), coarse -> fine."""
    grids: dict[tuple[int, int], list[Tensor]] = {}
    for path, tensor in tensors.items():
        if tensor.ndim != 4:
            raise UserError(
                f"layer {path!r} gives an output of {tensor.ndim} axes, expected 4 (batch, channels, rows, columns); "
                "name a layer with a picture-like output, such as a whole resnet or attention module"
            )
        grids.setdefault((tensor.shape[2], tensor.shape[3]), []).append(tensor)
    return dict(sorted(grids.items(), key=lambda item: item[0][0] * item[0][1]))


def expand_layers(unet: nn.Module, layers: Sequence[str]) -> tuple[str, ...]:
    """Paths of modules in the UNet; a group's name stands for the last features of each of its blocks, before resizing.

    Raises:
        UserError: a path that the UNet does not have.
    """
    known = [path for path, _ in unet.named_modules() if path]
    paths: list[str] = []
    for layer in layers:
        if layer in _GROUPS:
            paths += [_last_features(unet, block) for block in _blocks(unet, layer)]
        elif layer in known:
            paths.append(layer)
        else:
            near = difflib.get_close_matches(layer, [*_GROUPS, *known], n=3)
            raise UserError(
                f"layer {layer!r} is not in this UNet; expected down, mid, up or the path of a module"
                + (f", such as {', '.join(near)}" if near else "")
            )
    return tuple(dict.fromkeys(paths))


def _blocks(unet: nn.Module, group: str) -> list[str]:
    if group == "mid":
        return ["mid_block"] if getattr(unet, "mid_block", None) is not None else []
    return [f"{group}_blocks.{name}" for name, _ in unet.get_submodule(f"{group}_blocks").named_children()]


def _last_features(unet: nn.Module, block: str) -> str:
    if block == "mid_block":
        return block
    parts: Any = unet.get_submodule(block)
    kind = "attentions" if getattr(parts, "attentions", None) else "resnets"
    return f"{block}.{kind}.{len(getattr(parts, kind)) - 1}"


def _transformers_near(unet: nn.Module, layers: Sequence[str]) -> tuple[str, ...]:
    """All cross-attending transformers of the blocks from which a layer is read."""
    blocks = {
        path
        for group in _GROUPS
        for path in _blocks(unet, group)
        if any(f"{layer}.".startswith(f"{path}.") for layer in layers)
    }
    return tuple(
        path
        for path, module in unet.named_modules()
        if cross_attention_layers(module) and any(path.startswith(f"{block}.") for block in blocks)
    )


def coarsest_cell(unet: Any) -> int:
    """Latent cells that become one at the bottom of the UNet, in each direction."""
    return 2 ** sum(bool(getattr(block, "downsamplers", None)) for block in unet.down_blocks)
