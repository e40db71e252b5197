"""What a perceiver hands to a decoder, and the handshake that says whether the two fit."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from decoders.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSpec:
    """All that decides what a perceiver's numbers mean; stored with a reader and compared before any weight loads."""

    model_digest: str
    """sha256 over the UNet, VAE, text encoder and LoRA files."""
    strides: tuple[int, ...]
    """Picture pixels per cell, level by level, coarse -> fine."""
    channels: tuple[int, ...]
    attention_maps: tuple[int, ...]
    """Class attention maps per level: the number of classes, or 0 for a level without cross-attention."""
    settings: Mapping[str, Any]
    """The perceiver's own choices (layers, timestep, seed, phrases, ...), as plain JSON values."""
    phrase_width: int | None = None
    """Channels of a phrase's vector; 0 from a perceiver without, None in readers from before it was noted."""

    def check(self, found: "FeatureSpec", *, reader: str) -> None:
        """Raise a `UserError` naming each field in which `found` (the loaded one) differs from the reader's own."""
        differences = [
            f"  {field.name}: reader {getattr(self, field.name)!r}, model {getattr(found, field.name)!r}"
            for field in fields(self)
            if getattr(self, field.name) not in (getattr(found, field.name), None)
        ]
        if differences:
            raise UserError(
                f"reader {reader} was fitted on another model than the one loaded:\n"
                + "\n".join(differences)
                + "\nload the model it was fitted on, or fit a reader for this one with `datagen fit`"
            )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "FeatureSpec":
        return cls(
            model_digest=data["model_digest"],
            strides=tuple(data["strides"]),
            channels=tuple(data["channels"]),
            attention_maps=tuple(data["attention_maps"]),
            settings=data["settings"],
            phrase_width=data.get("phrase_width"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureBundle:
    """The features of a batch of pictures; level i of `levels` and `attention` share one grid."""

    image: Float[Tensor, "batch 3 height width"]
    """The picture itself, -1..1: the decoder's high-resolution path looks at it for sharp edges."""
    levels: tuple[Float[Tensor, "batch _ _ _"], ...]
    """UNet features, coarse -> fine."""
    attention: tuple[Float[Tensor, "batch _ _ _"], ...]
    """Cross-attention to each class phrase, coarse -> fine; zero channels where a level has none. Of several timesteps
    or heads, all classes of the first come first."""
    phrases: Float[Tensor, "classes phrase_width"] | None = None
    """The phrases as the UNet is given them, the same for every picture."""

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.image, *self.levels, *self.attention))

    def to(self, *args: Any, **kwargs: Any) -> "FeatureBundle":
        """As `Tensor.to`, for every tensor."""
        return FeatureBundle(
            image=self.image.to(*args, **kwargs),
            levels=tuple(level.to(*args, **kwargs) for level in self.levels),
            attention=tuple(maps.to(*args, **kwargs) for maps in self.attention),
            phrases=None if self.phrases is None else self.phrases.to(*args, **kwargs),
        )

    @staticmethod
    def concatenate(bundles: Sequence["FeatureBundle"]) -> "FeatureBundle":
        """One batch out of several of equal size."""
        return FeatureBundle(
            image=torch.cat([bundle.image for bundle in bundles]),
            levels=tuple(torch.cat(parts) for parts in zip(*(bundle.levels for bundle in bundles), strict=True)),
            attention=tuple(torch.cat(parts) for parts in zip(*(bundle.attention for bundle in bundles), strict=True)),
            phrases=bundles[0].phrases,
        )


def to_pixels(
    images: UInt8[np.ndarray, "batch height width 3"], device: torch.device
) -> Float[Tensor, "batch 3 height width"]:
    """Pictures as every diffusion model sees them, -1..1; copied, as arrays read from files may be read-only."""
    return torch.from_numpy(images.copy()).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


@runtime_checkable
class Perceiver(Protocol):
    """Anything that turns pictures into features: a diffusion UNet now, a DiT later."""

    @property
    def spec(self) -> FeatureSpec: ...

    @property
    def size_multiple(self) -> int:
        """Height and width of a picture must be multiples of this."""
        ...

    def perceive(self, images: UInt8[np.ndarray, "batch height width 3"], *, look: int = 0) -> FeatureBundle:
        """Deterministic: the same picture gives the same features in a batch of the same size.

        Args:
            look: number of the look; another number may add another noise.
        """
        ...
