"""Safe latent diffusion, the baseline in the paper: any Stable Diffusion 1, led away from what is unsafe.

The method is diffusers' own, of its deprecated pipelines.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encode_pipeline.latents.command import CheckFailed, RequestError
from encode_pipeline.latents.spec import digest
from encode_pipeline.records import Pixels
from encode_pipeline.vae import LoadedVae, is_local, load_vae, weights_sha256
from eval.generator import RANDOM, whole

HYPER_STRONG = {
    "sld_warmup_steps": 7,
    "sld_guidance_scale": 2000,
    "sld_threshold": 0.025,
    "sld_momentum_scale": 0.5,
    "sld_mom_beta": 0.7,
}
"""The configuration of the paper's last column; diffusers calls it STRONG."""
SMALL = 500_000_000
"""Parameters; Stable Diffusion 1 has twice as many."""
KINDS = ("StableDiffusionPipeline", "StableDiffusionPipelineSafe")


@dataclass(frozen=True)
class SafeDiffusion:
    """A Stable Diffusion 1 on its device, under safe latent diffusion."""

    pipeline: Any
    vae: LoadedVae
    identity: dict[str, Any]
    """Who it is, by content, with what is done to it."""
    not_comparable: list[str]
    """Why its pictures say nothing about the paper's; empty if they do."""

    def make(
        self, prompts: Sequence[str], noise_bchw: Tensor, seeds: Sequence[int], steps: int, guidance: float
    ) -> tuple[Tensor, Pixels]:
        """Latents in model scale and float32, and the pictures that they stand for. `seeds` are for what a scheduler
        adds between the steps, if it is of those that do."""
        unet, noise = self.pipeline.unet, noise_bchw
        latents: list[Tensor] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # that it is deprecated
            pictures = self.pipeline(
                prompt=list(prompts),
                height=noise.shape[2] * self.vae.reduction,
                width=noise.shape[3] * self.vae.reduction,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[torch.Generator(unet.device).manual_seed(seed) for seed in seeds],
                latents=noise.to(unet.device, unet.dtype),
                output_type="np",
                callback=lambda step, t, now_bchw: latents.append(now_bchw),
                **HYPER_STRONG,
            ).images
        is_whole = latents[-1].isfinite().flatten(1).all(dim=1).cpu().numpy()
        if not np.isfinite(pictures[is_whole]).all():
            raise CheckFailed(f"generator: {self.identity['generator']}: its VAE overflows; dtype=float32 does not")
        return latents[-1].float(), (np.nan_to_num(pictures) * 255).round().astype(np.uint8)


def load_safe_diffusion(name: str, device: torch.device, dtype: torch.dtype) -> SafeDiffusion:
    """A Stable Diffusion 1 by hub id or directory, every weight accounted for. A directory needs no network."""
    import diffusers
    from diffusers.utils import logging as diffusers_logging
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()  # of every long prompt it would print what it cuts off
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    local = is_local(name)
    where = str(Path(name).expanduser().absolute()) if local else name
    told = f"generator: {name}"
    if local and not (Path(where) / "model_index.json").is_file():
        raise RequestError(f"{told}: no diffusers pipeline here (no model_index.json)")
    try:
        index = dict(diffusers.StableDiffusionPipeline.load_config(where, local_files_only=local))
        if (kind := str(index.get("_class_name"))) not in KINDS:
            raise RequestError(f"{told}: is a {kind}; safe latent diffusion is for Stable Diffusion 1 ({KINDS[0]})")
        options = {"local_files_only": local, "use_safetensors": True, "output_loading_info": True}
        unet, text_encoder = (
            whole(f"{told}: {folder}", *cls.from_pretrained(where, subfolder=folder, **options))
            for folder, cls in {"unet": diffusers.UNet2DConditionModel, "text_encoder": CLIPTextModel}.items()
        )
        tokenizer = CLIPTokenizer.from_pretrained(where, subfolder="tokenizer", local_files_only=local)
        scheduler = _scheduler(diffusers, where, local)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        raise RequestError(f"{told}: {' '.join(str(error).split())}") from None
    vae = load_vae(where)
    _check_parts(told, unet, text_encoder, tokenizer, scheduler, vae)
    models = {"unet": unet, "text_encoder": text_encoder}
    parameters = sum(weights.numel() for model in models.values() for weights in model.parameters())
    reasons = ["the generator has random weights"] if index.get(RANDOM) else []
    if parameters < SMALL:
        reasons.append(f"the generator is a small one of {parameters / 1e6:.1f} million parameters")
    facts = {key: value for key, value in dict(unet.config).items() if not key.startswith("_")}
    identity = {
        "generator": Path(where).name if local else name,
        "weights_sha256": digest({folder: weights_sha256(model) for folder, model in models.items()}),
        "config_sha256": digest(json.loads(json.dumps(facts))),
        "parameters": parameters,
        "scheduler": json.loads(json.dumps(dict(scheduler.config))),
        "vae_sha256": vae.identity.weights_sha256,
        "not_comparable": reasons,
    }
    pipeline = diffusers.StableDiffusionPipelineSafe(
        vae=vae.model,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,  # it would blacken pictures, which are to be judged
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return SafeDiffusion(pipeline.to(device, dtype), vae, identity, reasons)


def _scheduler(diffusers: Any, where: str, local: bool) -> Any:
    """The one that the pipeline names, whichever of diffusers' it is."""
    config = diffusers.DDIMScheduler.load_config(where, subfolder="scheduler", local_files_only=local)
    name = str(dict(config).get("_class_name"))
    if not name.endswith("Scheduler") or not hasattr(diffusers, name):
        raise ValueError(f"scheduler: {name} is none of diffusers'")
    return getattr(diffusers, name).from_config(config)


def _check_parts(told: str, unet: Any, text_encoder: Any, tokenizer: Any, scheduler: Any, vae: LoadedVae) -> None:
    """Refuses what is no Stable Diffusion 1, though the pipeline is called so."""
    if unet.config.in_channels != vae.channels:
        raise RequestError(f"{told}: a UNet of {unet.config.in_channels} channels, a VAE of {vae.channels}")
    if unet.config.cross_attention_dim != text_encoder.config.hidden_size:
        width = text_encoder.config.hidden_size
        raise RequestError(f"{told}: a UNet for texts of width {unet.config.cross_attention_dim}, its own have {width}")
    if len(tokenizer) != text_encoder.config.vocab_size:
        words = f"{len(tokenizer)} tokens, its text encoder {text_encoder.config.vocab_size}"
        raise RequestError(f"{told}: a tokenizer has {words}")
    if (predicts := scheduler.config.prediction_type) != "epsilon":
        raise RequestError(f"{told}: predicts {predicts}; safe latent diffusion weighs noise (epsilon)")
