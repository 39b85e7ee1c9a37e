"""Latents as something to look at: three colours for their channels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from encode_pipeline.latents.command import RequestError
from encode_pipeline.records import Pixels

RgbMap = npt.NDArray[np.float64]
"""One row a channel and one for the constant, three columns."""

PIXEL_MAP: RgbMap = np.vstack([np.eye(3), np.ones((1, 3))]) * 127.5
"""For latents that are pixels in [-1, 1] themselves."""


def fit_rgb_map(latents_nchw: npt.NDArray[np.floating], pictures_nhwc: Pixels) -> RgbMap:
    """The linear map that brings latents closest to their own pictures, for any VAE and any scale."""
    count, _, height, width = latents_nchw.shape
    reduction = pictures_nhwc.shape[1] // height
    if pictures_nhwc.shape != (count, height * reduction, width * reduction, 3):
        raise RequestError(f"pictures of shape {pictures_nhwc.shape} do not lie on latents of {latents_nchw.shape}")
    blocks = pictures_nhwc.reshape(count, height, reduction, width, reduction, 3)
    colours = blocks.mean(axis=(2, 4), dtype=np.float64).reshape(-1, 3)
    cells = _cells(latents_nchw)
    solution, *_ = np.linalg.lstsq(np.column_stack([cells, np.ones(len(cells))]), colours)
    return np.asarray(solution, dtype=np.float64)


def false_colour_map(latents_nchw: npt.NDArray[np.floating]) -> RgbMap:
    """Where no picture tells how latents look: what varies most in them as three colours that mean nothing else."""
    cells = _cells(latents_nchw)
    centre = cells.mean(axis=0)
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(cells, rowvar=False)))
    strongest = np.argsort(values)[::-1][:3]
    axes = np.zeros((len(centre), 3))
    spread = np.sqrt(np.maximum(values[strongest], 1e-12))
    axes[:, : len(strongest)] = vectors[:, strongest] / spread * 50  # two standard deviations either way: 28 to 228
    return np.vstack([axes, 128 - centre @ axes])


def latents_to_rgb(latent_chw: npt.NDArray[np.floating], rgb_map: RgbMap) -> Pixels:
    """A latent as a small picture, one pixel for each cell."""
    cells = latent_chw.astype(np.float64).transpose(1, 2, 0)
    return np.asarray((cells @ rgb_map[:-1] + rgb_map[-1]).round().clip(0, 255), dtype=np.uint8)


def _cells(latents_nchw: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """One row a cell, one column a channel."""
    return latents_nchw.astype(np.float64).transpose(0, 2, 3, 1).reshape(-1, latents_nchw.shape[1])
