"""What the device can do at best: large square products of random matrices, as fast as its library computes them."""

from __future__ import annotations

import torch

from benchmarks.gpu.ways import Work

PRODUCTS = 100
"""In a turn: long enough for the clock to fall to what the device can keep up. Random numbers take more power than
zeros, and so show the rate that real work has."""


def matmul(side: int, dtype: torch.dtype, device: torch.device) -> Work:
    """A turn of products, which says how many TFLOP they were."""
    chance = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(side, side, generator=chance, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)

    def work() -> float:
        for _ in range(PRODUCTS):
            torch.mm(left, right, out=out)
        return PRODUCTS * product_tflop(side)

    return work


def product_tflop(side: int) -> float:
    """A multiplication and an addition for each of side³ pairs."""
    return 2 * side**3 / 1e12
