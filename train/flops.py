"""How much arithmetic a sample costs, and how much a GPU could do."""

from __future__ import annotations

import re

import torch
from torch.utils.flop_counter import FlopCounterMode

from train.config import Architecture
from train.model import build_model

PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "RTX 4090": 165.0,
    "A10": 125.0,
    "L4": 121.0,
}
"""Dense bfloat16 with float32 accumulation, from NVIDIA's data sheets; where these name only the rate with sparsity,
half of it. Where the words of one name are among another's, the longer stands first."""

SLOWER_KINDS = {"MIG", "Laptop", "NVL", "D", "Max"}
"""Words in the name of a GPU that is less than the one in the table."""


def training_flops(architecture: Architecture, channels: int, grid: int) -> float:
    """FLOPs of one sample, forward and backward: matrix products and convolutions, counted without computing any."""
    with torch.device("meta"):
        model = build_model(architecture.untrained(), channels, grid)
        latents = torch.zeros(1, channels, grid, grid)
        tokens = torch.zeros(1, model.context_length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        features = model(latents, tokens)
        (features["image_features"].sum() + features["text_features"].sum()).backward()
    return float(counter.get_total_flops())


def peak_flops(device_name: str) -> float | None:
    """FLOPs a second that a GPU of this name could do at best; None if it is not known."""
    words = re.split(r"[^A-Za-z0-9]+", device_name)
    if SLOWER_KINDS & set(words):
        return None
    for name, tflops in PEAK_TFLOPS.items():
        if set(name.split()) <= set(words):
            return tflops * 1e12
    return None
