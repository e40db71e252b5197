"""What makes training fast on the machine at hand and changes nothing else."""

import ctypes
import sys
from collections.abc import Generator
from contextlib import contextmanager

import torch


def keep_memory() -> None:
    """Tell glibc to keep freed memory: handing pages back and faulting them in again makes training half as fast."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        # the trim threshold, the top pad and the number of mapped blocks, as numbered in malloc.h
        for option, value in ((-1, 2**31 - 1), (-2, 256 << 20), (-4, 0)):
            libc.mallopt(option, value)


@contextmanager
def half_precision(device: torch.device, *, needed: bool = False) -> Generator[None]:
    """bfloat16 activations where the hardware has them; the weights stay as they are.

    Args:
        needed: also where it is slow, as parts of different number formats meet.
    """
    if device.type == "cuda":
        able = has_bfloat16(device)
    else:
        found = torch.cpu.get_capabilities()
        able = bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    with torch.autocast(device.type, torch.bfloat16, enabled=able or needed):
        yield


@contextmanager
def without_cudnn_attention() -> Generator[None]:
    """Attention by the other kernels of torch.

    Gradients of cuDNN's in half precision are NaN for some inputs on Hopper GPUs, where torch prefers it since 2.11
    (pytorch/pytorch#196678): the training of `configs/control.yaml` ended with its 16th update on an H200.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def autocasts(device: torch.device) -> bool:
    """Whether operations on the device choose their number format themselves at the moment."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the GPU computes in bfloat16 itself; Turing and older only act as if, slower than in float32."""
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
