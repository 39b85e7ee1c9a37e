"""The pictures that stored latents stand for, by the VAE that made them."""

from __future__ import annotations

import numpy as np
import torch

from encode_pipeline.latents.spec import LatentSpec, SpecError, convert_scale
from encode_pipeline.latents.writer import Latent
from encode_pipeline.records import Pixels
from encode_pipeline.vae import LoadedVae, decode_latents, load_vae


def load_decoder(spec: LatentSpec, name: str | None = None) -> LoadedVae:
    """The VAE that made the latents, from where it was then unless `name` says otherwise; another is refused."""
    vae = load_vae(name or spec.vae.name)
    if vae.identity.weights_sha256 != spec.vae.weights_sha256:
        raise SpecError(f"the VAE in {vae.identity.name} is not the one of version {spec.fingerprint}")
    if torch.cuda.is_available():  # seconds instead of many minutes for a large VAE
        vae.model.to("cuda")
    return vae


def decode(latents_nchw: Latent, spec: LatentSpec, vae: LoadedVae) -> Pixels:
    """The pictures that stored latents stand for."""
    raw = convert_scale(latents_nchw.astype(np.float32), spec.vae, spec.scale, "raw")
    return decode_latents(vae, raw)
