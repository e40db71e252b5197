"""A device that is not the CPU: a GPU where tests are asked to use one, and else, where there is only a CPU, one that
refuses what a GPU refuses.

Tensors that are sent to `OTHER` compute on the CPU, but say that they lie elsewhere. An operation on tensors of both
places fails, as does handing one to numpy. Speed, memory and number formats are those of the CPU.
"""

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

REAL = "DATAGEN_TEST_GPU" in os.environ
"""Whether it is a GPU, and nothing is simulated."""
OTHER = torch.device("cuda" if REAL else "lazy", 0)
"""`lazy` is a name that torch knows, and for which it looks for no hardware."""
_aten: Any = torch.ops.aten
_TAKES_PLACES = frozenset({_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default})
"""Of what lies on a GPU, those picked may be told by the CPU."""


def _dispatch(
    _: object,
    func: Callable[..., Any],
    types: Sequence[type],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """For a tensor of `OTHER`, and while it can be named, for every operation."""
    del types
    return _compute(func, args, kwargs or {})


class Elsewhere(Tensor):
    """A tensor on `OTHER`."""

    here: Tensor

    @staticmethod
    def __new__(cls: Any, here: Tensor) -> "Elsewhere":
        make: Any = Tensor._make_wrapper_subclass
        made = make(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            layout=here.layout,
            device=OTHER,
        )
        made.here = here
        return made

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        descriptor: Any = Tensor.data
        descriptor.__set__(self, value)
        self.here = _here(value)

    def tolist(self) -> Any:
        return self.here.tolist()

    def untyped_storage(self) -> Any:
        return self.here.untyped_storage()

    def data_ptr(self) -> int:
        return self.here.data_ptr()

    def __repr__(self, *, tensor_contents: object = None) -> str:
        del tensor_contents
        return f"Elsewhere({self.here!r})"

    __torch_dispatch__: Any = classmethod(_dispatch)


@contextmanager
def other_device() -> Generator[None]:
    """Meanwhile `OTHER` can be named wherever torch takes a device."""
    future: Any = torch.__future__
    future.set_overwrite_module_params_on_conversion(True)  # a module in another number format has other tensors
    try:
        with _Created(), _Dispatched():
            yield
    finally:
        future.set_overwrite_module_params_on_conversion(False)


class _Dispatched(TorchDispatchMode):
    """Sees operations without any tensor, too."""

    __torch_dispatch__: Any = _dispatch


class _Created(TorchFunctionMode):
    """Sends tensors of given numbers there, which torch makes in a step of its own that no dispatch mode sees."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        named = dict(kwargs or {})
        if func is Tensor.new_tensor and isinstance(args[0], Elsewhere):
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype} | named).to(OTHER)
        if func is Tensor.__getitem__ and isinstance(args[1], list):
            return func(args[0], torch.tensor(args[1]))
        if func in (torch.tensor, torch.as_tensor) and torch.device(named.get("device") or "cpu") == OTHER:
            del named["device"]
            return func(*args, **named).to(OTHER)
        return func(*args, **named)


def _compute(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    tensors = _tensors((args, dict(kwargs)))
    others = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    if func in _TAKES_PLACES and isinstance(args[0], Elsewhere):
        tensors = _tensors((args[0], args[2:]))
    # A number in a tensor without axes may come from the CPU.
    mixed = others and any(tensor.ndim and not isinstance(tensor, Elsewhere) for tensor in tensors)
    if mixed and func is not _aten.copy_.default:
        raise RuntimeError(f"{func}: expected all tensors on one device, found some on the CPU and some on {OTHER}")
    asked = [leaf for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, torch.device)]
    goes_there = OTHER in asked if asked else bool(others)
    result = func(*tree_map(_here, args), **tree_map(_here, dict(kwargs)))
    if func is _aten.copy_.default:
        return args[0]
    if not goes_there:
        return result
    known = {id(tensor.here): tensor for tensor in others}  # what was changed in place is still the same tensor

    def elsewhere(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return known[id(leaf)] if id(leaf) in known else Elsewhere(leaf)

    return tree_map(elsewhere, result)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _here(value: Any) -> Any:
    if isinstance(value, Elsewhere):
        return value.here
    return torch.device("cpu") if isinstance(value, torch.device) else value
