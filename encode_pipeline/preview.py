"""Latents as something to look at: three colours for their channels, or the picture that they stand for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.spec import LatentSpec, SpecError, convert_scale
from encode_pipeline.latents.writer import Latent
from encode_pipeline.records import Pixels
from encode_pipeline.vae import LoadedVae, decode_latents, load_vae

RgbMap = npt.NDArray[np.float64]
"""One row a channel and one for the constant, three columns."""


def fit_rgb_map(latents_nchw: npt.NDArray[np.floating], pictures_nhwc: Pixels) -> RgbMap:
    """The linear map that brings latents closest to their own pictures, for any VAE and any scale."""
    count, channels, height, width = latents_nchw.shape
    reduction = pictures_nhwc.shape[1] // height
    if pictures_nhwc.shape != (count, height * reduction, width * reduction, 3):
        raise RequestError(f"pictures of shape {pictures_nhwc.shape} do not lie on latents of {latents_nchw.shape}")
    blocks = pictures_nhwc.reshape(count, height, reduction, width, reduction, 3)
    colours = blocks.mean(axis=(2, 4), dtype=np.float64).reshape(-1, 3)
    cells = latents_nchw.astype(np.float64).transpose(0, 2, 3, 1).reshape(-1, channels)
    solution, *_ = np.linalg.lstsq(np.column_stack([cells, np.ones(len(cells))]), colours)
    return np.asarray(solution, dtype=np.float64)


def latents_to_rgb(latent_chw: npt.NDArray[np.floating], rgb_map: RgbMap) -> Pixels:
    """A latent as a small picture, one pixel for each cell."""
    cells = latent_chw.astype(np.float64).transpose(1, 2, 0)
    return np.asarray((cells @ rgb_map[:-1] + rgb_map[-1]).round().clip(0, 255), dtype=np.uint8)


def load_decoder(spec: LatentSpec, name: str | None = None) -> LoadedVae:
    """The VAE that made the latents, from where it was then unless `name` says otherwise; another is refused."""
    vae = load_vae(name or spec.vae.name)
    if vae.identity.weights_sha256 != spec.vae.weights_sha256:
        raise SpecError(f"the VAE in {vae.identity.name} is not the one of version {spec.fingerprint}")
    return vae


def decode(latents_nchw: Latent, spec: LatentSpec, vae: LoadedVae) -> Pixels:
    """The pictures that stored latents stand for."""
    raw = convert_scale(latents_nchw.astype(np.float32), spec.vae, spec.scale, "raw")
    return decode_latents(vae, raw)
