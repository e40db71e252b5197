"""Models as they were loaded, for the length of a `with` block, whatever a generator has put on them since."""

from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from decoders.errors import UserError

_MISSING = object()


@contextmanager
def loras_off(models: Iterable[nn.Module]) -> Generator[None]:
    """Adapters inactive; afterwards as active, and as trainable, as before.

    Raises:
        UserError: an adapter was fused into the weights, which cannot be undone exactly.
    """
    layers = [layer for model in models for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    if any(layer.merged for layer in layers):
        raise UserError(
            "a LoRA found fused into the model's weights, expected one that can be switched off; load it without "
            "`fuse_lora()`, or let the reader keep it (`keep_loras: true`)"
        )
    active = [layer for layer in layers if not layer.disable_adapters]
    trainable = [(weight, weight.requires_grad) for layer in active for weight in _parameters(layer)]
    for layer in active:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in active:
            layer.enable_adapters(True)  # also makes the active adapter trainable, whatever it was
        for weight, flag in trainable:
            weight.requires_grad_(flag)


@contextmanager
def hooks_off(models: Iterable[nn.Module]) -> Generator[None]:
    """No forward hook fires; afterwards the very same hook tables are back, so handles taken before still work."""
    with ExitStack() as stack:
        for module in (module for model in models for module in model.modules()):
            for table in ("_forward_pre_hooks", "_forward_hooks"):
                if getattr(module, table):
                    stack.enter_context(attributes((module,), {table: OrderedDict[int, Any]()}))
        yield


@contextmanager
def processors(model: Any, wanted: Mapping[str, Any]) -> Generator[None]:
    """Attention computed by `wanted`, one processor for each attention layer."""
    found = dict(model.attn_processors)
    model.set_attn_processor(dict(wanted))  # a copy, as the dict it is given comes back empty
    try:
        yield
    finally:
        model.set_attn_processor(found)


@contextmanager
def attributes(objects: Sequence[object], values: Mapping[str, Any]) -> Generator[None]:
    """Set attributes, and restore their old values or their absence."""
    before = [(item, name, vars(item).get(name, _MISSING)) for item in objects for name in values]
    for item, name, _ in before:
        setattr(item, name, values[name])
    try:
        yield
    finally:
        for item, name, value in before:
            if value is _MISSING:
                delattr(item, name)
            else:
                setattr(item, name, value)


def _parameters(layer: BaseTunerLayer) -> Iterator[nn.Parameter]:
    return layer.parameters() if isinstance(layer, nn.Module) else iter(())
