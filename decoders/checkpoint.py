"""A diffusion checkpoint in memory, once: the generator paints with it and the perceiver reads with it."""

import copy
import inspect
import logging
import warnings
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from jaxtyping import Float, Float32
from torch import Tensor, nn

from decoders.bare import attributes, hooks_off, loras_off, processors
from decoders.errors import UserError
from decoders.references import (
    LoraReference,
    ModelReference,
    Precision,
    components,
    digest,
    locate_lora,
    locate_model,
    weight_variant,
)

__all__ = ["Checkpoint", "LoraReference", "ModelReference", "choose_device", "choose_dtype", "load_checkpoint"]

# The checker would blacken pictures and the watermark change pixels wherever its library happens to be installed; both
# take part in neither reading nor making a dataset, and an image encoder serves IP-Adapter only.
_LEFT_OUT = {
    "safety_checker": None,
    "requires_safety_checker": False,
    "feature_extractor": None,
    "image_encoder": None,
    "add_watermarker": False,
}
_SLICED_FROM = 64
"""Latent cells on a side from which a VAE takes one picture at a time: eight of XL's at once would take 24 GiB."""
_FREEU: dict[str, Any] = dict.fromkeys(("s1", "s2", "b1", "b2"))


class Checkpoint:
    """A pipeline with what its borrowers need to know; the parts stay those that were loaded."""

    def __init__(
        self, pipeline: DiffusionPipeline, *, digest: str, base_digest: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Take over a pipeline already on `device` in `dtype`; its weights are frozen."""
        self.pipeline: Any = pipeline
        self.digest = digest
        """Identity with the LoRA files."""
        self.base_digest = base_digest
        """Identity without."""
        self.device = device
        self.dtype = dtype
        self.unet: UNet2DConditionModel = self.pipeline.unet
        self.vae: AutoencoderKL = self.pipeline.vae
        parts = pipeline.components
        self.text_encoders: tuple[Any, ...] = _present(parts, "text_encoder", "text_encoder_2")
        self.tokenizers: tuple[Any, ...] = _present(parts, "tokenizer", "tokenizer_2")
        self._networks: tuple[nn.Module, ...] = (self.unet, self.vae, *self.text_encoders)
        for network in self._networks:
            network.requires_grad_(False)
        self._processors = [(model, dict(model.attn_processors)) for model in (self.unet, self.vae)]
        self._encoder = _overflow_free(self.vae)
        self._slices = bool(self.vae.use_slicing)

    @property
    def latent_channels(self) -> int:
        return self.vae.config["latent_channels"]

    @property
    def precision(self) -> str:
        """Its number format as a plan's `dtype:` names it, such as float32."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def vae_scale_factor(self) -> int:
        """Picture pixels per latent cell, in each direction."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    def encode(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float32[Tensor, "batch channels rows columns"]:
        """Pixels -1..1 => latents as the UNet knows them (scaled): the posterior's mode, so that it is a function.

        A VAE that overflows in float16 (XL's does, silently) encodes in a bfloat16 copy of its encoder.
        """
        config = self.vae.config
        posterior: Any = self._encoder.encode(pixels.to(self.device, self._encoder.dtype), return_dict=False)[0]
        latents: Tensor = posterior.mode().float()
        if config.get("latents_mean") is not None and config.get("latents_std") is not None:
            mean, std = (latents.new_tensor(config[key])[:, None, None] for key in ("latents_mean", "latents_std"))
            return (latents - mean) / std * config["scaling_factor"]
        return (latents - (config.get("shift_factor") or 0.0)) * config["scaling_factor"]

    @contextmanager
    def bare(self, *, keep_loras: bool = False) -> Generator[None]:
        """UNet, VAE and text encoders as loaded; on leaving, also by an exception, the state is what it was before.

        Switched off for the pass: LoRA adapters (unless `keep_loras`), and on UNet and VAE attention processors, FreeU,
        forward hooks, tiling and slicing other than at loading. Not covered, as it cannot be undone from outside:
        weights changed in place (training; a fused LoRA is refused), an IP-Adapter's image projection, hooks on text
        encoders (transformers collects hidden states with its own), and modules whose `forward` was replaced, among
        them offloading to the CPU, which leaves the numbers as they are.
        """
        with ExitStack() as stack:
            if not keep_loras:
                stack.enter_context(loras_off(self._networks))
            stack.enter_context(hooks_off((self.unet, self.vae)))
            for model, loaded in self._processors:
                stack.enter_context(processors(model, loaded))
            stack.enter_context(attributes(tuple(self.unet.up_blocks), _FREEU))
            stack.enter_context(attributes((self.vae,), {"use_tiling": False, "use_slicing": self._slices}))
            yield


def load_checkpoint(reference: ModelReference, device: str | torch.device | None = None) -> Checkpoint:
    """Load a pipeline and its LoRA files onto a device (the GPU where there is one), frozen.

    Raises:
        UserError: as `locate_model`; a folder that does not hold what it says; a LoRA made for another model.
    """
    folder = locate_model(reference)
    files = [locate_lora(lora) for lora in reference.loras]
    place = choose_device(device)
    dtype = choose_dtype(reference.dtype, place)
    # For good: XL's pipeline casts its VAE with every batch that it draws in float16.
    logging.getLogger("diffusers.models.modeling_utils").addFilter(_names_modules)
    with no_progress_bars():
        pipeline = _load_pipeline(folder, dtype)
        for index, (lora, file) in enumerate(zip(reference.loras, files, strict=True)):
            _load_lora(pipeline, file, name=f"lora_{index}", shown=lora.source)
    if files:
        names = [f"lora_{index}" for index in range(len(files))]
        pipeline.set_adapters(names, [lora.weight for lora in reference.loras])
    latent, taken = pipeline.vae.config.latent_channels, pipeline.unet.config.in_channels
    if latent != taken:
        raise UserError(
            f"model {folder}: a UNet of {taken} input channels found on a VAE of {latent}, expected equal numbers; "
            "inpainting and upscaling checkpoints cannot be used, take the text-to-image one"
        )
    if pipeline.unet.config.sample_size >= _SLICED_FROM:
        pipeline.vae.enable_slicing()
    pipeline.to(place)
    pipeline.set_progress_bar_config(disable=True)
    base = digest(folder)
    return Checkpoint(
        pipeline,
        digest=digest(folder, reference.loras) if files else base,
        base_digest=base,
        device=place,
        dtype=dtype,
    )


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or the GPU where there is one, else the CPU."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """`auto` is float32 on the CPU, where half precision is slow, and float16 elsewhere."""
    if precision == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[precision]


def _load_pipeline(folder: Path, dtype: torch.dtype) -> Any:
    name = components(folder)["_class_name"]
    pipeline_class: Any = getattr(diffusers, name, None) if isinstance(name, str) else None
    if pipeline_class is None:
        raise UserError(
            f"model {folder}: pipeline class {name} found, which diffusers {diffusers.__version__} does not have; "
            "expected StableDiffusionPipeline or StableDiffusionXLPipeline in its model_index.json"
        )
    accepted = inspect.signature(pipeline_class.__init__).parameters
    try:
        return pipeline_class.from_pretrained(
            folder,
            dtype=dtype,  # always: by default files in float16 give a mixture of types on the CPU
            variant=weight_variant(folder),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            **{key: value for key, value in _LEFT_OUT.items() if key in accepted},
        )
    except Exception as error:  # a damaged file fails in any of four libraries, each with its own exception
        raise UserError(
            f"model {folder} could not be loaded ({type(error).__name__}: {error}); expected a complete folder in "
            "diffusers format, so copy or download it again"
        ) from error


def _load_lora(pipeline: Any, file: Path, *, name: str, shown: str) -> None:
    expected = f"expected one made for a {type(pipeline).__name__} of this size"
    try:
        with warnings.catch_warnings(), _no_word_of_untouched_parts():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several LoRA files are meant
            pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name, local_files_only=True)
    except Exception as error:  # each of the many LoRA dialects fails in its own way
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"LoRA {shown} does not fit the model ({type(error).__name__}: {reason}); {expected}"
        ) from error
    if not any(name in adapters for adapters in pipeline.get_list_adapters().values()):
        raise UserError(f"LoRA {shown} found, but none of its weights belongs to this model; {expected}")


@contextmanager
def _no_word_of_untouched_parts() -> Generator[None]:
    """A LoRA for the UNet alone is as usual as one for the text encoder too; one that fits nowhere is refused."""

    def matters(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("No LoRA keys associated")

    with ExitStack() as stack:
        for name in ("diffusers.loaders.lora_base", "diffusers.loaders.peft"):
            logger = logging.getLogger(name)
            logger.addFilter(matters)
            stack.callback(logger.removeFilter, matters)
        yield


def _names_modules(record: logging.LogRecord) -> bool:
    """diffusers 0.42 warns of every cast that modules should stay in float32, also where it finds none."""
    return "should be kept in float32: []" not in record.getMessage()


@contextmanager
def no_progress_bars() -> Generator[None]:
    """The libraries' bars would write across the one that the caller shows."""
    with ExitStack() as stack:
        for bars in (diffusers.utils.logging, transformers.utils.logging):
            if bars.is_progress_bar_enabled():
                bars.disable_progress_bar()
                stack.callback(bars.enable_progress_bar)
        yield


def _present(parts: dict[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple(parts[name] for name in names if parts.get(name) is not None)


def _overflow_free(vae: AutoencoderKL) -> AutoencoderKL:
    """The VAE itself, or a bfloat16 copy without decoder where its own float16 would overflow."""
    if vae.dtype != torch.float16 or not vae.config["force_upcast"]:
        return vae
    encoder: Any = copy.deepcopy(vae)
    encoder.decoder = nn.Identity()
    return encoder.to(torch.bfloat16)
