"""How one channel is spread, as a chart: its cells as bars, and what the VAE promises as a curve over them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from encode_pipeline.preview import svg
from encode_pipeline.preview.channels import Channel

WIDTH, HEIGHT, TOP, BOTTOM, SIDE = 330, 200, 40, 26, 10


def histogram(number: int, channel: Channel, highest: float) -> Markup:
    """Densities over the channel's edges; `highest` is the density at the top, the same for all channels."""
    edges, low, high = channel.edges, float(channel.edges[0]), float(channel.edges[-1])
    chart = svg.frame(WIDTH, HEIGHT, "chart", f"histogram of channel {number}: {spread_text(channel)}")
    svg.text(chart, SIDE, 14, f"channel {number}", "title")
    svg.text(chart, SIDE, 31, spread_text(channel), "drifted" if channel.drift else "tick")

    def across(value: float) -> float:
        return SIDE + (WIDTH - 2 * SIDE) * (value - low) / (high - low)

    def down(density: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(density / highest, 1.0)

    for tick in _ticks(low, high):
        svg.add(chart, "line", "grid", x1=across(tick), x2=across(tick), y1=TOP, y2=HEIGHT - BOTTOM)
        svg.text(chart, across(tick), HEIGHT - BOTTOM + 17, f"{tick:g}".replace("-", "−"), "tick middle")
    outline = [f"M {across(low):.1f} {down(0):.1f}"]
    for right, density in zip(edges[1:].tolist(), densities(channel).tolist(), strict=True):
        outline.append(f"V {down(density):.1f} H {across(right):.1f}")
    svg.add(chart, "path", "bars", d=" ".join([*outline, f"V {down(0):.1f} Z"]))
    if channel.expected_std is not None:
        xs = np.linspace(low, high, 161)
        path = " ".join(
            f"{across(x):.1f},{down(y):.1f}"
            for x, y in zip(xs.tolist(), expected_density(channel, xs).tolist(), strict=True)
        )
        svg.add(chart, "polyline", "expected", points=path)
    return svg.markup(chart)


def spread_text(channel: Channel) -> str:
    """Mean and standard deviation, and what they should be."""
    found = f"mean {channel.mean:.2f}, std {channel.std:.2f}"
    if channel.expected_std is not None:
        found += f" (expected {channel.expected_mean:.2f}, {channel.expected_std:.2f})"
    return found.replace("-", "−")


def densities(channel: Channel) -> npt.NDArray[np.float64]:
    """The histogram as shares a unit of the channel's values."""
    return np.asarray(channel.counts / max(int(channel.counts.sum()), 1) / np.diff(channel.edges))


def expected_density(channel: Channel, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The normal distribution that the VAE promises."""
    assert channel.expected_mean is not None and channel.expected_std is not None
    deviations = (values - channel.expected_mean) / channel.expected_std
    return np.asarray(np.exp(-(deviations**2) / 2) / (channel.expected_std * np.sqrt(2 * np.pi)))


def top_density(channels: Sequence[Channel]) -> float:
    """The density at the top of all charts: no single peak flattens the bars of the others."""
    peaks = [float(densities(channel).max()) for channel in channels]
    bars = min(max(peaks), 3 * float(np.median(peaks)))
    promised = max(
        (1 / (channel.expected_std * np.sqrt(2 * np.pi)) for channel in channels if channel.expected_std), default=0
    )
    return 1.08 * max(bars, min(float(promised), 2 * bars))


def _ticks(low: float, high: float) -> list[float]:
    step = svg.nice_ticks((high - low) / 1.2)[1]
    return [round(step * number, 12) for number in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]
