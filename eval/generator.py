"""An SDXL-family pipeline as a thing that tells the noise in latents under a prompt; and a tiny one to try things with.

Of eval/ only this file and safe_diffusion.py import diffusers. Nothing here samples, and nothing stops gradients: see
denoise.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.spec import digest
from encode_pipeline.vae import LoadedVae, is_local, load_vae
from eval import tiny_generator as tiny
from eval.denoise import Schedule

PIXELS_A_CELL = 8
"""Along a side, of every SDXL VAE."""
SMALL = 100_000_000
"""Parameters below which a generator is no SDXL."""
RANDOM = "_random_weights"
"""The mark in the model_index.json of a pipeline that has learned nothing."""
TEXT_FACTS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps", "eos_token_id")
"""Of a text encoder's configuration: what its weights do not show."""


@dataclass(frozen=True)
class Prompts:
    """What a UNet is told of some prompts: a sequence of states for each, and one state of it all."""

    hidden_btd: Tensor
    pooled_bd: Tensor

    def repeated(self, count: int) -> Prompts:
        """One prompt for a whole batch."""
        return Prompts(self.hidden_btd.expand(count, -1, -1), self.pooled_bd.expand(count, -1))


@dataclass(frozen=True)
class Generator:
    """A UNet and its two text encoders on their device. Latents are those of its own scale, not raw ones."""

    name: str
    address: str
    """Where it is loaded from."""
    weights_sha256: str
    config_sha256: str
    parameters: int
    not_comparable: list[str]
    """Why numbers made with it say nothing about the paper's; empty if they do."""
    schedule: Schedule
    unet: Any
    text_encoders: tuple[Any, Any]
    tokenizers: tuple[Any, Any]

    @property
    def device(self) -> torch.device:
        return torch.device(self.unet.device)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.unet.dtype
        return dtype

    @property
    def channels(self) -> int:
        """Of the latents that it makes."""
        return int(self.unet.config.in_channels)

    def identity(self) -> dict[str, Any]:
        """Who it is, by content, for a record of what was made with it."""
        return {
            "generator": self.name,
            "weights_sha256": self.weights_sha256,
            "config_sha256": self.config_sha256,
            "parameters": self.parameters,
            "scheduler": dict(self.schedule.facts),
            "not_comparable": self.not_comparable,
        }

    def embed_prompts(self, prompts: Sequence[str]) -> Prompts:
        """What both text encoders make of some prompts, which are cut where a tokenizer's length ends."""
        hidden, pooled = [], None
        for tokenizer, encoder in zip(self.tokenizers, self.text_encoders, strict=True):
            length = tokenizer.model_max_length
            tokens = tokenizer(
                list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            )
            made = encoder(tokens.input_ids.to(self.device), output_hidden_states=True)
            hidden.append(made.hidden_states[-2])  # the last layer is not what SDXL was trained on
            pooled = made[0]
        assert pooled is not None
        return Prompts(torch.cat(hidden, dim=-1), pooled)

    def eps(self, x_bchw: Tensor, t: float | Tensor, prompts: Prompts) -> Tensor:
        """The noise that the UNet sees in what it reads (latents over √(σ²+1)), in float32."""
        batch, _, height, width = x_bchw.shape
        size = [PIXELS_A_CELL * height, PIXELS_A_CELL * width]
        conditions = {
            "text_embeds": prompts.pooled_bd,
            "time_ids": torch.tensor([[*size, 0, 0, *size]], device=self.device, dtype=self.dtype).expand(batch, -1),
        }
        seen: Tensor = self.unet(
            x_bchw.to(self.device, self.dtype),
            torch.as_tensor(t, device=self.device, dtype=torch.float32),
            encoder_hidden_states=prompts.hidden_btd,
            added_cond_kwargs=conditions,
            return_dict=False,
        )[0]
        return seen.float()

    def load_vae(self) -> LoadedVae:
        """The VAE that comes with it."""
        return load_vae(self.address)


