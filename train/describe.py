"""What a model is and costs, without making it."""

from __future__ import annotations

from typing import Any

import torch

from train.config import ModelChoice, architecture_of
from train.flops import training_flops
from train.model import build_model, parameter_counts

BYTES_A_WEIGHT = 16
"""In float32: the weight, its gradient, and AdamW's two moments."""


def describe(choice: ModelChoice) -> dict[str, Any]:
    """Parameters, FLOPs and architecture of a model for latents of a shape."""
    architecture = architecture_of(choice.model).untrained()
    with torch.device("meta"):
        counts = parameter_counts(build_model(architecture, choice.channels, choice.grid, choice.loss))
    return {
        "model": choice.model,
        "latents": [choice.channels, choice.grid, choice.grid],
        **counts,
        "gflops_per_sample": training_flops(architecture, choice.channels, choice.grid) / 1e9,
        "training_state_gb": counts["total"] * BYTES_A_WEIGHT / 1e9,
        **architecture_of(choice.model).model_dump(mode="json", exclude_none=True),
    }
