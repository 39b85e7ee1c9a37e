"""Decoded pixels as a CLIP was trained to see pictures, gradients let through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, normalize, resize

from encode_pipeline.latents.command import RequestError
from eval.clip import PixelClip

LEVELS = 2
"""How far, in 256ths, pixels may be off what a model's own preparation makes: it rounds on the way, we do not."""
PILS = {2: InterpolationMode.BILINEAR, 3: InterpolationMode.BICUBIC}
"""Ways to resize by PIL's numbers."""


@dataclass(frozen=True)
class Sight:
    """Resized, cut and normalised."""

    size: int | list[int] | None
    """One number for the short side, two for both; None leaves the picture as it is."""
    crop: list[int] | None
    interpolation: InterpolationMode
    mean: list[float]
    std: list[float]

    def __call__(self, pixels_bchw: Tensor) -> Tensor:
        seen = pixels_bchw
        if self.size is not None:
            size = _size_after(seen, self.size)
            for step in ([seen.shape[2], size[1]], size):  # as PIL does it: along the rows, then along the columns
                seen = resize(seen, step, self.interpolation, antialias=True).clamp(0, 1)
        made: Tensor = normalize(center_crop(seen, self.crop) if self.crop else seen, self.mean, self.std)
        return made


def _size_after(pixels_bchw: Tensor, size: int | list[int]) -> list[int]:
    if isinstance(size, list):
        return size
    height, width = pixels_bchw.shape[2:]
    short = min(height, width)
    return [int(size * height / short), int(size * width / short)]


def seen_by(clip: PixelClip) -> Sight:
    """From pixels between 0 and 1 to what `clip.prepare` would make of them as a picture; it is tried once."""
    told = clip.provenance["preprocessing"]
    try:
        sight = (_transformers if clip.provenance["kind"] == "transformers" else _open_clip)(told)
        side = 2 * max(sight.crop or [64])
        picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
        ours = sight(torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255)[0]
        off = (ours - clip.prepare(Image.fromarray(picture))) * 255 * torch.tensor(sight.std)[:, None, None]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RequestError(f"{clip.address}: its preparation of pictures is not understood: {error}: {told}") from None
    if float(off.abs().max()) >= LEVELS:
        raise RequestError(f"{clip.address}: its preparation of pictures cannot be followed on pixels: {told}")
    return sight


def _open_clip(told: Mapping[str, Any]) -> Sight:
    size = told["size"] if isinstance(told["size"], int) else list(told["size"])
    both = [size, size] if isinstance(size, int) else size
    is_short = told["resize_mode"] == "shortest" and both[0] == both[1]
    way = InterpolationMode.BILINEAR if told["interpolation"] == "bilinear" else InterpolationMode.BICUBIC
    return Sight(both[0] if is_short else both, both, way, list(told["mean"]), list(told["std"]))


def _transformers(told: Mapping[str, Any]) -> Sight:
    size = None
    if told["do_resize"]:
        size = told["size"].get("shortest_edge") or [told["size"]["height"], told["size"]["width"]]
    crop = [told["crop_size"]["height"], told["crop_size"]["width"]] if told["do_center_crop"] else None
    mean, std = (
        (list(told[key]) if told["do_normalize"] else default)
        for key, default in (("image_mean", [0.0] * 3), ("image_std", [1.0] * 3))
    )
    return Sight(size, crop, PILS[int(told["resample"])], mean, std)