def load_generator(name: str, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> Generator:
    """A generator by hub id or directory, every weight accounted for. A directory needs no network."""
    from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from diffusers.utils import logging as diffusers_logging
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    classes: dict[str, Any] = {
        "unet": UNet2DConditionModel,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
    }
    local = is_local(name)
    where = str(Path(name).expanduser().absolute()) if local else name
    if local and not (Path(where) / "model_index.json").is_file():
        raise RequestError(f"generator: {name}: no diffusers pipeline here (no model_index.json)")
    parts = (*classes, "tokenizer", "tokenizer_2", "scheduler")
    if local and (missing := [part for part in parts if not (Path(where) / part).is_dir()]):
        raise RequestError(f"generator: {name}: no {missing[0]} in this pipeline")
    try:
        index = StableDiffusionXLPipeline.load_config(where, local_files_only=local)
        kind = str(dict(index).get("_class_name"))
        if "StableDiffusionXL" not in kind:
            raise RequestError(f"generator: {name}: is a {kind}; a StableDiffusionXLPipeline is wanted")
        options = {"use_safetensors": True, "output_loading_info": True, "local_files_only": local}
        models = {
            folder: whole(f"generator: {name}: {folder}", *cls.from_pretrained(where, subfolder=folder, **options))
            for folder, cls in classes.items()
        }
        tokenizers = [
            CLIPTokenizer.from_pretrained(where, subfolder=folder, local_files_only=local)
            for folder in ("tokenizer", "tokenizer_2")
        ]
        scheduler = EulerAncestralDiscreteScheduler.load_config(where, subfolder="scheduler", local_files_only=local)
        schedule = Schedule.from_config(dict(scheduler), f"generator: {name}: scheduler")
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise RequestError(f"generator: {name}: {' '.join(str(error).split())}") from None
    unet, *text_encoders = models.values()
    _check_parts(f"generator: {name}", unet, text_encoders, tokenizers)
    parameters = sum(weights.numel() for model in models.values() for weights in model.parameters())
    reasons = ["the generator has random weights"] if index.get(RANDOM) else []
    if parameters < SMALL:
        reasons.append(f"the generator is a small one of {parameters / 1e6:.1f} million parameters")
    weights_sha256 = _hash_of(models)
    for model in models.values():
        model.requires_grad_(False).eval().to(device=device or torch.device("cpu"), dtype=dtype)
    facts = [{key: value for key, value in dict(unet.config).items() if not key.startswith("_")}]
    facts += [{key: getattr(encoder.config, key) for key in TEXT_FACTS} for encoder in text_encoders]
    return Generator(
        name=Path(where).name if local else name,
        address=where,
        weights_sha256=weights_sha256,
        config_sha256=digest(json.loads(json.dumps(facts))),
        parameters=parameters,
        not_comparable=reasons,
        schedule=schedule,
        unet=unet,
        text_encoders=(text_encoders[0], text_encoders[1]),
        tokenizers=(tokenizers[0], tokenizers[1]),
    )


def whole(where: str, model: Any, info: dict[str, Any]) -> Any:
    """The model, if every weight of it was in its file, and nothing else."""
    # Old files hold the numbers of positions, which are no weights.
    wrong = {key: [name for name in names if "position_ids" not in str(name)] for key, names in info.items() if names}
    if wrong := {key: names for key, names in wrong.items() if names}:
        said = "; ".join(f"{key} {', '.join(sorted(map(str, names))[:3])}" for key, names in wrong.items())
        raise RequestError(f"{where}: weights do not fit the config: {said}")
    return model


def _check_parts(where: str, unet: Any, text_encoders: Sequence[Any], tokenizers: Sequence[Any]) -> None:
    """Refuses parts that do not belong together; most of these mistakes would make pictures all the same."""
    for tokenizer, encoder in zip(tokenizers, text_encoders, strict=True):
        if len(tokenizer) != encoder.config.vocab_size:
            words = f"{len(tokenizer)} tokens, its text encoder {encoder.config.vocab_size}"
            raise RequestError(f"{where}: a tokenizer has {words}")
    if unet.config.addition_embed_type != "text_time":
        raise RequestError(f"{where}: the UNet takes {unet.config.addition_embed_type}, not SDXL's text and sizes")
    wanted = 6 * unet.config.addition_time_embed_dim + text_encoders[1].config.projection_dim
    if unet.add_embedding.linear_1.in_features != wanted:
        raise RequestError(f"{where}: the UNet wants other conditions than a text and six numbers (a refiner?)")
    if unet.config.time_cond_proj_dim is not None:
        raise RequestError(f"{where}: the UNet wants to be told the guidance (a consistency model?)")


def _hash_of(models: dict[str, Any]) -> str:
    """All weights, whatever files they were in."""
    hasher = hashlib.sha256()
    for folder, model in models.items():
        for key, tensor in sorted(model.state_dict().items()):
            hasher.update(f"{folder} {key} {tuple(tensor.shape)}\n".encode())
            hasher.update(tensor.detach().float().contiguous().numpy().tobytes())
    return hasher.hexdigest()


def build_tiny_pipeline(folder: Path, seed: int = 0, vae_folder: Path | None = None) -> None:
    """A tiny SDXL pipeline with random weights, from configurations alone; its VAE may be one that is there."""
    from diffusers import (
        AutoencoderKL,
        EulerAncestralDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    if folder.exists():
        raise RequestError(f"{folder}: is there already")
    torch.manual_seed(seed)
    text = CLIPTextConfig(**tiny.TEXT_ENCODER)
    pipeline = StableDiffusionXLPipeline(
        vae=load_vae(str(vae_folder)).model if vae_folder else AutoencoderKL(**tiny.VAE),
        text_encoder=CLIPTextModel(text),
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=tiny.clip_tokenizer("<|endoftext|>"),
        tokenizer_2=tiny.clip_tokenizer("!"),
        unet=UNet2DConditionModel(**tiny.UNET),
        scheduler=EulerAncestralDiscreteScheduler(**tiny.SCHEDULER),
    )
    pipeline.save_pretrained(folder)
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), RANDOM: True}, indent=2) + "\n")
