"""Pictures made ready for a model: files decoded, latents decoded, and what was decoded encoded again."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from encode_pipeline.encoder import LatentEncoder
from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.spec import LatentSpec, VaeIdentity, convert_scale
from encode_pipeline.latents.writer import Latent
from encode_pipeline.randomness import posterior_noise, seed_of
from encode_pipeline.records import Pixels
from encode_pipeline.transforms import resize
from encode_pipeline.vae import LoadedVae, decode_latents, load_vae
from eval.clip import PixelClip
from eval.feed import Damage, Item, Prepare
from eval.picture_set import Part

ENCODED_AT_ONCE = 16


def files_for(model: PixelClip) -> Prepare:
    """Picture files, as CLIP_benchmark reads them: by Pillow, in RGB, then by the model's own preprocessing."""
    threads = ThreadPoolExecutor(os.cpu_count())

    def prepared(file: bytes) -> Tensor | Damage:
        try:
            with Image.open(io.BytesIO(file)) as image:
                picture = image.convert("RGB")
        except MemoryError:
            raise  # it says something about this machine, not about the picture
        except Exception as error:  # a decoder may raise anything on damaged bytes; all of it means the same
            return Damage(" ".join(f"{type(error).__name__}: {error}".split())[:200])
        return model.prepare(picture)

    return lambda items, files, part: list(threads.map(prepared, files))


def decoded_for_pixels(spec: LatentSpec, vae: LoadedVae, model: PixelClip) -> Prepare:
    """Stored latents as the pictures that their VAE makes of them."""
    vae.model.to(model.device)
    return lambda items, latents, part: [
        model.prepare(Image.fromarray(pixels)) for pixels in pictures_of(latents, spec, vae)
    ]


def decoded_for_latents(spec: LatentSpec, vae: LoadedVae, wanted: LatentSpec, own: LoadedVae) -> Prepare:
    """Stored latents decoded, and encoded again as the pictures that a model was trained on.

    The noise of each comes from its shard and key, so that it is the same in whatever batch.
    """
    encoder = LatentEncoder(own, wanted, ENCODED_AT_ONCE)
    vae.model.to(encoder.device)

    def prepared(items: Sequence[Item], latents: Sequence[Latent], part: Part) -> list[Tensor | Damage]:
        ready: list[Tensor | Damage] = []
        for start in range(0, len(items), ENCODED_AT_ONCE):
            some = slice(start, start + ENCODED_AT_ONCE)
            seeds = [seed_of(wanted.seed, part.name, item.key, 0, "posterior") for item in items[some]]
            noise = [posterior_noise(seed, wanted.shape) for seed in seeds]
            pictures = pictures_of(latents[some], spec, vae)
            encoded = encoder.encode([resize(pixels, wanted.image_size) for pixels in pictures], noise)
            ready += [
                torch.from_numpy(latent).float() if finite else Damage("its latent is not finite, in float32 too")
                for latent, finite in zip(encoded.latents, encoded.finite, strict=True)
            ]
        return ready

    return prepared


def pictures_of(latents: Sequence[Latent], spec: LatentSpec, vae: LoadedVae) -> Pixels:
    """The pictures of stored latents, uint8 and channels last."""
    raw: Any = convert_scale(np.stack(latents).astype(np.float32), spec.vae, spec.scale, "raw")
    return decode_latents(vae, raw)


def find_vae(identity: VaeIdentity, where: str | None) -> LoadedVae:
    """The VAE of some latents: at `vae=`, else under the name that the latents give it. Another one is refused."""
    if where is not None and (vae := load_vae(where)).identity.weights_sha256 == identity.weights_sha256:
        return vae
    try:
        vae = load_vae(identity.name)
    except RequestError as error:
        raise RequestError(f"{error}; say vae=, with the place of {_mark(identity)} here") from None
    if vae.identity.weights_sha256 != identity.weights_sha256:
        raise RequestError(f"vae: {_mark(vae.identity)} is not {_mark(identity)}; say vae=, with the place of that one")
    return vae


def _mark(identity: VaeIdentity) -> str:
    return f"{identity.name} ({identity.weights_sha256[:12]})"
