"""A generator in one to four steps, set up to be steered: from noise to latents, and on to pixels where asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.spec import convert_scale
from encode_pipeline.vae import LoadedVae
from eval.denoise import Level, denoise
from eval.generator import Generator

MOST_STEPS = 4


class Sampler:
    """A generator and the VAE that comes with it, on the generator's device and in its precision if that is enough.

    Latents are those of the VAE's model scale, in float32, as a pipeline hands them out. Weights get no gradients.
    """

    def __init__(
        self, generator: Generator, steps: int = 1, checkpointing: bool = False, compiled: bool = False
    ) -> None:
        if not 1 <= steps <= MOST_STEPS:
            raise RequestError(f"steps={steps}: a picture is steered through 1 to {MOST_STEPS}")
        self.generator, self.checkpointing, self.compiled = generator, checkpointing, compiled
        self.levels = generator.schedule.trailing(steps)
        """As diffusers spaces the steps of SDXL-Turbo."""
        if checkpointing:
            generator.unet.enable_gradient_checkpointing()
        if compiled:
            generator.unet.compile()

    @cached_property
    def loaded_vae(self) -> LoadedVae:
        """Only read where it is needed."""
        loaded = self.generator.load_vae()
        dtype = self.generator.dtype
        if dtype == torch.float16 and loaded.model.config.get("force_upcast"):
            dtype = torch.float32  # in float16, SDXL's own overflows
        loaded.model.to(device=self.generator.device, dtype=dtype)
        if self.checkpointing:
            loaded.model.enable_gradient_checkpointing()
        if self.compiled:
            loaded.model.decoder.compile()
        return loaded

    @property
    def vae(self) -> Any:
        """The diffusers model, as a pipeline has it."""
        return self.loaded_vae.model

    def shape(self, size: int) -> tuple[int, int, int]:
        """Of the noise and the latents of a square picture."""
        return self.loaded_vae.latent_shape(size)

    def generate(self, prompts: Sequence[str], ancestral: Sequence[Tensor] = ()) -> Callable[[Tensor], Tensor]:
        """From noise to latents, a prompt for each; `ancestral` is the noise between the steps, a batch for each."""
        with torch.no_grad():
            words = self.generator.embed_prompts(prompts)
        between = [noise.to(self.generator.device, torch.float32) for noise in ancestral]

        def predict(x_bchw: Tensor, level: Level) -> Tensor:
            return self.generator.eps(x_bchw, level.t, words)

        def generate(noise_bchw: Tensor) -> Tensor:
            x_bchw = noise_bchw.to(self.generator.device, torch.float32) * self.levels[0].sigma
            return denoise(x_bchw, self.levels, predict, between)

        return generate

    def decode(self, latents_bchw: Tensor) -> Tensor:
        """The pixels of latents, from 0 to 1 and float32, gradients let through."""
        raw = convert_scale(latents_bchw, self.loaded_vae.identity, "model", "raw")
        decoded: Tensor = self.vae.decode(raw.to(self.vae.dtype)).sample
        return (decoded.float() / 2 + 0.5).clamp(0, 1)
