"""A CLIP by what it does: it embeds texts, and latents or pictures.

Embeddings are unit rows in float32, and differentiable: whoever wants no gradients says so. Weights never change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.latents.spec import LatentSpec, SpecError, convert_scale
from encode_pipeline.vae import weights_sha256
from train.zero_shot import check_latents, embed_classes

SMALL = 50_000_000
"""Parameters; the paper's smallest model has three times as many."""

MEASURED = (128, 256, 512, 512)
"""Channels of the published VAEs with four times eight downsampling. Their scaling factor is one over the spread of
their latents, which of a small or untrained VAE nobody measured."""
LEAST_RATIO = 4.0
"""Raw latents must be so many times as wide as scaled ones for a spread to tell which of the two it is."""


@dataclass(frozen=True)
class Loaded:
    """A model off the disk, and what is known of it."""

    name: str
    address: str
    model: Any
    """In OpenCLIP's manner: `encode_image` and `encode_text` with `normalize=True`, and a `logit_scale`."""
    tokenizer: Callable[[list[str]], Tensor]
    image_parameters: int
    provenance: dict[str, Any]
    not_comparable: list[str]


class Clip:
    """What every CLIP can do, whatever it looks at."""

    spec: LatentSpec | None = None
    """Of the latents that it reads; None if it reads pictures."""

    def __init__(self, loaded: Loaded) -> None:
        self.name, self.address = loaded.name, loaded.address
        total = sum(parameter.numel() for parameter in loaded.model.parameters())
        image = loaded.image_parameters
        self.provenance: dict[str, Any] = {
            "kind": loaded.provenance["kind"],
            "address": loaded.address,
            "name": loaded.name,
            "weights_sha256": weights_sha256(loaded.model),
            "parameters": {"image": image, "text": total - image, "total": total},
            **loaded.provenance,
        }
        self.not_comparable = list(loaded.not_comparable)
        """Why its numbers should not stand beside the paper's; empty if they may."""
        if total < SMALL:
            self.not_comparable.append(f"a small model ({total / 1e6:.1f} M parameters)")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: Any = loaded.model.to(self.device).eval().requires_grad_(False)
        self.tokenizer = loaded.tokenizer
        self.logit_scale: float = self.model.logit_scale.exp().item()
        """What it multiplies cosines by."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """A row for every text."""
        embedding: Tensor = self.model.encode_text(self.tokenizer(list(texts)).to(self.device), normalize=True)
        return embedding.float()

    def embed_classes(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """A row for every class: the mean over the templates, in which `{c}` stands for its name."""
        return embed_classes(self.model, self.tokenizer, self.device, names, templates)

    def _embed_images(self, images: Tensor) -> Tensor:
        embedding: Tensor = self.model.encode_image(images, normalize=True)
        return embedding.float()


class PixelClip(Clip):
    """A CLIP that looks at pictures."""

    def __init__(self, loaded: Loaded, prepare: Callable[[Image.Image], Tensor]) -> None:
        super().__init__(loaded)
        self._prepare = prepare

    def prepare(self, picture: Image.Image) -> Tensor:
        """A picture as the model was trained to see it: resized, cut, normalised; channels first."""
        return self._prepare(picture)

    def embed_pixels(self, prepared_bchw: Tensor) -> Tensor:
        """A row for every prepared picture."""
        return self._embed_images(prepared_bchw.to(self.device, torch.float32))


class LatentClip(Clip):
    """A CLIP that looks at latents of one VAE."""

    spec: LatentSpec

    def __init__(self, loaded: Loaded, spec: LatentSpec) -> None:
        super().__init__(loaded)
        self.spec = spec

    def embed_latents(self, latents_bchw: Tensor, spec: LatentSpec, measured: bool = True) -> Tensor:
        """A row for every latent. `spec` says what they are: another scale is converted, another VAE refused.

        Their width is measured too, which waits for a GPU, and refuses the whole batch for one that is not finite.
        """
        check_latents(self.spec, spec, self.name)
        if latents_bchw.ndim != 4 or tuple(latents_bchw.shape[1:]) != self.spec.shape:
            told, own = ("x".join(map(str, shape)) for shape in (latents_bchw.shape, self.spec.shape))
            raise SpecError(f"{self.name}: reads batches of latents of {own}, not {told}")
        latents = latents_bchw.to(self.device, torch.float32)
        if measured:
            check_spread(latents, spec, self.name)
        return self._embed_images(convert_scale(latents, spec.vae, spec.scale, self.spec.scale))

    def spec_of_pipeline(self, vae: Any) -> LatentSpec:
        """Of what a diffusers pipeline with this VAE hands out for `output_type="latent"`: model scale.

        Such latents come from a denoiser that works in the space of a VAE, which others share: SDXL's own and the one
        mended for float16 are two by their weights. So the space is compared: channels, scale and shift.
        """
        ours, config = self.spec.vae, vae.config
        theirs = {
            "latent_channels": config.latent_channels,
            "scaling_factor": config.scaling_factor,
            "shift_factor": getattr(config, "shift_factor", None) or 0.0,
        }
        own = {
            "latent_channels": self.spec.shape[0],
            "scaling_factor": ours.scaling_factor,
            "shift_factor": ours.shift_factor,
        }
        for key, value in own.items():
            if theirs[key] != value:
                raise SpecError(
                    f"{self.name}: this pipeline's latents are not the model's: {key}: {theirs[key]} against "
                    f"{value} of {ours.name}"
                )
        return self.spec.model_copy(update={"scale": "model"})


def check_spread(latents_bchw: Tensor, spec: LatentSpec, where: str) -> None:
    """Refuses what is not finite, and what is so wide or so narrow that it is surely in another scale than said.

    The width is the root mean square of the batch in the VAE's model scale, about 1 for pictures: single plain colours
    reach from a third to two and a half. It is compared where raw latents are at least four times as wide.
    """
    with torch.no_grad():
        width = convert_scale(latents_bchw, spec.vae, spec.scale, "model").square().mean().sqrt().item()
    if not math.isfinite(width):
        raise CheckFailed(f"{where}: latents that are not finite")
    factor = spec.vae.scaling_factor
    if tuple(spec.vae.config.get("block_out_channels", ())) != MEASURED or factor * LEAST_RATIO > 1:
        return
    told = f"{where}: latents that are said to be in {spec.scale} scale are {width:.2g} times as wide as such are"
    if width >= 0.5 / factor:
        raise SpecError(f"{told}: they look as if they had not been multiplied by the VAE's {factor:g}")
    if width <= 1.25 * factor:
        raise SpecError(f"{told}: they look as if they had been multiplied by the VAE's {factor:g} once too often")
