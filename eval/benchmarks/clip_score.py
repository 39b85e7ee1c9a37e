"""Pictures and texts before a CLIP of pixels: unit features, and the cosine of a picture and its prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageOps
from torch import Tensor

from encode_pipeline.latents.command import CheckFailed, RequestError
from eval.benchmarks.pictures import PromptPicture
from eval.clip import PixelClip
from eval.models import open_model


def open_pixel_clip(address: str) -> PixelClip:
    """The CLIP at an address; refuses one that looks at latents."""
    model = open_model(address)
    if not isinstance(model, PixelClip):
        raise RequestError(f"{address}: reads latents, and benchmarks judge pictures; a CLIP of pixels is needed")
    return model


def open_picture(picture: PromptPicture) -> Image.Image:
    """A picture as its maker meant it to be seen, in red, green and blue."""
    try:
        with Image.open(picture.path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        told = " ".join(str(error).split())
        raise CheckFailed(f"{picture.path}: cannot be read: {type(error).__name__}: {told}") from None


def features(model: PixelClip, pictures: Sequence[Image.Image]) -> Tensor:
    """A unit row for every picture."""
    return model.embed_pixels(torch.stack([model.prepare(picture) for picture in pictures]))


def clip_scores(model: PixelClip, features_bd: Tensor, prompts: Sequence[str]) -> list[float]:
    """The cosine of each picture, by its features, and its prompt; of one too long for the model, the beginning."""
    scores: list[float] = (features_bd * model.embed_texts(prompts)).sum(dim=1).tolist()
    return scores
