"""A model's vision tower as timm has it, which can be told how many channels it reads; OpenCLIP's own cannot."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from open_clip.model import CLIPVisionCfg
from torch import Tensor

from encode_pipeline.latents.command import RequestError
from train.config import Architecture

TIMM_VIT = "vit_base_patch16_clip_224"
"""timm's CLIP tower of the oldest standing; all that makes it a B/16 of 224 pixels is told otherwise."""

SAID = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "ls_init_value", "patch_dropout"}
SAID |= {"no_ln_pre", "pos_embed_type", "final_ln_after_pool", "pool_type"}
"""Settings of OpenCLIP's tower that timm's has too; the others must be as they are by default."""

RENAMED = {
    "conv1.": "patch_embed.proj.",
    "transformer.resblocks.": "blocks.",
    "ln_pre.": "norm_pre.",
    ".ln_1.": ".norm1.",
    ".ln_2.": ".norm2.",
    ".ls_1.": ".ls1.",
    ".ls_2.": ".ls2.",
    ".attn.in_proj_": ".attn.qkv.",
    ".attn.out_proj.": ".attn.proj.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}


@dataclasses.dataclass(frozen=True)
class TimmTower:
    """What timm and OpenCLIP's adapter to it must be told."""

    architecture: str
    model_args: dict[str, Any]
    vision_cfg: dict[str, Any]
    """For open_clip_config.json, but for `timm_model_name`, which says where the two above are."""


def timm_tower(architecture: Architecture, channels: int, grid: int) -> TimmTower:
    """The vision tower in timm's words; what these cannot say is refused by name."""
    vision = CLIPVisionCfg(**architecture.vision_cfg)
    size = {"in_chans": channels, "img_size": grid}
    if vision.timm_model_name:
        if ":" in vision.timm_model_name:
            raise _refusal("timm_model_name", vision.timm_model_name)
        name = vision.timm_model_name.partition(".")[0]  # without the tag of pretrained weights
        return TimmTower(name, size, {**architecture.vision_cfg, "image_size": grid})
    if isinstance(vision.layers, list):
        raise _refusal("layers", vision.layers)
    for field in dataclasses.fields(vision):
        value = getattr(vision, field.name)
        is_said = (
            field.name in SAID or field.name.startswith("timm_") or (field.name, value) == ("block_type", "default")
        )
        if not is_said and (value or None) != (field.default or None):
            raise _refusal(field.name, value)
    if vision.pool_type not in ("tok", "avg"):
        raise _refusal("pool_type", vision.pool_type)
    args = {
        **size,
        "patch_size": vision.patch_size,
        "embed_dim": vision.width,
        "depth": vision.layers,
        "num_heads": vision.width // vision.head_width,
        "mlp_ratio": vision.mlp_ratio,
        "pre_norm": not vision.no_ln_pre,
        "fc_norm": vision.final_ln_after_pool,
        **({"init_values": vision.ls_init_value} if vision.ls_init_value is not None else {}),
        **({"act_layer": "quick_gelu"} if architecture.quick_gelu else {}),
    }
    config = {
        "image_size": grid,
        "timm_pool": {"tok": "token", "avg": "avg"}[vision.pool_type],
        "timm_proj": "linear",
        **({"patch_dropout": vision.patch_dropout} if vision.patch_dropout else {}),
    }
    return TimmTower(TIMM_VIT, args, config)


def _refusal(setting: str, value: Any) -> RequestError:
    return RequestError(
        f"vision_cfg.{setting}={value}: nothing that open_clip loads by itself can say so; form=native can"
    )


def timm_weights(architecture: Architecture, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All weights of a model, with the vision tower's by their names in timm."""
    if "timm_model_name" in architecture.vision_cfg:
        return dict(state)
    after_pool = architecture.vision_cfg.get("final_ln_after_pool", False)
    weights = {}
    for name, tensor in state.items():
        if not name.startswith("visual."):
            weights[name] = tensor
        elif name == "visual.proj":
            weights["visual.head.proj.weight"] = tensor.T
        elif name == "visual.class_embedding":
            weights["visual.trunk.cls_token"] = tensor[None, None]
        elif name == "visual.positional_embedding":
            weights["visual.trunk.pos_embed"] = tensor[None]
        else:
            new = name.removeprefix("visual.").replace("ln_post.", "fc_norm." if after_pool else "norm.")
            for theirs, timms in RENAMED.items():
                new = new.replace(theirs, timms)
            weights[f"visual.trunk.{new}"] = tensor
    if architecture.vision_cfg.get("no_ln_pre", False):  # timm's stem has a bias then, OpenCLIP's has none
        weights["visual.trunk.patch_embed.proj.bias"] = torch.zeros(len(state["visual.conv1.weight"]))
    return weights
