"""What int8 costs a picture: latents as they are and as int8 gives them back, through the VAE's decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.figures import Figure, counted
from benchmarks.world_latents import Encoded
from encode_pipeline.latents.quantised import dequantise, quantise
from encode_pipeline.latents.writer import Latent
from encode_pipeline.vae import LoadedVae

Picture = npt.NDArray[np.float32]
"""From 0 to 255, not rounded: what int8 costs is often less than a step."""


def loss_of_int8(vae: LoadedVae, pictures: Sequence[Encoded]) -> Iterator[Figure]:
    """Decibels between pictures and their reconstructions, of the plain views; errors of the latents of all views."""
    originals = [picture.pixels[0].astype(np.float32) for picture in pictures]
    latents = [picture.latents[0] for picture in pictures]
    as_they_are, after_int8 = (
        [decode(vae, latent) for latent in kind] for kind in (latents, map(there_and_back, latents))
    )
    before, after = psnrs(originals, as_they_are), psnrs(originals, after_int8)
    for name, values in (
        ("PSNR to the picture: float16", before),
        ("PSNR to the picture: int8", after),
        ("PSNR to the picture: int8 less float16", [one - other for one, other in zip(after, before, strict=True)]),
        ("PSNR between the two", psnrs(as_they_are, after_int8)),
    ):
        yield Figure(name, "decibels", tuple(values), exact=True)
    yield counted(
        "largest difference between the two",
        "steps of 255",
        max(float(np.abs(one - other).max()) for one, other in zip(as_they_are, after_int8, strict=True)),
        "less",
    )
    every = np.stack([latent for picture in pictures for latent in picture.latents]).astype(np.float64)
    again = np.stack([there_and_back(latent) for picture in pictures for latent in picture.latents])
    error, spread = np.abs(every - again), every.std(axis=(0, 2, 3))
    yield counted(
        "largest error of a latent", "of its channel's spread", float((error.max((0, 2, 3)) / spread).max()), "less"
    )
    root_mean_square = np.sqrt((error**2).mean(axis=(0, 2, 3)))
    yield counted(
        "usual error of a latent", "of its channel's spread", float((root_mean_square / spread).mean()), "less"
    )


def there_and_back(latent: Latent) -> Latent:
    stored = quantise(latent)
    return dequantise(stored.values, stored.zero, stored.step)


@torch.inference_mode()
def decode(vae: LoadedVae, latent: Latent) -> Picture:
    decoded = vae.model.decode(torch.from_numpy(latent[None].astype(np.float32))).sample[0].clamp(-1, 1)
    return np.asarray((decoded.permute(1, 2, 0).numpy() + 1) * 127.5, dtype=np.float32)


def psnrs(ones: Sequence[Picture], others: Sequence[Picture]) -> list[float]:
    errors = [float(np.square(one - other).mean()) for one, other in zip(ones, others, strict=True)]
    return [10 * float(np.log10(255**2 / error)) for error in errors]
