"""What a UNet is given to attend to while it is read: the empty prompt, then one vector per class phrase."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from decoders.checkpoint import Checkpoint
from decoders.errors import UserError

_BATCH = 16  # phrases at a time: XL's encoders keep every layer's hidden states


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingContext:
    """The text side of a reading, for one picture."""

    tokens: Float[Tensor, "1 tokens width"]
    """The encoded empty prompt, padding included, followed by one vector per phrase in their order.

    The empty prompt is what the UNet was trained to fall back on: without it the phrases must take up all attention,
    and both features and maps suffer.
    """
    pooled: Float[Tensor, "1 pooled"] | None
    """The empty prompt as one vector, where the pipeline makes one (XL)."""


@torch.no_grad()
def reading_context(checkpoint: Checkpoint, phrases: Sequence[str]) -> ReadingContext:
    """Encode phrases as the pipeline itself encodes prompts; a phrase becomes the mean of its own words' hidden states.

    Each is encoded alone, so that no class changes another's vector.

    Raises:
        UserError: a phrase without words, or longer than the text encoder reads.
    """
    empty, pooled = encode_prompts(checkpoint, [""])
    vectors = [
        _word_means(checkpoint, list(phrases[first : first + _BATCH])) for first in range(0, len(phrases), _BATCH)
    ]
    return ReadingContext(tokens=torch.cat([empty, *(part[None] for part in vectors)], dim=1), pooled=pooled)


def encode_prompts(checkpoint: Checkpoint, texts: list[str]) -> tuple[Tensor, Tensor | None]:
    """Texts as the pipeline itself encodes prompts.

    Returns:
        Hidden states [text, token, width] and, from pipelines that make them (XL), pooled vectors [text, pooled].
    """
    parts: tuple[Any, ...] = checkpoint.pipeline.encode_prompt(
        prompt=texts, device=checkpoint.device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return parts[0], parts[2] if len(parts) > 2 else None


def _word_means(checkpoint: Checkpoint, phrases: list[str]) -> Float[Tensor, "phrases width"]:
    hidden, _ = encode_prompts(checkpoint, phrases)
    widths = [encoder.config.hidden_size for encoder in checkpoint.text_encoders]
    means: list[Tensor] = []
    for tokenizer, states in zip(checkpoint.tokenizers, hidden.split(widths, dim=-1), strict=True):
        words = _word_tokens(tokenizer, phrases).to(states)[..., None]
        means.append((states * words).sum(1) / words.sum(1))
    return torch.cat(means, dim=-1)


def _word_tokens(tokenizer: Any, phrases: list[str]) -> Bool[Tensor, "phrases tokens"]:
    """Where in the padded sequence the words stand: neither markers nor padding."""
    limit: int = tokenizer.model_max_length
    found = tokenizer(phrases, padding="max_length", max_length=limit, return_special_tokens_mask=True)
    for phrase, special in zip(phrases, found["special_tokens_mask"], strict=True):
        if len(special) > limit:
            raise UserError(
                f"phrase {phrase!r} makes {len(special)} tokens, the text encoder reads {limit}; choose a shorter one"
            )
    words = torch.tensor(found["special_tokens_mask"]) == 0
    words &= torch.tensor(found["attention_mask"]) == 1
    if not bool(words.any(1).all()):
        blank = phrases[int(words.any(1).int().argmin())]
        raise UserError(f"phrase {blank!r} found, expected at least one word; say what to look for, such as 'car'")
    return words
