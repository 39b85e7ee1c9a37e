"""A text tower that begins where another OpenCLIP model ended."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import get_model_config, load_state_dict
from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.transformer import QuickGELU
from torch import Tensor

from encode_pipeline.latents.command import RequestError


def load_text_tower(model: open_clip.CLIP, where: str) -> None:
    """Copies the text side of `MODEL/TAG` (by OpenCLIP's list, from the hub) or `MODEL/FILE`; not its logit scale."""
    told = f"text_tower={where}"
    name, _, source = where.partition("/")
    config = get_model_config(name)
    if not source or config is None:
        raise RequestError(f"{told}: say MODEL/TAG or MODEL/FILE, with a model of open_clip.list_models()")
    pretrained: dict[str, Any] = get_pretrained_cfg(name, source)
    if not pretrained and not Path(source).is_file():
        tags = ", ".join(list_pretrained_tags_by_model(name)) or "none"
        raise RequestError(f"{told}: {source} is no file, and no tag of {name}; its tags: {tags}")
    _check_alike(model, {**config, **pretrained}, told)
    try:
        file = download_pretrained(pretrained) if pretrained else source
        state = load_state_dict(file)
    except Exception as error:  # hubs, disks and unpicklers fail in many ways
        raise RequestError(f"{told}: cannot be read: {type(error).__name__}: {' '.join(str(error).split())}") from None
    theirs, own = _text_side(state), _text_side(model.state_dict())
    if odd := [name for name in own if name not in theirs] + [name for name in theirs if name not in own]:
        raise RequestError(f"{told}: another text tower: {odd[0]} is only in one of the two")
    with torch.no_grad():
        for name, tensor in own.items():
            if tensor.shape != theirs[name].shape:
                shapes = ("x".join(map(str, one.shape)) for one in (theirs[name], tensor))
                raise RequestError(f"{told}: {name} is {' there, and '.join(shapes)} here")
        for name, tensor in own.items():
            tensor.copy_(theirs[name])


def _text_side(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The text weights by the names that they have with and without `custom_text`."""
    return {
        name.removeprefix("text."): tensor
        for name, tensor in state.items()
        if not name.startswith(("visual.", "logit_scale", "logit_bias", "attn_mask"))
    }


def _check_alike(model: open_clip.CLIP, config: Mapping[str, Any], told: str) -> None:
    """Refuses what the shapes of weights do not tell: another activation, or the same width in other heads."""
    text = getattr(model, "text", model).transformer
    ours = any(isinstance(module, QuickGELU) for module in text.modules())
    if bool(config.get("quick_gelu", False)) != ours:
        raise RequestError(f"{told}: was trained with quick_gelu={not ours}; say so in the model's architecture")
    theirs = config["text_cfg"].get("heads", 8)
    if hasattr(text, "resblocks") and text.resblocks[0].attn.num_heads != theirs:
        raise RequestError(f"{told}: has {theirs} heads there, and {text.resblocks[0].attn.num_heads} here")
