"""Steering in miniature: a generator of the demo's world led by the shipped latent tower, before anything is decoded.

OUT/world/ OUT/store/     pictures for the generator to learn, and their latents
OUT/generator/            a tiny SDXL pipeline that draws the world in one step
OUT/pixel-tower/          an untrained CLIP of pixels as large as the latent tower: its time is a trained one's
OUT/prompts.txt           what is asked for; OUT/red.txt the same for things to be led away from red
OUT/runs/                 the generator's own pictures, and steered ones
OUT/timing/               a latent reward against one of pixels, in one run
OUT/report/               all of it on a page
OUT/steps.json            what each step was asked, how long it took and what it returned
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from demo.run import SHIPPED, VAE, StepLog
from encode_pipeline.latents.command import Settings

WORDINGS = ("a photo of a {c}", "a picture of a {c}", "an image of a {c}", "this is a {c}", "a drawing of a {c}")
RED = "a photo of a red circle, a red square, a red triangle, a red star"
"""What the third run is led away from."""
PIXEL_TOWER = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 256, "patch_size": 32, "width": 192, "layers": 4, "head_width": 32},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}


class SteerConfig(Settings):
    """How large the demonstration is, and where it goes."""

    out: Path = Field(Path("runs/steer-demo"), description="folder of the demonstration")
    generator: Path | None = Field(None, description="a pipeline that draws the world; by default one is trained")
    pictures: int = Field(1200, gt=0, description="pictures that the generator learns from")
    generator_steps: int = Field(2500, gt=0)
    prompts: int = Field(20, gt=0)
    steps: int = Field(1, ge=1, le=4, description="denoising steps of a picture")
    iterations: int = Field(50, gt=1)
    batch_size: int = Field(4, gt=0)
    seed: int = Field(0, ge=0)


def steer_demo(config: SteerConfig) -> dict[str, Any]:
    """Runs whatever of the demonstration has not been run yet."""
    steps = StepLog(config, config.out)
    generator = config.generator or _trained(config, steps)
    pixel_tower = config.out / "pixel-tower"
    steps.do(
        "pixel-tower", f"an untrained CLIP of pixels in {pixel_tower}", lambda: make_pixel_tower(config, pixel_tower)
    )
    asked, red = config.out / "prompts.txt", config.out / "red.txt"
    steps.do("prompts", f"{config.prompts} prompts in {asked} and {red}", lambda: _prompts(config, asked, red))
    words = [f"generator={generator}", f"steps={config.steps}", f"batch_size={config.batch_size}"]
    words += [f"seed={config.seed}"]
    runs = {
        "plain": [f"prompts={asked}"],
        "clip": [f"prompts={asked}", f"reward=clip:{SHIPPED}", f"iterations={config.iterations}"],
        "red": [f"prompts={red}"],
        "not-red": [f"prompts={red}", f"reward=avoid:{SHIPPED}", f"concepts={RED}", f"iterations={config.iterations}"],
    }
    folders = {name: config.out / "runs" / name for name in runs}
    for name, more in runs.items():
        steps.command(name, "eval", ["reno", *more, *words, f"out={folders[name]}"])
    timing = config.out / "timing"
    rewards = f"reward=[clip:{SHIPPED}, clip:{pixel_tower}]"
    steps.command(
        "timing", "eval", ["timing", f"prompts={asked}", rewards, "iterations=20", "repeats=3", *words, f"out={timing}"]
    )
    shown = [str(folder) for folder in folders.values()]
    steps.command("report", "eval", ["report", *shown, str(timing), f"out={config.out / 'report'}"])
    return dict(steps.steps["report"]["result"])


def _trained(config: SteerConfig, steps: StepLog) -> Path:
    """A generator of the world, which takes most of the time."""
    world, store, generator = (config.out / name for name in ("world", "store", "generator"))
    steps.do("world", f"world {config.pictures}", lambda: _world(config, world))
    encode = [f"vae={VAE}", f"seed={config.seed}", "batch_size=8", "threads=1", "engine=local", "views=1"]
    steps.command("encode", "encode_pipeline", ["run", f"source={world / 'train'}", f"store={store}", *encode])
    for verb in ("seal", "verify", "promote"):
        steps.command(verb, "encode_pipeline", [verb, str(store)])
    steps.do("generator", f"a generator of {config.generator_steps} steps", lambda: _train(config, store, generator))
    return generator


def _world(config: SteerConfig, out: Path) -> dict[str, Any]:
    from demo.world import WorldSpec, write_world

    spec = WorldSpec(
        seed=config.seed, train_pictures=config.pictures, test_pictures=0, pictures_per_tar=60, two_object_share=0.0
    )
    summary = write_world(out, spec)
    return {"pictures": summary.pictures, "tars": len(summary.tars)}


def _train(config: SteerConfig, data: Path, out: Path) -> dict[str, Any]:
    from demo.train_generator import GeneratorConfig, train_generator

    asked = {"data": str(data), "out": out, "steps": config.generator_steps, "seed": config.seed}
    return train_generator(GeneratorConfig(**asked, one_step=True))


def _prompts(config: SteerConfig, asked: Path, red: Path) -> dict[str, Any]:
    """As many classes as prompts, drawn by chance; and as many wordings of red things."""
    from demo.world import CLASS_NAMES

    order = np.random.default_rng(config.seed).permutation(len(CLASS_NAMES))
    names = [CLASS_NAMES[number] for number in order]
    reds = [name for name in CLASS_NAMES if name.startswith("red ")]
    for path, chosen in ((asked, names), (red, reds)):
        lines = [wording.format(c=name) for wording in WORDINGS for name in chosen][: config.prompts]
        path.write_text("".join(f"{line}\n" for line in lines))
    return {"prompts": config.prompts}


def make_pixel_tower(config: SteerConfig, out: Path) -> dict[str, Any]:
    """A folder as OpenCLIP reads them."""
    import torch
    from open_clip import CLIP
    from safetensors.torch import save_file

    from train.export import folder_made_whole

    torch.manual_seed(config.seed)
    with folder_made_whole(out) as folder:
        model = CLIP(**PIXEL_TOWER)
        save_file(
            {key: value.contiguous() for key, value in model.state_dict().items()},
            folder / "open_clip_model.safetensors",
        )
        preparation = {"size": [256, 256], "mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "shortest"}
        (folder / "open_clip_config.json").write_text(
            json.dumps({"model_cfg": PIXEL_TOWER, "preprocess_cfg": preparation})
        )
    return {"parameters": sum(parameter.numel() for parameter in model.parameters())}
