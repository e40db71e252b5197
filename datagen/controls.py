"""ControlNets as a plan names them: found and identified at once, loaded at the first picture."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from jaxtyping import Float32
from PIL import Image

from datagen.conditions import Condition
from datagen.conditions.palette import Palette
from datagen.files import read_image, read_json
from datagen.model import Model
from datagen.plan import part_identity
from datagen.plugins import OneOf, Part, built, choose_part
from datagen.records import Guide
from datagen.settings import Settings, check_classes
from decoders.errors import UserError
from decoders.labels import Taxonomy, semantic_ids
from decoders.references import file_digest, locate

if TYPE_CHECKING:
    import torch

    import decoders.checkpoint

_log = logging.getLogger(__name__)
ABOUT_FILE = "control.json"
"""Beside the weights that `datagen control` writes: what the ControlNet was trained to be shown."""
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
_HALF_WEIGHTS_FILE = "diffusion_pytorch_model.fp16.safetensors"
_WEIGHTS = (WEIGHTS_FILE, _HALF_WEIGHTS_FILE)
_DOWNLOADS = ("config.json", ABOUT_FILE, WEIGHTS_FILE)


class Control(Settings):
    """One ControlNet of a generator."""

    source: str
    """A folder in diffusers format, a hub id with a pinned revision, or `package://some.package/folder`."""
    revision: str | None = None
    """Commit of the hub repository."""
    condition: Annotated[Condition | None, OneOf("conditions", at="generator.controls.condition")] = None
    """What it is shown; may be left out for one that `datagen control` trained, which says so itself."""
    scale: Annotated[float, Ge(0)] = 1.0
    """How strongly it acts."""
    begin: Annotated[float, Ge(0), Le(1)] = 0.0
    """Share of the steps after which it begins to act ..."""
    end: Annotated[float, Ge(0), Le(1)] = 1.0
    """... and after which it no longer does."""
    class_scales: Mapping[str, Annotated[float, Ge(0)]] = {}
    """Class name -> strength there, times `scale`; 1 where left out. So the sky can be left to the model."""
    weight_map: Path | None = None
    """A grey picture of any size, laid over every drawn one: strength there, times all others, white 1 and black 0."""


class Fusion(Settings):
    """How the second drawing is made."""

    strength: Annotated[float, Gt(0), Le(1)] = 1.0
    """How far the second drawing is drawn anew: below 1 it begins from the enlarged first one, noised, and takes only
    that share of the steps; 1 begins from pure noise, as DGInStyle does."""
    supersampling: Annotated[int, Ge(1)] = 2
    """Times the guide's size, in each direction, at which it is drawn; then it is shrunk to that size."""
    tile: Annotated[int, Ge(8)] | None = None
    """Pixels of a window's side, and of the first drawing's shorter side; what the model was made for when None."""
    overlap: Annotated[float, Ge(0), Lt(1)] = 0.5
    """Least share of a window that the next one covers again."""
    keep_above: Annotated[float, Gt(0), Le(1)] = 0.08
    """Connected regions of a class that cover more of the picture than this stay as the first drawing has them; 1 keeps
    none."""
    tile_batch: Annotated[int, Ge(1)] = 8
    """Windows computed at once."""
    tile_prompts: bool = True
    """Whether each window is asked for the listed classes that it shows, instead of all of the prompt's."""


class LocatedControl:
    """A control whose files were found and whose condition was built."""

    def __init__(self, control: Control, taxonomy: Taxonomy, model: Model) -> None:
        """
        Raises:
            UserError: no such files, no condition, or made for other classes.
        """
        self.control = control
        self.folder = locate_control(control.source, control.revision)
        self._config = _config(self.folder)
        self._about = _about(self.folder)
        self.condition = self._build_condition(taxonomy, model)
        expected = self._config.get("conditioning_channels", 3)
        if self.condition.channels != expected:
            raise UserError(
                f"ControlNet {control.source} is shown {self.condition.channels} channels by this condition, expected "
                f"{expected}; choose the condition that it was trained with, and the same classes"
            )
        check_classes(control.class_scales, taxonomy, at="class_scales")
        self._weight_map = None if control.weight_map is None else read_image(control.weight_map)[..., 0]
        self._scales = np.array([1.0, *(control.class_scales.get(name, 1.0) for name in taxonomy.names)], np.float32)

    def _build_condition(self, taxonomy: Taxonomy, model: Model) -> Condition:
        chosen = self.control.condition
        if self._about is None:
            if chosen is None:
                raise UserError(
                    f"ControlNet {self.folder} does not say what it is to be shown (no {ABOUT_FILE} beside it), "
                    "expected `condition:`, such as `condition: palette` for one of colour-coded classes, or edges, or "
                    "depth"
                )
            condition: Condition = built(chosen, taxonomy=taxonomy, model=model)
            if isinstance(condition, Palette):
                self._tell_of_colors(condition.left_out)
            return condition
        trained = choose_part("conditions", self._about["condition"], at=str(self.folder / ABOUT_FILE))
        shown = trained if chosen is None else chosen
        kind = shown.factory if isinstance(shown, Part) else type(shown)
        if kind is trained.factory and trained.asks_for("taxonomy"):
            _check_classes(self._about, taxonomy, self.folder)
        return built(shown, taxonomy=taxonomy, model=model)

    def _tell_of_colors(self, left_out: Sequence[str]) -> None:
        if left_out:
            _log.warning(
                "ControlNet %s is shown the labels' own colours of %s, which it may never have seen; give `colors:` of "
                "its palette those that it was trained with",
                self.folder,
                ", ".join(left_out),
            )

    @property
    def digest(self) -> str:
        """Identity of its files, wherever they lie, and of all that it is told."""
        told = self.control.model_dump(mode="json", exclude={"source", "revision", "weight_map"})
        if self.control.weight_map is not None:
            told["weight_map"] = file_digest(self.control.weight_map)
        chosen, digest = self.control.condition, getattr(self.condition, "digest", None)
        if isinstance(chosen, Part):
            told["condition"] = part_identity(chosen, self.condition)
        elif digest is not None:
            told["condition"] = {"digest": digest}
        return hashlib.sha256(json.dumps([control_digest(self.folder), told], sort_keys=True).encode()).hexdigest()

    def weights(self, guide: Guide) -> Float32[np.ndarray, "1 height width"] | None:
        """Its strength at each pixel, before `scale`; None where it is the same everywhere."""
        if self._weight_map is None and not self.control.class_scales:
            return None
        strength = np.ones(guide.size, np.float32)
        if self.control.class_scales:
            strength *= self._scales[semantic_ids(guide.labels)]  # 1 where the class is unknown
        if self._weight_map is not None:
            height, width = guide.size
            grey = Image.fromarray(self._weight_map).resize((width, height), Image.Resampling.BILINEAR)
            strength *= np.asarray(grey, np.float32) / 255
        return strength[None]

    def load(self, checkpoint: "decoders.checkpoint.Checkpoint") -> Any:
        """The network beside a checkpoint, frozen.

        Raises:
            UserError: it is damaged, or was made for another kind of model.
        """
        self._check_fits(checkpoint.unet.config)
        network = read_control(self.folder, checkpoint.dtype)
        return network.to(checkpoint.device).requires_grad_(False).eval()

    def _check_fits(self, unet: Mapping[str, Any]) -> None:
        for name in ("in_channels", "block_out_channels", "cross_attention_dim"):
            found, expected = _plain(self._config.get(name)), _plain(unet.get(name))
            if found is not None and found != expected:
                raise UserError(
                    f"ControlNet {self.folder} was made for a model with {name} {found}, but the plan's has "
                    f"{expected}; take one made for the plan's model (1.5, 2.1 and XL each need their own)"
                )


