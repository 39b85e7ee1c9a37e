"""The verb: choose samples, find where they came from, decode them, measure their channels, write page and sheet."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from encode_pipeline.config import PreviewRequest
from encode_pipeline.latents.cache import ShardCache
from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.spec import LatentSpec, convert_scale
from encode_pipeline.latents.store import Store, Version
from encode_pipeline.latents.writer import Latent
from encode_pipeline.preview.channels import expectation, measure, warnings_of
from encode_pipeline.preview.contact_sheet import write_contact_sheet
from encode_pipeline.preview.decoder import decode, load_decoder
from encode_pipeline.preview.origins import Origin, find_origins
from encode_pipeline.preview.page import Preview, write_page
from encode_pipeline.preview.rgb import PIXEL_MAP, RgbMap, false_colour_map, fit_rgb_map
from encode_pipeline.preview.show import show
from encode_pipeline.preview.stored import Place, StoredSample, more_latents, named_places, random_places, read_places
from encode_pipeline.records import Pixels
from encode_pipeline.vae import LoadedVae

FITTED_LATENTS = 64


def preview(request: PreviewRequest) -> dict[str, Any]:
    """Writes OUT/index.html and OUT/contact-sheet.png; returns where they are and what is on them."""
    store = Store(request.store)
    version = store.version(request.version)
    views = _views(request, version.spec)
    with tempfile.TemporaryDirectory(prefix="preview-") as scratch:
        cache = ShardCache(version, Path(scratch))
        places = _places(request, version, views, cache)
        decoder, notes = _decoder(request, version.spec)  # seconds: not before the cheap questions are answered
        stored = read_places(places, views, cache)
        more = list(more_latents(places, views, cache, request.seed))
    request.out.mkdir(parents=True, exist_ok=True)
    if request.keys is not None:
        stored.sort(key=lambda sample: request.named.index(sample.key))
    origins = find_origins(stored, views, version.spec)
    decoded = _decode_all(stored, version.spec, decoder)
    rgb_map, map_how = _rgb_map(stored, origins, decoded, version.spec)
    samples = [
        show(sample, origin, _raw(sample.latents, version.spec), pictures, rgb_map)
        for sample, origin, pictures in zip(stored, origins, decoded, strict=True)
    ]
    measured = _raw(
        np.concatenate([*(sample.latents for sample in stored), *(latent[None] for latent in more)]), version.spec
    )
    expected = expectation(version.spec.vae, version.spec.shape[0])
    channels = measure(measured, expected)
    found = Preview(
        version=version,
        state="promoted" if store.current() == version.fingerprint else "sealed" if version.sealed else "not sealed",
        samples=samples,
        shards=sorted({sample.shard for sample in stored}),
        map_how=map_how,
        latents=len(measured),
        channels=channels,
        expected=expected,
        warnings=warnings_of(channels, len(measured)),
        notes=[*notes, *_gaps(request, stored, origins)],
    )
    page, sheet = request.out / "index.html", request.out / "contact-sheet.png"
    write_page(page, found)
    write_contact_sheet(sheet, found)
    return {"html": str(page.absolute()), "png": str(sheet.absolute()), **found.to_dict()}


def _views(request: PreviewRequest, spec: LatentSpec) -> list[int]:
    """The views that are shown."""
    if request.view is None:
        return list(range(spec.views))
    if request.view >= spec.views:
        raise RequestError(f"view={request.view}: version {spec.fingerprint} has views 0 to {spec.views - 1}")
    return [request.view]


def _decoder(request: PreviewRequest, spec: LatentSpec) -> tuple[LoadedVae | None, list[str]]:
    """The VAE, if it is needed and to be had, and what there is to say if not. One that was asked for must be right."""
    if _are_pixels(spec):
        return None, []
    try:
        return load_decoder(spec, request.vae), []
    except RequestError as error:
        if request.vae is not None:
            raise
        return None, [f"Nothing is decoded, because the VAE is not to be had: {error}. Say vae= to name where it is."]


def _places(request: PreviewRequest, version: Version, views: Sequence[int], cache: ShardCache) -> list[Place]:
    if request.keys is None:
        return random_places(version, request.n, views, request.seed)
    return named_places(version, request.named, views[0], cache)


def _decode_all(samples: Sequence[StoredSample], spec: LatentSpec, vae: LoadedVae | None) -> list[Pixels | None]:
    if vae is None:
        return [None] * len(samples)
    decoded: list[Pixels | None] = []
    for number, sample in enumerate(samples, 1):
        decoded.append(decode(sample.latents, spec, vae))
        print(f"decoded {number}/{len(samples)} samples", file=sys.stderr, flush=True)
    return decoded


def _rgb_map(
    samples: Sequence[StoredSample],
    origins: Sequence[Origin],
    decoded: Sequence[Pixels | None],
    spec: LatentSpec,
) -> tuple[RgbMap, str]:
    """The colours that latents are shown in, and a sentence that says what they are."""
    if _are_pixels(spec):
        return PIXEL_MAP, "Latents are pixels themselves, and are shown as they are."
    channels = spec.shape[0]
    decodes = [(sample, pictures) for sample, pictures in zip(samples, decoded, strict=True) if pictures is not None]
    seen = [(sample, np.stack(origin.views)) for sample, origin in zip(samples, origins, strict=True) if origin.views]
    pairs = decodes or seen
    how = f"Latents are shown cell by cell, in the colours of a linear map from {channels} channels to RGB"
    if not pairs:
        rgb_map = false_colour_map(_raw(np.concatenate([sample.latents for sample in samples]), spec))
        return rgb_map, (
            "Latents are shown in false colours, three principal components of their channels: "
            "with neither the VAE nor the sources at hand, nothing tells how they look."
        )
    latents = _raw(np.concatenate([sample.latents for sample, _ in pairs])[:FITTED_LATENTS], spec)
    pictures = np.concatenate([pictures for _, pictures in pairs])[:FITTED_LATENTS]
    to = "what they decode to" if decodes else "the views that they were made from"
    return fit_rgb_map(latents, pictures), f"{how}, fitted by least squares to {to} ({len(latents)} of them)."


def _gaps(request: PreviewRequest, samples: Sequence[StoredSample], origins: Sequence[Origin]) -> list[str]:
    """What is not on the sheet, and why."""
    lines = []
    if request.keys is None and len(samples) < request.n:
        lines.append(f"There are only {len(samples)} samples to show.")
    reasons = dict.fromkeys(origin.missing for origin in origins if origin.missing)
    without = sum(origin.missing is not None for origin in origins)
    if without:
        first, *others = reasons
        more = f" (and {len(others)} more reasons, each beside its sample)" if others else ""
        lines.append(f"{without} of {len(samples)} samples lack their source or its views: {first}{more}.")
    return lines


def _raw(latents_nchw: Latent, spec: LatentSpec) -> npt.NDArray[np.float32]:
    return convert_scale(latents_nchw.astype(np.float32), spec.vae, spec.scale, "raw")


def _are_pixels(spec: LatentSpec) -> bool:
    return spec.vae.config.get("class") == "pixels"
