"""What all parts share: the settings, the device, and a VAE of SDXL's architecture with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.utils import logging as diffusers_logging
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.settings import GpuConfig
from encode_pipeline.config import EncodeConfig
from encode_pipeline.latents.spec import LatentSpec
from encode_pipeline.run import spec_of
from encode_pipeline.vae import LoadedVae, identify


@dataclass(frozen=True)
class Bench:
    config: GpuConfig
    device: torch.device
    vae: LoadedVae
    """In float32 on the CPU."""
    view_tflop: float
    """To encode one view."""

    def encode_config(self, **changes: Any) -> EncodeConfig:
        """An encoder's settings at the benchmark's sizes."""
        values = {"vae": "random", "source": "none", "store": "none", "image_size": self.config.image_size}
        return EncodeConfig(**{**values, "batch_size": self.config.batch_size, "views": self.config.views, **changes})

    def spec(self, dtype: str, **changes: Any) -> LatentSpec:
        return spec_of(self.encode_config(dtype=dtype, **changes), self.vae)


def open_bench(config: GpuConfig) -> Bench:
    diffusers_logging.set_verbosity_error()
    device = torch.device(config.device)
    if device.type == "cuda":
        torch.zeros(1, device=device)  # so that the memory's counters are there
    torch.manual_seed(0)
    model = AutoencoderKL(**vae_config(config)).requires_grad_(False).eval()
    name = f"random weights, channels {'-'.join(map(str, config.vae))}"
    reduction = 2 ** (len(config.vae) - 1)
    return Bench(config, device, LoadedVae(model, identify(name, model), True, 4, reduction), encode_tflop(config))


def vae_config(config: GpuConfig) -> dict[str, Any]:
    """SDXL's, but for the sizes that are settings."""
    return {
        "down_block_types": ["DownEncoderBlock2D"] * len(config.vae),
        "up_block_types": ["UpDecoderBlock2D"] * len(config.vae),
        "block_out_channels": config.vae,
        "layers_per_block": config.vae_layers,
        "latent_channels": 4,
        "norm_num_groups": min(32, *(channels // 2 for channels in config.vae)),
        "scaling_factor": 0.13025,
    }


def encode_tflop(config: GpuConfig) -> float:
    """Matrix products and convolutions of one view's encoding, counted without computing any."""
    with torch.device("meta"):
        model = AutoencoderKL(**vae_config(config))
        image = torch.zeros(1, 3, config.image_size, config.image_size)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.encode(image)
    return float(counter.get_total_flops()) / 1e12
