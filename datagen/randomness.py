"""One stream of noise per (run seed, sample id, role): what a sample gets depends on nothing else.

Counter-based, so that no draw moves another: not the batch, the process, a retry or a slot that a template gained.
"""

import hashlib
from collections.abc import Sequence
from random import Random
from typing import TypeVar

Item = TypeVar("Item")


def seed_for(run_seed: int, sample_id: str, role: str) -> int:
    """A seed in 0..2^63-1 (it fits every signed 64-bit field) for one use of randomness in one sample."""
    name = f"{run_seed}/{sample_id}/{role}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "big") >> 1


def choose(options: Sequence[Item], weights: Sequence[float], seed: int) -> Item:
    """One of the options, with a chance in proportion to its weight."""
    return Random(seed).choices(options, weights)[0]