def locate_control(source: str, revision: str | None = None) -> Path:
    """The folder of a ControlNet, downloaded if it is in a hub; errors as `locate`.

    Weights in half precision are downloaded only where there are no others.
    """
    folder = locate(source, revision, what="ControlNet", files=_DOWNLOADS)
    if (folder / WEIGHTS_FILE).is_file():
        return folder
    return locate(source, revision, what="ControlNet", files=(*_DOWNLOADS, _HALF_WEIGHTS_FILE))


def read_control(folder: Path, dtype: "torch.dtype") -> Any:
    """The network that a folder holds.

    Raises:
        UserError: it is damaged.
    """
    from diffusers import ControlNetModel

    variant = "fp16" if _weights(folder).name.endswith(".fp16.safetensors") else None
    try:
        return ControlNetModel.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, variant=variant
        )
    except Exception as error:  # a damaged file fails in any of three libraries, each with its own exception
        raise UserError(
            f"ControlNet {folder} could not be loaded ({type(error).__name__}: {error}); expected a complete folder in "
            "diffusers format, so copy or download it again"
        ) from error


def control_digest(folder: Path) -> str:
    """Identity of a ControlNet's files.

    Raises:
        UserError: the folder holds none.
    """
    total = hashlib.sha256(json.dumps([_config(folder), _about(folder)], sort_keys=True).encode())
    total.update(file_digest(_weights(folder)).encode())
    return total.hexdigest()


def locate_controls(controls: Sequence[Control], taxonomy: Taxonomy, model: Model) -> tuple[LocatedControl, ...]:
    """Find each; errors as `LocatedControl`, with the place in the list in front."""
    found: list[LocatedControl] = []
    for index, control in enumerate(controls):
        try:
            found.append(LocatedControl(control, taxonomy, model))
        except UserError as error:
            raise UserError(f"controls.{index}: {error}") from None
    return tuple(found)


def _config(folder: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = values["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"ControlNet {folder}: found no readable config.json ({error}); expected a folder that "
            "`ControlNetModel.save_pretrained` or `datagen control` wrote"
        ) from None
    if kind != "ControlNetModel":
        raise UserError(f"ControlNet {folder} holds a {kind}, expected a ControlNetModel, for Stable Diffusion")
    _weights(folder)
    return {name: value for name, value in values.items() if not name.startswith("_")}


def _weights(folder: Path) -> Path:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"ControlNet {folder} holds no {WEIGHTS_FILE}; a .bin is a pickle that can run code and is not read: convert "
        "it with `ControlNetModel.from_pretrained(folder, use_safetensors=False).save_pretrained(other)`"
    )


def _about(folder: Path) -> Mapping[str, Any] | None:
    path = folder / ABOUT_FILE
    if not path.exists():
        return None
    about = read_json(path)
    match about:
        case {"condition": str() | {}, "classes": [*_]}:
            return about
        case _:
            raise UserError(
                f"{path} says no condition and classes, expected what `datagen control` writes; train again"
            )


def _check_classes(about: Mapping[str, Any], taxonomy: Taxonomy, folder: Path) -> None:
    if tuple(about["classes"]) != taxonomy.names:
        raise UserError(
            f"ControlNet {folder} was trained on the classes {', '.join(about['classes'])}, but the labels have "
            f"{', '.join(taxonomy.names)}; give both the same classes in the same order, or train one for these"
        )


def _plain(value: Any) -> Any:
    """JSON's lists as tuples, so that they compare."""
    return tuple(value) if isinstance(value, list | tuple) else value
