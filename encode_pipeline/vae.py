"""A VAE of the diffusers library, or none: loading it, knowing it by content, and its two directions."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.spec import VaeIdentity
from encode_pipeline.records import Pixels

PIXELS = "pixels"
"""The name of no VAE at all: views averaged down to the latent grid, for a model of pixels to compare with."""


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
    if name == PIXELS:
        return _no_vae()
    # Half of all that an encoder imports, in seconds: not where no VAE is wanted.
    from diffusers import AutoencoderKL, AutoencoderTiny
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_error()
    classes: dict[str, Any] = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
    looks_local = is_local(name)
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
    if kind not in classes:
        raise RequestError(f"vae: {name}: is a {kind}; known are {', '.join(classes)}")
    try:
        # A mapped file would change the model in memory when it is overwritten.
        model, info = classes[kind].from_pretrained(
            where,
            subfolder=subfolder,
            torch_dtype=torch.float32,
            use_safetensors=True,
            disable_mmap=True,
            output_loading_info=True,
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


def is_local(name: str) -> bool:
    """Whether a name means a directory, there or not: on the hub are ORGANISATION/NAME and NAME."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).exists()


class AveragedPixels(torch.nn.Module):
    """Stands where a VAE does, and gives the mean colour of every cell instead of a latent."""

    reduction = 8

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(images, self.reduction)


def _no_vae() -> LoadedVae:
    model = AveragedPixels()
    config = {"class": PIXELS, "reduction": model.reduction}
    identity = VaeIdentity(name=PIXELS, weights_sha256=hashlib.sha256().hexdigest(), config=config, scaling_factor=1.0)
    return LoadedVae(model, identity, has_spread=False, channels=3, reduction=model.reduction)


def identify(name: str, model: Any) -> VaeIdentity:
    """A VAE's identity by content: the same weights and config are the same VAE under any name."""
    config = {key: value for key, value in dict(model.config).items() if not key.startswith("_")}
    return VaeIdentity(
        name=name,
        weights_sha256=weights_sha256(model),
        config={"class": type(model).__name__, **json.loads(json.dumps(config))},
        scaling_factor=float(model.config.scaling_factor),
        shift_factor=float(getattr(model.config, "shift_factor", None) or 0.0),
    )


def weights_sha256(model: torch.nn.Module) -> str:
    """Which weights a model has, whatever file or precision they came in."""
    hasher = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        hasher.update(f"{key} {tuple(tensor.shape)}\n".encode())
        hasher.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return hasher.hexdigest()


def posterior(model: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Mean and standard deviation of the latents of images in [-1, 1]; a VAE without a spread gives None."""
    encoded = model.encode(images)
    if isinstance(encoded, torch.Tensor):
        return encoded, None
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.mean, encoded.latent_dist.std
    return encoded.latents, None


def decode_latents(vae: LoadedVae, raw_bchw: npt.NDArray[np.float32]) -> Pixels:
    """The pictures that latents stand for, uint8 and channels last. Latents are taken as the encoder gave them."""
    if vae.identity.config["class"] == PIXELS:
        raise RequestError(f"vae={PIXELS}: averaged pixels have no decoder")
    model = vae.model.to(memory_format=torch.channels_last)  # on CPUs a third faster
    device = next(model.parameters()).device
    pictures = []
    with torch.inference_mode():
        for raw in torch.from_numpy(raw_bchw).to(device, torch.float32):  # one by one: a decoder's memory is large
            decoded = model.decode(raw[None].contiguous(memory_format=torch.channels_last)).sample[0].clamp(-1, 1)
            pictures.append(((decoded + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy())
    return np.stack(pictures)
