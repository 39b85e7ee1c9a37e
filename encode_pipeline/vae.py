"""A diffusers VAE: loading it, knowing it by content, and turning pictures into latents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.utils import logging as diffusers_logging

from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.spec import LatentSpec, SpecError, VaeIdentity, convert_scale
from encode_pipeline.latents.writer import Latent
from encode_pipeline.records import Pixels

CLASSES: dict[str, Any] = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
diffusers_logging.set_verbosity_error()


@dataclass(frozen=True)
class LoadedVae:
    """A VAE in float32 on the CPU, and who it is."""

    model: Any
    identity: VaeIdentity

    has_spread: bool
    """Whether it gives a distribution to sample from, or one latent only."""
    channels: int
    reduction: int
    """Pixels to a latent cell, along a side."""

    def latent_shape(self, image_size: int) -> tuple[int, int, int]:
        """Channels, height and width of the latent of a square picture."""
        if image_size % self.reduction:
            raise RequestError(f"image_size={image_size}: not a multiple of the VAE's {self.reduction}")
        return self.channels, image_size // self.reduction, image_size // self.reduction


def load_vae(name: str) -> LoadedVae:
    """A VAE by hub id or directory, or the one inside a whole pipeline; every weight accounted for."""
    looks_local = name.startswith((".", "/", "~")) or Path(name).exists()
    where = str(Path(name).expanduser()) if looks_local else name
    if looks_local and not Path(where).is_dir():
        raise RequestError(f"vae: {name}: no such directory")
    subfolder = "vae" if looks_local and (Path(where) / "vae" / "config.json").is_file() else None
    try:
        config = AutoencoderKL.load_config(where, subfolder=subfolder)
    except (OSError, AttributeError, TypeError) as error:
        if looks_local:
            raise RequestError(f"vae: {name}: no diffusers VAE here (no config.json that describes one)") from None
        try:
            subfolder = "vae"
            config = AutoencoderKL.load_config(where, subfolder=subfolder)
        except OSError:
            raise RequestError(f"vae: {name}: {' '.join(str(error).split())}") from None
    kind = config.get("_class_name") if isinstance(config, dict) else None
    if kind not in CLASSES:
        raise RequestError(f"vae: {name}: is a {kind}; known are {', '.join(CLASSES)}")
    try:
        model, info = CLASSES[kind].from_pretrained(
            where, subfolder=subfolder, torch_dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise RequestError(f"vae: {name}: {' '.join(str(error).split())}") from None
    if wrong := {key: names for key, names in info.items() if names}:
        raise RequestError(f"vae: {name}: weights do not fit the config: {wrong}")
    model.requires_grad_(False).eval()
    probe = 64
    with torch.inference_mode():
        mean, std = posterior(model, torch.zeros(1, 3, probe, probe))
    return LoadedVae(model, identify(name, model), std is not None, mean.shape[1], probe // mean.shape[2])


def identify(name: str, model: Any) -> VaeIdentity:
    """A VAE's identity by content: the same weights and config are the same VAE under any name."""
    hasher = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        hasher.update(f"{key} {tuple(tensor.shape)}\n".encode())
        hasher.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    config = {key: value for key, value in dict(model.config).items() if not key.startswith("_")}
    return VaeIdentity(
        name=name,
        weights_sha256=hasher.hexdigest(),
        config={"class": type(model).__name__, **json.loads(json.dumps(config))},
        scaling_factor=float(model.config.scaling_factor),
        shift_factor=float(getattr(model.config, "shift_factor", None) or 0.0),
    )


