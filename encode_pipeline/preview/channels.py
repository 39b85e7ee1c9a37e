"""How each channel of the latents is spread, against what the VAE promises of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from encode_pipeline.latents.spec import VaeIdentity

STD_FACTOR = 2.0
"""A standard deviation further off than this, up or down, has drifted. Of sound VAEs on all kinds of pictures, single
channels lie within 0.6 to 1.2 of what their one scaling factor promises."""
MEAN_SHIFT = 1.5
"""So has a mean that lies further off than so many expected standard deviations; SD 1.5's first lies off by 1.06."""
BINS = 60


@dataclass(frozen=True)
class Expectation:
    """Mean and standard deviation of each raw channel over a natural data set, as the VAE's config promises them."""

    means: Sequence[float]
    stds: Sequence[float]


@dataclass(frozen=True)
class Channel:
    """One channel of raw latents, measured."""

    mean: float
    std: float
    counts: npt.NDArray[np.int64]
    """How many cells fall between two neighbouring edges."""
    edges: npt.NDArray[np.float64]
    expected_mean: float | None = None
    expected_std: float | None = None
    drift: str | None = None
    """What is wrong with it, in words and numbers."""

    def to_dict(self) -> dict[str, Any]:
        """What scripts see."""
        return {
            "mean": self.mean,
            "std": self.std,
            "expected_mean": self.expected_mean,
            "expected_std": self.expected_std,
            "drift": self.drift,
        }


def expectation(vae: VaeIdentity, channels: int) -> Expectation | str:
    """What the VAE's config promises, or why it promises nothing."""
    if vae.config.get("class") == "pixels":
        return "These latents are pixels between -1 and 1, and no VAE promises how they are spread."
    means, stds = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if means and stds and len(means) == len(stds) == channels:
        return Expectation(means, stds)
    scale = vae.scaling_factor
    if scale == 1 or not (math.isfinite(scale) and scale > 0):
        return f"The VAE's scaling factor is {scale:g}, which says nothing of how its latents should be spread."
    return Expectation([vae.shift_factor] * channels, [1 / scale] * channels)


def measure(raw_nchw: npt.NDArray[np.float32], expected: Expectation | str) -> list[Channel]:
    """Mean, spread and histogram of each channel, over edges that all channels share."""
    cells = raw_nchw.transpose(1, 0, 2, 3).reshape(raw_nchw.shape[1], -1)
    means, stds = cells.mean(axis=1, dtype=np.float64), cells.std(axis=1, dtype=np.float64)
    low, high = np.quantile(cells, 0.0005, axis=1).min(), np.quantile(cells, 0.9995, axis=1).max()
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1, dtype=np.float64)
    channels = []
    for number, (mean, std) in enumerate(zip(means.tolist(), stds.tolist(), strict=True)):
        counts, _ = np.histogram(cells[number], edges)
        constant = bool(cells[number].min() == cells[number].max())
        if isinstance(expected, str):
            drift = f"constant at {mean:.3g}" if constant else None
            channels.append(Channel(mean, std, counts, edges, drift=drift))
        else:
            should = expected.means[number], expected.stds[number]
            drift = f"constant at {mean:.3g}" if constant else _drift(mean, std, *should)
            channels.append(Channel(mean, std, counts, edges, *should, drift))
    return channels


def warnings_of(channels: Sequence[Channel], latents: int) -> list[str]:
    """A line for every channel that has drifted, or one for all if they are all too wide or all too narrow."""
    lines = [f"channel {number}: {channel.drift}" for number, channel in enumerate(channels) if channel.drift]
    ratios = [channel.std / channel.expected_std for channel in channels if channel.expected_std]
    if len(ratios) > 1 and (min(ratios) > STD_FACTOR or 0 < max(ratios) < 1 / STD_FACTOR):
        found = _range([channel.std for channel in channels])
        promised = _range([channel.expected_std for channel in channels if channel.expected_std])
        lines = [
            f"all {len(channels)} channels: standard deviations {found} where {promised} "
            f"is expected, {float(np.median(ratios)):.3g} times as wide: the scaling factor in the spec may be wrong, "
            "or the scale that the latents are stored in"
        ]
    return [f"{line} (over {latents} latents)" for line in lines]


def no_further_off(channels: Sequence[Channel], others: Sequence[Channel]) -> bool:
    """Whether what is off is so by no more than with others, as when the pictures are of an odd kind."""
    off, theirs = _off(channels), _off(others)
    if off is None or theirs is None:
        return True  # nothing is promised
    narrowest, widest = min(1.0, theirs[0]) / STD_FACTOR, max(1.0, theirs[1]) * STD_FACTOR
    return off[0] >= narrowest and off[1] <= widest and off[2] <= theirs[2] + MEAN_SHIFT


def _off(channels: Sequence[Channel]) -> tuple[float, float, float] | None:
    """The smallest and the largest spread against what is expected, and how far off a mean lies at most."""
    known = [(c.mean, c.std, c.expected_mean or 0.0, c.expected_std) for c in channels if c.expected_std]
    if not known:
        return None
    ratios = [std / expected for _, std, _, expected in known]
    return min(ratios), max(ratios), max(abs(mean - middle) / expected for mean, _, middle, expected in known)


def _drift(mean: float, std: float, expected_mean: float, expected_std: float) -> str | None:
    found = []
    if not 1 / STD_FACTOR <= std / expected_std <= STD_FACTOR:
        found.append(f"standard deviation {std:.3g} where {expected_std:.3g} is expected")
    if abs(mean - expected_mean) > MEAN_SHIFT * expected_std:
        found.append(f"mean {mean:.3g} where {expected_mean:.3g} ± {expected_std:.3g} is expected")
    return ", ".join(found) or None


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"
