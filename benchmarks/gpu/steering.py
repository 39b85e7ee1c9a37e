"""Noise steered by a reward of latents, against one of decoded pixels: a generator of SDXL's size in one step.

The generator is built in memory, its text encoders are left away, and random states stand for what they would say.
Prompts are embedded once a run, so this changes no time that counts.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.notes import Clock, Notes
from benchmarks.gpu.ways import Way, Work, opened, rate_figures, rates_of
from encode_pipeline.latents.spec import LatentSpec, VaeIdentity
from encode_pipeline.vae import LoadedVae
from eval import tiny_generator
from eval.clip import LatentClip, Loaded, PixelClip
from eval.denoise import Schedule
from eval.generator import Generator, Prompts
from eval.rewards import LatentClipReward, Objective, PixelClipReward
from eval.steering.sampler import Sampler
from eval.steering.timed import PICTURE
from eval.steering.timed import Bench as Timed
from train.config import architecture_of
from train.model import build_model, parameter_counts, tokenizer_for

PIXELS, LATENTS = "reward of pixels", "reward of latents"
WORDS = 77
"""In what a text encoder says of a prompt."""
PROMPT = "a photo of a red circle on a blue square"
UNETS: dict[str, dict[str, Any]] = {
    "sdxl": {
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "tiny": tiny_generator.UNET,
}
"""Of SDXL and SDXL-Turbo: 2,567,463,684 parameters."""


@dataclass(frozen=True)
class WordlessGenerator(Generator):
    """A UNet that is told random states, the same for every prompt."""

    vae: LoadedVae

    def embed_prompts(self, prompts: Any) -> Prompts:
        config = self.unet.config
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        told = partial(torch.randn, device=self.device, dtype=self.dtype)
        return Prompts(told(len(prompts), WORDS, config.cross_attention_dim), told(len(prompts), pooled))

    def load_vae(self) -> LoadedVae:
        return self.vae


def measure_steering(bench: Bench, notes: Notes, clock: Clock) -> None:
    """Iterations of a picture a second, the last picture's own decoding left away, with each reward."""
    config, device = bench.config, bench.device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    sampler = Sampler(open_generator(bench, dtype))
    rewards = {PIXELS: pixel_reward(config.pixel_reward), LATENTS: latent_reward(bench)}
    details: dict[str, Any] = {
        "unet_parameters": sampler.generator.parameters,
        "dtype": str(dtype).removeprefix("torch."),
        "rewards": {PIXELS: config.pixel_reward, LATENTS: config.latent_reward},
        "iterations": config.iterations,
        "seconds_by_part": {},
    }
    notes.details["reno"] = details
    for number, count in enumerate(config.steered):
        part = f"reno, batch {count}"
        if number and not clock.has(10, part, notes):
            continue
        torch.manual_seed(0)
        noise = torch.randn(count, *sampler.shape(config.image_size), device=device)
        timed = Timed(sampler, [PROMPT] * count, [noise])
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in rewards}
        ways: list[Way] = []
        for name, reward in rewards.items():
            work = partial(_turn, timed, Objective((reward,), dtype), config.iterations, runs[name])
            ways += opened(part, name, partial(_as_it_is, work), notes, device)
            runs[name].clear()
        rates = rates_of(part, ways, config.rounds, notes, clock, device)
        for name in rates:  # of the device's own stopwatch, without the decoding of the last picture
            rates[name] = tuple(count * config.iterations / (sum(run.values()) - run[PICTURE]) for run in runs[name])
        notes.add(part, rate_figures(ways, rates, "iterations a second"))
        details["seconds_by_part"][part] = {name: runs[name][-1] for name in rates}


def _as_it_is(work: Work) -> Work:
    return work


def _turn(timed: Timed, objective: Objective, iterations: int, runs: list[dict[str, float]]) -> float:
    """One run, whose seconds by part are kept."""
    runs.append(timed.run(objective, iterations))
    return iterations


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Within, new weights are of this type, so that they are never there in a wider one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def open_generator(bench: Bench, dtype: torch.dtype) -> WordlessGenerator:
    """A UNet with random weights, made where it will be used."""
    from diffusers import UNet2DConditionModel

    with torch.device(bench.device), default_dtype(dtype):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(**UNETS[bench.config.unet])
    unet.requires_grad_(False).eval()
    name = f"random weights, UNet of {bench.config.unet}"
    nothing = hashlib.sha256().hexdigest()
    return WordlessGenerator(
        name=name,
        address=name,
        weights_sha256=nothing,
        config_sha256=nothing,
        parameters=sum(weights.numel() for weights in unet.parameters()),
        not_comparable=["the generator has random weights"],
        schedule=Schedule.from_config(tiny_generator.SCHEDULER, name),
        unet=unet,
        text_encoders=(None, None),
        tokenizers=(None, None),
        vae=replace(bench.vae, model=copy.deepcopy(bench.vae.model)),  # the sampler moves it to the device
    )


def latent_reward(bench: Bench) -> LatentClipReward:
    """A Latent-CLIP that has learned nothing. Its spec keeps silent on the VAE: such latents have no usual width."""
    architecture, shape = architecture_of(bench.config.latent_reward), bench.vae.latent_shape(bench.config.image_size)
    identity = VaeIdentity(name="random", weights_sha256="0" * 64, config={}, scaling_factor=0.13025)
    spec = LatentSpec(vae=identity, shape=shape, image_size=bench.config.image_size, views=1, recipe={}, seed=0)
    model = build_model(architecture, shape[0], shape[1])
    loaded = _loaded(bench.config.latent_reward, model, tokenizer_for(architecture), {})
    return LatentClipReward(LatentClip(loaded, spec))


def pixel_reward(name: str) -> PixelClipReward:
    """A CLIP of OpenCLIP's that has learned nothing."""
    model = open_clip.create_model(name, load_weights=False)
    preparation = PreprocessCfg(**model.visual.preprocess_cfg)
    loaded = _loaded(name, model, open_clip.get_tokenizer(name), {"preprocessing": vars(preparation)})
    return PixelClipReward(PixelClip(loaded, image_transform_v2(preparation, is_train=False)))


def _loaded(name: str, model: Any, tokenizer: Any, more: dict[str, Any]) -> Loaded:
    about = {"kind": "open_clip", **more}
    return Loaded(name, name, model, tokenizer, parameter_counts(model)["image"], about, ["random weights"])
