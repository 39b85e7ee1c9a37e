"""From noise to latents: the Euler-ancestral process in sigmas, every random number handed in, gradients let through.

A noisy latent is x = z + σ·ε, with z in the scale of the diffusion model. The UNet reads x/√(σ²+1) and tells ε.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from encode_pipeline.latents.command import RequestError

Reading = Literal["workflow", "literal"]
"""The two readings of the paper's "66% noise level": the authors' ComfyUI workflow, and 66 % of the schedule."""
DENOISE = 0.66


@dataclass(frozen=True)
class Level:
    """A noise level: the time that the UNet is told, and the standard deviation of the noise."""

    t: float
    sigma: float


@dataclass(frozen=True)
class Schedule:
    """The noise levels that a diffusion model was trained on."""

    facts: Mapping[str, Any]
    """What of the scheduler's configuration decides them."""
    log_sigmas: npt.NDArray[np.float64]

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> Schedule:
        """The schedule of a diffusers scheduler configuration; what would need another process is refused."""
        steps, kind = int(config.get("num_train_timesteps", 1000)), config.get("beta_schedule", "linear")
        start, end = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
        given, predicts = config.get("trained_betas"), config.get("prediction_type", "epsilon")
        if predicts != "epsilon" or config.get("rescale_betas_zero_snr"):
            raise RequestError(f"{where}: a model that predicts {predicts}; only noise (epsilon) is understood here")
        if given is not None:
            betas = np.array(given, np.float32)
        elif kind in ("linear", "scaled_linear"):
            power = 2 if kind == "scaled_linear" else 1
            # In float32, as the model was trained.
            betas = (torch.linspace(start ** (1 / power), end ** (1 / power), steps) ** power).numpy()
        else:
            raise RequestError(f"{where}: beta_schedule {kind} is not known")
        alphas_cumprod = torch.cumprod(1 - torch.from_numpy(betas), dim=0).double().numpy()
        facts = {"num_train_timesteps": len(betas), "beta_start": start, "beta_end": end, "beta_schedule": kind}
        if given is not None:
            facts = {"trained_betas": [float(beta) for beta in betas]}
        return cls(facts, np.log((1 - alphas_cumprod) / alphas_cumprod) / 2)

    def level(self, t: float) -> Level:
        """The level at a time, between two that the model was trained on by their logarithms, as ComfyUI has it."""
        sigma = np.exp(np.interp(t, np.arange(len(self.log_sigmas)), self.log_sigmas))
        return Level(float(t), float(f"{sigma:.9g}"))  # the same number on every machine, for it goes into fingerprints

    def trailing(self, steps: int, share: float = 1.0) -> list[Level]:
        """So many steps evenly down from a share of the schedule, as diffusers spaces them for SDXL-Turbo."""
        begin = round(share * len(self.log_sigmas))
        return [self.level(round(begin - begin * step / steps) - 1) for step in range(steps)]

    def normal(self, steps: int, denoise: float = 1.0) -> list[Level]:
        """So many steps by ComfyUI's "normal" schedule: the last ones of a longer way, if less is to be denoised."""
        whole = steps if denoise >= 1 else int(steps / denoise)
        times = np.linspace(len(self.log_sigmas) - 1, 0, whole)
        return [self.level(float(t)) for t in times[-steps:]]

    def levels(self, reading: Reading, steps: int) -> list[Level]:
        """The levels of a generated ImageNet: where its latents are noised to, and the way down from there."""
        if reading == "workflow":
            return self.normal(steps, DENOISE)
        return self.trailing(steps, DENOISE)


Predict = Callable[[Tensor, Level], Tensor]
"""From what the UNet reads, in batches, to the noise that it sees."""


def denoise(x_bchw: Tensor, levels: Sequence[Level], predict: Predict, noises: Sequence[Tensor] = ()) -> Tensor:
    """The latents that a noisy batch at the first level leads to, in float32 and in the model's scale.

    Between two levels the process adds noise of its own: `noises` are standard normal, one for each level but the last.
    """
    if len(noises) != len(levels) - 1:
        raise ValueError(f"{len(levels)} levels need {len(levels) - 1} noises, not {len(noises)}")
    x = x_bchw.float()
    for number, level in enumerate(levels):
        epsilon = predict(x / (level.sigma**2 + 1) ** 0.5, level).float()
        if number == len(levels) - 1:
            return x - level.sigma * epsilon
        after = levels[number + 1].sigma
        up = (after**2 * (level.sigma**2 - after**2) / level.sigma**2) ** 0.5
        down = (after**2 - up**2) ** 0.5
        x = x + epsilon * (down - level.sigma) + noises[number] * up
    return x


def guided(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Predictions led away from the negative prompt's, as ComfyUI's cfg and diffusers' guidance_scale have it."""
    return unconditional + guidance * (conditional - unconditional)
