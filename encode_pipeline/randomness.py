"""Randomness as an argument: a pure function of what is encoded, never of when, where or beside what."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt


def seed_of(seed: int, shard: str, key: str, view: int, purpose: str) -> int:
    """A 64-bit seed for one use of chance in one view of one sample."""
    text = "\0".join((str(seed), shard, key, str(view), purpose))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "little")


def posterior_noise(seed: int, shape: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    """Standard normal noise for one latent, from a counter-based generator."""
    return np.random.Generator(np.random.Philox(key=seed)).standard_normal(shape, dtype=np.float32)
