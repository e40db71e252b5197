"""Seconds and peak memory, on a GPU where there is one; what was measured on one kind of hardware stays beside others.

A GPU works on after a call has returned, and its memory is not that of the process.
"""

import resource
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.cells import read_results, this_hardware, write_results


def seconds(part: Callable[[], object]) -> float:
    """Until all that the call has asked for is done."""
    _wait()
    start = time.perf_counter()
    part()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def forget_peak() -> None:
    """Of a GPU's memory: what loading a model took does not count from here on. A process's own cannot be forgotten."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float:
    """The most memory that tensors have taken on the GPU, or this process on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def keep(name: str, found: Mapping[str, Any]) -> None:
    """Write `results/<name>.json`, in which each hardware has an entry."""
    write_results(name, read_results(name) | {this_hardware(): dict(found)})
