"""Latents on their way as small pictures, without decoding any: a linear map from their channels to colours."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from encode_pipeline.latents.spec import convert_scale
from encode_pipeline.preview.rgb import RgbMap, fit_rgb_map, latents_to_rgb
from encode_pipeline.records import Pixels
from encode_pipeline.vae import LoadedVae, posterior

FIELDS, CORNERS, SIDE = 16, 3, 128
"""How many pictures of smooth colours a map is fitted to, the random colours along their side, and their pixels."""


def colours_of(vae: LoadedVae) -> RgbMap:
    """The map that brings a VAE's latents, in model scale, closest to pictures of smooth colours that it encodes."""
    fields = _colour_fields()
    device = next(vae.model.parameters()).device
    with torch.inference_mode():
        pixels = torch.from_numpy(fields).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        raw = torch.cat([posterior(vae.model, one[None])[0] for one in pixels]).cpu().numpy()
    return fit_rgb_map(convert_scale(raw, vae.identity, "raw", "model"), fields)


def _colour_fields() -> Pixels:
    """The same ones always: that is all the chance in a preview."""
    corners = np.random.default_rng(0).integers(0, 256, (FIELDS, CORNERS, CORNERS, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(few).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for few in corners]
    )


def shown_at(iterations: int, count: int) -> list[int]:
    """The iterations to be shown: evenly from the first to the last."""
    return sorted({round(float(at)) for at in np.linspace(0, iterations - 1, min(count, iterations))})


def as_pictures(latents_bchw: npt.NDArray[np.float32], colours: RgbMap) -> Pixels:
    """Latents cell by cell in colours; one that is not finite is black."""
    return np.stack([latents_to_rgb(np.nan_to_num(latent, posinf=0, neginf=0), colours) for latent in latents_bchw])
