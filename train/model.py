"""An OpenCLIP model whose vision tower reads latents instead of pixels."""

from __future__ import annotations

from typing import Any

import open_clip
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from torch import nn

from encode_pipeline.latents.command import RequestError
from train.config import Architecture


def build_model(architecture: Architecture, channels: int, grid: int) -> open_clip.CLIP:
    """A fresh model for latents of so many channels on a square grid."""
    try:
        vision = CLIPVisionCfg(**architecture.vision_cfg, image_size=grid)
        text = CLIPTextCfg(**architecture.text_cfg)
    except TypeError as error:
        raise RequestError(f"architecture: {error}") from None
    patch = vision.patch_size
    if not isinstance(patch, int) or grid % patch:
        raise RequestError(f"architecture: patch_size {patch} does not divide a latent of {grid}x{grid}")
    try:
        model = open_clip.CLIP(architecture.embed_dim, vision, text, output_dict=True)
    except (AssertionError, TypeError, ValueError) as error:
        raise RequestError(f"architecture: OpenCLIP cannot build it: {error or type(error).__name__}") from None
    visual: Any = model.visual
    stem = visual.conv1
    visual.conv1 = nn.Conv2d(channels, stem.out_channels, stem.kernel_size, stem.stride, bias=stem.bias is not None)
    return model


def tokenizer_for(architecture: Architecture) -> open_clip.SimpleTokenizer:
    """OpenCLIP's byte-pair tokenizer at the model's context length."""
    return open_clip.SimpleTokenizer(context_length=int(architecture.text_cfg.get("context_length", 77)))


def parameter_counts(model: open_clip.CLIP) -> dict[str, int]:
    """Parameters of the two towers; the logit scale belongs to the text side, as in the paper's Table 6."""
    total = sum(parameter.numel() for parameter in model.parameters())
    image = sum(parameter.numel() for parameter in model.visual.parameters())
    return {"image": image, "text": total - image, "total": total}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """OpenCLIP's split: no decay for gains, biases and the logit scale."""
    decayed: list[torch.nn.Parameter] = []
    plain: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_plain = parameter.ndim < 2 or any(word in name for word in ("bn", "ln", "bias", "logit_scale"))
        (plain if is_plain else decayed).append(parameter)
    return [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]
