"""Latents to store: of the demo's world by a VAE, and noise with the spread of larger ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.one_decode import accepted
from demo.image_tar import jpeg_bytes, key_of
from demo.scene import render
from encode_pipeline.augment import ViewMaker
from encode_pipeline.encoder import LatentEncoder
from encode_pipeline.latents.spec import LatentSpec
from encode_pipeline.latents.writer import Latent
from encode_pipeline.randomness import posterior_noise, seed_of
from encode_pipeline.recipe import ViewRecipe
from encode_pipeline.records import Pixels, Sample
from encode_pipeline.vae import LoadedVae

VIEWS, SEED = 2, 0
"""Of each picture: the plain view, and one that is cropped and coloured anew."""


@dataclass(frozen=True)
class Encoded:
    """A picture in its views, with what a store keeps of each."""

    sample: Sample
    pixels: list[Pixels]
    latents: list[Latent]
    records: list[dict[str, Any]]


def spec_for(vae: LoadedVae, image_size: int) -> LatentSpec:
    shape = vae.latent_shape(image_size)
    return LatentSpec(vae=vae.identity, shape=shape, image_size=image_size, views=VIEWS, recipe={}, seed=SEED)


def encode_world(vae: LoadedVae, spec: LatentSpec, pictures: int) -> Iterator[Encoded]:
    """Held-out pictures of the demo's world, each through the pipeline's own views and encoder."""
    source = "test/00000.tar"
    make_views = ViewMaker(ViewRecipe(), VIEWS, spec.image_size, SEED, source)
    encoder = LatentEncoder(vae, spec, batch_size=VIEWS)
    for index in range(pictures):
        picture, key = render(SEED, "test", index), key_of(0, index)
        height, width = picture.image.shape[:2]
        about = {"url": f"https://pictures.example/{key}.jpg", "key": key, "width": width, "height": height}
        viewed = accepted(make_views(Sample(key, jpeg_bytes(picture.image), picture.caption, about)))
        seeds = [seed_of(SEED, source, key, view, "posterior") for view in range(VIEWS)]
        pixels = [view.pixels for view in viewed.views]
        batch = encoder.encode(pixels, [posterior_noise(seed, spec.shape) for seed in seeds])
        common = {"source": source, "original_size": viewed.original_size, "metadata": about}
        records = [{**common, "view": view, "augmentation": made.parameters} for view, made in enumerate(viewed.views)]
        yield Encoded(viewed.sample, pixels, list(batch.latents), records)


def made_up(shape: tuple[int, int, int], spread: float, fall: float, seed: int) -> Latent:
    """Noise whose amplitude falls with this power of frequency: at 0 it is white, at 1 about as smooth as pictures."""
    height, width = shape[1:]
    noise = np.random.default_rng(seed).standard_normal(shape)
    frequency = np.hypot(np.fft.rfftfreq(width)[None, :], np.fft.fftfreq(height)[:, None])
    frequency[0, 0] = np.inf if fall else 1.0
    field = np.fft.irfft2(np.fft.rfft2(noise) / frequency**fall, s=(height, width))
    return np.asarray(field / field.std(axis=(1, 2), keepdims=True) * spread, np.float16)
