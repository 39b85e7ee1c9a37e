"""A tiny generator and small CLIPs of its latents and its pictures, all with random weights: what steering needs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from encode_pipeline.latents.spec import LatentSpec
from encode_pipeline.vae import load_vae
from tests.clips import latent_clip

PROMPTS = ["a photo of a red circle", "two blue squares", "a green star", "a drawing of three yellow rings"]
SHAPE = (4, 8, 8)


def latent_checkpoint(path: Path, vae: Path, seed: int = 0) -> Path:
    """A model of the latents of a VAE, in raw scale as the store keeps them."""
    identity = load_vae(str(vae)).identity
    return latent_clip(path, LatentSpec(vae=identity, shape=SHAPE, image_size=64, views=1, recipe={}, seed=0), seed)


def normal(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
