"""The learning rate over a run."""

from __future__ import annotations

import math


def learning_rate(step: int, total: int, warmup: int, peak: float) -> float:
    """Linear warm-up to the peak, then a cosine to zero. Steps are of the whole run, whatever the number of GPUs."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
