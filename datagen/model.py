"""The checkpoint that a plan names: identified at once, loaded when it is first needed, and then in memory once."""

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from datagen.settings import Settings
from decoders.references import LoraReference, ModelReference, Precision, digest, locate_model

if TYPE_CHECKING:
    import decoders.checkpoint


class LoraSettings(Settings):
    """One entry of `loras:`; fields as `LoraReference`."""

    source: str
    """A local file, or `package://some.package/path/file.safetensors`."""
    weight: float = 1.0
    """How strongly it acts."""


class ModelSettings(Settings):
    """`model:` of a plan; fields as `ModelReference`."""

    source: str
    """A local folder in diffusers format, a hub id `owner/name`, or `package://some.package/folder`."""
    revision: str | None = None
    """Commit of the hub repository, 40 hex digits; a branch or tag can move and is refused."""
    loras: tuple[LoraSettings, ...] = ()
    """LoRA files that act on it, several add up."""
    dtype: Precision = "auto"
    """Number format of the weights; `auto` is float32 on a CPU and float16 on a GPU."""

    def reference(self) -> ModelReference:
        return ModelReference(
            source=self.source,
            revision=self.revision,
            loras=tuple(LoraReference(source=lora.source, weight=lora.weight) for lora in self.loras),
            dtype=self.dtype,
        )


def hardware(device: str, dtype: Precision) -> str:
    """What computes, and in which number format, such as `cpu, float32`: pictures depend on both."""
    import torch

    from decoders.checkpoint import choose_dtype

    place = torch.device(device)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else place.type
    return f"{name}, {str(choose_dtype(dtype, place)).removeprefix('torch.')}"


class Model:
    """What generators and labellers are given, so that both borrow one checkpoint.

    Errors as `load_checkpoint`; those about files come when `digest` or `checkpoint` is first read.
    """

    def __init__(self, reference: ModelReference, *, device: str | Callable[[], str] | None = None) -> None:
        """`device` may be a question, asked when the weights load; None takes the GPU where there is one."""
        self.reference = reference
        self._device = device

    @cached_property
    def digest(self) -> str:
        """Identity of all its files, from the files themselves: no weight is loaded for it."""
        return digest(locate_model(self.reference), self.reference.loras)

    @cached_property
    def base_digest(self) -> str:
        """Identity without the LoRA files: what a reader was fitted on."""
        return digest(locate_model(self.reference))

    @cached_property
    def checkpoint(self) -> "decoders.checkpoint.Checkpoint":
        from decoders.checkpoint import load_checkpoint  # torch and diffusers: seconds that a finished run never pays

        return load_checkpoint(self.reference, self._device() if callable(self._device) else self._device)

    def identity(self) -> dict[str, Any]:
        """What of it decides the bytes of a run: not where the files lie, but what is in them."""
        return {"digest": self.digest, "dtype": self.reference.dtype}
