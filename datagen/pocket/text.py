"""The pocket model's words: a CLIP tokenizer grown from the world's captions, and a small CLIP text encoder."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Int64
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

MAX_LENGTH = 40
"""Tokens of a prompt, the two ends included; a test holds the world's captions against it."""

_ENDS = ("<|startoftext|>", "<|endoftext|>")


def build_tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    """Byte-pair encoding in which each word of the captions is one token.

    Any other text falls apart into pieces, at worst bytes, all of which are in the vocabulary: an unknown word is
    odd, never an error.
    """
    words = sorted({word for caption in captions for word in re.findall(r"[^\W\d_]+|\d|[^\w\s]+", caption.lower())})
    alphabet = sorted(ByteLevel.alphabet())
    merges: Any = _merges_of(words)
    pieces = [*alphabet, *(letter + "</w>" for letter in alphabet), *(left + right for left, right in merges), *_ENDS]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_LENGTH)


def _merges_of(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, the most frequent first, until each word is one piece.

    By hand, since the tokenizers library breaks ties by the order of a hash map: its ids differ from run to run.
    """
    letters = ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = ["".join(part for part, _ in letters.pre_tokenize_str(word)) for word in words]
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in spelled]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for word in pieces for pair in pairwise(word)):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for word in pieces:
            index = 0
            while index < len(word) - 1:  # from the left, as the tokenizer will; the list shrinks on the way
                if (word[index], word[index + 1]) == best:
                    word[index : index + 2] = ["".join(best)]
                index += 1
    return merges


def build_encoder(tokenizer: CLIPTokenizer, *, width: int = 192, layers: int = 2, heads: int = 4) -> CLIPTextModel:
    ids: Any = tokenizer  # declared to be lists or words too
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=MAX_LENGTH,
            projection_dim=width,
            bos_token_id=ids.bos_token_id,
            eos_token_id=ids.eos_token_id,
            pad_token_id=ids.pad_token_id,
        )
    )


def tokenize(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Int64[Tensor, "captions tokens"]:
    """Padded to `MAX_LENGTH` as a diffusers pipeline does."""
    found = tokenizer(list(captions), padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt")
    return torch.as_tensor(found.input_ids)
