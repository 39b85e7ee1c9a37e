"""An OpenCLIP model whose vision tower reads latents instead of pixels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from open_clip.tokenizer import HFTokenizer
from torch import Tensor, nn

from encode_pipeline.latents.command import RequestError, build, nearest
from encode_pipeline.latents.spec import LatentSpec
from train.config import Architecture
from train.tokenizer import BoundedTokenizer

SIGLIP_SCALE, SIGLIP_BIAS = math.log(10), -10.0
"""Where SigLIP's logits start, by its paper."""
NO_CODE = {"trust_remote_code": False}
"""For tokenizers of transformers: what a stranger's checkpoint or folder brings is data, and never run."""


def build_model(architecture: Architecture, channels: int, grid: int, loss: str = "clip") -> open_clip.CLIP:
    """A fresh model for latents of so many channels on a square grid."""
    vision = _part(CLIPVisionCfg, architecture.vision_cfg, "vision_cfg")
    text = _part(CLIPTextCfg, architecture.text_cfg, "text_cfg")
    _check_grid(architecture, vision, grid)
    vision.image_size = grid
    scale, bias = architecture.init_logit_scale, architecture.init_logit_bias
    if loss == "siglip":
        scale, bias = SIGLIP_SCALE if scale is None else scale, SIGLIP_BIAS if bias is None else bias
    kind = CustomTextCLIP if architecture.custom_text or text.hf_model_name else open_clip.CLIP
    try:
        model = kind(
            architecture.embed_dim,
            vision,
            text,
            quick_gelu=architecture.quick_gelu,
            **({} if scale is None else {"init_logit_scale": scale}),
            init_logit_bias=bias,
            nonscalar_logit_scale=architecture.nonscalar_logit_scale,
            output_dict=True,
        )
    except (AssertionError, ArithmeticError, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        told = " ".join(str(error).split()) or type(error).__name__
        raise RequestError(f"architecture: OpenCLIP cannot build it: {told}") from None
    if vision.timm_model_name:
        _fit_timm(model.visual, vision.timm_model_name, grid)
    _replace_stem(model.visual, channels)
    if loss == "clip" and model.logit_bias is not None:
        model.logit_bias.requires_grad_(False)  # the loss has no use for it
    return model


def _part(kind: type[Any], values: Mapping[str, Any], where: str) -> Any:
    known = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - known):
        raise RequestError(f"architecture: {where}: unknown key {unknown[0]!r}{nearest(unknown[0], known)}")
    return kind(**values)


def _check_grid(architecture: Architecture, vision: CLIPVisionCfg, grid: int) -> None:
    said, patch = architecture.vision_cfg.get("image_size", grid), vision.patch_size
    if said not in (grid, [grid, grid]):
        raise RequestError(
            f"architecture: image_size {said} is not of these latents, which are {grid}x{grid}: leave it out or say "
            f"{grid}, with a patch_size that divides it: {_divisors(grid)}"
        )
    if vision.timm_model_name is None and not isinstance(vision.layers, list):
        if not isinstance(patch, int) or patch < 1 or grid % patch:
            fit = f"a latent of {grid}x{grid}; these do: {_divisors(grid)}"
            raise RequestError(f"architecture: patch_size {patch} does not divide {fit}")
    elif isinstance(vision.layers, list) and grid % 32:
        raise RequestError(f"architecture: a ResNet needs latents of a multiple of 32, not {grid}x{grid}")


def _divisors(grid: int) -> str:
    return ", ".join(str(patch) for patch in range(1, grid + 1) if grid % patch == 0)


