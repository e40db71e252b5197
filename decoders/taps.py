"""Record what happens inside a UNet for the length of a `with` block, and leave no trace.

Only forward hooks are used. Attention processors stay what they are (fused kernels keep no probabilities): the hooks
see the queries and keys that a cross-attention layer projects anyway, and compute the few columns wanted from them. So
a tapped UNet gives bit for bit what an untapped one gives.
"""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What the last forward pass left, by module path."""

    activations: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Output of each tapped layer, as the model computed it."""
    attention: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """float32 [batch, maps, rows, columns] of each tapped transformer, in the mean over its layers: a map of each
    class, or all classes of the first head, then of the second ..."""


@contextmanager
def tap(
    unet: nn.Module,
    *,
    layers: Sequence[str] = (),
    transformers: Sequence[str] = (),
    classes: int = 0,
    by_head: bool = False,
) -> Generator[Recording]:
    """Record the outputs of `layers` and the class attention of `transformers` (paths of `Transformer2DModel`s).

    The last `classes` tokens of the context are taken to stand for the classes; heads are averaged unless `by_head`.
    """
    recording = Recording()
    with ExitStack() as stack:
        for path in layers:
            hook = _Keep(recording.activations, path)
            stack.callback(unet.get_submodule(path).register_forward_hook(hook).remove)
        for path in transformers:
            _tap_transformer(
                stack, unet.get_submodule(path), _ClassAttention(recording.attention, path, classes, by_head=by_head)
            )
        yield recording


def class_attention(
    query: Float[Tensor, "batch cells inner"],
    key: Float[Tensor, "batch tokens inner"],
    *,
    heads: int,
    classes: int,
    by_head: bool = False,
) -> Float32[Tensor, "batch cells maps"]:
    """softmax(QK^T / sqrt(d)) over all tokens, of the last `classes` tokens only: mean over heads, or head by head.

    One picture at a time and in float32: a map of all heads is the largest tensor of the pass, and the scores of
    SD 2.x leave the range of float16.
    """
    maps: list[Tensor] = []
    for cells, tokens in zip(query, key, strict=True):
        q, k = (x.float().unflatten(-1, (heads, -1)).transpose(0, 1) for x in (cells, tokens))
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(1, 2)
        found = scores.softmax(-1)[..., tokens.shape[0] - classes :]
        maps.append(found.transpose(0, 1).flatten(1) if by_head else found.mean(0))
    return torch.stack(maps)


class _Keep:
    """Forward hook: note the output under a name."""

    def __init__(self, store: dict[str, Any], name: str) -> None:
        self.store, self.name = store, name

    def __call__(self, _module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        self.store[self.name] = output[0] if isinstance(output, tuple) else output


class _ClassAttention:
    """Forward hooks of one transformer: add up its layers' maps, keeping one layer's queries and keys at a time."""

    def __init__(self, store: dict[str, Tensor], path: str, classes: int, *, by_head: bool) -> None:
        self.store, self.path, self.classes, self.by_head = store, path, classes, by_head
        self.projected: dict[str, Tensor] = {}
        self.maps: list[Tensor] = []

    def layer_done(self, layer: Any, _inputs: tuple[Any, ...], _output: Any) -> None:
        query, key = self.projected.pop("query"), self.projected.pop("key")
        found = class_attention(query, key, heads=layer.heads, classes=self.classes, by_head=self.by_head)
        self.maps = [self.maps[0] + found] if self.maps else [found]

    def transformer_done(self, transformer: Any, _inputs: tuple[Any, ...], output: Any) -> None:
        rows, columns = output[0].shape[-2:]
        mean = self.maps.pop() / len(cross_attention_layers(transformer))
        self.store[self.path] = mean.transpose(1, 2).unflatten(2, (rows, columns))


def cross_attention_layers(transformer: nn.Module) -> list[Any]:
    """The `attn2` layers of a `Transformer2DModel`; empty for a module that is none."""
    blocks: Any = getattr(transformer, "transformer_blocks", ())
    return [block.attn2 for block in blocks if block.attn2 is not None]


def _tap_transformer(stack: ExitStack, transformer: nn.Module, hooks: _ClassAttention) -> None:
    for layer in cross_attention_layers(transformer):
        stack.callback(layer.to_q.register_forward_hook(_Keep(hooks.projected, "query")).remove)
        stack.callback(layer.to_k.register_forward_hook(_Keep(hooks.projected, "key")).remove)
        stack.callback(layer.register_forward_hook(hooks.layer_done).remove)
    stack.callback(transformer.register_forward_hook(hooks.transformer_done).remove)