def posterior(model: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Mean and standard deviation of the latents of images in [-1, 1]; a VAE without a spread gives None."""
    encoded = model.encode(images)
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.mean, encoded.latent_dist.std
    return encoded.latents, None


def decode_latents(vae: LoadedVae, raw_bchw: npt.NDArray[np.float32]) -> Pixels:
    """The pictures that latents stand for, uint8 and channels last. Latents are taken as the encoder gave them."""
    model = vae.model.to(memory_format=torch.channels_last)  # on CPUs a third faster
    device = next(model.parameters()).device
    pictures = []
    with torch.inference_mode():
        for raw in torch.from_numpy(raw_bchw).to(device, torch.float32):  # one by one: a decoder's memory is large
            decoded = model.decode(raw[None].contiguous(memory_format=torch.channels_last)).sample[0].clamp(-1, 1)
            pictures.append(((decoded + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy())
    return np.stack(pictures)


@dataclass(frozen=True)
class EncodedBatch:
    latents: Latent
    finite: npt.NDArray[np.bool_]
    rescued: int


class LatentEncoder:
    """A VAE on its device, turning uint8 pictures into what the store holds."""

    def __init__(self, vae: LoadedVae, spec: LatentSpec, batch_size: int, device: torch.device | None = None) -> None:
        if vae.identity.weights_sha256 != spec.vae.weights_sha256 or vae.identity.config != spec.vae.config:
            raise SpecError(
                f"the VAE {vae.identity.name} is not the one of version {spec.fingerprint}, {spec.vae.name}"
            )
        self.spec, self.batch_size = spec, batch_size
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        auto = "float32" if self.device.type == "cpu" else "float16"
        self.dtype_name = auto if spec.compute_dtype == "auto" else spec.compute_dtype
        self._dtype = DTYPES[self.dtype_name]
        self._vae = vae
        # A copy only where it differs, since the float32 original is what rescues are made with.
        same = self._dtype is torch.float32 and self.device.type == "cpu"
        self._model = vae.model if same else _copy_to(vae.model, self.device, self._dtype)
        self._model.to(memory_format=torch.channels_last)
        self._threads = ThreadPoolExecutor(torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,))

    def encode(self, pictures: Sequence[Pixels], noise: Sequence[npt.NDArray[np.float32]]) -> EncodedBatch:
        """Latents of up to a batch of pictures. One that is not finite is tried again, alone, in float32."""
        latents = self._on_cpu(pictures, noise) if self.device.type == "cpu" else self._on_gpu(pictures, noise)
        finite: npt.NDArray[np.bool_] = np.asarray(np.isfinite(latents).all(axis=(1, 2, 3)))
        rescued = 0
        for index in np.flatnonzero(~finite):
            if self._dtype is torch.float32:
                break
            wide = self._vae.model.to(self.device)
            again = self._latents(wide, torch.float32, pictures[int(index)][None], noise[int(index)][None])[0]
            if np.isfinite(again).all():
                latents[index], finite[index] = again, True
                rescued += 1
        return EncodedBatch(latents, finite, rescued)

    def _on_gpu(self, pictures: Sequence[Pixels], noise: Sequence[npt.NDArray[np.float32]]) -> Latent:
        """All at once, padded to a fixed shape: the same kernels, so the same bits, for every batch."""
        padding = self.batch_size - len(pictures)
        pixels = np.stack([*pictures, *[pictures[-1]] * padding])
        spread = np.stack([*noise, *[noise[-1]] * padding])
        return self._latents(self._model, self._dtype, pixels, spread)[: len(pictures)]

    def _on_cpu(self, pictures: Sequence[Pixels], noise: Sequence[npt.NDArray[np.float32]]) -> Latent:
        """One by one, a thread each: the same bits however many threads, and none waits in a spin for another."""
        pairs = zip(pictures, noise, strict=True)
        rows = self._threads.map(
            lambda pair: self._latents(self._model, self._dtype, pair[0][None], pair[1][None]), pairs
        )
        return np.concatenate(list(rows))

    def _latents(
        self, model: Any, dtype: torch.dtype, pixels: npt.NDArray[np.uint8], noise: npt.NDArray[np.float32]
    ) -> Latent:
        with torch.inference_mode():
            images = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)  # channels_last as it lies
            mean, std = posterior(model, (images.float() / 127.5 - 1).to(dtype))
            latents = mean.float()
            if self.spec.posterior == "sample" and std is not None:
                latents = latents + std.float() * torch.from_numpy(noise).to(self.device)
            latents = convert_scale(latents, self.spec.vae, "raw", self.spec.scale)
            return np.array(latents.to(torch.float16).cpu().numpy(), order="C")


def _copy_to(model: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """The same VAE in another place or width; built anew, because `.to` would change the original."""
    twin = type(model).from_config(model.config)
    twin.load_state_dict(model.state_dict())
    return twin.to(device=device, dtype=dtype).requires_grad_(False).eval()