def _fit_timm(visual: nn.Module, name: str, grid: int) -> None:
    """Gives timm's tower the grid of the latents."""
    trunk: Any = visual.trunk
    if not hasattr(trunk, "set_input_size") or not isinstance(
        getattr(getattr(trunk, "patch_embed", None), "proj", None), nn.Conv2d
    ):
        raise RequestError(f"architecture: {name} has no patch embedding that could take latents; give a ViT")
    patch = trunk.patch_embed.patch_size[0]
    if grid % patch:
        raise RequestError(
            f"architecture: {name} has patches of {patch}, which do not divide a latent of {grid}x{grid}"
        )
    trunk.set_input_size((grid, grid))


def _replace_stem(visual: nn.Module, channels: int) -> None:
    """Puts a stem for latents in the place of the one for three colours, begun as OpenCLIP begins it: torch's way."""
    name, stem = next(
        (name, module)
        for name, module in visual.named_modules()
        if isinstance(module, nn.Conv2d) and module.in_channels == 3
    )
    sizes: Any = {key: getattr(stem, key) for key in ("kernel_size", "stride", "padding", "dilation")}
    new = nn.Conv2d(channels, stem.out_channels, **sizes, bias=stem.bias is not None)
    parent, _, last = name.rpartition(".")
    setattr(visual.get_submodule(parent), last, new)


def tokenizer_for(architecture: Architecture) -> BoundedTokenizer | HFTokenizer:
    """OpenCLIP's byte-pair tokenizer at the model's context length, or the Hugging Face one that its config names."""
    text = _part(CLIPTextCfg, architecture.text_cfg, "text_cfg")
    more = text.tokenizer_kwargs or {}
    if not text.hf_tokenizer_name:
        return BoundedTokenizer(context_length=text.context_length, **more)
    try:
        return HFTokenizer(
            text.hf_tokenizer_name,
            context_length=text.context_length,
            tokenizer_mode=text.tokenizer_mode,
            **{**more, **NO_CODE},
        )
    except ImportError:
        raise RequestError(f"hf_tokenizer_name={text.hf_tokenizer_name}: needs `pip install transformers`") from None
    except (OSError, ValueError) as error:
        told = " ".join(str(error).split())
        raise RequestError(f"hf_tokenizer_name={text.hf_tokenizer_name}: {told}") from None


def restore_model(content: Mapping[str, Any], where: Path) -> tuple[open_clip.CLIP, Architecture, LatentSpec]:
    """The model in a checkpoint, with its architecture and the spec of the latents that it reads."""
    spec = LatentSpec.from_dict(content["spec"], str(where))
    architecture = build(Architecture, content["architecture"]).untrained()
    loss = "siglip" if "logit_bias" in content["state_dict"] else "clip"
    model = build_model(architecture, spec.shape[0], spec.shape[1], loss)
    load_weights(model, content["state_dict"], str(where))
    return model, architecture, spec


def load_weights(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Gives a model all of its weights; any that is missing, unexpected or of another shape is named."""
    own = model.state_dict()
    odd = [f"{name} is missing" for name in own if name not in state]
    odd += [f"{name} is unexpected" for name in state if name not in own]
    if odd:
        more = f", and {len(odd) - 4} more" if len(odd) > 4 else ""
        raise RequestError(f"{where}: missing or unexpected weights: {', '.join(odd[:4])}{more}")
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            theirs, ours = (_shape(one) for one in (state[name], tensor))
            raise RequestError(f"{where}: {name} is {theirs} there, and {ours} in the model")
    model.load_state_dict(state)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"


def parameter_counts(model: open_clip.CLIP) -> dict[str, int]:
    """Parameters of the two towers; the logit scale belongs to the text side, as in the paper's Table 6."""
    total = sum(parameter.numel() for parameter in model.parameters())
    image = sum(parameter.numel() for parameter in model.visual.parameters())
    return {"image": image, "text": total - image, "total": total}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """OpenCLIP's split: no decay for gains, biases and the logit scale; nothing for what is not trained."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_plain = parameter.ndim < 2 or any(word in name for word in ("bn", "ln", "bias", "logit_scale"))
        (plain if is_plain else decayed).append(parameter)
    return [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]
