"""Whole Stable Diffusion pipelines and a vision model in miniature, with random weights, saved as a user's would be."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

SIZE_MULTIPLE = 16
"""Of all three pipelines: VAE cells of 4 pixels, halved twice by the UNet."""

_sd: Any = diffusers  # its annotations are narrower than what it takes
_transformers: Any = transformers
_WORDS = ("car", "road", "sky", "tree", "house", "bus", "red", "fog")
_TEXT_WIDTH = 16
_TOKENS = 16


def tiny_sd1(folder: Path) -> Path:
    """A Stable Diffusion 1.x: epsilon prediction, convolutional projections, one head count."""
    return _save_sd(
        folder,
        scheduler=_sd.PNDMScheduler(skip_prk_steps=True, steps_offset=1, **_NOISE),
        pad_token="<|endoftext|>",
        unet={"attention_head_dim": 2},
    )


def tiny_sd2(folder: Path) -> Path:
    """A Stable Diffusion 2.x: v-prediction, linear projections, a head count per level, another padding token."""
    return _save_sd(
        folder,
        scheduler=_sd.DDIMScheduler(prediction_type="v_prediction", steps_offset=1, clip_sample=False, **_NOISE),
        pad_token="!",
        unet={"attention_head_dim": (1, 2, 4), "use_linear_projection": True, "upcast_attention": True},
    )


def tiny_xl(folder: Path) -> Path:
    """A Stable Diffusion XL: two text encoders, size conditions, no attention on the finest level."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        _sd.StableDiffusionXLPipeline(
            vae=_vae(),
            text_encoder=_text_encoder(CLIPTextModel),
            text_encoder_2=_text_encoder(CLIPTextModelWithProjection, hidden_size=24, projection_dim=12),
            tokenizer=_tokenizer("<|endoftext|>"),
            tokenizer_2=_tokenizer("!"),
            unet=_unet(
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                transformer_layers_per_block=(1, 1, 2),
                cross_attention_dim=_TEXT_WIDTH + 24,
                attention_head_dim=(1, 2, 4),
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 12,
            ),
            scheduler=_sd.EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1, **_NOISE),
            force_zeros_for_empty_prompt=True,
        ).save_pretrained(folder)
    return folder


def tiny_lora(pipeline_folder: Path, file: Path) -> Path:
    """A LoRA of rank 2 on the attention of a saved pipeline's UNet and first text encoder, strong enough to be seen."""
    weights: dict[str, torch.Tensor] = {}
    noise = torch.Generator().manual_seed(3)
    for part, projections in (("unet", ("to_q", "to_k", "to_v")), ("text_encoder", ("q_proj", "v_proj"))):
        for source in sorted((pipeline_folder / part).glob("*.safetensors")):
            for name, weight in load_file(source).items():
                module = name.removesuffix(".weight")
                if module.endswith(projections) and name != module:
                    rows, columns = weight.shape
                    # transformers leaves this prefix out of its newer files; LoRA files in the wild have it
                    prefix = "text_model." if part == "text_encoder" and not module.startswith("text_model.") else ""
                    path = f"{part}.{prefix}{module}"
                    weights[f"{path}.lora_A.weight"] = torch.randn(2, columns, generator=noise)
                    weights[f"{path}.lora_B.weight"] = torch.randn(rows, 2, generator=noise)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, file)
    return file


def tiny_control(pipeline_folder: Path, folder: Path, *, channels: int, seed: int = 0) -> Path:
    """A ControlNet for a saved pipeline, away from the zero that it would begin with."""
    unet: Any = _sd.UNet2DConditionModel.from_pretrained(pipeline_folder / "unet")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        control: Any = _sd.ControlNetModel.from_unet(
            unet, conditioning_channels=channels, conditioning_embedding_out_channels=(8, 8, 16)
        )
        for parameter in control.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    control.save_pretrained(folder)
    return folder


_NOISE: Mapping[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _save_sd(folder: Path, *, scheduler: Any, pad_token: str, unet: Mapping[str, Any]) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        _sd.StableDiffusionPipeline(
            vae=_vae(),
            text_encoder=_text_encoder(CLIPTextModel),
            tokenizer=_tokenizer(pad_token),
            unet=_unet(
                down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
                cross_attention_dim=_TEXT_WIDTH,
                **unet,
            ),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder)
    return folder


def _unet(**choices: Any) -> Any:
    return _sd.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16, 24), layers_per_block=1, norm_num_groups=4, **choices
    )


def _vae() -> Any:
    return _sd.AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=0.2,
    )


def _text_encoder(kind: Any, *, hidden_size: int = _TEXT_WIDTH, projection_dim: int = 8) -> Any:
    vocabulary = _vocabulary()
    return kind(
        CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=hidden_size,
            projection_dim=projection_dim,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=_TOKENS,
            bos_token_id=vocabulary["<|startoftext|>"],
            eos_token_id=vocabulary["<|endoftext|>"],
            pad_token_id=vocabulary["<|endoftext|>"],
        )
    )


def _tokenizer(pad_token: str) -> CLIPTokenizer:
    return CLIPTokenizer(vocab=_vocabulary(), merges=_merges(), pad_token=pad_token, model_max_length=_TOKENS)


def _merges() -> list[Any]:
    """Steps from letters to each whole word, left to right."""
    merges: dict[tuple[str, str], None] = {}
    for word in _WORDS:
        letters = [*word[:-1], f"{word[-1]}</w>"]
        for end in range(1, len(letters)):
            merges["".join(letters[:end]), letters[end]] = None
    return list(merges)


def _vocabulary() -> dict[str, int]:
    letters = sorted(ByteLevel.alphabet())
    joined = ["".join(pair) for pair in _merges()]
    entries = [*letters, *(f"{letter}</w>" for letter in letters), *joined, "<|startoftext|>", "<|endoftext|>"]
    return {entry: number for number, entry in enumerate(dict.fromkeys(entries))}


def tiny_dinov2(folder: Path) -> Path:
    """A DINOv2 with its image processor, as `save_pretrained` writes them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = _transformers.Dinov2Config(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=14
        )
        _transformers.Dinov2Model(config).save_pretrained(folder)
    sides = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    _transformers.BitImageProcessor(**sides).save_pretrained(folder)
    return folder
