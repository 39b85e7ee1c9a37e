"""What counts as drift: sound VAEs pass, a wrong scale and a dead channel do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("jinja2")

from encode_pipeline.latents.spec import VaeIdentity
from encode_pipeline.preview.channels import Expectation, expectation, measure, warnings_of
from encode_pipeline.preview.histogram import histogram, top_density


def normal(means: list[float], stds: list[float]) -> np.ndarray:
    """Raw latents whose channels are spread so."""
    cells = np.random.default_rng(0).standard_normal((40, len(means), 16, 16))
    shape = (1, len(means), 1, 1)
    return (cells * np.reshape(stds, shape) + np.reshape(means, shape)).astype(np.float32)


def identity(scaling_factor: float, shift_factor: float = 0.0, **config: Any) -> VaeIdentity:
    return VaeIdentity(
        name="x", weights_sha256="0", config=config, scaling_factor=scaling_factor, shift_factor=shift_factor
    )


def warned(vae: VaeIdentity, means: list[float], stds: list[float]) -> list[str]:
    latents = normal(means, stds)
    return warnings_of(measure(latents, expectation(vae, len(means))), len(latents))


SD = [5.81, 3.25, 0.12, -2.15], [4.17, 4.62, 3.71, 3.28]
SDXL = [-1.66, 1.89, -1.38, 2.52], [8.49, 5.90, 6.55, 5.23]


def test_sound_vaes_raise_no_warning() -> None:
    assert warned(identity(0.18215), *SD) == []
    assert warned(identity(0.13025), *SDXL) == []
    assert warned(identity(0.3611, 0.1159), [0.1] * 16, [2.0, 3.6] * 8) == []


def test_a_wrong_scale_is_said_once_for_all_channels() -> None:
    (line,) = warned(identity(0.13025), SDXL[0], [std * 0.13025 for std in SDXL[1]])
    assert line.startswith(
        "all 4 channels: standard deviations 0.672 to 1.11 where 7.68 is expected, 0.106 times as wide"
    )
    assert line.endswith("(over 40 latents)")
    (line,) = warned(identity(0.13025, latents_mean=[0.0, 0.0], latents_std=[1.0, 2.0]), [0.0, 0.0], [5.0, 6.0])
    assert "5 to 5.94 where 1 to 2 is expected, 3.99 times as wide" in line


def test_one_channel_may_drift_alone() -> None:
    lines = warned(identity(0.5), [0.0, 9.0, 0.0, 0.0], [2.0, 2.0, 5.0, 0.0])
    assert [line.split(":")[0] for line in lines] == ["channel 1", "channel 2", "channel 3"]
    assert "mean 8.99 where 0 ± 2 is expected" in lines[0]
    assert "standard deviation 5" in lines[1] and "constant at 0" in lines[2]


def test_where_nothing_is_promised_only_a_constant_is_wrong() -> None:
    for vae in (identity(1.0), identity(0.0), identity(float("nan")), identity(1.0, **{"class": "pixels"})):
        assert isinstance(expectation(vae, 4), str)
        assert warned(vae, [70.0, 0.0], [30.0, 0.0]) == ["channel 1: constant at 0 (over 40 latents)"]


def test_a_promise_for_each_channel_outweighs_the_one_for_all() -> None:
    vae = identity(0.5, latents_mean=[-1.6, 8.0], latents_std=[8.5, 0.5])
    assert expectation(vae, 2) == Expectation([-1.6, 8.0], [8.5, 0.5])
    assert warned(vae, [-1.6, 8.0], [8.5, 0.5]) == []


def test_a_histogram_stays_in_its_frame() -> None:
    for vae in (identity(0.5), identity(500.0), identity(0.0005), identity(1.0)):
        channels = measure(normal([0.0, 3.0], [2.0, 0.0]), expectation(vae, 2))
        for number, channel in enumerate(channels):
            chart = str(histogram(number, channel, top_density(channels)))
            assert "nan" not in chart and "inf" not in chart
            numbers = [float(pair.split(",")[1]) for pair in chart.partition('points="')[2].partition('"')[0].split()]
            assert all(40 <= down <= 174 for down in numbers)
